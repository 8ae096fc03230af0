"""MegaFace from photos to figures: what the script and the end of training share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from Config import Config
from Utils.errors import CheckpointError
from Utils.Evaluation_Utils.devkit_file import export_features
from Utils.Evaluation_Utils.extraction import (
    about_features,
    embedded,
    feature_size,
    from_devkit,
)
from Utils.Evaluation_Utils.feature_file import Features, packed_features
from Utils.Evaluation_Utils.identification import (
    IdentificationResult,
    ScoringSettings,
    evaluate_trials,
)
from Utils.Evaluation_Utils.megaface_data import MegaFaceData, Source, files_digest
from Utils.Evaluation_Utils.noise import TrialSet, make_trials
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
    tables = []
    for source in (data.probes, data.distractors):
        features = source.ready or _extract(
            config, source, network, device, folder / source.name, processes, progress, say
        )
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


def _extract(
    config: Config,
    source: Source,
    network: Network | None,
    device: torch.device,
    folder: Path,
    processes: Processes,
    progress: bool,
    say: Callable[[str], None],
) -> Features:
    label = f"{source.name.capitalize():<11}" if progress else None
    dtype = config.feature_dtype
    if source.devkit:
        suffix = config.devkit_suffix
        produce, dim = from_devkit(source.devkit, source.listed, suffix, label, processes)
        made_by = files_digest(source.devkit, source.listed, suffix)
        about = about_features(made_by, source.listed, dim, dtype)
        return packed_features(folder, source.listed, about, produce, processes, say)
    if network is None:
        raise CheckpointError(f"the {source.name} have to be embedded: give --checkpoint PATH.")
    produce = embedded(
        source.photos,
        network.backbone,
        config.feature_flip,
        device,
        config.eval_batch_size,
        config.num_workers,
        label,
        processes,
    )
    about = about_features(
        network.fingerprint,
        source.listed,
        feature_size(network.backbone, config.feature_flip),
        dtype,
        flip=config.feature_flip,
        preprocessing=str(network.backbone.preprocessing),
        photos=_place(config, source),
    )
    return packed_features(folder, source.listed, about, produce, processes, say)


def _place(config: Config, source: Source) -> str:
    name = "facescrub" if source.name == "probes" else "megaface"
    return str(Path(getattr(config, f"{name}_dataset_path") or config.demo_dataset_path).absolute())


def _export(config: Config, source: Source, features: Features, progress: bool) -> None:
    name = "facescrub" if source.name == "probes" else "megaface"
    folder = Path(config.export_devkit) / name
    label = f"Writing {folder}" if progress else None
    export_features(folder, features.photos.names, features.table, config.devkit_suffix, label)
