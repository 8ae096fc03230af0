"""Sets of pairs: which scores may be the threshold at a FAR, and the point that they make there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from Utils.Evaluation_Utils.all_pairs.counting import BINS, GENUINE, IMPOSTOR
from Utils.Evaluation_Utils.identification.figures import allowed
from Utils.Evaluation_Utils.roc import OperatingPoint, Roc


class Reached:
    """How many pairs reach a score. values: of each kind of pair, V ascending scores. counts: of
    each kind, 2×V, as of `count_reached`."""

    def __init__(self, values: Sequence[np.ndarray], counts: Sequence[np.ndarray]) -> None:
        self._values, self._counts = values, counts

    def __call__(self, kinds: Sequence[int], scores: np.ndarray) -> np.ndarray:
        """int64 2×S: pairs of some kinds at or above S scores, which must be among the values."""
        places = [np.searchsorted(self._values[kind], scores) for kind in kinds]
        return sum(self._counts[kind][:, at] for kind, at in zip(kinds, places, strict=True))


class PairSet:
    """The pairs of some kinds (see `PairCounter`).

    counts: 2, how many impostor and genuine pairs. bins: 2×bins, their products in the bins.
    slack: how far a score can be from its bin.
    """

    def __init__(
        self, kinds: list[int], counts: np.ndarray, bins: np.ndarray, slack: float
    ) -> None:
        self.kinds, self.counts, self._bins, self._slack = kinds, counts, bins, slack
        # Pairs in each bin and those above.
        self._above = np.cumsum(bins[:, ::-1], axis=1)[:, ::-1]

    def measures(self, far: float) -> bool:
        """Whether a FAR is one impostor pair at least, and there are genuine pairs."""
        return self.counts[GENUINE] > 0 and allowed(far, int(self.counts[IMPOSTOR])) > 0

    def _window(self, far: float) -> tuple[int, float, float]:
        """(bin of the highest impostor that may not be accepted, -1 if all may; a score below which
        no threshold is, and one from which on all could be)."""
        may = allowed(far, int(self.counts[IMPOSTOR]))
        last = int(np.sum(self._above[IMPOSTOR] > may)) - 1
        if last < 0:
            return last, -np.inf, -np.inf
        return last, BINS.edges[last] - self._slack, BINS.edges[last + 1] + self._slack

    def bins_near(self, far: float) -> slice:
        """The bins of all genuine pairs whose score may be the threshold at a FAR."""
        margin = int(np.ceil(2 * self._slack * BINS.factor)) + 1
        last, _, _ = self._window(far)
        beyond = np.flatnonzero(self._bins[GENUINE, last + 1 + margin :])
        if not len(beyond):
            return slice(max(last - margin, 0), None)
        return slice(max(last - margin, 0), last + 1 + margin + int(beyond[0]) + margin + 1)

    def candidates(self, far: float, scores: Sequence[np.ndarray]) -> np.ndarray:
        """float64, ascending: the scores of genuine pairs that may be the threshold at a FAR.
        scores: of each kind, those of pairs in `bins_near`."""
        _, low, high = self._window(far)
        own = np.unique(np.concatenate([scores[kind] for kind in self.kinds]))
        own = own[np.searchsorted(own, low) :]
        return own[: np.searchsorted(own, high) + 1]

    def point(self, far: float, candidates: np.ndarray, reached: Reached) -> OperatingPoint:
        """The point at a FAR, by the scores that may be its threshold."""
        impostor, genuine = reached(self.kinds, candidates)
        chosen = int(np.sum(impostor > allowed(far, int(self.counts[IMPOSTOR]))))
        if chosen == len(candidates):
            return OperatingPoint(far, 0.0, 0.0, np.inf)
        return OperatingPoint(
            target=far,
            far=int(impostor[chosen]) / int(self.counts[IMPOSTOR]),
            tar=int(genuine[chosen]) / int(self.counts[GENUINE]),
            threshold=float(candidates[chosen]),
        )

    def rates(self, threshold: float, reached: Reached) -> tuple[float | None, float | None]:
        """The shares of impostor and of genuine pairs that are accepted; None: there are none."""
        accepted = np.zeros(2, np.int64)
        if np.isfinite(threshold):
            accepted = reached(self.kinds, np.array([threshold]))[:, 0]
        shares = (a / c if c else None for a, c in zip(accepted, self.counts, strict=True))
        impostor, genuine = (None if share is None else float(share) for share in shares)
        return impostor, genuine

    def curve(self) -> Roc:
        """The ROC curve by the bins' lower edges."""
        accepted = self._above[:, ::-1]
        kept = np.flatnonzero(np.diff(accepted.sum(axis=0), prepend=0) > 0)
        far, tar = (np.append(0.0, accepted[k, kept] / self.counts[k]) for k in (IMPOSTOR, GENUINE))
        return Roc(
            far=far,
            tar=tar,
            thresholds=np.append(np.inf, BINS.edges[::-1][kept]),
            positives=int(self.counts[GENUINE]),
            negatives=int(self.counts[IMPOSTOR]),
        )
