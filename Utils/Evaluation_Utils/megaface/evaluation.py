"""MegaFace from photos to figures: what the script does, and what the end of training shares."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from Config import Config, settings_for, validate
from Utils.Datasets_Utils.appearance import image_warnings
from Utils.Datasets_Utils.images import ImageError
from Utils.devices import share_device
from Utils.errors import CheckpointError, DataError
from Utils.Evaluation_Utils.analysis.drawn import Kept, compare_drawn, keep_drawn, open_compared
from Utils.Evaluation_Utils.analysis.kept_scores import scores_path
from Utils.Evaluation_Utils.features import (
    Producer,
    embedded,
    embedded_with,
    folder_for,
    list_digest,
    packed_features,
)
from Utils.Evaluation_Utils.identification import ScoringSettings, evaluate_trials
from Utils.Evaluation_Utils.inputs import load_network, make_output
from Utils.Evaluation_Utils.megaface.data import MOST_LEFT_OUT, MegaFaceData, Source, open_megaface
from Utils.Evaluation_Utils.megaface.devkit import (
    check_export,
    export_features,
    files_digest,
    from_devkit,
)
from Utils.Evaluation_Utils.megaface.noise import make_trials
from Utils.Evaluation_Utils.megaface.pictures import draw_all, read_compared
from Utils.Evaluation_Utils.megaface.report import (
    FILE_NAME,
    MegaFaceResult,
    compared_by,
    drawn_of,
    table,
    values_of,
)
from Utils.Evaluation_Utils.report import Report
from Utils.files import save_json
from Utils.Pretrained_Utils.load import describe, weights_digest
from Utils.processes import ALONE, Processes, started_by_torchrun


def evaluate_megaface(config: Config) -> Report | None:
    """Evaluate `config.checkpoint`, or the features that are given in place of photos.

    Writes <output>/megaface.json with every number of the table, pictures beside it, and the
    features below <output>/features. Returns None in all processes of torchrun but the first.
    Raises ConfigError, DataError, CheckpointError or RunError.
    """
    with started_by_torchrun() as processes:
        validate(config, torch.cuda.device_count(), settings_for("megaface"))
        device = share_device(config, processes)
        read_compared(config.compare)  # a mistake there is found before hours of work
        # The first process may have to draw the demo's faces.
        data = processes.one_by_one(lambda: open_megaface(config))
        needed = data.probes.needs_network or data.distractors.needs_network
        backbone = load_network(config, device) if needed else None
        if backbone and processes.is_main:
            print(f"network: {describe(backbone)}")
        folder = make_output(config)
        open_others(config, data, folder)
        features = folder / "features"
        result = evaluate_data(config, data, backbone, device, features, processes)
        if not processes.is_main:
            return None
        name = config.checkpoint if needed else "features of other origin"
        weights = weights_digest(backbone) if backbone else None
        return Report(write_report(config, result, name, weights, folder), folder)


def evaluate_data(
    config: Config,
    data: MegaFaceData,
    backbone: nn.Module | None,
    device: torch.device,
    folder: Path,
    processes: Processes = ALONE,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> MegaFaceResult:
    """Extract the features that are missing in `folder`, and score.

    backbone: on the device; may be None if both tables of features are given. progress: whether
    bars are shown. say: is told how many features are missing.
    Raises DataError, ImageError or CheckpointError.
    """
    sources = (data.probes, data.distractors)
    flaws: list[str] = []
    extractions = [_extraction(config, source, backbone, device, flaws) for source in sources]
    _check_same_network(*(about for about, _ in extractions))
    warnings = [
        warning
        for source in sources
        if source.needs_network
        for warning in image_warnings(
            source.photos.images, backbone.preprocessing.input_size, source.name
        )
    ]
    if config.export_devkit:
        for source in sources:
            check_export(source.listed, config.devkit_suffix)
    tables = []
    for source, (about, produce) in zip(sources, extractions, strict=True):
        features = source.ready
        if features is None:
            place = folder_for(folder, source.name, about, processes)
            label = f"{source.name.capitalize():<11}" if progress else None
            features = packed_features(
                place, source.listed, about, produce, processes, say, progress=label, flaws=flaws
            )
        tables.append(features.table)
        if config.export_devkit and processes.is_main:
            place = Path(config.export_devkit) / source.prefix
            label = f"Writing {place}" if progress else None
            names = features.photos.names
            export_features(place, names, features.table, config.devkit_suffix, label)
    left_out = np.flatnonzero(~tables[1].any(axis=1))  # zeros stand for photos that can't be read
    data = _without(data, left_out, config.strict)
    trials = make_trials(
        np.array(tables[0], np.float32),
        np.array(data.probes.listed.ids),
        data.sets,
        data.noisy_probes,
        data.noisy_distractors,
        config.noise,
    )
    found = evaluate_trials(
        trials.probes,
        trials.ids,
        tables[1],
        list(trials.trials.values()),
        config.ranks,
        config.fprs,
        config.fpirs,
        ScoringSettings(
            device,
            config.ties,
            config.score_dtype,
            progress="Scoring MegaFace" if progress else None,
            processes=processes,
        ),
    )
    return MegaFaceResult(
        dict(zip(trials.trials, found, strict=True)),
        data,
        trials,
        left_out=[_why(data.distractors, row) for row in left_out.tolist()],
        flaws=sorted(flaws),
        warnings=warnings,
    )


def _without(data: MegaFaceData, left_out: np.ndarray, strict: bool) -> MegaFaceData:
    """The data without distractors that have no feature. Raises DataError if they are too many."""
    if not left_out.size:
        return data
    names, count = data.distractors.listed.names, len(data.distractors.listed.names)
    if strict or left_out.size > MOST_LEFT_OUT * count:
        most = 0 if strict else MOST_LEFT_OUT
        raise DataError(
            f"{left_out.size:,} of {count:,} distractors could not be read when their features "
            f"were made, the first: {names[left_out[0]]}; up to {most:.0%} are left out"
            f"{' with --no-strict' if strict else ''}. Mend them, and delete their features to "
            f"make them anew."
        )
    sets = {label: rows[~np.isin(rows, left_out)] for label, rows in data.sets.items()}
    if empty := [label for label, rows in sets.items() if not len(rows)]:
        raise DataError(f"no distractor of the set {empty[0]} can be read; mend its photos.")
    return replace(data, sets=sets)


def _why(source: Source, row: int) -> str:
    """What is wrong with a photo that has no feature."""
    try:
        if source.photos:
            source.image(row)
    except ImageError as error:
        return str(error)
    return f"{source.listed.names[row]}: its feature is zero"


def write_report(
    config: Config, result: MegaFaceResult, name: str, weights: str | None, folder: Path
) -> str:
    """Write megaface.json and the pictures into the folder, and return the table to print.

    name: of the network. Raises DataError for a `compare` file that is not a megaface.json.
    """
    path = folder / f"{FILE_NAME}.json"
    drawn = drawn_of(result)
    others, notes = open_others(config, result.data, folder)
    values = values_of(config, result, name, weights, drawn)
    values["notes"] += notes
    comparisons, tables = compare_drawn(drawn, path, others)
    if others:
        values["comparisons"] = comparisons
    values["scores"] = keep_drawn(path, compared_by(config, result.data), drawn)
    save_json(path, values, indent=1)
    draw_all(folder, result, values, read_compared(config.compare))
    return "\n\n".join([table(values, result.results), *tables])


def open_others(config: Config, data: MegaFaceData, folder: Path) -> tuple[list[Kept], list[str]]:
    """(the results that `compare` names, notes on those that can only be drawn). Raises DataError,
    naming the files, for other probes, distractors or rules."""
    paths = [path.strip() for path in config.compare.split(",") if path.strip()]
    known = [path for path in paths if scores_path(path).is_file()]
    notes = [
        f"{path} is drawn, but not compared: {scores_path(path).name} is not beside it."
        for path in paths
        if path not in known
    ]
    same = compared_by(config, data)
    return open_compared(",".join(known), folder / f"{FILE_NAME}.json", same), notes


def _extraction(
    config: Config,
    source: Source,
    backbone: nn.Module | None,
    device: torch.device,
    flaws: list[str],
) -> tuple[dict[str, Any], Producer | None]:
    """(what the features are made with, what makes them; None if they are there)."""
    dtype, listed, ready = config.feature_dtype, source.listed, source.ready
    if ready:
        return {**ready.about, "dim": ready.table.shape[1]}, None
    about = {"list": list_digest(listed), "dtype": dtype}
    if source.devkit:
        suffix = config.devkit_suffix
        produce, dim = from_devkit(source.devkit, listed, suffix, dtype)
        return {**about, "dim": dim, "files": files_digest(source.devkit, listed, suffix)}, produce
    if backbone is None:
        raise CheckpointError(f"the {source.name} have to be embedded: give --checkpoint PATH.")
    flip, place = config.feature_flip, getattr(config, f"{source.prefix}_dataset_path")
    about |= embedded_with(
        backbone, flip, Path(place or config.demo_dataset_path), source.photos.images
    )
    lenient = source.name == "distractors" and not config.strict
    batch_size, workers = config.eval_batch_size, config.num_workers
    return about, embedded(
        source.photos, backbone, flip, device, batch_size, workers, lenient, flaws
    )


def _check_same_network(probes: dict[str, Any], distractors: dict[str, Any]) -> None:
    """Raises DataError for features of two networks, or of one that was used in two ways, as far as
    both tables say what they were made with."""
    for name in ("network", "dim", "flip", "preprocessing"):
        if name in probes and name in distractors and probes[name] != distractors[name]:
            raise DataError(
                f"the features of the probes and of the distractors can't be compared: their "
                f"{name} differs ({_short(probes[name])} and {_short(distractors[name])}); extract "
                f"both with the same network and feature_flip."
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) != 64 else f"{text[:12]}..."  # a fingerprint
