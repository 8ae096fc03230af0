"""A verification benchmark from its data to its figures: what the three scripts share."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from Config import Config
from Utils.Datasets_Utils import open_verification_set
from Utils.Datasets_Utils.demo_sets import ensure_demo_sets
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
