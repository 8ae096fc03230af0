"""Figures of every pair of N images, on arrays alone: MFR-Ongoing's all-to-all protocol.

Genuine pairs are those i < j of one identity, impostor pairs all others. TAR at a FAR follows
roc.py: the highest TAR whose FAR is at most the target, a pair being accepted at a score (cosine)
at or above the threshold, which is one that occurs. Scores are exact to float64, as those of
identification. A FAR of less than one impostor pair is not measured.

The pairs within a group, such as a race, have TARs at FARs of their own. What a system with one
threshold does to each group, its FMR and FNMR tell at the one that is found on all pairs, or on
those within one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from Utils.cpu import lone_threads
from Utils.devices import full_precision
from Utils.errors import DataError
from Utils.Evaluation_Utils.all_pairs.counting import BINS, GENUINE, IMPOSTOR, PairCounter
from Utils.Evaluation_Utils.all_pairs.pair_set import PairSet, Reached
from Utils.Evaluation_Utils.roc import OperatingPoint, Roc

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
MOST_GROUPS = 200  # the counts of each take 2 MiB

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class PairFigures:
    """The figures of some of the pairs. Rates are 0..1.

    genuine, impostor: how many. points: at each FAR that is measured; not_measured: the other FARs.
    fmr, fnmr: at the one threshold; None without pairs of that kind.
    """

    genuine: int
    impostor: int
    points: tuple[OperatingPoint, ...]
    not_measured: tuple[float, ...]
    fmr: float | None
    fnmr: float | None


@dataclass(frozen=True, eq=False)
class AllPairsResult:
    """The figures of `evaluate`.

    images, identities: how many. alone: how many identities have one image.
    every: of all pairs. groups: of those within each group. across: of those across two groups, at
        the one threshold alone; None without groups.
    one: where the one threshold is found, on all pairs or those within threshold_group.
    given: (FAR, TAR) at each threshold that was given.
    searches: numbers, from 0, of the identities of the images that have a genuine pair.
    found_first: bool for each, whether no impostor scores higher than the best of those pairs, as
        in a search among all other images.
    hits: int64 C×(1+F): each identity's genuine pairs, and those accepted at each of every.points.
    curve: ROC curve for pictures, from products: its scores are off by up to 1e-4.
    """

    images: int
    identities: int
    alone: int
    every: PairFigures
    groups: dict[str, PairFigures]
    across: PairFigures | None
    one: OperatingPoint
    threshold_group: str
    given: tuple[tuple[float, float], ...]
    searches: np.ndarray = field(repr=False)
    found_first: np.ndarray = field(repr=False)
    hits: np.ndarray = field(repr=False)
    curve: Roc = field(repr=False)

    @property
    def rank1(self) -> float:
        """The share of the searches that find one of the same identity first."""
        return float(np.mean(self.found_first))


def evaluate(
    features: np.ndarray,
    ids: Sequence[object],
    groups: Sequence[str] | None = None,
    fars: Sequence[float] = FARS,
    group_far: float = 1e-3,
    threshold_group: str = "",
    thresholds: Sequence[float] = (),
    device: torch.device = _CPU,
    block_size: int = 0,
    progress: str | None = None,
) -> AllPairsResult:
    """Evaluate every pair of N images.

    features: N×D of any float type, not necessarily normalised, an array or memory map; a row of
    zeros has the cosine 0 with all others. ids: N identities. groups: N texts, or None.
    group_far: where the one threshold is found, on the pairs within threshold_group or, if that is
    "", on all. thresholds: more cosines, at which all pairs are counted. block_size: images at
    once; 0 chooses by the device. No figure depends on it. progress: label of a progress bar.

    Raises DataError for features that are not finite, and as `check_labels`.
    """
    person, group, names = check_labels(ids, groups, threshold_group)
    counts = _pair_counts(person, group)
    with (
        full_precision(),
        lone_threads() as threads,
        tqdm(desc=progress, unit="pair", unit_scale=True, disable=progress is None) as bar,
    ):
        counter = PairCounter(features, person, group, device, block_size, threads, bar)
        bins, best = counter.histograms()
        every, *within, across = (
            PairSet(kinds, counts[:, kinds].sum(axis=1), bins[:, kinds].sum(axis=1), counter.slack)
            for kinds in ([*range(counter.kinds)], *([kind] for kind in range(counter.kinds)))
        )
        sets = [every, *(within if names else [])]
        one = within[names.index(threshold_group)] if threshold_group else every
        targets = [(of, far) for of in sets for far in fars if of.measures(far)]
        targets.append((one, group_far))
        near = np.zeros((counter.kinds, BINS.number), bool)
        for of, far in targets:
            near[of.kinds, of.bins_near(far)] = True
        scores = counter.genuine_scores(near)
        candidates = {(of, far): of.candidates(far, scores) for of, far in targets}
        everywhere = [candidates[one, group_far], np.asarray(thresholds, np.float64)]
        values = []
        for kind in range(counter.kinds):
            own = [found for (of, _), found in candidates.items() if kind in of.kinds]
            values.append(np.unique(np.concatenate([*everywhere, *own])))
        reached = Reached(values, counter.count_reached(values))
        points = {(of, far): of.point(far, own, reached) for (of, far), own in candidates.items()}
        at_one = points[one, group_far]

        def figures(of: PairSet) -> PairFigures:
            impostor, genuine = of.rates(at_one.threshold, reached)
            return PairFigures(
                genuine=int(of.counts[GENUINE]),
                impostor=int(of.counts[IMPOSTOR]),
                points=tuple(points[of, far] for far in fars if of in sets and of.measures(far)),
                not_measured=tuple(far for far in fars if not of.measures(far)),
                fmr=impostor,
                fnmr=None if genuine is None else 1 - genuine,
            )

        of_every = figures(every)
        accepting = np.array([point.threshold for point in of_every.points])
        levels = np.unique(accepting)
        hits = counter.genuine_hits(levels)[:, [0, *(np.searchsorted(levels, accepting) + 1)]]
        found_first = counter.found_first(best)
    sizes = np.bincount(person)
    searched = sizes[person] > 1
    return AllPairsResult(
        images=len(person),
        identities=len(sizes),
        alone=int(np.sum(sizes == 1)),
        every=of_every,
        groups={name: figures(of) for name, of in zip(names, within, strict=False)},
        across=figures(across) if names else None,
        one=at_one,
        threshold_group=threshold_group,
        given=tuple(every.rates(threshold, reached) for threshold in thresholds),
        searches=person[searched],
        found_first=found_first[searched],
        hits=hits,
        curve=every.curve(),
    )


def check_labels(
    ids: Sequence[object], groups: Sequence[str] | None, threshold_group: str = ""
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(N identities, N groups, both as ints from 0; the names of the groups, none without groups).

    Raises DataError if there are no genuine or no impostor pairs, for too many groups, and for a
    threshold_group that has no pairs of both kinds.
    """
    people, person, sizes = np.unique(np.asarray(ids), return_inverse=True, return_counts=True)
    if len(people) < 2 or sizes.max() < 2:
        found = "only one identity" if len(people) < 2 else "no identity with two images"
        raise DataError(
            f"among these {len(person):,} images there is {found}. Evaluating every pair of them "
            f"needs pairs of one person and of two; check the labels, or add images."
        )
    if groups is None:
        names, group = [], np.zeros(len(person), np.int64)
    else:
        known, group = np.unique(np.asarray(groups), return_inverse=True)
        names = known.tolist()
    if len(names) > MOST_GROUPS:
        raise DataError(
            f"these {len(person):,} images are of {len(names):,} groups, but at most {MOST_GROUPS} "
            f"are possible: a group is many people, such as a race, and no person."
        )
    if threshold_group:
        of = names.index(threshold_group) if threshold_group in names else -1
        counts = _pair_counts(person, group)[:, of] if of >= 0 else np.zeros(2, int)
        if 0 in counts:
            raise DataError(
                f"threshold_group is {threshold_group!r} ('': all pairs), which has "
                f"{counts[GENUINE]:,} genuine and {counts[IMPOSTOR]:,} impostor pairs; a threshold "
                f"needs both. The groups are: "
                f"{', '.join(names) or 'none; `--groups FILE` names a file of them'}."
            )
    return person, group, names


def _pair_counts(person: np.ndarray, group: np.ndarray) -> np.ndarray:
    """int64 2×kinds: how many impostor and genuine pairs there are of each kind."""

    def pairs(sizes: np.ndarray) -> np.ndarray:
        return sizes * (sizes - 1) // 2

    both = np.stack([group, person])
    (of_group, _), together = np.unique(both, axis=1, return_counts=True)
    sizes = np.bincount(group)
    genuine = np.zeros(len(sizes), np.int64)
    np.add.at(genuine, of_group, pairs(together))
    total = np.append(pairs(sizes), pairs(len(person)) - pairs(sizes).sum())
    genuine = np.append(genuine, pairs(np.bincount(person)).sum() - genuine.sum())
    return np.stack([total - genuine, genuine])
