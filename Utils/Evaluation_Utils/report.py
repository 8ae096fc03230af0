"""A checkpoint's figures on a verification benchmark: from its data to table, JSON and pictures.

LFW_, AgeDB30_ and CFPFP_Evaluation.py call `evaluate_checkpoint`; `evaluate_set` does the same for
any other verification set. Each image is embedded once; pairs are rows of that table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset

from Config import Config, settings_for, validate
from Utils.Datasets_Utils.appearance import image_warnings
from Utils.Datasets_Utils.images import describe_sizes
from Utils.Datasets_Utils.verification_set import VerificationSet
from Utils.devices import find_device
from Utils.errors import DataError
from Utils.Evaluation_Utils.analysis.further import draw_quality, further_figures, open_others
from Utils.Evaluation_Utils.analysis.intervals import show_range
from Utils.Evaluation_Utils.analysis.kept_scores import keep_scores, scores_path
from Utils.Evaluation_Utils.analysis.pictures import plot_det
from Utils.Evaluation_Utils.analysis.thresholds import show_threshold
from Utils.Evaluation_Utils.embedding import EVAL_DTYPES, embed
from Utils.Evaluation_Utils.features import weights_digest
from Utils.Evaluation_Utils.groups import evaluate_groups_of, groups_table, with_groups
from Utils.Evaluation_Utils.inputs import (
    Benchmark,
    check_same_data,
    find_benchmark,
    flaw_warnings,
    load_network,
    make_output,
    open_benchmark,
)
from Utils.Evaluation_Utils.one_kind import (
    OneKind,
    evaluate_one_kind,
    has_both_kinds,
    rates_table,
)
from Utils.Evaluation_Utils.plots import draw_verification
from Utils.Evaluation_Utils.verification import (
    PROTOCOLS,
    VerificationResult,
    combine_flip,
    evaluate,
)
from Utils.files import save_json
from Utils.Pretrained_Utils.load import describe
from Utils.tables import format_table, format_warnings, percent

# Pairs that are evaluated in fp32 too: all of them would take longer than another dtype saves.
COMPARED_PAIRS = 600


@dataclass(frozen=True)
class Report:
    """The printable table, and the folder of the files that belong to it."""

    table: str
    folder: Path


def evaluate_checkpoint(config: Config, prefix: str) -> Report:
    """Evaluate `config.checkpoint` on the benchmark with that settings prefix.

    Writes <output>/<benchmark>.json with every number of the table, and beside it ROC curve,
    score histograms and a sheet of the worst errors as PNG. Raises ConfigError, DataError,
    CheckpointError or RunError.
    """
    validate(config, torch.cuda.device_count(), settings_for(prefix))
    return _evaluate(config, find_benchmark(prefix))


def evaluate_set(config: Config) -> Report:
    """Evaluate `config.checkpoint` on the verification set that `data` (and `pairs`) name, or on
    the demo's groups.

    Writes what `evaluate_checkpoint` writes, named after the set, and raises what it raises.
    """
    validate(config, torch.cuda.device_count(), settings_for("any_set"))
    if config.pairs and not config.data:
        raise DataError(f"there are no images of the pairs {config.pairs}: give --data PATH.")
    path = Path(config.data or "rfw").absolute()
    name = path.name if path.is_dir() else path.stem
    return _evaluate(config, Benchmark(title=name, prefix="", file_name=name))


def _evaluate(config: Config, benchmark: Benchmark) -> Report:
    """Read the checkpoint, open the data, make the output folder: each fails before the work."""
    device = find_device(config.device)
    backbone = load_network(config, device)
    input_size = backbone.preprocessing.input_size
    data, source = open_benchmark(config, benchmark, input_size=input_size)
    folder = make_output(config)
    results_file = folder / f"{benchmark.file_name}.json"
    if not benchmark.prefix:
        check_same_data(config, results_file, source)
    data = with_groups(data, config)
    asked = (config.compare, config.threshold_from, config.quality)
    others = open_others(data, _protocols(config), *asked)
    warnings = image_warnings(data.images, input_size)
    flaws: list[str] = []
    embeddings = _embed(
        backbone, data, config, device, config.eval_dtype, f"Embedding {benchmark.title}", flaws
    )
    results = evaluate_pairs(data, embeddings, _protocols(config))
    groups = evaluate_groups_of(data, embeddings, results, config)
    warnings += flaw_warnings(flaws)
    about = {
        "benchmark": benchmark.title,
        "checkpoint": config.checkpoint,
        "data": source,
        "images": len(data.images),
        "pairs": len(data.same),
        "folds": len(np.unique(data.folds)),
        "sizes": describe_sizes(data.sizes),
        "network": describe(backbone),
        "weights": weights_digest(backbone),
        "notes": list(data.notes),
        "warnings": warnings,
        "flaws": flaws,
    }
    if has_both_kinds(data) and config.eval_dtype != "fp32":
        about["precision"] = compare_precision(backbone, data, config, device)
    wrong = {protocol: found.wrong for protocol, found in groups.items()}
    kept = keep_scores(scores_path(results_file), data, embeddings[0], results, wrong)
    further = further_figures(kept, others, config.checkpoint)
    warnings += further.warnings
    figures = {protocol: result.to_dict() for protocol, result in results.items()}
    if groups:
        about["groups"] = {protocol: found.to_dict() for protocol, found in groups.items()}
    for protocol, found in further.intervals.items():
        figures[protocol]["intervals"] = found
    save_json(results_file, {**about, **further.values, "results": figures})
    if not has_both_kinds(data):
        kind = "all matched" if data.same[0] else "all mismatched"
        tables = [f"{_heading(about, kind)}\n{rates_table(results)}", *further.tables]
        return Report("\n\n".join(tables), folder)
    draw_verification(data, results, folder / benchmark.file_name, benchmark.title)
    curves = {protocol: result.roc for protocol, result in results.items()}
    plot_det(curves, folder / f"{benchmark.file_name}_det.png", benchmark.title)
    draw_quality(further.values, folder / benchmark.file_name, benchmark.title)
    tables = [_table(about, results, further.intervals), *further.tables]
    if groups:
        tables.append(groups_table(groups, further.intervals))
    return Report("\n\n".join(tables), folder)


def _protocols(config: Config) -> list[str]:
    return list(PROTOCOLS) if config.protocol == "both" else [config.protocol]


def _embed(
    backbone: nn.Module,
    data: VerificationSet,
    config: Config,
    device: torch.device,
    dtype: str,
    progress: str | None = None,
    flaws: list[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Embed each image once: N×D of the images, N×D of their mirror images.

    dtype: a name in EVAL_DTYPES. progress: label of a progress bar; None shows none. flaws: takes
    what is wrong with images that were read all the same.
    """
    return embed(
        backbone,
        data.images,
        device,
        batch_size=config.eval_batch_size,
        num_workers=config.num_workers,
        progress=progress,
        dtype=EVAL_DTYPES[dtype],
        flaws=flaws,
    )


