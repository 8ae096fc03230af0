"""TinyFace from photos to figures: what the script does."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from Config import Config, settings_for, validate
from Utils.Datasets_Utils.appearance import image_warnings, some_of
from Utils.Datasets_Utils.text import first_few
from Utils.devices import share_device
from Utils.Evaluation_Utils.analysis.bootstrap import mean_draws
from Utils.Evaluation_Utils.analysis.drawn import Drawn, compare_drawn, keep_drawn, open_compared
from Utils.Evaluation_Utils.analysis.intervals import show_range
from Utils.Evaluation_Utils.features import (
    embedded,
    embedded_with,
    folder_for,
    list_digest,
    packed_features,
)
from Utils.Evaluation_Utils.inputs import flaw_warnings, load_network, make_output
from Utils.Evaluation_Utils.report import Report
from Utils.Evaluation_Utils.tinyface.data import TinyFaceData, open_tinyface
from Utils.Evaluation_Utils.tinyface.figures import TinyFaceResult, evaluate
from Utils.files import save_json
from Utils.Pretrained_Utils.load import describe, weights_digest
from Utils.processes import ALONE, Processes, started_by_torchrun
from Utils.tables import format_table, format_warnings

FILE_NAME = "tinyface"


def evaluate_tinyface(config: Config) -> Report | None:
    """Evaluate `config.checkpoint` on TinyFace.

    Writes <output>/tinyface.json with every number of the table, beside it what a comparison needs,
    and the features below <output>/features, where a later start finds them. Returns None in all
    processes of torchrun but the first. Raises ConfigError, DataError, ImageError, CheckpointError
    or RunError.
    """
    with started_by_torchrun() as processes:
        validate(config, torch.cuda.device_count(), settings_for("tinyface"))
        device = share_device(config, processes)
        backbone = load_network(config, device)
        data = processes.one_by_one(lambda: open_tinyface(config))
        folder = make_output(config)
        path = folder / f"{FILE_NAME}.json"
        same = {"benchmark": "TinyFace", "lists": _lists_digest(data)}
        others = open_compared(config.compare, path, same)
        flaws: list[str] = []
        tables = _features(config, data, backbone, device, folder / "features", processes, flaws)
        if not processes.is_main:
            return None
    result = evaluate(
        tables["probes"],
        data.probes.listed.ids,
        tables["gallery"],
        data.gallery.listed.ids,
        tables["distractors"],
        progress="Scoring TinyFace",
    )
    about = _about(config, data, backbone, result, flaws)
    figures = {
        "mAP": result.mean_average_precision,
        "rank_rates": {str(rank): rate for rank, rate in result.rank_rates.items()},
        "best_rank": result.best_rank.tolist(),
    }
    drawn = {"TinyFace": _drawn(result, data.probes.listed.ids)}
    figures["intervals"] = _intervals(drawn["TinyFace"])
    comparisons, tables = compare_drawn(drawn, path, others)
    if others:
        about["comparisons"] = comparisons
    scores = keep_drawn(path, same, drawn)
    save_json(path, {**about, "scores": scores, "results": figures})
    return Report("\n\n".join([_table(about, result, figures["intervals"]), *tables]), folder)


def _lists_digest(data: TinyFaceData) -> str:
    parts = "".join(list_digest(photos.listed) for photos in data.parts.values())
    return hashlib.sha256(parts.encode()).hexdigest()


def _drawn(result: TinyFaceResult, people: Sequence[object]) -> Drawn:
    """The figures in draws over the probes' people."""
    found = result.best_rank > 0
    own = np.asarray(people)[found]
    figures = {"mAP": result.mean_average_precision}
    draws = {"mAP": mean_draws(result.average_precision[found], own)}
    for rank, rate in result.rank_rates.items():
        figures[f"rank-{rank}"] = rate
        draws[f"rank-{rank}"] = mean_draws(result.best_rank[found] <= rank, own)
    return Drawn(len(np.unique(own)), figures, draws)


def _intervals(drawn: Drawn) -> dict[str, Any]:
    """95 % intervals under the names of the results file."""
    ranges = drawn.intervals()["figures"]
    ranks = {name.removeprefix("rank-"): ends for name, ends in ranges.items() if name != "mAP"}
    return {**drawn.about(), "mAP": ranges["mAP"], "rank_rates": ranks}


