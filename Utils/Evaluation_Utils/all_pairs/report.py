"""A checkpoint's figures on every pair of a labelled set: from data to table, JSON and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from Config import Config, settings_for, validate
from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.alignment.prepared import align_training, alignment_of
from Utils.Datasets_Utils.appearance import image_warnings
from Utils.Datasets_Utils.demo.sets import ensure_demo_sets
from Utils.Datasets_Utils.pairs.groups import read_groups
from Utils.Datasets_Utils.photos import labelled_photos
from Utils.Datasets_Utils.training_set import TrainingSet
from Utils.devices import share_device
from Utils.Evaluation_Utils.all_pairs.figures import (
    AllPairsResult,
    PairFigures,
    check_labels,
    evaluate,
)
from Utils.Evaluation_Utils.analysis.bootstrap import (
    LEVEL,
    draws_for,
    mean_interval,
    share_intervals,
)
from Utils.Evaluation_Utils.analysis.intervals import show_range
from Utils.Evaluation_Utils.analysis.pictures import plot_det
from Utils.Evaluation_Utils.analysis.thresholds import (
    Thresholds,
    read_thresholds,
    show_threshold,
    thresholds_table,
    warn_of_another_network,
)
from Utils.Evaluation_Utils.features import (
    embedded,
    embedded_with,
    folder_for,
    list_digest,
    packed_features,
)
from Utils.Evaluation_Utils.inputs import (
    check_same_data,
    flaw_warnings,
    load_network,
    make_output,
)
from Utils.Evaluation_Utils.plots import plot_roc
from Utils.Evaluation_Utils.report import Report
from Utils.Evaluation_Utils.verification import PROTOCOLS
from Utils.files import save_json
from Utils.Pretrained_Utils.load import describe
from Utils.processes import started_by_torchrun
from Utils.tables import format_table, format_warnings, percent

# What the protocols make of a photo's and its mirror image's embedding, by the names in FLIPS.
_FLIPS = {"cosine": "concat", "insightface": "sum"}


def evaluate_all_pairs(config: Config) -> Report | None:
    """Evaluate `config.checkpoint` on every pair of the images of the labelled set `data`.

    Writes <output>/<set>.json with every number of the table, pictures beside it, and the features
    below <output>/features, where a later start finds them. Returns None in all processes of
    torchrun but the first. Raises ConfigError, DataError, ImageError, CheckpointError or RunError.
    """
    with started_by_torchrun() as processes:
        validate(config, torch.cuda.device_count(), settings_for("any_set"))
        device = share_device(config, processes)
        protocol = "insightface" if config.protocol == "insightface" else "cosine"
        backbone = load_network(config, device)
        path, data = processes.one_by_one(lambda: _open(config, backbone.preprocessing.input_size))
        groups = _groups_of(data, config)
        check_labels(data.labels, groups, config.threshold_group)
        other = (
            read_thresholds(config.threshold_from, [protocol]) if config.threshold_from else None
        )
        folder = make_output(config)
        name = path.name if path.is_dir() else path.stem
        check_same_data(config, folder / f"{name}.json", str(data.source))
        photos, names = labelled_photos(data)
        flip, flaws = _FLIPS[protocol], []
        about = {
            "list": list_digest(photos.listed),
            "images": names,
            **({"aligned": str(data.images.source)} if config.align else {}),
            "dtype": "fp32",
            **embedded_with(backbone, flip, path, photos.images),
        }
        produce = embedded(
            photos, backbone, flip, device, config.eval_batch_size, config.num_workers, flaws=flaws
        )
        place = folder_for(folder / "features", name, about, processes)
        progress = f"Embedding {name}"
        packed = packed_features(
            place, photos.listed, about, produce, processes, progress=progress, flaws=flaws
        )
        if not processes.is_main:
            return None
    given = other.points[protocol] if other else []
    result = evaluate(
        packed.table,
        data.labels,
        groups,
        group_far=config.group_far,
        threshold_group=config.threshold_group,
        thresholds=[_to_cosine(threshold, protocol) for _, threshold in given],
        device=device,
        progress=f"Scoring {name}",
    )
    warnings = image_warnings(photos.images, backbone.preprocessing.input_size)
    warnings += flaw_warnings(flaws)
    if other:
        warnings += warn_of_another_network(other, config.checkpoint)
    alone = f"{result.alone:,} identities have one image, which is in impostor pairs only"
    values = {
        "benchmark": name,
        "checkpoint": config.checkpoint,
        "data": str(data.source),
        "images": result.images,
        "identities": result.identities,
        "network": describe(backbone),
        "weights": about["network"],
        "score": f"cosine of the features, image and mirror image: {flip}",
        "notes": [*data.notes, *([alone] if result.alone else [])],
        "warnings": warnings,
        "flaws": flaws,
        "results": {protocol: _figures(result, protocol)},
    }
    if groups is not None:
        values["groups"] = {protocol: _figures_of_groups(result, protocol, config.group_far)}
    if other:
        values["at_thresholds"] = _at_thresholds(result, other, protocol)
    save_json(folder / f"{name}.json", values)
    plot_roc({protocol: result.curve}, folder / f"{name}_roc.png", f"{name}, every pair")
    plot_det({protocol: result.curve}, folder / f"{name}_det.png", f"{name}, every pair")
    return Report(_table(values, result, protocol), folder)


def _open(config: Config, input_size: tuple[int, int]) -> tuple[Path, TrainingSet]:
    """(the path of the labelled images, the set): `data`, or else the demo's training faces."""
    path = config.data or ensure_demo_sets(Path(config.demo_dataset_path)).train_images
    listed = config.pairs, config.identity_folder, config.list_encoding
    path, data = Path(path).absolute(), open_training_set(path, *listed)
    how = alignment_of(config, input_size)
    return path, align_training(data, path, how) if how else data


