"""Identification and verification among many distractors, as in MegaFace. On arrays alone.

Identification: for every ordered pair of two probes of one person, one is searched for, the other
is in the gallery among all distractors; the rank is the number of distractors that score strictly
higher than it (`ties="against"`: at least as high). Rank 1 means: none does.

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
from tqdm import tqdm

from Utils.cpu import lone_threads
from Utils.devices import full_precision
from Utils.errors import DataError
from Utils.Evaluation_Utils.identification.exact_scores import (
    SCORE_DTYPES,
    unit_rows,
)
from Utils.Evaluation_Utils.identification.figures import (
    OpenSetPoint,
    Verification,
    allowed,
    by_person,
    cmc,
    is_kept,
    open_set,
    operating_point,
    rank_rate,
    roc,
)
from Utils.Evaluation_Utils.identification.negatives import choose_bins
from Utils.Evaluation_Utils.identification.ranks import TIES, has_pairs
from Utils.Evaluation_Utils.identification.scoring import (
    Scores,
    ScoringSettings,
    Trial,
    TrialScorer,
    not_finite,
)
from Utils.Evaluation_Utils.roc import OperatingPoint

RANKS = (1, 10, 100)
FPRS = (1e-4, 1e-5, 1e-6)
FPIRS = (1e-2, 1e-3)

SETTINGS = ScoringSettings()

_EXACT_CURVE = 100_000  # scores at the top of the ROC curve that are kept in any case
_MOST_KEPT = 1_000_000  # at FPRs that accept more negatives, they are counted in further passes


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
    """The figures of some probes among a set of distractors. Rates are 0..1.

    probes, identities, distractors: how many. searches: ordered same-person pairs. alone: probes
    that are in no pair. rank_rates: rank -> share of the searches that succeed at it.
    cmc: (ranks, rates), up to the last rank. verification: "all" and "devkit".
    devkit_probes: how many probes the devkit's negatives come from, 100 if there are as many.
    confusions: one for each probe that a distractor beat, the clearest first.
    beats: sorted int64, for each search how many distractors beat the mate. by_person: the counts
    of each figure by person, see `figures.by_person`.
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
    by_person: dict[str, tuple[np.ndarray, np.ndarray]] = field(repr=False)

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
    settings: ScoringSettings = SETTINGS,
) -> IdentificationResult:
    """Evaluate P probes among N distractors.

    probes: P×D and distractors: N×D of any float types, not necessarily normalised, arrays or
    memory maps. probe_ids: P identities. ranks: whole numbers from 1. fprs, fpirs: rates, 0..1.

    Raises DataError for shapes that do not fit, features that are not finite, no distractors, or no
    identity with two probes; ValueError for ranks, rates or settings that are not valid.
    """
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
    """Evaluate several choices of probes and distractors, each in a pass of its own; otherwise as
    `evaluate`."""
    probes, ids = np.asarray(probes), np.asarray(probe_ids)
    _check_arrays(probes, ids, distractors, trials)
    _check_requests(ranks, fprs, fpirs, settings)
    unit = _checked_unit(probes)
    used_probes = np.unique(np.concatenate([trial.probes for trial in trials]))
    used = np.unique(np.concatenate([trial.distractors for trial in trials]))
    bins = choose_bins(unit[used_probes], distractors, used)
    hidden = settings.progress is None or not settings.processes.is_main
    total = sum(len(trial.distractors) for trial in trials)
    results = []
    with (
        full_precision(),
        lone_threads() as threads,
        tqdm(
            total=total, desc=settings.progress, unit="distractor", unit_scale=True, disable=hidden
        ) as bar,
    ):
        for trial in trials:
            scorer = TrialScorer(
                trial, unit[trial.probes], ids[trial.probes], distractors, settings, threads, bar
            )
            scores = scorer.score(bins, _kept(trial, fprs))
            points = _points(scorer, scores, fprs)
            results.append(_result(ids, trial, scores, points, ranks, fpirs))
    return results