def _features(
    config: Config,
    data: TinyFaceData,
    backbone: nn.Module,
    device: torch.device,
    folder: Path,
    processes: Processes = ALONE,
    flaws: list[str] | None = None,
) -> dict[str, np.ndarray]:
    """N×D of each part; those that are in the folder are used again."""
    flip, tables = config.feature_flip, {}
    for name, photos in data.parts.items():
        about = {"list": list_digest(photos.listed), "dtype": config.feature_dtype}
        about |= embedded_with(backbone, flip, data.folder, photos.images)
        produce = embedded(
            photos, backbone, flip, device, config.eval_batch_size, config.num_workers, flaws=flaws
        )
        place = folder_for(folder, f"{FILE_NAME}-{name}", about, processes)
        label = f"{name.capitalize():<11}"
        packed = packed_features(
            place, photos.listed, about, produce, processes, progress=label, flaws=flaws
        )
        tables[name] = packed.table
    return tables


def _about(
    config: Config,
    data: TinyFaceData,
    backbone: nn.Module,
    result: TinyFaceResult,
    flaws: list[str],
) -> dict[str, Any]:
    """What tinyface.json says beside the figures."""
    input_size = backbone.preprocessing.input_size
    warnings = [
        warning
        for name, photos in data.parts.items()
        for warning in image_warnings(photos.images, input_size, name)
    ]
    notes = [f"{name}: {p.listed.note}" for name, p in data.parts.items() if p.listed.note]
    if result.without_mate:
        lone = np.flatnonzero(result.best_rank == 0).tolist()
        names = first_few([data.probes.listed.names[row] for row in lone])
        notes.append(f"{len(lone):,} probes have no mate in the gallery and do not count: {names}")
    return {
        "benchmark": "TinyFace",
        "checkpoint": config.checkpoint,
        "data": str(data.folder),
        "lists": str(data.lists),
        "sizes": {name: _sizes(photos.images) for name, photos in data.parts.items()},
        "aligned_here": False,
        "network": describe(backbone),
        "weights": weights_digest(backbone),
        "feature_flip": config.feature_flip,
        "score": "cosine",
        **{name: len(photos.listed.names) for name, photos in data.parts.items()},
        "without_mate": result.without_mate,
        "notes": notes,
        "warnings": [*warnings, *flaw_warnings(flaws)],
        "flaws": flaws,
    }


def _sizes(images: Sequence[np.ndarray]) -> str:
    """`112×112`, or the range of the heights × that of the widths, from some of the images."""
    sizes = [image.shape[:2] for image in some_of(images)]
    sides = (sorted({*side}) for side in zip(*sizes, strict=True))
    return "×".join(f"{s[0]}" if len(s) == 1 else f"{s[0]}..{s[-1]}" for s in sides)


def _table(about: dict[str, Any], result: TinyFaceResult, intervals: dict[str, Any]) -> str:
    sizes = about["sizes"]
    alike = len({*sizes.values()}) == 1
    shown = f"images of {sizes['probes']}" if alike else ", ".join(map(" ".join, sizes.items()))
    heading = [
        ["data", about["data"]],
        ["lists", about["lists"]],
        ["checkpoint", about["checkpoint"]],
        ["network", about["network"]],
        ["alignment", f"as it is, none is made here; {shown}"],
        ["features", f"image and mirror image: {about['feature_flip']}; cosines"],
        *(["note", note] for note in about["notes"]),
    ]
    shares = {"mAP": (result.mean_average_precision, intervals["mAP"])}
    for rank, rate in result.rank_rates.items():
        shares[f"rank-{rank}"] = rate, intervals["rank_rates"][str(rank)]
    rows = [["", "", "95 % interval"]]
    for name, (share, ends) in shares.items():
        rows.append([name, f"{100 * share:.2f} %", show_range(ends)])
    counts = (
        f"{about['probes']:,} probes, gallery of {about['gallery']:,} mates and "
        f"{about['distractors']:,} distractors"
    )
    return "\n".join(
        [
            f"{format_warnings(about['warnings'])}TinyFace: {counts}",
            format_table(heading, "<<", indent=2),
            "",
            format_table(rows, "<>>"),
        ]
    )