def _groups_of(data: TrainingSet, config: Config) -> np.ndarray | None:
    """N texts, the groups of the images by the setting `groups`; None if it names no file."""
    if not config.groups:
        return None
    names, rows = [data.name(row) for row in range(len(data))], np.arange(len(data))
    return read_groups(Path(config.groups), names, rows, rows, config.list_encoding)


# --- JSON -----------------------------------------------------------------------------------------


def _to_cosine(threshold: float | None, protocol: str) -> float:
    """The cosine of a threshold on the protocol's scale of scores; None accepts nothing."""
    if threshold is None:
        return np.inf
    return threshold if PROTOCOLS[protocol].score_sign > 0 else 1 + threshold / 2


def _threshold(cosine: float, protocol: str) -> float | None:
    """The inverse of `_to_cosine`: minus the squared distance of normalised rows is 2 cos - 2."""
    if not np.isfinite(cosine):
        return None
    return cosine if PROTOCOLS[protocol].score_sign > 0 else 2 * cosine - 2


def _figures(result: AllPairsResult, protocol: str) -> dict[str, Any]:
    own = result.hits[result.hits[:, 0] > 0]
    ends = share_intervals(own[:, 1:], own[:, 0])
    return {
        **_figures_of_pairs(result.every, protocol),
        "rank1": result.rank1,
        "searches": len(result.searches),
        "intervals": {
            "level": LEVEL,
            "over": "identities, of genuine pairs alone",
            "draws": draws_for(len(own)),
            "tar_at_far": {
                str(point.target): own for point, own in zip(result.every.points, ends, strict=True)
            },
            "rank1": mean_interval(result.found_first, result.searches),
        },
    }


def _figures_of_pairs(figures: PairFigures, protocol: str) -> dict[str, Any]:
    return {
        "genuine": figures.genuine,
        "impostor": figures.impostor,
        "operating_points": [
            {
                "far_target": point.target,
                "far": point.far,
                "tar": point.tar,
                "threshold": _threshold(point.threshold, protocol),
            }
            for point in figures.points
        ],
        "not_measured": list(figures.not_measured),
    }