def evaluate_pairs(
    data: VerificationSet, embeddings: tuple[np.ndarray, np.ndarray], protocols: Sequence[str]
) -> dict[str, VerificationResult] | dict[str, OneKind]:
    """Evaluate the pairs under each protocol, from what `embed` makes of the set's images.

    Of pairs of one kind the results are `OneKind`.

    Raises DataError, naming the image, for embeddings that are not finite.
    """
    finite = [np.isfinite(features).all(axis=1) for features in embeddings]
    broken = np.flatnonzero(~(finite[0] & finite[1]))
    if broken.size:
        raise DataError(
            f"the network's embedding of {data.names[broken[0]]} holds NaN or infinity (as do "
            f"those of {broken.size:,} of the {len(data.names):,} images); check its weights, and "
            f"that they were trained with this preprocessing and eval_dtype."
        )
    results = {}
    for protocol in protocols:
        rows = combine_flip(*embeddings, protocol)
        left, right = rows[data.left], rows[data.right]
        if has_both_kinds(data):
            results[protocol] = evaluate(left, right, data.same, data.folds, protocol)
        else:
            results[protocol] = evaluate_one_kind(left, right, bool(data.same[0]), protocol)
    return results


# --- table -------------------------------------------------------------------------------------


def _heading(about: dict[str, Any], kind: str) -> str:
    """The lines above the figures; kind: of the pairs, or their folds."""
    names = ["data", "checkpoint", "network", *(["sizes"] if about["sizes"] else [])]
    rows = [[name, about[name]] for name in names] + [["note", note] for note in about["notes"]]
    counts = f"{about['images']:,} images, {about['pairs']:,} pairs"
    return (
        f"{format_warnings(about['warnings'])}{about['benchmark']}: {counts}, {kind}\n"
        + format_table(rows, "<<", indent=2)
        + "\n"
    )


