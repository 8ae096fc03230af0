"""Scores that do not depend on how they were computed, and fast products that come near them.

The score of two features is their cosine, which orders pairs as the MegaFace devkit's -‖x-y‖² of
normalised features does. It is defined here in float64: both rows are L2-normalised and multiplied,
and the D products are summed in a fixed order. That takes too long for 3,530 × 1,000,000 pairs. So
a matrix multiplication in float32 (or less), with a proven bound on its error, finds the few pairs
whose exact score can matter, and only those are computed exactly. Figures are then the same for any
block size, device, number of processes and dtype of the product.
"""

import numpy as np
import torch
from torch import Tensor

from Utils.cpu import LoneThreads

SCORE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_ROUNDING = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}
# Half the distance of two neighbours near 1, relative: bf16 has 8 bits, fp16 11.
_LOW_ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
_SMALLEST_HALF = 2.0**-24  # fp16 numbers below 6e-5 are this far apart
# Sums of squares that float32 and float64 represent with full precision.
_SAFE_SQUARES = (1e-30, 1e30)
_SAFE_DOUBLE_SQUARES = (1e-280, 1e280)
_PAIRS_AT_ONCE = 256  # a few float64 copies of these features fit into the processor's cache


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """N×D of any float type as L2-normalised float64 rows; a row of zeros stays zero."""
    rows = np.ascontiguousarray(rows, dtype=np.float64)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.sum(rows * rows, axis=1, keepdims=True)
    extreme = np.flatnonzero(~_is_between(squares[:, 0], _SAFE_DOUBLE_SQUARES))
    if extreme.size:
        rows, squares = rows.copy(), squares.copy()
        with np.errstate(invalid="ignore"):  # NaN and infinity stay what they are
            # By a power of two, which is exact: the same row in another scale gets the same bits.
            power = np.frexp(np.abs(rows[extreme]).max(axis=1, keepdims=True))[1]
            rows[extreme] = np.ldexp(rows[extreme], -power)
            squares[extreme] = np.sum(rows[extreme] ** 2, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return rows / np.where(squares == 0, np.inf, np.sqrt(squares))


def uses_numpy(scores: Tensor) -> bool:
    """Whether NumPy and OpenCV look through these scores: on CPUs they are faster than PyTorch."""
    return scores.device.type == "cpu"


def row_products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """N exact scores of N×D and N×D normalised rows."""
    return np.sum(left * right, axis=1)


def error_bound(dim: int, dtype: torch.dtype) -> float:
    """How far a product of normalised rows computed in `dtype` can be from the exact score.

    Higham, "Accuracy and Stability of Numerical Algorithms" (2002), section 3.1: a sum of D
    products, added in any order, is off by at most about D·u times the sum of their sizes, here at
    most 1. Half as much again is for the rows' lengths, computed in the same precision. bf16 and
    fp16 are multiplied with float32 sums; their own rounding happens on both inputs and the output.
    The last term is for thresholds, which are rounded to the scores' dtype before a comparison.
    """
    if dtype in _ROUNDING:
        return 1.02 * (1.5 * dim + 10) * _ROUNDING[dtype] + 4 * _ROUNDING[dtype]
    low = 3.1 * _LOW_ROUNDING[dtype] + 2 * dim**0.5 * _SMALLEST_HALF
    return low + error_bound(dim, torch.float32)


class PairScorer:
    """Exact scores of chosen pairs.

    probes: float64 P×D normalised rows. distractors: N×D of any float type, an array or memory map.
    threads: they share the work.
    """

    def __init__(self, probes: np.ndarray, distractors: np.ndarray, threads: LoneThreads) -> None:
        self._probes = probes
        self._distractors = distractors
        self._threads = threads

    def __call__(self, probe: np.ndarray, distractor: np.ndarray) -> np.ndarray:
        """float64 scores of the pairs (probe[k], distractor[k]), from one block of distractors."""
        used, place = np.unique(distractor, return_inverse=True)  # the file is read forwards
        features, scores = np.empty((len(used), self._probes.shape[1])), np.empty(len(probe))

        def normalise(start: int) -> None:
            rows = slice(start, start + _PAIRS_AT_ONCE)
            features[rows] = unit_rows(self._distractors[used[rows]])

        def score(start: int) -> None:
            pairs = slice(start, start + _PAIRS_AT_ONCE)
            scores[pairs] = row_products(self._probes[probe[pairs]], features[place[pairs]])

        self._threads.map(normalise, range(0, len(used), _PAIRS_AT_ONCE))
        self._threads.map(score, range(0, len(probe), _PAIRS_AT_ONCE))
        return scores


class Products:
    """Approximate scores of all probes with a block of distractors, by matrix multiplication.

    probes: float64 P×D normalised rows. dtype: one of SCORE_DTYPES.
    bound: how far float32 products are from the exact scores; low_bound: those in `dtype`.
    """

    def __init__(self, probes: np.ndarray, device: torch.device, dtype: torch.dtype) -> None:
        self._exact = probes
        self._probes = torch.from_numpy(probes.astype(np.float32)).to(device)
        self._low = self._probes.to(dtype)
        self.bound = error_bound(probes.shape[1], torch.float32)
        self.low_bound = error_bound(probes.shape[1], dtype)
        self.double_bound = error_bound(probes.shape[1], torch.float64)
        self._scores: Tensor | None = None
        self._staged: Tensor | None = None

    def multiply(self, rows: np.ndarray) -> Tensor:
        """float32 P×B products with B×D distractors of any float type. The next call writes to the
        same memory. Raises FloatingPointError with the first row that is not finite."""
        self._rows = rows
        if uses_numpy(self._probes):
            self._block = torch.from_numpy(_unit_float32(rows))
        else:
            self._block = self._unit_on_device(rows)
        shape = (len(self._probes), len(rows))
        if self._scores is None or self._scores.shape != shape:
            self._scores = torch.empty(shape, device=self._probes.device)
        if self._low.dtype == torch.float32:
            torch.mm(self._low, self._block.T, out=self._scores)
        else:
            self._scores.copy_(torch.mm(self._low, self._block.to(self._low.dtype).T))
        return self._scores

    def _unit_on_device(self, rows: np.ndarray) -> Tensor:
        """As `_unit_float32`, on the device. Rows reach it through pinned memory, as they are:
        copies from other memory are several times slower, and so is the division on the CPU."""
        dtype = torch.float16 if rows.dtype == np.float16 else torch.float32
        if self._staged is None or (self._staged.shape, self._staged.dtype) != (rows.shape, dtype):
            self._staged = torch.empty(rows.shape, dtype=dtype, pin_memory=self._probes.is_cuda)
        with np.errstate(over="ignore", under="ignore"):
            self._staged.numpy()[...] = rows
        # Not `non_blocking`: the next block overwrites the pinned memory.
        block = self._staged.to(self._probes.device, copy=True).float()
        squares = (block * block).sum(dim=1, keepdim=True)
        low, high = _SAFE_SQUARES
        if not ((squares > low) & (squares < high)).all():  # NaN as well
            return torch.from_numpy(_unit_float32(rows)).to(block.device)
        return block.div_(squares.sqrt_())

    def refine(self, probe: Tensor) -> None:
        """Write float32 products over those that `multiply` has computed in less for R probes."""
        self._scores[probe] = torch.mm(self._probes[probe], self._block.T)

    def in_double(self, probe: np.ndarray) -> Tensor:
        """float64 R×B products of R probes with the same distractors."""
        left = torch.from_numpy(self._exact[probe]).to(self._probes.device)
        return left @ torch.from_numpy(unit_rows(self._rows)).to(left.device).T


def _unit_float32(given: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        rows = np.ascontiguousarray(given, dtype=np.float32)
        squares = np.einsum("ij,ij->i", rows, rows)
    extreme = np.flatnonzero(~_is_between(squares, _SAFE_SQUARES))
    length = np.sqrt(squares)[:, None]
    length[extreme] = 1
    unit = rows / length
    if extreme.size:
        bad = extreme[~np.isfinite(given[extreme]).all(axis=1)]
        if bad.size:
            raise FloatingPointError(int(bad[0]))
        unit[extreme] = unit_rows(given[extreme])
    return unit


def _is_between(values: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    return (values > bounds[0]) & (values < bounds[1])
