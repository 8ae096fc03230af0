"""Identification and verification among many distractors, as MegaFace has them. On arrays alone.

Identification: for every ordered pair of two probes of one person, one is searched for, the other
stands in the gallery among all distractors; the rank is the number of distractors that score
strictly higher than it (`ties="against"`: or as high). Rank 1 means: none does.

Verification: every unordered pair of two probes of one person is a positive. Negatives are, for
`all`, every probe with every distractor, and for `devkit` the first 100 probes of the list with
every distractor, which is what the devkit's tool (`FuseResults`) really counts.

Open set: FNIR at a FPIR, from the same scores (`figures.open_set`).

All scores are exact to float64 (`exact_scores`). A probe whose person has no other photo is in no
pair; it counts among the negatives and the searches for people who are not in the gallery. A rank
beyond the gallery's size is always reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from Utils.errors import DataError
from Utils.Evaluation_Utils.exact_scores import SCORE_DTYPES
from Utils.Evaluation_Utils.figures import (
    OpenSetPoint,
    Verification,
    allowed,
    cmc,
    open_set,
    rank_rate,
    verification,
)
from Utils.Evaluation_Utils.mates import TIES, Mates
from Utils.Evaluation_Utils.scoring import Outcome, ScoringSettings, score_trials
from Utils.Evaluation_Utils.trials import Plan, Trial
from Utils.processes import ALONE, Processes

__all__ = ["IdentificationResult", "ScoringSettings", "Trial", "evaluate", "evaluate_trials"]

RANKS = (1, 10, 100)
FPRS = (1e-4, 1e-5, 1e-6)
FPIRS = (1e-2, 1e-3)

SETTINGS = ScoringSettings()

_EXACT_CURVE = 100_000  # scores at the top of the ROC curve that are kept exactly in any case


@dataclass(frozen=True)
class Confusion:
    """A search in which a distractor beat the mate. probe, mate: rows of the probe table;
    distractor: row of the distractor table; beats: how many distractors beat the mate."""

    probe: int
    mate: int
    distractor: int
    mate_score: float
    distractor_score: float
    beats: int


@dataclass(frozen=True, eq=False)
class IdentificationResult:
    """What a set of distractors makes of the probes. Rates are 0..1.

    probes, identities, distractors: how many. searches: ordered same-person pairs. alone: probes
    that are in no pair. rank_rates: rank -> share of the searches that succeed at it.
    cmc: (ranks, rates), up to the last rank. verification: "all" and "devkit".
    devkit_probes: how many probes the devkit's negatives come from, 100 if there are as many.
    confusions: one for each probe that a distractor beat, the clearest first.
    beats: sorted int64, for each search how many distractors beat the mate.
    """

    probes: int
    identities: int
    alone: int
    distractors: int
    searches: int
    devkit_probes: int
    rank_rates: dict[int, float]
    cmc: tuple[np.ndarray, np.ndarray] = field(repr=False)
    verification: Mapping[str, Verification] = field(repr=False)
    open_set: tuple[OpenSetPoint, ...]
    confusions: list[Confusion] = field(repr=False)
    beats: np.ndarray = field(repr=False)

    @property
    def rank1(self) -> float:
        """The share of searches in which no distractor beats the mate."""
        return rank_rate(self.beats, 1)


def evaluate(
    probes: np.ndarray,
    probe_ids: Sequence[object],
    distractors: np.ndarray,
    ranks: Sequence[int] = RANKS,
    fprs: Sequence[float] = FPRS,
    fpirs: Sequence[float] = FPIRS,
    device: torch.device | str = "cpu",
    ties: str = "mate",
    score_dtype: str = "fp32",
    block_size: int = 0,
    progress: str | None = None,
    processes: Processes = ALONE,
) -> IdentificationResult:
    """Judge P probes among N distractors.

    probes: P×D and distractors: N×D of any float types, not necessarily normalised, arrays or
    memory maps. probe_ids: P identities. ranks: whole numbers from 1. fprs, fpirs: rates, 0..1.
    device, ties, score_dtype, block_size, progress, processes: see `scoring.ScoringSettings`.

    Raises DataError for shapes that do not fit, features that are not finite, no distractors, or no
    identity with two probes; ValueError for ranks, rates or settings that are none.
    """
    settings = ScoringSettings(
        torch.device(device), ties, score_dtype, block_size, progress, processes
    )
    trial = Trial(np.arange(len(probes)), np.arange(len(distractors)))
    return evaluate_trials(probes, probe_ids, distractors, [trial], ranks, fprs, fpirs, settings)[0]


def evaluate_trials(
    probes: np.ndarray,
    probe_ids: Sequence[object],
    distractors: np.ndarray,
    trials: Sequence[Trial],
    ranks: Sequence[int] = RANKS,
    fprs: Sequence[float] = FPRS,
    fpirs: Sequence[float] = FPIRS,
    settings: ScoringSettings = SETTINGS,
) -> list[IdentificationResult]:
    """Judge several choices of probes and distractors in one pass; otherwise as `evaluate`."""
    probes, ids = np.asarray(probes), np.asarray(probe_ids)
    _check_arrays(probes, ids, distractors, trials)
    _check_requests(ranks, fprs, fpirs, settings)
    highest = max(fprs, default=0.0)
    all_counts = [len(t.probes) * t.gallery for t in trials]
    devkit_counts = [len(t.devkit_probes) * t.gallery for t in trials]
    plan = Plan(
        list(trials),
        len(probes),
        len(distractors),
        *([_kept(count, highest) for count in counts] for counts in (all_counts, devkit_counts)),
    )
    mates, outcomes = score_trials(probes, ids, distractors, plan, settings)
    return [
        _result(ids, trial, mates, outcome, ranks, fprs, fpirs)
        for trial, outcome in zip(trials, outcomes, strict=True)
    ]


def _kept(count: int, highest_fpr: float) -> int:
    return min(count, max(allowed(highest_fpr, count) + 1, _EXACT_CURVE))


def _result(
    ids: np.ndarray,
    trial: Trial,
    mates: Mates,
    outcome: Outcome,
    ranks: Sequence[int],
    fprs: Sequence[float],
    fpirs: Sequence[float],
) -> IdentificationResult:
    chosen = np.zeros(len(ids), bool)
    chosen[trial.probes] = True
    pairs = mates.real & chosen[:, None] & chosen[mates.mate]  # P×M
    if not pairs.any():
        raise DataError(
            "no identity has two probes, so there is no mate to look for; check the identities in "
            "the probe list."
        )
    scores, beats = mates.score[pairs], outcome.beats[pairs]
    rows = np.broadcast_to(np.arange(len(ids))[:, None], pairs.shape)[pairs]
    positives = np.sort(scores[rows < mates.mate[pairs]])
    ordered = np.sort(beats)
    return IdentificationResult(
        probes=len(trial.probes),
        identities=len(np.unique(ids[trial.probes])),
        alone=int(np.sum(~pairs[trial.probes].any(axis=1))),
        distractors=trial.gallery,
        searches=len(scores),
        devkit_probes=len(trial.devkit_probes),
        rank_rates={int(rank): rank_rate(ordered, rank) for rank in ranks},
        cmc=cmc(ordered, trial.gallery),
        verification={
            "all": verification(outcome.all, positives, fprs),
            "devkit": verification(outcome.devkit, positives, fprs),
        },
        open_set=tuple(
            open_set(outcome.best[trial.probes], scores, beats == 0, fpir) for fpir in fpirs
        ),
        confusions=_confusions(mates, outcome, pairs),
        beats=ordered,
    )


def _confusions(mates: Mates, outcome: Outcome, pairs: np.ndarray) -> list[Confusion]:
    beaten = pairs & (outcome.beats > 0)
    found = []
    for probe in np.flatnonzero(beaten.any(axis=1)):
        # The mate nearest to the probe that was beaten: of the others little was to be expected.
        place = int(np.flatnonzero(beaten[probe])[-1])
        found.append(
            Confusion(
                probe=int(probe),
                mate=int(mates.mate[probe, place]),
                distractor=int(outcome.best_distractor[probe]),
                mate_score=float(mates.score[probe, place]),
                distractor_score=float(outcome.best[probe]),
                beats=int(outcome.beats[probe, place]),
            )
        )
    return sorted(found, key=lambda c: (c.mate_score - c.distractor_score, c.probe))


def _check_arrays(
    probes: np.ndarray, ids: np.ndarray, distractors: np.ndarray, trials: Sequence[Trial]
) -> None:
    for name, table in (("probes", probes), ("distractors", distractors)):
        if table.ndim != 2 or 0 in table.shape:
            raise DataError(f"{name} have shape {table.shape}; expected a row of features each.")
        if table.dtype.kind != "f":
            raise DataError(f"{name} are {table.dtype}; expected floating-point features.")
    if probes.shape[1] != distractors.shape[1]:
        raise DataError(
            f"probes have {probes.shape[1]} features each and distractors "
            f"{distractors.shape[1]}; extract both with the same network."
        )
    if ids.shape != (len(probes),):
        raise DataError(f"{len(ids)} identities for {len(probes)} probes; expected one for each.")
    for trial in trials:
        if not len(trial.probes) or not len(trial.distractors):
            raise DataError(
                f"a set of {len(trial.probes)} probes and {len(trial.distractors)} distractors; "
                f"there must be some of both."
            )


def _check_requests(
    ranks: Sequence[int],
    fprs: Sequence[float],
    fpirs: Sequence[float],
    settings: ScoringSettings,
) -> None:
    if any(rank < 1 or rank != int(rank) for rank in ranks):
        raise ValueError(f"ranks are {list(ranks)}; expected whole numbers from 1 on")
    for name, rates in (("fprs", fprs), ("fpirs", fpirs)):
        if any(not 0 <= rate <= 1 for rate in rates):
            raise ValueError(f"{name} are {list(rates)}; expected rates from 0 to 1")
    if settings.ties not in TIES:
        raise ValueError(f"ties is {settings.ties!r}; expected one of {', '.join(TIES)}")
    if settings.score_dtype not in SCORE_DTYPES:
        raise ValueError(
            f"score_dtype is {settings.score_dtype!r}; expected one of {', '.join(SCORE_DTYPES)}"
        )
    if settings.block_size < 0:
        raise ValueError(f"block_size is {settings.block_size}; expected 0 (automatic) or more")
