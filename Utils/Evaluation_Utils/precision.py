"""What a number format other than fp32 changes in a verification figure."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset

from Utils.Datasets_Utils.verification_set import VerificationSet
from Utils.Evaluation_Utils.benchmark import judge

# Pairs that are judged in fp32 too: all of them would take longer than the other format saves.
COMPARED_PAIRS = 600


def compare_precision(
    backbone: nn.Module,
    data: VerificationSet,
    protocols: list[str],
    device: torch.device,
    batch_size: int,
    num_workers: int,
    dtype: str,
) -> dict[str, Any]:
    """Accuracies (0..1) in fp32 and in `dtype` by protocol, on the same sample of the pairs.

    Plain values for JSON: {"dtype", "pairs", "of_pairs", "accuracy": {protocol: {format: ...}}}.
    """
    sample = sample_pairs(data, COMPARED_PAIRS)
    results = {
        name: judge(backbone, sample, protocols, device, batch_size, num_workers, dtype=name)
        for name in ("fp32", dtype)
    }
    return {
        "dtype": dtype,
        "pairs": len(sample.same),
        "of_pairs": len(data.same),
        "accuracy": {
            protocol: {name: found[protocol].accuracy for name, found in results.items()}
            for protocol in protocols
        },
    }


def describe_precision(compared: dict[str, Any]) -> str:
    """What `compare_precision` found, for the foot of a table."""
    name = compared["dtype"]
    lines = [
        f"{name} against fp32, on {compared['pairs']:,} of the {compared['of_pairs']:,} pairs:"
    ]
    for protocol, accuracy in compared["accuracy"].items():
        change = 100 * (accuracy[name] - accuracy["fp32"])
        lines.append(
            f"  {protocol:<12}{100 * accuracy[name]:.2f} % in {name}, "
            f"{100 * accuracy['fp32']:.2f} % in fp32: {change:+.2f}"
        )
    return "\n".join(lines)


def sample_pairs(data: VerificationSet, count: int) -> VerificationSet:
    """About `count` pairs (all, if there are no more), the same share of each fold and kind, with
    the images that they need."""
    share = min(1.0, count / len(data.same))
    rows = np.concatenate(
        [
            _spread(np.flatnonzero((data.folds == fold) & (data.same == kind)), share)
            for fold in np.unique(data.folds)
            for kind in (True, False)
        ]
    )
    left, right = np.asarray(data.left)[rows], np.asarray(data.right)[rows]
    used = np.unique(np.concatenate((left, right)))
    return replace(
        data,
        images=Subset(data.images, used.tolist()),
        names=[data.names[image] for image in used],
        left=np.searchsorted(used, left),
        right=np.searchsorted(used, right),
        same=np.asarray(data.same)[rows],
        folds=np.asarray(data.folds)[rows],
    )


def _spread(rows: np.ndarray, share: float) -> np.ndarray:
    """A share of the rows, at least one of any, evenly spaced."""
    count = min(len(rows), max(1, round(share * len(rows))))
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)] if count else rows
