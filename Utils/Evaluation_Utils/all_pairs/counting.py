"""Every pair of N images, scored by blocks of products and counted; exact, and in bounded memory.

There are 5,000,000,000 pairs of 100,000 images: no list of their scores is ever made. A first pass
counts the products of all pairs in 65,536 bins. They tell between which scores each threshold must
lie. A second pass counts exactly how many pairs are at or above those that may be it: the exact
scores (`identification.exact_scores`) are computed of pairs in the bins near them alone.

Images are put in order of group and identity, so blocks are of two groups, and genuine pairs (of
one identity) are in few of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from Utils.cpu import LoneThreads
from Utils.errors import DataError
from Utils.Evaluation_Utils.identification.exact_scores import (
    PairScorer,
    Products,
    error_bound,
    unit_rows,
    uses_numpy,
)
from Utils.Evaluation_Utils.identification.negatives import Bins, true_indices
from Utils.Evaluation_Utils.identification.scoring import BIN_ROUNDING, not_finite

IMPOSTOR, GENUINE = 0, 1
BINS = Bins(-1.005, 1.005, 2**16)  # a bin is 3e-5 wide; the first one holds no product
BLOCK_SIZES = {"cpu": 2048, "cuda": 4096}

_HIDDEN = -2.0  # in place of a product of a pair that does not count; falls into the first bin


@dataclass(frozen=True, eq=False)
class _Block:
    """R×B products of images (rows, columns: places in the order of group and identity).

    scores: float32, with _HIDDEN for genuine pairs and for those of which the mirrored one counts.
    kind: of these two groups' pairs, see `PairCounter`. genuine: (row, column, float32 product) of
    G genuine pairs, the first two from 0 in the block. exact: of pairs (row, row of the table).
    """

    rows: range
    columns: range
    scores: Tensor
    kind: int
    genuine: tuple[np.ndarray, np.ndarray, np.ndarray]
    exact: PairScorer


class PairCounter:
    """Passes over the pairs of N images.

    table: N×D of any float type, an array or memory map. ids, groups: int N, from 0. The pairs
    within group g are kind g; those across two groups are the last kind, G.
    bar: its total is set, and it shows the progress of the passes over all pairs.
    """

    def __init__(
        self,
        table: np.ndarray,
        ids: np.ndarray,
        groups: np.ndarray,
        device: torch.device,
        block_size: int,
        threads: LoneThreads,
        bar: tqdm,
    ) -> None:
        self._table, self._device, self._threads, self._bar = table, device, threads, bar
        self._order = np.lexsort((ids, groups))
        self._ids, sizes = ids[self._order], np.bincount(groups)
        self._groups = groups[self._order]
        self.kinds = len(sizes) + 1
        # How far an exact score can be from the bin of its product.
        self.slack = BIN_ROUNDING + error_bound(table.shape[1], torch.float32)
        size = block_size or BLOCK_SIZES.get(device.type, BLOCK_SIZES["cpu"])
        ends = np.cumsum(sizes).tolist()
        self._parts = [
            range(start, min(start + size, end))
            for first, end in zip([0, *ends], ends, strict=False)
            for start in range(first, end, size)
        ]
        bar.total = 2 * sum(len(a) * len(b) for a, b in self._couples(False))

    def histograms(self) -> tuple[np.ndarray, np.ndarray]:
        """The first pass: (int64 2×kinds×bins, the products of impostor and of genuine pairs;
        float32 2×N, each image's highest, -inf without such a pair, in the order of the images).

        Raises DataError for features that are not finite, naming the row.
        """
        counts = np.zeros((2, self.kinds, BINS.number), np.int64)
        best = np.full((2, len(self._order)), -np.inf, np.float32)
        for block in self._blocks():
            counts[IMPOSTOR, block.kind] += BINS.count(block.scores)
            for axis, places in enumerate((block.columns, block.rows)):
                own = best[IMPOSTOR, places.start : places.stop]
                np.maximum(own, _largest(block.scores, axis), out=own)
            row, column, products = block.genuine
            if len(row):
                counts[GENUINE, block.kind] += BINS.count(torch.from_numpy(products))
                np.maximum.at(best[GENUINE], row + block.rows.start, products)
                np.maximum.at(best[GENUINE], column + block.columns.start, products)
        counts[:, :, 0] = 0
        best[best == _HIDDEN] = -np.inf
        unsorted = np.empty_like(best)
        unsorted[:, self._order] = best
        return counts, unsorted

    def genuine_scores(self, near: np.ndarray) -> list[np.ndarray]:
        """For each kind, the different exact scores of genuine pairs, ascending, of those whose
        products are in some of the bins. near: bool kinds×bins."""
        found = [np.empty(0)] * self.kinds
        for block in self._blocks(genuine_only=True):
            row, column, products = block.genuine
            chosen = np.flatnonzero(near[block.kind][_indices(products)])
            scores = self._exact(block, row[chosen], column[chosen])
            found[block.kind] = np.union1d(found[block.kind], scores)
        return found

    def count_reached(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The second pass. values: for each kind, V ascending scores. For each kind, int64 2×V: how
        many impostor and how many genuine pairs are at or above each."""
        near = [self._near(each) for each in values]
        bins = np.zeros((self.kinds, BINS.number), np.int64)
        counts = [np.zeros((2, len(each) + 1), np.int64) for each in values]
        for block in self._blocks():
            kind, indices = block.kind, BINS.indices(block.scores)
            bins[kind] += BINS.histogram(indices)
            row, column = _where(near[kind], indices)
            reached = np.searchsorted(values[kind], self._exact(block, row, column), "right")
            counts[kind][IMPOSTOR] += np.bincount(reached, minlength=len(values[kind]) + 1)
            reached = self._genuine_reached(block, values[kind], near[kind])
            counts[kind][GENUINE] += np.bincount(reached, minlength=len(values[kind]) + 1)
        for kind, each in enumerate(values):
            bins[kind][near[kind]] = bins[kind][0] = 0  # counted exactly, or hidden
            reached = np.searchsorted(each, BINS.edges, "right")
            # Counts are below 2^53, so that a float64 sum of them is exact.
            counts[kind][IMPOSTOR] += np.bincount(
                reached, weights=bins[kind], minlength=len(each) + 1
            ).astype(np.int64)
        return [np.cumsum(each[:, ::-1], axis=1)[:, ::-1][:, 1:] for each in counts]

    def genuine_hits(self, values: np.ndarray) -> np.ndarray:
        """int64 C×(V+1): each identity's genuine pairs, all of them and then those at or above each
        of V ascending scores."""
        near, width = self._near(values), len(values) + 1
        counts = np.zeros((int(self._ids.max()) + 1) * width, np.int64)
        for block in self._blocks(genuine_only=True):
            owner = self._ids[block.genuine[0] + block.rows.start]
            cells = owner * width + self._genuine_reached(block, values, near)
            used, number = np.unique(cells, return_counts=True)
            counts[used] += number
        return np.cumsum(counts.reshape(-1, width)[:, ::-1], axis=1)[:, ::-1]

    def found_first(self, best: np.ndarray) -> np.ndarray:
        """bool N: whether no impostor scores higher than an image's best genuine pair, exactly.
        False without a genuine pair. best: of `histograms`."""
        ordered = best[:, self._order].astype(np.float64)
        gap = ordered[GENUINE] - ordered[IMPOSTOR]
        found = gap > 0
        unsure = np.flatnonzero(np.abs(gap) <= 2 * self.slack)
        size = max(map(len, self._parts))
        for start in range(0, len(unsure), size):
            places = unsure[start : start + size]
            top = self._best_of(places, ordered[:, places] - 2 * self.slack)
            found[places] = top[GENUINE] >= top[IMPOSTOR]
        unsorted = np.empty_like(found)
        unsorted[self._order] = found
        return unsorted

    def _best_of(self, places: np.ndarray, floors: np.ndarray) -> np.ndarray:
        """float64 2×P: the highest exact scores of P images, of which no product is below floors
        (2×P)."""
        unit = unit_rows(self._table[self._order[places]])
        products = Products(unit, self._device, torch.float32)
        exact = PairScorer(unit, self._table, self._threads)
        own_ids, own = (torch.from_numpy(v).to(self._device) for v in (self._ids[places], places))
        limits = torch.from_numpy(floors.astype(np.float32)).to(self._device)
        top = np.full((2, len(places)), -np.inf)
        for part in self._parts:
            scores = self._multiply(products, part)
            columns = torch.arange(part.start, part.stop, device=self._device)
            same = own_ids[:, None] == self._ids_of(part)
            other = own[:, None] != columns
            for kind, chosen in ((IMPOSTOR, ~same), (GENUINE, same & other)):
                row, column = true_indices(chosen & (scores >= limits[kind][:, None]))
                np.maximum.at(top[kind], row, exact(row, self._order[column + part.start]))
        return top

    def _couples(self, genuine_only: bool) -> Iterator[tuple[range, range]]:
        for number, rows in enumerate(self._parts):
            for columns in self._parts[number:]:
                if not genuine_only or self._share_people(rows, columns):
                    yield rows, columns

    def _share_people(self, rows: range, columns: range) -> bool:
        """Whether an identity has images in both parts."""
        a, b = (self._ids[part.start : part.stop] for part in (rows, columns))
        if a[-1] < b[0] or b[-1] < a[0]:
            return False
        return bool(np.isin(a, b).any())

    def _blocks(self, genuine_only: bool = False) -> Iterator[_Block]:
        before = None
        for rows, columns in self._couples(genuine_only):
            if rows != before:
                before, unit = rows, unit_rows(self._table[self._order[rows.start : rows.stop]])
                products = Products(unit, self._device, torch.float32)
                exact = PairScorer(unit, self._table, self._threads)
            scores = self._multiply(products, columns)
            pairs = None
            if self._share_people(rows, columns):
                pairs = self._ids_of(rows)[:, None] == self._ids_of(columns)
            genuine = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
            hidden = pairs
            if rows == columns:
                hidden = pairs | torch.ones_like(pairs).tril_()
                pairs = pairs.triu(1)
            if pairs is not None:
                row, column = true_indices(pairs)
                genuine = row, column, scores[pairs].cpu().numpy()
                scores[hidden] = _HIDDEN
            groups = self._groups[[rows.start, columns.start]].tolist()
            kind = groups[0] if groups[0] == groups[1] else self.kinds - 1
            yield _Block(rows, columns, scores, kind, genuine, exact)
            if not genuine_only:
                self._bar.update(len(rows) * len(columns))

    def _ids_of(self, part: range) -> Tensor:
        return torch.from_numpy(self._ids[part.start : part.stop]).to(self._device)

    def _multiply(self, products: Products, columns: range) -> Tensor:
        rows = self._order[columns.start : columns.stop]
        try:
            return products.multiply(self._table[rows])
        except FloatingPointError as error:
            raise DataError(not_finite("image", rows[error.args[0]])) from None

    def _exact(self, block: _Block, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return block.exact(row, self._order[column + block.columns.start])

    def _genuine_reached(self, block: _Block, values: np.ndarray, near: np.ndarray) -> np.ndarray:
        """int64 G: how many of V ascending scores each of the block's genuine pairs reaches."""
        row, column, products = block.genuine
        if not len(row):
            return np.empty(0, np.int64)
        indices = _indices(products)
        reached = np.searchsorted(values, BINS.edges, "right")[indices]
        unsure = np.flatnonzero(near[indices])
        exact = self._exact(block, row[unsure], column[unsure])
        reached[unsure] = np.searchsorted(values, exact, "right")
        return reached

    def _near(self, values: np.ndarray) -> np.ndarray:
        """bool: the bins whose products may be on another side of a value than their scores."""
        first, last = (
            np.searchsorted(BINS.edges, values + shift, "right") - 1
            for shift in (-self.slack, self.slack)
        )
        change = np.zeros(BINS.number + 1, np.int64)
        np.add.at(change, np.maximum(first, 1), 1)
        np.add.at(change, np.maximum(last, 0) + 1, -1)
        return np.cumsum(change[:-1]) > 0


def _indices(products: np.ndarray) -> np.ndarray:
    """The bins of G products."""
    if not len(products):
        return np.empty(0, np.int64)
    return np.asarray(BINS.indices(torch.from_numpy(products))).reshape(-1)


def _where(near: np.ndarray, indices: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of the R×B bins that are near."""
    if isinstance(indices, Tensor):
        return true_indices(torch.from_numpy(near).to(indices.device)[indices])
    return np.divmod(np.flatnonzero(near.take(indices)), indices.shape[1])


def _largest(scores: Tensor, axis: int) -> np.ndarray:
    """The largest of each column (axis 0) or row (axis 1)."""
    if uses_numpy(scores):  # on CPUs NumPy is faster
        return scores.numpy().max(axis=axis)
    return scores.amax(dim=axis).cpu().numpy()
