"""IJB's 1:N: ranks and open-set rates of probe templates in two galleries of templates.

Each gallery is searched alone. A probe is mated if its subject is in the gallery; the others are
the searches without a mate, which set the threshold: FPIR is the share of them whose best score is
above it. TPIR is the share of mated searches whose mate is above it and above all others.

Two rules for a threshold at a target FPIR x of n searches without a mate:
exact: the lowest with an FPIR of at most x. nearest: that of insightface's ijb_evals.py, the
max(int(n·x), 1)-th highest of their best scores, mostly one search stricter than x.

The older scripts (ijb_1n.py, AdaFace) search both galleries as one, and take the threshold from all
scores of people that are not the mate, pooled: the ceil(probes·x)-th highest. Their figures are
`joint`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from Utils.Evaluation_Utils.ijb.lists import Gallery

RANKS = (1, 5, 10)
FPIRS = (1e-3, 1e-2, 1e-1)

_ROWS = 1024  # probes searched at once


@dataclass(frozen=True)
class OpenSetPoint:
    """target, fpir: the rate asked for and the one reached. A search counts above `threshold`."""

    target: float
    fpir: float
    tpir: float
    threshold: float


@dataclass(frozen=True)
class GalleryFigures:
    """Of one gallery. found: mated searches with the mate at each of RANKS or before. exact,
    ijb_evals: a point for each of FPIRS; nothing without searches of the kind that they need."""

    name: str
    templates: int
    mated: int
    unmated: int
    found: tuple[int, ...]
    exact: tuple[OpenSetPoint, ...]
    ijb_evals: tuple[OpenSetPoint, ...]


@dataclass(frozen=True)
class IdentificationFigures:
    """ranks: share of all mated searches at RANKS. exact, ijb_evals: the mean TPIRs of the
    galleries at FPIRS; joint_ranks, joint_rates: of the older scripts. searches: what they are
    counted from."""

    galleries: tuple[GalleryFigures, ...]
    ranks: tuple[float, ...]
    exact: tuple[float, ...]
    ijb_evals: tuple[float, ...]
    joint_ranks: tuple[float, ...]
    joint_rates: tuple[float, ...]
    searches: "Searches" = field(repr=False, compare=False)


@dataclass(frozen=True, eq=False)
class Searches:
    """What M searches gave, in G galleries. gallery: int M, that of the mate, -1 for none. mate:
    float64 M, its score. best: float64 M×G, the highest score of anybody else. rank, joint_rank:
    int M, of the mate from 1, in its own gallery and in all of them as one; among equal scores the
    later in the gallery comes first. pooled: the highest scores of all that are not mates, falling.
    """

    gallery: np.ndarray
    mate: np.ndarray
    best: np.ndarray
    rank: np.ndarray
    joint_rank: np.ndarray
    pooled: np.ndarray


def search(
    templates: np.ndarray, galleries: tuple[Gallery, ...], probes: Gallery, pooled: int
) -> Searches:
    """Search the probes in the galleries. templates: float64 T×D, L2-normalised. pooled: how many
    of the pooled scores to keep."""
    ends = np.cumsum([len(gallery.templates) for gallery in galleries])
    starts = ends - [len(gallery.templates) for gallery in galleries]
    enrolled = templates[np.concatenate([gallery.templates for gallery in galleries])].T
    subjects = np.concatenate([gallery.subjects for gallery in galleries])
    column_of = {subject: column for column, subject in enumerate(subjects.tolist())}
    mates = np.array([column_of.get(subject, -1) for subject in probes.subjects.tolist()])
    count = len(mates)
    gallery = np.where(mates < 0, -1, np.searchsorted(ends, mates, side="right"))
    mate, best = np.full(count, -np.inf), np.empty((count, len(galleries)))
    rank, joint_rank = np.zeros(count, np.int64), np.zeros(count, np.int64)
    highest = np.empty(0)
    columns = np.arange(len(subjects))
    for start in range(0, count, _ROWS):
        part = slice(start, start + _ROWS)
        scores = templates[probes.templates[part]] @ enrolled
        own, rows = mates[part], np.flatnonzero(mates[part] >= 0)
        mate[part][rows] = scores[rows, own[rows]]
        scores[rows, own[rows]] = -np.inf
        level = mate[part][:, None]
        ahead = (scores > level) | ((scores == level) & (columns > own[:, None]))
        joint_rank[part] = 1 + ahead.sum(axis=1)
        for number, (first, last) in enumerate(zip(starts, ends, strict=True)):
            best[part, number] = scores[:, first:last].max(axis=1)
            here = gallery[part] == number
            rank[part][here] = 1 + ahead[here, first:last].sum(axis=1)
        scores = scores.ravel()
        if len(highest) == pooled:  # only what is above them can be among them
            scores = scores[scores > highest.min()]
        highest = np.append(highest, scores[np.isfinite(scores)])
        if len(highest) > pooled:
            highest = np.partition(highest, len(highest) - pooled)[len(highest) - pooled :]
    return Searches(gallery, mate, best, rank, joint_rank, np.sort(highest)[::-1])


def evaluate_searches(
    templates: np.ndarray,
    galleries: tuple[Gallery, ...],
    probes: Gallery,
    fpirs: Sequence[float] = FPIRS,
) -> IdentificationFigures:
    """The figures of the probes. templates: float64 T×D, L2-normalised; rows of them are the
    galleries' and the probes'. fpirs: the targets, above 0."""
    counts = [math.ceil(len(probes.templates) * rate) for rate in fpirs]
    found = search(templates, galleries, probes, max(counts))
    each = tuple(_of_gallery(found, number, g, fpirs) for number, g in enumerate(galleries))
    mated = found.gallery >= 0
    searches = max(int(mated.sum()), 1)
    joint = []
    for count in counts:
        level = found.pooled[min(count, len(found.pooled)) - 1] if len(found.pooled) else -np.inf
        joint.append(int((found.mate[mated] > level).sum()) / searches)
    return IdentificationFigures(
        each,
        tuple(sum(row) / searches for row in zip(*(g.found for g in each), strict=True)),
        _means([g.exact for g in each]),
        _means([g.ijb_evals for g in each]),
        tuple(int((found.joint_rank[mated] <= rank).sum()) / searches for rank in RANKS),
        tuple(joint),
        found,
    )


def _means(points: list[tuple[OpenSetPoint, ...]]) -> tuple[float, ...]:
    """The mean TPIRs of the galleries; nothing if one has none."""
    if not all(points):
        return ()
    return tuple(sum(p.tpir for p in row) / len(row) for row in zip(*points, strict=True))


def _of_gallery(
    found: Searches, number: int, gallery: Gallery, fpirs: Sequence[float]
) -> GalleryFigures:
    mated = found.gallery == number
    mate, other, rank = found.mate[mated], found.best[mated, number], found.rank[mated]
    first = mate[mate > other]  # scores of the mates that win
    alone = np.sort(found.best[~mated, number])[::-1]  # the best scores without a mate

    def points(threshold_at: Callable[[float], float]) -> tuple[OpenSetPoint, ...]:
        if not (len(mate) and len(alone)):
            return ()
        levels = [(rate, threshold_at(rate)) for rate in fpirs]
        return tuple(
            OpenSetPoint(
                rate, float((alone > t).mean()), int((first > t).sum()) / len(mate), float(t)
            )
            for rate, t in levels
        )

    def exact(rate: float) -> float:
        allowed = np.searchsorted(np.arange(len(alone) + 1) / len(alone), rate, side="right") - 1
        return alone[allowed] if allowed < len(alone) else -np.inf

    return GalleryFigures(
        gallery.name,
        len(gallery.templates),
        len(mate),
        len(alone),
        tuple(int((rank <= r).sum()) for r in RANKS),
        points(exact),
        points(lambda rate: alone[max(int(len(alone) * rate) - 1, 0)]),
    )
