"""What an evaluation starts from: a benchmark's data, the network, the output folder.

Each of them fails before the work.
"""

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from Config import Config, ConfigError, validate
from Utils.Datasets_Utils import open_verification_set
from Utils.Datasets_Utils.alignment.prepared import align_pairs, alignment_of
from Utils.Datasets_Utils.demo.rfw import ensure_rfw
from Utils.Datasets_Utils.demo.sets import ensure_demo_sets
from Utils.Datasets_Utils.text import first_few
from Utils.Datasets_Utils.verification_set import VerificationSet
from Utils.errors import CheckpointError, DataError, RunError
from Utils.Evaluation_Utils.one_kind import has_both_kinds, usable_pairs
from Utils.files import read_json
from Utils.Pretrained_Utils import find_weights, load_backbone
from Utils.Pretrained_Utils.files import default_output
from Utils.Pretrained_Utils.onnx_network import OnnxBackbone

# The settings of a command with flags of its own that evaluates a network.
NETWORK_SETTINGS = (
    *("checkpoint", "output", "eval_batch_size", "lineage", "weights", "channel_order"),
    *("input_mean", "input_scale", "device", "num_workers"),
)


@dataclass(frozen=True)
class Benchmark:
    """title: as tables show it. prefix: of its settings, <prefix>_dataset_path and
    <prefix>_file_list; empty for `data` and `pairs`. file_name: of its results, without suffix.
    in_demo: whether the demo has a set of that name, which is used where the settings name none."""

    title: str
    prefix: str
    file_name: str
    in_demo: bool = True


BENCHMARKS = (
    Benchmark("LFW", "lfw", "lfw"),
    Benchmark("AgeDB-30", "agedb", "agedb30"),
    Benchmark("CFP-FP", "cfp", "cfpfp"),
)


def find_benchmark(prefix: str) -> Benchmark:
    """The benchmark whose settings begin with prefix."""
    return next(benchmark for benchmark in BENCHMARKS if benchmark.prefix == prefix)


def benchmark_paths(config: Config, benchmark: Benchmark) -> tuple[str, str]:
    """(images, pairs file) of the settings. Both are empty if the settings name no data set,
    the second also for formats that hold their pairs."""
    if not benchmark.prefix:
        return config.data, config.pairs
    return (
        getattr(config, f"{benchmark.prefix}_dataset_path"),
        getattr(config, f"{benchmark.prefix}_file_list"),
    )


def open_benchmark(
    config: Config,
    benchmark: Benchmark,
    both_kinds: bool = False,
    input_size: tuple[int, int] = (112, 112),
) -> tuple[VerificationSet, str]:
    """(the benchmark's data, a text that says where they are): the data set of the settings, or
    otherwise the demo's, drawn if it isn't there yet. Raises DataError for no or unusable data.

    both_kinds: whether pairs of one kind are unusable, as an accuracy is needed. input_size: of the
    network, for `align`."""
    path, file_list = benchmark_paths(config, benchmark)
    if not path and not benchmark.in_demo:
        raise DataError(f"there is no data to evaluate on: give --{benchmark.prefix}_dataset_path.")
    if not path:
        path, file_list = _demo_paths(config, benchmark)
    data = open_verification_set(path, file_list, config.blp_channel_order, config.list_encoding)
    if how := alignment_of(config, input_size):
        data = align_pairs(data, Path(path), how)
    source = f"{path}, {file_list}" if file_list else path
    data = usable_pairs(data)
    if both_kinds and not has_both_kinds(data):
        raise DataError(
            f"{source}: {data.notes[-1]}. There is nothing to follow while training: leave the set "
            f"out with `--{benchmark.prefix}_dataset_path ''`, and evaluate the checkpoint on it "
            f"afterwards."
        )
    folds = np.unique(data.folds)
    gaps = np.flatnonzero(np.diff(folds) > 1)
    if gaps.size and has_both_kinds(data):
        raise DataError(f"{source}: fold {folds[gaps[0]] + 2} holds no pair, though later ones do.")
    return data, source


def _demo_paths(config: Config, benchmark: Benchmark) -> tuple[str, str]:
    """(images, pairs file) of the demo's set of that name; its groups for `data`."""
    demo = ensure_demo_sets(Path(config.demo_dataset_path))
    if not benchmark.prefix:
        return str(ensure_rfw(demo)), ""
    names = (f"{benchmark.prefix}_images", f"{benchmark.prefix}_pairs")
    return tuple(str(getattr(demo, name)) for name in names)


def given_config(given: Mapping[str, Any], names: Collection[str]) -> Config:
    """The settings of these names among a command's flags, checked; the rest are the defaults.

    Raises ConfigError."""
    config = replace(Config(), **{name: given[name] for name in names if name in given})
    validate(config, torch.cuda.device_count(), names)
    return config


def load_network(config: Config, device: torch.device) -> nn.Module:
    """The network that `checkpoint` names, read as the settings say, on the device.

    Raises CheckpointError if none is named or it can't be read.
    """
    if not config.checkpoint:
        raise CheckpointError("there is nothing to evaluate: give --checkpoint PATH.")
    backbone = load_backbone(
        config.checkpoint,
        config.lineage or None,
        config.channel_order,
        config.input_mean,
        config.input_scale,
        config.weights,
    )
    if isinstance(backbone, OnnxBackbone) and config.eval_dtype != "fp32":
        why = "an ONNX network computes in the dtypes of its file; leave it out."
        raise ConfigError("eval_dtype", config.eval_dtype, why)
    return backbone.to(device, memory_format=torch.channels_last)


def flaw_warnings(flaws: Sequence[str]) -> list[str]:
    """One warning that names the first of the flawed images; none if there are none."""
    if not flaws:
        return []
    return [f"{len(flaws):,} images were read in spite of a flaw: {first_few(flaws)}"]


def make_output(config: Config) -> Path:
    """Make the folder for figures and pictures. Raises RunError now, rather than after hours of
    work, if it can't be made or no file can be written to it."""
    if config.output:
        folder = Path(config.output)
    elif config.checkpoint:
        folder = default_output(find_weights(config.checkpoint))
    else:
        folder = Path("Results") / "features"  # given without a network
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RunError(
            f"the output folder {folder} can't be made or written to ({error.strerror}); give "
            f"another --output."
        ) from None
    return folder


def check_same_data(config: Config, results: Path, source: str) -> None:
    """Raise RunError, before the work, if a file of results in the default folder is of other data:
    sets in two folders of one name, such as `images`, would overwrite each other's."""
    if config.output or not results.is_file():
        return
    values = read_json(results, "results file")
    there = values.get("data") if isinstance(values, dict) else None
    if not isinstance(there, str) or Path(there).resolve() != Path(source).resolve():
        raise RunError(
            f"{results} has the results of other data, {there}; for those of {source}, give "
            f"another --output."
        )
