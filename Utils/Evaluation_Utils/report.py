"""Judging a checkpoint on a verification benchmark: table, results file and pictures."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from Config import Config, settings_for, validate
from Utils.Datasets_Utils import open_verification_set
from Utils.Datasets_Utils.images import describe_sizes
from Utils.Datasets_Utils.verification_set import VerificationSet
from Utils.devices import find_device
from Utils.errors import CheckpointError, DataError, RunError
from Utils.Evaluation_Utils.benchmark import (
    Benchmark,
    compare_precision,
    describe_precision,
    describe_source,
    find_benchmark,
    judge,
    open_benchmark,
    protocols_of,
)
from Utils.Evaluation_Utils.plots import contact_sheet, plot_roc, plot_scores
from Utils.Evaluation_Utils.verification import REPORTED_FARS, VerificationResult
from Utils.files import save_json
from Utils.Pretrained_Utils import find_weights, load_backbone
from Utils.Pretrained_Utils.load import describe
from Utils.run_folder import COMMON, run_of

WORST_SHOWN = 10


@dataclass(frozen=True)
class Report:
    """The printable table, and the folder of the files that go with it."""

    table: str
    folder: Path


def evaluate_checkpoint(config: Config, prefix: str) -> Report:
    """Judge `config.checkpoint` on the benchmark with that settings prefix.

    Writes <output>/<benchmark>.json with every number of the table, and beside it ROC curve,
    score histograms and a sheet of the worst errors as PNG. Raises ConfigError, DataError,
    CheckpointError or RunError.
    """
    validate(config, torch.cuda.device_count(), settings_for(prefix))
    benchmark = find_benchmark(prefix)
    return _evaluate(config, benchmark, lambda: open_benchmark(config, benchmark))


def evaluate_set(config: Config) -> Report:
    """Judge `config.checkpoint` on the verification set that `data` (and `pairs`) name.

    Writes what `evaluate_checkpoint` writes, named after the set, and raises what it raises.
    """
    validate(config, torch.cuda.device_count(), settings_for("any_set"))
    if not config.data:
        raise DataError("there is nothing to judge on: give --data PATH.")
    path = Path(config.data).absolute()
    name = path.name if path.is_dir() else path.stem
    return _evaluate(config, Benchmark(name, "", name), lambda: _open_set(config))


def _open_set(config: Config) -> tuple[VerificationSet, str]:
    data = open_verification_set(config.data, config.pairs, config.blp_channel_order)
    return data, describe_source(config.data, config.pairs)


def _evaluate(
    config: Config, benchmark: Benchmark, open_data: Callable[[], tuple[VerificationSet, str]]
) -> Report:
    device = find_device(config.device)
    backbone = load_network(config, device)
    folder = make_output(config)
    data, source = open_data()
    protocols = protocols_of(config)
    how = (device, config.eval_batch_size, config.num_workers)
    dtype, label = config.eval_dtype, f"Embedding {benchmark.title}"
    results = judge(backbone, data, protocols, *how, progress=label, dtype=dtype)
    about = {**_about(config, benchmark, data, source), "network": describe(backbone)}
    if dtype != "fp32":
        about["precision"] = compare_precision(backbone, data, protocols, *how, dtype)
    _write_json(folder / f"{benchmark.file_name}.json", about, results)
    _draw(folder, benchmark, data, results)
    return Report(_table(about, results), folder)


def load_network(config: Config, device: torch.device) -> nn.Module:
    """The network that `checkpoint` names, read as the settings say, on the device.

    Raises CheckpointError where none is named or it can't be read.
    """
    if not config.checkpoint:
        raise CheckpointError("there is nothing to judge: give --checkpoint PATH.")
    backbone = load_backbone(
        config.checkpoint,
        config.lineage or None,
        config.channel_order,
        config.input_mean,
        config.input_scale,
        config.weights,
    )
    return backbone.to(device, memory_format=torch.channels_last)


def make_output(config: Config) -> Path:
    """The folder for figures and pictures, made. Raises RunError where that can't be done, or
    no file can be written to it: better now than after hours of work."""
    if config.output:
        folder = Path(config.output)
    elif config.checkpoint:
        folder = default_output(find_weights(config.checkpoint))
    else:
        folder = Path("Results") / "features"  # features that came without a network
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RunError(
            f"the output folder {folder} can't be made or written to ({error.strerror}); give "
            f"another --output."
        ) from None
    return folder


def default_output(checkpoint: Path) -> Path:
    """Results/<run>_<checkpoint>; the checkpoint's own folder may be read-only."""
    if checkpoint.name == COMMON:
        checkpoint = checkpoint.parent
    run = run_of(checkpoint)
    return Path("Results") / (f"{run.name}_{checkpoint.stem}" if run else checkpoint.stem)


