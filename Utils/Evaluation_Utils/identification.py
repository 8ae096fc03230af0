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
from functools import partial

import numpy as np
import torch

from Utils.Evaluation_Utils.figures import (
    OpenSetPoint,
    Verification,
    allowed,
    cmc,
    is_kept,
    open_set,
    operating_point,
    rank_rate,
    verification,
)
from Utils.Evaluation_Utils.identification_checks import (
    check_arrays,
    check_pairs,
    check_requests,
)
from Utils.Evaluation_Utils.mates import Mates
from Utils.Evaluation_Utils.roc import OperatingPoint
from Utils.Evaluation_Utils.scoring import Outcome, ScoringSettings, score_trials
from Utils.Evaluation_Utils.trials import Plan, Trial
from Utils.Evaluation_Utils.wide_rates import WideRate, wide_points
from Utils.processes import ALONE, Processes

__all__ = ["IdentificationResult", "ScoringSettings", "Trial", "evaluate", "evaluate_trials"]

RANKS = (1, 10, 100)
FPRS = (1e-4, 1e-5, 1e-6)
FPIRS = (1e-2, 1e-3)

SETTINGS = ScoringSettings()

_EXACT_CURVE = 100_000  # scores at the top of the ROC curve that are kept exactly in any case
# In all lists together, at about 160 bytes; FPRs that more negatives reach take further passes.
_MOST_KEPT = 4_000_000


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
    check_arrays(probes, ids, distractors, trials)
    check_pairs(ids, trials)
    check_requests(ranks, fprs, fpirs, settings)
    plan = Plan(list(trials), len(probes), len(distractors), partial(_kept, fprs))
    mates, outcomes = score_trials(probes, ids, distractors, plan, settings)
    searches = [_Searches(ids, trial, mates) for trial in trials]
    points = _points(probes, distractors, plan, settings, searches, outcomes, fprs)
    return [
        _result(ids, trial, found, outcome, point, ranks, fpirs)
        for trial, found, outcome, point in zip(trials, searches, outcomes, points, strict=True)
    ]


def _kept(fprs: Sequence[float], count: int, lists: int) -> int:
    needed = (allowed(fpr, count) + 1 for fpr in fprs)
    most = max((k for k in needed if k <= _MOST_KEPT // lists), default=0)
    return min(count, max(most, _EXACT_CURVE))


class _Searches:
    """The ordered same-person pairs of a trial.

    mates: of all probes. pairs: bool P×M, which of them are the trial's. scores: float64 of the
    pairs, in row order. positives: float64, ascending, of the unordered pairs.
    """

    def __init__(self, ids: np.ndarray, trial: Trial, mates: Mates) -> None:
        chosen = np.zeros(len(ids), bool)
        chosen[trial.probes] = True
        self.mates = mates
        self.pairs = mates.real & chosen[:, None] & chosen[mates.mate]  # P×M
        self.scores = mates.score[self.pairs]
        rows = np.broadcast_to(np.arange(len(ids))[:, None], self.pairs.shape)[self.pairs]
        self.positives = np.sort(self.scores[rows < mates.mate[self.pairs]])


def _points(
    probes: np.ndarray,
    distractors: np.ndarray,
    plan: Plan,
    settings: ScoringSettings,
    searches: Sequence[_Searches],
    outcomes: Sequence[Outcome],
    fprs: Sequence[float],
) -> list[dict[str, list[OperatingPoint]]]:
    """For each trial and kind of negatives, the point at each FPR."""
    found, wide = [], []
    for trial, (search, outcome) in enumerate(zip(searches, outcomes, strict=True)):
        kinds = {"all": outcome.all, "devkit": outcome.devkit}
        found.append({kind: [None] * len(fprs) for kind in kinds})
        for shift, (kind, negatives) in enumerate(kinds.items()):
            for place, fpr in enumerate(fprs):
                if is_kept(negatives, fpr):
                    point = operating_point(negatives, search.positives, fpr)
                    found[trial][kind][place] = point
                else:
                    rate = WideRate(
                        trial, trial + shift * len(outcomes), fpr, search.positives, negatives
                    )
                    wide.append(((trial, kind, place), rate))
    points = wide_points(probes, distractors, plan, settings, [rate for _, rate in wide])
    for ((trial, kind, place), _), point in zip(wide, points, strict=True):
        found[trial][kind][place] = point
    return found


def _result(
    ids: np.ndarray,
    trial: Trial,
    searches: _Searches,
    outcome: Outcome,
    points: Mapping[str, Sequence[OperatingPoint]],
    ranks: Sequence[int],
    fpirs: Sequence[float],
) -> IdentificationResult:
    pairs, scores = searches.pairs, searches.scores
    beats = outcome.beats[pairs]
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
            "all": verification(outcome.all, searches.positives, points["all"]),
            "devkit": verification(outcome.devkit, searches.positives, points["devkit"]),
        },
        open_set=tuple(
            open_set(outcome.best[trial.probes], scores, beats == 0, fpir) for fpir in fpirs
        ),
        confusions=_confusions(searches, outcome),
        beats=ordered,
    )


def _confusions(searches: _Searches, outcome: Outcome) -> list[Confusion]:
    mates, beaten = searches.mates, searches.pairs & (outcome.beats > 0)
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