def _table(
    about: dict[str, Any],
    results: dict[str, VerificationResult],
    intervals: dict[str, dict[str, Any]],
) -> str:
    lines = [_heading(about, f"{about['folds']} folds")]
    columns = ("threshold", "95 % interval")
    rows = [["fold", *(cell for protocol in results for cell in (protocol, *columns))]]
    for fold in range(about["folds"]):
        rows.append([str(fold + 1)])
        for result in results.values():
            accuracy, threshold = result.fold_accuracies[fold], result.fold_thresholds[fold]
            rows[-1] += [percent(accuracy), f"{threshold:.4f}", ""]
    rows.append([])
    figures = [_figures(result, intervals[protocol]) for protocol, result in results.items()]
    for cells in zip(*figures, strict=True):
        rows.append([cells[0][0], *(cell for row in cells for cell in row[1:])])
    lines.append(format_table(rows, "<" + ">>>" * len(results)))
    lines.append(f"\nThe intervals are over {next(iter(intervals.values()))['over']}.")
    if "precision" in about:
        lines += ["", _describe_precision(about["precision"])]
    return "\n".join(lines)


def _figures(
    result: VerificationResult, intervals: dict[str, Any]
) -> list[tuple[str, str, str, str]]:
    """(label, figure, deviation or threshold, interval) of the rows below the folds."""
    ranges = intervals["tar_at_far"]
    return [
        (
            "accuracy",
            percent(result.accuracy),
            f"± {100 * result.std:.2f}",
            show_range(intervals["accuracy"]),
        ),
        *(
            (
                f"TAR@FAR={point.target:g}",
                percent(point.tar),
                show_threshold(point.threshold, result.protocol),
                show_range(ranges[str(point.target)]),
            )
            for point in result.operating_points
        ),
        ("AUC", f"{result.auc:.5f}", "", ""),
        ("EER", percent(result.eer), "", ""),
    ]


# --- another dtype ------------------------------------------------------------------------------


def compare_precision(
    backbone: nn.Module, data: VerificationSet, config: Config, device: torch.device
) -> dict[str, Any]:
    """Accuracies (0..1) in fp32 and in `eval_dtype` by protocol, on the same sample of the pairs.

    Plain values for JSON: {"dtype", "pairs", "of_pairs", "accuracy": {protocol: {dtype: ...}}}.
    """
    sample = sample_pairs(data, COMPARED_PAIRS)
    results = {
        dtype: evaluate_pairs(
            sample, _embed(backbone, sample, config, device, dtype), _protocols(config)
        )
        for dtype in ("fp32", config.eval_dtype)
    }
    return {
        "dtype": config.eval_dtype,
        "pairs": len(sample.same),
        "of_pairs": len(data.same),
        "accuracy": {
            protocol: {dtype: found[protocol].accuracy for dtype, found in results.items()}
            for protocol in results["fp32"]
        },
    }


def _describe_precision(compared: dict[str, Any]) -> str:
    """The result of `compare_precision`, for the foot of a table."""
    name = compared["dtype"]
    rows = []
    for protocol, accuracy in compared["accuracy"].items():
        change = 100 * (accuracy[name] - accuracy["fp32"])
        figures = f"{percent(accuracy[name])} in {name}, {percent(accuracy['fp32'])} in fp32"
        rows.append([protocol, f"{figures}: {change:+.2f}"])
    return (
        f"{name} against fp32, on {compared['pairs']:,} of the {compared['of_pairs']:,} pairs:\n"
        + format_table(rows, "<<", indent=2)
    )


def sample_pairs(data: VerificationSet, count: int) -> VerificationSet:
    """About `count` pairs (all, if there are no more), the same share of each fold and kind, with
    the images that they need."""
    share = min(1.0, count / len(data.same))
    taken = []
    for fold in np.unique(data.folds):
        for kind in (True, False):
            group = np.flatnonzero((data.folds == fold) & (data.same == kind))
            size = min(len(group), max(1, round(share * len(group))))
            taken.append(group[np.linspace(0, len(group) - 1, size).round().astype(int)])
    rows = np.concatenate(taken)
    sample = data.of_pairs(rows)
    used = np.unique(np.concatenate((sample.left, sample.right)))
    return replace(
        sample,
        images=Subset(data.images, used.tolist()),
        names=[data.names[image] for image in used],
        left=np.searchsorted(used, sample.left),
        right=np.searchsorted(used, sample.right),
    )
