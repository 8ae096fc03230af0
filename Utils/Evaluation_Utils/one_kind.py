"""Verification on pairs of one kind: TAR of matched pairs alone, or FAR of mismatched ones.

With one kind of pair no threshold can be chosen, so there is no accuracy, ROC curve or EER. What
remains is the share of the pairs that thresholds given beforehand accept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from Utils.Datasets_Utils.verification_set import VerificationSet
from Utils.Evaluation_Utils.verification import PROTOCOLS, pair_scores
from Utils.tables import format_table

COSINES = (0.2, 0.3, 0.4, 0.5)  # around the thresholds that usual networks get on LFW


@dataclass(frozen=True, eq=False)
class OneKind:
    """Pairs of one kind under one protocol.

    matched: which kind. thresholds: of COSINES in the protocol's unit. rates: the share (0..1) of
    the pairs accepted at each: TAR if they are matched, FAR if not. scores: P scores as in
    `VerificationResult`.
    """

    protocol: str
    matched: bool
    thresholds: tuple[float, ...]
    rates: tuple[float, ...]
    scores: np.ndarray = field(repr=False)

    def to_dict(self) -> dict:
        """The figures as JSON-ready numbers."""
        return {
            "protocol": self.protocol,
            "pairs": len(self.scores),
            "matched": len(self.scores) if self.matched else 0,
            "mismatched": 0 if self.matched else len(self.scores),
            "thresholds": list(self.thresholds),
            "tar" if self.matched else "far": list(self.rates),
            "median_score": float(np.median(self.scores)),
        }


def evaluate_one_kind(
    features_left: np.ndarray, features_right: np.ndarray, matched: bool, protocol: str
) -> OneKind:
    """The shares of P pairs of one kind that are accepted; features as for `evaluate`."""
    scores = pair_scores(features_left, features_right, protocol)
    # The squared distance of two vectors of length 1 is 2 - 2 cos.
    cosines = np.array(COSINES)
    thresholds = cosines if PROTOCOLS[protocol].score_sign > 0 else 2 - 2 * cosines
    accepted = scores[:, None] >= thresholds * PROTOCOLS[protocol].score_sign
    return OneKind(
        protocol=protocol,
        matched=matched,
        thresholds=tuple(thresholds.round(4).tolist()),
        rates=tuple(accepted.mean(axis=0).tolist()),
        scores=scores,
    )


def has_both_kinds(data: VerificationSet) -> bool:
    """Whether there are matched and mismatched pairs."""
    return bool(np.any(data.same)) and not np.all(data.same)


def usable_pairs(data: VerificationSet) -> VerificationSet:
    """The set itself if it has two pairs of each kind; otherwise the pairs of the other kind alone,
    with a note as its last."""
    same = np.asarray(data.same, bool)
    matched, mismatched = int(same.sum()), int((~same).sum())
    if min(matched, mismatched) >= 2:
        return data
    rare, count = ("mismatched", mismatched) if matched >= mismatched else ("matched", matched)
    few = f"is only one {rare} pair" if count else f"are no {rare} pairs"
    rate = "TAR" if rare == "mismatched" else "FAR"
    kept = same == (rate == "TAR")
    return replace(
        data.of_pairs(kept),
        notes=(
            *data.notes,
            f"there {few}: no threshold can be chosen, so there is no accuracy, {rate} alone",
        ),
    )


def rates_table(results: Mapping[str, OneKind]) -> str:
    """The rates at each threshold, by protocol."""
    rate = "TAR" if next(iter(results.values())).matched else "FAR"
    rows = [[cell for protocol in results for cell in (f"{protocol} threshold", rate)]]
    for at in range(len(COSINES)):
        rates = ((r.thresholds[at], 100 * r.rates[at]) for r in results.values())
        rows.append([cell for t, share in rates for cell in (f"{t:.4f}", f"{share:.2f} %")])
    return format_table(rows, ">>" * len(results))