def _kept(trial: Trial, fprs: Sequence[float]) -> dict[str, int]:
    """How many of the highest negatives of each kind are kept."""
    kept = {}
    for kind, probes in (("all", trial.probes), ("devkit", trial.devkit_probes)):
        count = len(probes) * trial.gallery
        needed = (allowed(fpr, count) + 1 for fpr in fprs)
        most = max((k for k in needed if k <= _MOST_KEPT), default=0)
        kept[kind] = min(count, max(most, _EXACT_CURVE))
    return kept


def _points(
    scorer: TrialScorer, scores: Scores, fprs: Sequence[float]
) -> dict[str, list[OperatingPoint]]:
    """For each kind of negatives, the point at each FPR."""
    wide = [
        (kind, fpr)
        for kind, negatives in scores.negatives.items()
        for fpr in fprs
        if not is_kept(negatives, fpr)
    ]
    found = dict(zip(wide, scorer.wide_points(scores, wide), strict=True))
    return {
        kind: [
            found.get((kind, fpr)) or operating_point(negatives, scores.mates.positives, fpr)
            for fpr in fprs
        ]
        for kind, negatives in scores.negatives.items()
    }


def _result(
    ids: np.ndarray,
    trial: Trial,
    scores: Scores,
    points: Mapping[str, Sequence[OperatingPoint]],
    ranks: Sequence[int],
    fpirs: Sequence[float],
) -> IdentificationResult:
    mates, positives = scores.mates, scores.mates.positives
    beats = scores.beats[mates.pairs]
    ordered = np.sort(beats)
    person = np.unique(ids[trial.probes], return_inverse=True)[1]
    open_points = tuple(open_set(scores.best, mates.scores, beats == 0, fpir) for fpir in fpirs)
    return IdentificationResult(
        probes=len(trial.probes),
        identities=len(np.unique(ids[trial.probes])),
        alone=int(np.sum(~mates.pairs.any(axis=1))),
        distractors=trial.gallery,
        searches=len(beats),
        devkit_probes=len(trial.devkit_probes),
        rank_rates={int(rank): rank_rate(ordered, rank) for rank in ranks},
        cmc=cmc(ordered, trial.gallery),
        verification={
            kind: Verification(
                positives=len(positives),
                negatives=negatives.count,
                points=tuple(points[kind]),
                curve=roc(negatives, positives),
            )
            for kind, negatives in scores.negatives.items()
        },
        open_set=open_points,
        confusions=_confusions(trial, scores),
        beats=ordered,
        by_person=by_person(person, mates, scores.beats, ranks, points, open_points),
    )


def _confusions(trial: Trial, scores: Scores) -> list[Confusion]:
    mates, beaten = scores.mates, scores.mates.pairs & (scores.beats > 0)
    found = []
    for probe in np.flatnonzero(beaten.any(axis=1)):
        # The beaten mate that is most like the probe: little was to be expected of the others.
        place = int(np.flatnonzero(beaten[probe])[-1])
        found.append(
            Confusion(
                probe=int(trial.probes[probe]),
                mate=int(trial.probes[mates.mate[probe, place]]),
                distractor=int(scores.best_distractor[probe]),
                mate_score=float(mates.score[probe, place]),
                distractor_score=float(scores.best[probe]),
                beats=int(scores.beats[probe, place]),
            )
        )
    return sorted(found, key=lambda c: (c.mate_score - c.distractor_score, c.probe))


def _checked_unit(probes: np.ndarray) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(probes).all(axis=1))
    if bad.size:
        raise DataError(not_finite("probe", bad[0]))
    return unit_rows(probes)


def _check_arrays(
    probes: np.ndarray, ids: np.ndarray, distractors: np.ndarray, trials: Sequence[Trial]
) -> None:
    """Raises DataError for tables, identities or trials that do not fit each other, and for trials
    in which nobody has two probes."""
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
        if not has_pairs(ids[trial.probes]):
            raise DataError(
                "no identity has two probes, so there is no mate to look for; check the identities "
                "in the probe list."
            )


def _check_requests(
    ranks: Sequence[int],
    fprs: Sequence[float],
    fpirs: Sequence[float],
    settings: ScoringSettings,
) -> None:
    """Raises ValueError for ranks, rates or settings that are not valid."""
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