def _about(
    config: Config, benchmark: Benchmark, data: VerificationSet, source: str
) -> dict[str, Any]:
    return {
        "benchmark": benchmark.title,
        "checkpoint": config.checkpoint,
        "data": source,
        "images": len(data.images),
        "pairs": len(data.same),
        "folds": len(np.unique(data.folds)),
        "sizes": describe_sizes(data.sizes),
    }


def _write_json(path: Path, about: dict[str, Any], results: dict[str, VerificationResult]) -> None:
    values = {**about, "results": {name: r.to_dict() for name, r in results.items()}}
    save_json(path, values)


def _draw(
    folder: Path,
    benchmark: Benchmark,
    data: VerificationSet,
    results: dict[str, VerificationResult],
) -> None:
    name, title = benchmark.file_name, benchmark.title
    plot_roc({p: r.roc for p, r in results.items()}, folder / f"{name}_roc.png", title)
    for protocol, result in results.items():
        path = folder / f"{name}_scores_{protocol}.png"
        heading = f"{title}, {protocol}: {100 * result.accuracy:.2f} %"
        plot_scores(result.fold_scores, result.same, result.score_threshold, path, heading)
    protocol, result = next(iter(results.items()))
    sections = {
        "Worst false matches: different people, judged the same": _worst(data, result, False),
        "Worst false non-matches: one person, judged different": _worst(data, result, True),
    }
    contact_sheet(sections, folder / f"{name}_worst.png", f"{title}, {protocol}")


def _worst(
    data: VerificationSet, result: VerificationResult, same: bool
) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """The misjudged pairs of one kind, furthest on the wrong side first."""
    pairs = np.flatnonzero(result.wrong & (result.same == same))
    order = np.argsort(result.fold_scores[pairs] * (1 if same else -1), kind="stable")
    rows = []
    for pair in pairs[order[:WORST_SHOWN]]:
        left, right = data.left[pair], data.right[pair]
        names = f"{Path(data.names[left]).name}\n{Path(data.names[right]).name}"
        caption = f"score {result.fold_scores[pair]:.3f}\n{names}"
        rows.append((data.images[left], data.images[right], caption))
    return rows


def _table(about: dict[str, Any], results: dict[str, VerificationResult]) -> str:
    head = (
        f"{about['benchmark']}: {about['images']:,} images, {about['pairs']:,} pairs, "
        f"{about['folds']} folds\n  data        {about['data']}\n"
        f"  checkpoint  {about['checkpoint']}\n"
        f"  network     {about['network']}\n"
    )
    if about["sizes"]:
        head += f"  sizes       {about['sizes']}\n"
    lines = [head, _row("fold", [f"{p:>11} {'threshold':>10}" for p in results])]
    for fold in range(about["folds"]):
        lines.append(
            _row(
                str(fold + 1),
                [
                    f"{100 * r.fold_accuracies[fold]:>9.2f} % {r.fold_thresholds[fold]:>10.4f}"
                    for r in results.values()
                ],
            )
        )
    lines.append("")
    for label, text in _summary_rows():
        lines.append(_row(label, [text(r) for r in results.values()]))
    if "precision" in about:
        lines += ["", describe_precision(about["precision"])]
    return "\n".join(lines)


def _summary_rows() -> list[tuple[str, Callable[[VerificationResult], str]]]:
    """(label, what to show of a result) of the rows below the folds."""
    rows = [("accuracy", lambda r: f"{100 * r.accuracy:>9.2f} % ± {100 * r.std:<8.2f}")]
    for far in REPORTED_FARS:
        rows.append(
            (f"TAR@FAR={far:g}", lambda r, far=far: f"{100 * r.tar_at_far[far]:>9.2f} %{'':<11}")
        )
    rows.append(("AUC", lambda r: f"{r.auc:>11.5f}{'':<11}"))
    rows.append(("EER", lambda r: f"{100 * r.eer:>9.2f} %{'':<11}"))
    return rows


def _row(label: str, cells: list[str]) -> str:
    return f"{label:<14}" + "   ".join(cells).rstrip()
