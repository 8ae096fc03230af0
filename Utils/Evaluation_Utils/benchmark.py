"""A verification benchmark from its data to its figures: what the three scripts share.

What a number format other than fp32 changes in a verification figure.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset

from Config import Config
from Utils.Datasets_Utils import open_verification_set
from Utils.Datasets_Utils.demo.sets import ensure_demo_sets
from Utils.Datasets_Utils.verification_set import VerificationSet
from Utils.Evaluation_Utils.embedding import EVAL_DTYPES, embed
from Utils.Evaluation_Utils.verification import (
    PROTOCOLS,
    VerificationResult,
    combine_flip,
    evaluate,
)


@dataclass(frozen=True)
class Benchmark:
    """title: as tables show it. prefix: of its settings, <prefix>_dataset_path and
    <prefix>_file_list. file_name: of its results, without suffix."""

    title: str
    prefix: str
    file_name: str


BENCHMARKS = (
    Benchmark("LFW", "lfw", "lfw"),
    Benchmark("AgeDB-30", "agedb", "agedb30"),
    Benchmark("CFP-FP", "cfp", "cfpfp"),
)


def find_benchmark(prefix: str) -> Benchmark:
    """The benchmark whose settings begin with prefix."""
    return next(benchmark for benchmark in BENCHMARKS if benchmark.prefix == prefix)


def benchmark_paths(config: Config, benchmark: Benchmark) -> tuple[str, str]:
    """(images, pairs file) as the settings say; both empty where they name no data set, the second
    also for formats that hold their pairs."""
    return (
        getattr(config, f"{benchmark.prefix}_dataset_path"),
        getattr(config, f"{benchmark.prefix}_file_list"),
    )


def demo_paths(config: Config, benchmark: Benchmark) -> tuple[str, str]:
    """(images, pairs file) of the demo's set of that name, drawn if it isn't there yet."""
    demo = ensure_demo_sets(Path(config.demo_dataset_path))
    return (
        str(getattr(demo, f"{benchmark.prefix}_images")),
        str(getattr(demo, f"{benchmark.prefix}_pairs")),
    )


def open_benchmark(config: Config, benchmark: Benchmark) -> tuple[VerificationSet, str]:
    """The benchmark's data and where it lies: the settings' data set, or else the demo's."""
    path, file_list = benchmark_paths(config, benchmark)
    if not path:
        path, file_list = demo_paths(config, benchmark)
    data = open_verification_set(path, file_list, config.blp_channel_order)
    return data, describe_source(path, file_list)


def describe_source(path: str, file_list: str) -> str:
    """Where images, and the pairs file if there is one, lie, for results and tables."""
    return f"{path}, {file_list}" if file_list else path


def protocols_of(config: Config) -> list[str]:
    """The protocols that the `protocol` setting means."""
    return list(PROTOCOLS) if config.protocol == "both" else [config.protocol]


def judge(
    backbone: nn.Module,
    data: VerificationSet,
    protocols: list[str],
    device: torch.device,
    batch_size: int,
    num_workers: int,
    progress: str | None = None,
    dtype: str = "fp32",
) -> dict[str, VerificationResult]:
    """Embed each image of a verification set once and evaluate its pairs under each protocol.

    dtype: a name in EVAL_DTYPES.
    """
    both = embed(
        backbone, data.images, device, batch_size, num_workers, progress, EVAL_DTYPES[dtype]
    )
    return evaluate_pairs(data, both, protocols)


def evaluate_pairs(
    data: VerificationSet, embeddings: tuple[np.ndarray, np.ndarray], protocols: list[str]
) -> dict[str, VerificationResult]:
    """Evaluate the pairs under each protocol, from what `embed` makes of the set's images."""
    results = {}
    for protocol in protocols:
        rows = combine_flip(*embeddings, protocol)
        results[protocol] = evaluate(
            rows[data.left], rows[data.right], data.same, data.folds, protocol
        )
    return results


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
