"""TinyFace's mAP and rank-r on arrays alone, by the rule of its official script.

https://qmul-tinyface.github.io; Cheng, Zhu, Gong, "Low-Resolution Face Recognition", ACCV 2018. A
probe is searched for in the whole gallery, in which it has one mate or several.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from Utils.errors import DataError
from Utils.Evaluation_Utils.identification.exact_scores import (
    error_bound,
    row_products,
    unit_rows,
)
from Utils.Evaluation_Utils.identification.scoring import not_finite

RANKS = (1, 5, 10, 20, 50)  # that the official script prints

_SCORES_AT_ONCE = 2**23


@dataclass(frozen=True, eq=False)
class TinyFaceResult:
    """The figures of P probes; rates are 0..1, over the probes that have a mate.

    average_precision: float64 P, NaN without a mate. best_rank: int64 P, the place of the first
    mate in the sorted gallery, from 1; 0 without a mate.
    """

    mean_average_precision: float
    rank_rates: dict[int, float]
    without_mate: int
    average_precision: np.ndarray = field(repr=False)
    best_rank: np.ndarray = field(repr=False)


def evaluate(
    probes: np.ndarray,
    probe_ids: Sequence[object],
    gallery: np.ndarray,
    gallery_ids: Sequence[object],
    distractors: np.ndarray,
    ranks: Sequence[int] = RANKS,
    metric: Literal["cosine", "euclidean"] = "cosine",
    progress: str | None = None,
) -> TinyFaceResult:
    """Search for each of P probes among the G mates and N distractors, by TinyFace's rule.

    probes: P×D, gallery: G×D, distractors: N×D, of any float types, not necessarily normalised;
    N may be 0. metric: what sorts the gallery; euclidean: distances of the features as they are,
    as the official script has them (of normalised ones, the order is the cosines'). progress: label
    of a progress bar.

    Of equal scores the gallery's earlier image comes first, and distractors come last. Scores are
    exact to float64: those that a matrix product leaves too close are computed again one by one.
    A probe without a mate counts in no figure.

    Raises DataError for shapes that do not fit, features that are not finite, and where no probe
    has a mate.
    """
    tables = {"probe": probes, "gallery": gallery, "distractor": distractors}
    _check(tables, {"probe": probe_ids, "gallery": gallery_ids})
    ready = unit_rows if metric == "cosine" else lambda rows: np.asarray(rows, np.float64)
    searches = ready(probes)
    rows = np.concatenate([ready(gallery), ready(distractors)])
    # p·g orders as the cosine of unit rows does, p·g - |g|²/2 as the negative distance does.
    offsets = np.zeros(len(rows)) if metric == "cosine" else row_products(rows, rows) / 2
    mates_of: dict[object, list[int]] = {}
    for row, person in enumerate(np.asarray(gallery_ids).tolist()):
        mates_of.setdefault(person, []).append(row)
    precision, best = np.full(len(searches), np.nan), np.zeros(len(searches), np.int64)
    lengths = np.sqrt(row_products(searches, searches))
    longest = np.sqrt(row_products(rows, rows).max())
    bounds = 2 * error_bound(rows.shape[1], torch.float64) * (lengths + longest) ** 2
    people = np.asarray(probe_ids).tolist()
    size = max(_SCORES_AT_ONCE // len(rows), 1)
    with tqdm(total=len(people), desc=progress, unit="probe", disable=progress is None) as bar:
        for start in range(0, len(people), size):
            block = searches[start : start + size] @ rows.T - offsets
            for probe, scores in enumerate(block, start):
                if mates := mates_of.get(people[probe]):
                    places = _places(searches[probe], rows, scores, mates, bounds[probe], metric)
                    best[probe], precision[probe] = places[0], average_precision(places)
            bar.update(len(block))
    found = best > 0
    if not found.any():
        raise DataError("no probe has a mate in the gallery: check that both lists are TinyFace's.")
    return TinyFaceResult(
        mean_average_precision=float(precision[found].mean()),
        rank_rates={rank: float((best[found] <= rank).mean()) for rank in ranks},
        without_mate=int((~found).sum()),
        average_precision=precision,
        best_rank=best,
    )


def _places(
    search: np.ndarray,
    rows: np.ndarray,
    scores: np.ndarray,
    mates: Sequence[int],
    bound: float,
    metric: str,
) -> np.ndarray:
    """The places of the mates in the sorted gallery, ascending, from 1. bound: two scores that are
    no further apart may be in another order than the exact ones."""
    places = []
    for mate in mates:
        above = scores > scores[mate] + bound
        near = np.flatnonzero(~above & (scores >= scores[mate] - bound))
        if metric == "cosine":
            exact = row_products(search[None], rows[near])
        else:
            exact = -np.sum((rows[near] - search) ** 2, axis=1)
        own = exact[np.searchsorted(near, mate)]
        before = (exact > own) | ((exact == own) & (near < mate))
        places.append(1 + np.count_nonzero(above) + np.count_nonzero(before))
    return np.sort(places)


def average_precision(places: np.ndarray) -> float:
    """Average precision of a search, from the places of its K mates, ascending from 1.

    As in Market-1501's compute_AP, which the official script calls: the area under precision over
    recall by the trapezoidal rule, from precision 1 at recall 0. It is not the usual mean of the
    precisions at the mates.
    """
    hits = np.arange(1, len(places) + 1)
    precision = hits / places
    one_before = np.where(places > 1, (hits - 1) / np.maximum(places - 1, 1), 1.0)
    return float(np.mean((one_before + precision) / 2))


def _check(tables: dict[str, np.ndarray], ids: dict[str, Sequence[object]]) -> None:
    """Raise DataError for arrays that `evaluate` can't use."""
    shapes = {name: np.shape(table) for name, table in tables.items()}
    if len({shape[1:] for shape in shapes.values()}) != 1 or len(shapes["probe"]) != 2:
        raise DataError(f"TinyFace's features must be N×D of one D; they have the shapes {shapes}.")
    for name, people in ids.items():
        if not len(people) or len(people) != len(tables[name]):
            raise DataError(
                f"{len(tables[name])} {name} features have {len(people)} identities; expected one "
                f"for each, and at least one."
            )
    for name, table in tables.items():
        bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
        if bad.size:
            raise DataError(not_finite(name, int(bad[0])))