def _figures_of_groups(result: AllPairsResult, protocol: str, far: float) -> dict[str, Any]:
    return {
        "groups": {
            name: {**_figures_of_pairs(own, protocol), "fmr": own.fmr, "fnmr": own.fnmr}
            for name, own in result.groups.items()
        },
        "across": {
            name: getattr(result.across, name) for name in ("genuine", "impostor", "fmr", "fnmr")
        },
        "threshold": _threshold(result.one.threshold, protocol),
        "threshold_group": result.threshold_group,
        "far_target": far,
        "far": result.one.far,
    }


def _at_thresholds(result: AllPairsResult, other: Thresholds, protocol: str) -> dict[str, Any]:
    """As of `analysis.thresholds.at_thresholds`, without an accuracy: nearly all are impostors."""
    points = [
        {"far_target": target, "threshold": threshold, "far": far, "tar": tar, "accuracy": None}
        for (target, threshold), (far, tar) in zip(
            other.points[protocol], result.given, strict=True
        )
    ]
    return {**other.about(), "results": {protocol: points}}


# --- table ----------------------------------------------------------------------------------------


def _table(values: dict[str, Any], result: AllPairsResult, protocol: str) -> str:
    every, intervals = result.every, values["results"][protocol]["intervals"]
    heading = [[name, values[name]] for name in ("data", "checkpoint", "network", "score")]
    heading += [["note", note] for note in values["notes"]]
    rows = [["FAR", "TAR", "95 % interval", "FAR reached", "threshold"]]
    for point in every.points:
        rows.append(
            [
                f"{point.target:g}",
                percent(point.tar),
                show_range(intervals["tar_at_far"][str(point.target)]),
                f"{point.far:.3g}",
                show_threshold(_threshold(point.threshold, protocol), protocol),
            ]
        )
    searches = f"{len(result.searches):,} images, each searched for among all others"
    lines = [
        f"{format_warnings(values['warnings'])}{values['benchmark']}: every pair of "
        f"{result.images:,} images of {result.identities:,} identities: {every.genuine:,} genuine "
        f"and {every.impostor:,} impostor pairs",
        f"{format_table(heading, '<<', indent=2)}\n",
        format_table(rows, "<>>>>"),
        *_unmeasured(every),
        "",
        f"rank-1  {percent(result.rank1)}  ({show_range(intervals['rank1'])})  of {searches}",
        "The intervals are over identities, whose genuine pairs are weighted at random. The",
        "thresholds stay as they are: what other impostors would change is not in the intervals.",
    ]
    if result.groups:
        lines += ["", _groups_table(result, protocol)]
    if "at_thresholds" in values:
        lines += ["", thresholds_table(values["at_thresholds"])]
    return "\n".join(lines)


def _unmeasured(figures: PairFigures) -> list[str]:
    if not figures.not_measured:
        return []
    fars = ", ".join(f"{far:g}" for far in figures.not_measured)
    return [f"not measured: FAR {fars}, less than one of {figures.impostor:,} impostor pairs"]


def _groups_table(result: AllPairsResult, protocol: str) -> str:
    fars = [point.target for point in result.every.points]
    rows = [["group", "genuine", "impostor", *(f"TAR@{far:g}" for far in fars), "FMR", "FNMR"]]
    named = [*result.groups.items(), ("across groups", result.across)]
    for name, own in named:
        tars = {point.target: point.tar for point in own.points}
        shares = [*(tars.get(far) for far in fars), own.fmr, own.fnmr]
        counts = [f"{own.genuine:,}", f"{own.impostor:,}"]
        rows.append([name, *counts, *map(percent, shares)])
    one, where = result.one, result.threshold_group or "all pairs"
    threshold = show_threshold(_threshold(one.threshold, protocol), protocol)
    return (
        f"{format_table(rows, '<' + '>' * (len(fars) + 4))}\n\n"
        f"TAR at FARs of each group's own pairs. FMR and FNMR at one threshold for all groups, "
        f"{threshold}, FAR {one.target:g} on {where} ({one.far:.3g} reached)."
    )
