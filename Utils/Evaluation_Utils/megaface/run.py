"""MegaFace from photos to figures: what the script and the end of training share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from Config import Config
from Utils.errors import CheckpointError
from Utils.Evaluation_Utils.extraction import (
    about_devkit,
    about_photos,
    check_same_network,
    embedded,
    feature_size,
    from_devkit,
)
from Utils.Evaluation_Utils.features import Features, folder_for, packed_features
from Utils.Evaluation_Utils.identification import (
    IdentificationResult,
    ScoringSettings,
    evaluate_trials,
)
from Utils.Evaluation_Utils.megaface.data import MegaFaceData, Source, files_digest
from Utils.Evaluation_Utils.megaface.devkit import check_export, export_features
from Utils.Evaluation_Utils.megaface.noise import TrialSet, make_trials
from Utils.processes import ALONE, Processes


@dataclass(frozen=True, eq=False)
class Network:
    """A backbone on its device, and a fingerprint of it for the feature files."""

    backbone: nn.Module
    fingerprint: str


@dataclass(frozen=True, eq=False)
class MegaFaceResult:
    """results: by (label of the distractor set, "as listed" or "cleaned"). data and trials: what
    the rows in the results refer to."""

    results: dict[tuple[str, str], IdentificationResult]
    data: MegaFaceData
    trials: TrialSet


def judge_megaface(
    config: Config,
    data: MegaFaceData,
    network: Network | None,
    device: torch.device,
    folder: Path,
    processes: Processes = ALONE,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> MegaFaceResult:
    """Extract what features are missing into `folder`, and score.

    network: None is enough where both tables of features are given. progress: show bars.
    Raises DataError, ImageError or CheckpointError.
    """
    sources = (data.probes, data.distractors)
    tables, how = [], (device, processes, progress, say)
    jobs = [_job(config, source, network, folder, *how) for source in sources]
    check_same_network(*(job.about for job in jobs))
    for source in sources:
        if config.export_devkit:
            check_export(source.listed, config.devkit_suffix)
    for source, job in zip(sources, jobs, strict=True):
        features = job.run()
        tables.append(features.table)
        if config.export_devkit and processes.rank == 0:
            _export(config, source, features, progress)
    probes = np.array(tables[0], np.float32)
    trials = make_trials(
        probes,
        np.array(data.probes.listed.ids),
        data.sets,
        data.noisy_probes,
        data.noisy_distractors,
        config.noise,
    )
    settings = ScoringSettings(
        device,
        config.ties,
        config.score_dtype,
        progress="Scoring MegaFace" if progress else None,
        processes=processes,
    )
    found = evaluate_trials(
        trials.probes,
        trials.ids,
        tables[1],
        list(trials.trials.values()),
        config.ranks,
        config.fprs,
        config.fpirs,
        settings,
    )
    return MegaFaceResult(dict(zip(trials.trials, found, strict=True)), data, trials)


@dataclass(frozen=True, eq=False)
class _Job:
    """A table of features to come. about: what it is made with. run: makes it."""

    about: dict[str, Any]
    run: Callable[[], Features]


def _job(
    config: Config,
    source: Source,
    network: Network | None,
    folder: Path,
    device: torch.device,
    processes: Processes,
    progress: bool,
    say: Callable[[str], None],
) -> _Job:
    label = f"{source.name.capitalize():<11}" if progress else None
    dtype, listed, ready = config.feature_dtype, source.listed, source.ready
    if ready:
        return _Job({**ready.about, "dim": ready.table.shape[1]}, lambda: ready)
    if source.devkit:
        suffix = config.devkit_suffix
        produce, dim = from_devkit(source.devkit, listed, suffix, dtype, label, processes)
        about = about_devkit(files_digest(source.devkit, listed, suffix), listed, dim, dtype)
    else:
        if network is None:
            raise CheckpointError(f"the {source.name} have to be embedded: give --checkpoint PATH.")
        backbone, flip = network.backbone, config.feature_flip
        loading = (device, config.eval_batch_size, config.num_workers)
        produce = embedded(source.photos, backbone, flip, *loading, label, processes)
        about = about_photos(
            network.fingerprint,
            listed,
            feature_size(backbone, flip),
            dtype,
            flip,
            preprocessing=str(backbone.preprocessing),
            photos=_place(config, source),
        )
    place = folder_for(folder, source.name, about)
    return _Job(about, lambda: packed_features(place, listed, about, produce, processes, say))


def _place(config: Config, source: Source) -> str:
    name = "facescrub" if source.name == "probes" else "megaface"
    return str(Path(getattr(config, f"{name}_dataset_path") or config.demo_dataset_path).absolute())


def _export(config: Config, source: Source, features: Features, progress: bool) -> None:
    name = "facescrub" if source.name == "probes" else "megaface"
    folder = Path(config.export_devkit) / name
    label = f"Writing {folder}" if progress else None
    export_features(folder, features.photos.names, features.table, config.devkit_suffix, label)
