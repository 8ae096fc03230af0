"""Scores that do not depend on how they were computed, and quick products that come near them.

The score of two features is the cosine, which orders pairs as the MegaFace devkit's -‖x-y‖² of
normalised features does: both are divided by their length and multiplied, in float64, the products
added up pair by pair. That takes too long for 3,530 × 1,000,000 pairs, so a matrix multiplication
in float32 (or less) finds, with a proven bound on its error, the few pairs whose exact score can
matter; only those are computed exactly. Figures then are the same for any block size, device,
number of processes and number format of the product.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from Utils.cpu import LoneThreads

SCORE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_ROUNDING = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}
# Half the distance of two neighbours near 1, relative: bf16 keeps 8 bits, fp16 11.
_LOW_ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
_SMALLEST_HALF = 2.0**-24  # of fp16, whose numbers below 6e-5 are this far apart
# Sums of squares that float32 and float64 hold with full precision.
_SAFE_SQUARES = (1e-30, 1e30)
_SAFE_DOUBLE_SQUARES = (1e-280, 1e280)
_PAIRS_AT_ONCE = 256  # of them a few copies in float64 stay in the processor's cache
_REFINED_AT_ONCE = 1 << 14  # pairs, so that their features take 32 MiB at 512 dimensions


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """N×D of any float type as float64 rows of length 1; a row of length zero stays zero."""
    rows = np.ascontiguousarray(rows, dtype=np.float64)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.sum(rows * rows, axis=1, keepdims=True)
    extreme = np.flatnonzero(~_is_between(squares[:, 0], _SAFE_DOUBLE_SQUARES))
    if extreme.size:
        rows, squares = rows.copy(), squares.copy()
        with np.errstate(invalid="ignore"):  # what is not finite stays so
            # By a power of two, which is exact: the same row in another scale gets the same bits.
            power = np.frexp(np.abs(rows[extreme]).max(axis=1, keepdims=True))[1]
            rows[extreme] = np.ldexp(rows[extreme], -power)
            squares[extreme] = np.sum(rows[extreme] ** 2, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return rows / np.where(squares == 0, np.inf, np.sqrt(squares))


def row_products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """N scores of N×D unit rows: each row's sum has its own fixed order of additions."""
    return np.sum(left * right, axis=1)


def error_bound(dim: int, dtype: torch.dtype) -> float:
    """How far a product of unit rows computed in `dtype` can be from the exact score.

    Higham, "Accuracy and Stability of Numerical Algorithms" (2002), section 3.1: a sum of D
    products, added in any order, is off by at most about D·u times the sum of their sizes, here at
    most 1. Half as much again is for the rows' lengths, computed in the same precision. bf16 and
    fp16 are multiplied with float32 sums; their own rounding happens on both inputs and the output.
    """
    if dtype in _ROUNDING:
        return 1.02 * (1.5 * dim + 10) * _ROUNDING[dtype]
    low = 3.1 * _LOW_ROUNDING[dtype] + 2 * dim**0.5 * _SMALLEST_HALF
    return low + error_bound(dim, torch.float32)


class PairScorer:
    """Exact scores of chosen pairs.

    probes: float64 P×D unit rows. distractors: N×D of any float type, an array or memory map.
    threads: those that share the work.
    """

    def __init__(self, probes: np.ndarray, distractors: np.ndarray, threads: LoneThreads) -> None:
        self._probes = probes
        self._distractors = distractors
        self._threads = threads

    def __call__(self, probe: np.ndarray, distractor: np.ndarray) -> np.ndarray:
        """float64 scores of the pairs (probe[k], distractor[k])."""
        scores = np.empty(len(probe))
        order = np.argsort(distractor, kind="stable")  # the file is read forwards

        def score(start: int) -> None:
            pairs = order[start : start + _PAIRS_AT_ONCE]
            right = unit_rows(self._distractors[distractor[pairs]])
            scores[pairs] = row_products(self._probes[probe[pairs]], right)

        self._threads.map(score, range(0, len(order), _PAIRS_AT_ONCE))
        return scores


class Products:
    """Scores of all probes with a block of distractors, by matrix multiplication on a device.

    probes: float64 P×D unit rows. dtype: a number format of SCORE_DTYPES.
    bound: how far the products are from the exact scores; refined_bound: those of `refine` and
    `of_probes`.
    """

    def __init__(self, probes: np.ndarray, device: torch.device, dtype: torch.dtype) -> None:
        self._exact = probes
        self._probes = torch.from_numpy(probes.astype(np.float32)).to(device)
        self._low = self._probes.to(dtype)
        self._device = device
        self.dtype = dtype
        self.bound = error_bound(probes.shape[1], dtype)
        self.refined_bound = error_bound(probes.shape[1], torch.float32)
        self.double_bound = error_bound(probes.shape[1], torch.float64)
        self._out: Tensor | None = None

    def load(self, rows: np.ndarray) -> None:
        """Take B×D distractor rows of any float type as the block that the next calls are about.

        Raises FloatingPointError with the first row that is not finite as its argument.
        """
        self._rows = rows
        unit = _unit_float32(rows)
        self._block = torch.from_numpy(unit).to(self._device)
        self._low_block = self._block.to(self.dtype)

    def room(self) -> Tensor:
        """float32 P×B for the products, to be filled; the same memory again for the next block."""
        shape = (len(self._low), len(self._block))
        if self._out is None or self._out.shape != shape:
            self._out = torch.empty(shape, device=self._device)
        return self._out

    @torch.inference_mode()  # each thread has a mode of its own, and the caller's may be on
    def fill(self, rows: slice) -> None:
        """Write the products of some probes into the room for them, from any thread."""
        if self.dtype == torch.float32:
            torch.mm(self._low[rows], self._low_block.T, out=self._out[rows])
        else:
            self._out[rows] = torch.mm(self._low[rows], self._low_block.T)

    def all(self) -> Tensor:
        """float32 P×B, filled; the same memory again for the next block."""
        out = self.room()
        self.fill(slice(None))
        return out

    def refine(self, probe: np.ndarray, column: np.ndarray) -> np.ndarray:
        """float32 products of chosen pairs, for a block that was multiplied in less."""
        products = np.empty(len(probe), np.float32)
        for start in range(0, len(probe), _REFINED_AT_ONCE):
            part = slice(start, start + _REFINED_AT_ONCE)
            left = self._probes[torch.from_numpy(probe[part]).to(self._device)]
            right = self._block[torch.from_numpy(column[part]).to(self._device)]
            products[part] = (left * right).sum(dim=1).cpu().numpy()
        return products

    def of_probes(self, probe: np.ndarray) -> Tensor:
        """float32 R×B of chosen probes with the block."""
        return self._probes[torch.from_numpy(probe).to(self._device)] @ self._block.T

    def of_probes_in_double(self, probe: np.ndarray) -> Tensor:
        """float64 R×B of chosen probes with the block."""
        left = torch.from_numpy(self._exact[probe]).to(self._device)
        return left @ torch.from_numpy(unit_rows(self._rows)).to(self._device).T


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch off what makes CUDA's products less exact than their number format: TF32 in float32,
    and partial sums in half precision; and put it back."""
    matmul = torch.backends.cuda.matmul
    names = (
        "allow_tf32",
        "allow_fp16_reduced_precision_reduction",
        "allow_bf16_reduced_precision_reduction",
    )
    before = {name: getattr(matmul, name) for name in names}
    try:
        for name in names:
            setattr(matmul, name, False)
        yield
    finally:
        for name, value in before.items():
            setattr(matmul, name, value)


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
