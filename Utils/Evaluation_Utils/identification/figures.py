"""From ranks and scores to figures: CMC, TPR at a FPR, the ROC curve, open-set identification.

A pair is accepted when its score is at or above a threshold. FPR is the share of negatives
accepted, TPR that of positives. A threshold is always a score that occurs: nothing is interpolated.
Open-set identification follows NIST's FRVT 1:N: FPIR is the share of searches for people who are
not in the gallery that return somebody, FNIR that of searches for people who are in it that return
them not at all or not first.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from Utils.Evaluation_Utils.identification.negatives import Negatives
from Utils.Evaluation_Utils.identification.ranks import Mates
from Utils.Evaluation_Utils.roc import OperatingPoint

_POINTS_PER_DECADE = 20


@dataclass(frozen=True, eq=False)
class Curve:
    """K points of a ROC curve by rising FPR, from (0, 0) to (1, 1). fpr, tpr, thresholds: float64
    K; the first threshold is +inf, which accepts nothing.

    exact_up_to: the FPR up to which the points are those of exact scores. Beyond it negatives are
    counted by their products, whose rounding puts some on the other side of a threshold: in float32
    those within 1e-4 of it, in bf16 within 0.02. Those points may change with the settings.
    """

    fpr: np.ndarray
    tpr: np.ndarray
    thresholds: np.ndarray
    exact_up_to: float


@dataclass(frozen=True, eq=False)
class Verification:
    """Same-person pairs against probes with distractors. positives, negatives: how many.
    points: the exact TPR at each FPR asked for. curve: some points of the whole curve."""

    positives: int
    negatives: int
    points: tuple[OperatingPoint, ...]
    curve: Curve


@dataclass(frozen=True)
class OpenSetPoint:
    """FNIR at a FPIR. target: the FPIR asked for; fpir: the one reached, at or below it.
    threshold: a mate is returned when its score is at or above (+inf: never)."""

    target: float
    fpir: float
    fnir: float
    threshold: float


def allowed(rate: float, count: int) -> int:
    """The largest number of `count` things that is a share of at most `rate` of them."""
    # In decimals: 1e-6 of 10^8 is 100, which binary fractions round to 99.
    return min(math.floor(Decimal(repr(float(rate))) * count), count)


def rank_rate(beats: np.ndarray, rank: int) -> float:
    """The share (0..1) of searches whose mate is among the first `rank`, from sorted counts."""
    return float(np.searchsorted(beats, rank, side="left")) / len(beats)


def cmc(beats: np.ndarray, gallery: int) -> tuple[np.ndarray, np.ndarray]:
    """(ranks, rates) of the CMC curve up to the last rank, gallery + 1, some ranks of each decade.

    beats: sorted counts of the distractors above each mate.
    """
    ranks = _spread(gallery + 1)
    rates = np.searchsorted(beats, ranks, side="left") / len(beats)
    return ranks, rates


def is_kept(negatives: Negatives, fpr: float) -> bool:
    """Whether the negatives that are kept are enough for `operating_point` at a FPR."""
    return negatives.complete or allowed(fpr, negatives.count) < len(negatives.highest)


def operating_point(negatives: Negatives, positives: np.ndarray, fpr: float) -> OperatingPoint:
    """The largest TPR whose FPR does not exceed the target, as `roc.tar_at_far` defines it.

    Positives are accepted down to, but without, the score of the first negative that may not be:
    one of the very same score is rejected. Of several thresholds the strictest is given.
    Only where `is_kept`.
    """
    may = allowed(fpr, negatives.count)
    highest = negatives.highest
    barrier = highest[may] if may < len(highest) else -np.inf
    accepted = positives[np.searchsorted(positives, barrier, side="right") :]
    threshold = float(accepted[0]) if len(accepted) else np.inf
    false = int(np.searchsorted(-highest, -threshold, side="right"))
    return OperatingPoint(
        target=float(fpr),
        far=false / negatives.count,
        tar=len(accepted) / len(positives),
        threshold=threshold,
    )


def candidates(negatives: Negatives, positives: np.ndarray, fpr: float, slack: float) -> np.ndarray:
    """float64, ascending: the positives that may be the threshold at a FPR, by the histogram.

    slack: how far a product in the histogram can be from its exact score.
    """
    may, values, edges = allowed(fpr, negatives.count), np.unique(positives), negatives.bins.edges
    above = np.append(np.cumsum(negatives.counts[::-1])[::-1], 0)  # products from each edge on
    fewest = above[np.searchsorted(edges, values + slack, side="left")]
    bins = np.searchsorted(edges, values - slack, side="right") - 1
    most = above[np.maximum(bins, 0)]
    # Both fall as the value rises. The last candidate is accepted for certain, if any is.
    return values[np.sum(fewest > may) : np.sum(most > may) + 1]


def counted_point(
    count: int, positives: np.ndarray, fpr: float, values: np.ndarray, reached: np.ndarray
) -> OperatingPoint:
    """The point of `operating_point` from counts.

    count: the number of negatives. values: the V `candidates`. reached: V+1, how many negatives are
    at or above exactly k of them.
    """
    above = np.cumsum(reached[::-1])[::-1][1:]  # negatives at or above each value
    chosen = int(np.sum(above > allowed(fpr, count)))
    if chosen == len(values):
        return OperatingPoint(fpr, 0.0, 0.0, np.inf)
    threshold = float(values[chosen])
    true = len(positives) - np.searchsorted(positives, threshold, side="left")
    return OperatingPoint(fpr, int(above[chosen]) / count, int(true) / len(positives), threshold)


def roc(negatives: Negatives, positives: np.ndarray) -> Curve:
    """Points of the ROC curve: exact scores as far as they were kept, then edges of the bins."""
    highest = negatives.highest
    values = highest[_spread(len(highest)) - 1] if len(highest) else np.empty(0)
    false = np.searchsorted(-highest, -values, side="right")
    if not negatives.complete:
        # Of scores equal to the last one kept there may be more than were kept.
        values, false = values[false < len(highest)], false[false < len(highest)]
        # The bins' lower edges as thresholds, descending, and the scores at or above each.
        edges, counts = negatives.bins.edges[::-1], np.cumsum(negatives.counts[::-1])
        beyond = (counts > len(highest)) & (edges < highest[-1])
        values = np.concatenate([values, edges[beyond]])
        false = np.concatenate([false, counts[beyond]])
    if negatives.far or not len(values) or positives[0] < values[-1]:  # accept everything
        values = np.append(values, -np.inf if negatives.far else positives[0])
        false = np.append(false, negatives.count)
    exact = 1.0 if negatives.complete else len(highest) / negatives.count
    values, false = np.append(np.inf, values), np.append(0, false)
    true = len(positives) - np.searchsorted(positives, values, side="left")
    # At no false accept at all, the positives above every negative are accepted.
    top = highest[0] if len(highest) else -np.inf
    clear = len(positives) - np.searchsorted(positives, top, side="right")
    if clear:
        values = np.insert(values, 1, positives[len(positives) - clear])
        false, true = np.insert(false, 1, 0), np.insert(true, 1, clear)
    keep = np.append(True, (np.diff(false) > 0) | (np.diff(true) > 0))
    fpr, tpr = false[keep] / negatives.count, true[keep] / len(positives)
    return Curve(fpr, tpr, values[keep], exact)


def open_set(
    best: np.ndarray, mate_scores: np.ndarray, found_first: np.ndarray, fpir: float
) -> OpenSetPoint:
    """FNIR at a FPIR.

    best: each probe's highest score with a distractor. mate_scores, found_first: of each ordered
    same-person pair, its score and whether no distractor beats it.
    """
    descending = np.sort(best)[::-1]
    may = allowed(fpir, len(best))
    barrier = descending[may] if may < len(best) else -np.inf
    returned = mate_scores[found_first & (mate_scores > barrier)]
    threshold = float(returned.min()) if len(returned) else np.inf
    return OpenSetPoint(
        target=float(fpir),
        fpir=float(np.mean(best >= threshold)),
        fnir=1 - len(returned) / len(mate_scores),
        threshold=threshold,
    )


def by_person(
    person: np.ndarray,
    mates: Mates,
    beats: np.ndarray,
    ranks: Sequence[int],
    points: Mapping[str, Sequence[OperatingPoint]],
    open_points: Sequence[OpenSetPoint],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each figure (int S successes, int S trials) of the S people, of which it is the share:
    searches for ranks and FNIR, same-person pairs for TPR at its threshold.

    person: int P, of each probe, 0..S-1. beats: int P×M, of the mates. points: by kind.
    """
    probe, place = np.nonzero(mates.pairs)
    whose, scores, beaten = person[probe], mates.score[probe, place], beats[probe, place]
    once = mates.mate[probe, place] > probe

    def counted(hits: np.ndarray, people: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count = int(person.max()) + 1
        sums = (np.bincount(chosen, minlength=count) for chosen in (people[hits], people))
        return tuple(sums)

    found = {f"rank-{rank}": counted(beaten < rank, whose) for rank in ranks}
    for kind, own in points.items():
        for point in own:
            accepted = scores[once] >= point.threshold
            found[f"TPR@{point.target:g} {kind}"] = counted(accepted, whose[once])
    for point in open_points:
        missed = (beaten > 0) | (scores < point.threshold)
        found[f"FNIR@{point.target:g}"] = counted(missed, whose)
    return found


def _spread(last: int) -> np.ndarray:
    """Whole numbers from 1 to `last`, evenly on a logarithmic axis, both ends among them."""
    decades = math.log10(max(last, 1))
    steps = np.logspace(0, decades, int(decades * _POINTS_PER_DECADE) + 2)
    return np.unique(np.clip(np.rint(steps), 1, max(last, 1)).astype(np.int64))
