"""What a run begins with: its training data, and the settings of a run to go on with."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from Config import Config, training_paths
from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.demo.sets import ensure_demo_sets
from Utils.Datasets_Utils.training_set import TrainingSet
from Utils.errors import RunError
from Utils.processes import ALONE, Processes
from Utils.run_folder import find_checkpoint
from Utils.Training_Utils.checkpoint import read_run
from Utils.Training_Utils.restarts import resumed_before


def open_training_data(config: Config) -> TrainingSet:
    """The training set that `train_dataset` and its paths mean; the demo's is drawn if need be.

    Raises DataError as `open_training_set` does and where no identity has `min_images`, RunError
    where it has no full batch.
    """
    data = _open(config).without_small(config.min_images)
    if len(data) < config.batch_size:
        raise RunError(
            f"batch_size is {config.batch_size}, but the training set has only {len(data)} images; "
            f"set a batch_size of at most that."
        )
    return data


def fingerprint(data: TrainingSet) -> dict[str, Any]:
    """What tells a training set from another one, as plain values: its numbers and its labels."""
    labels = np.ascontiguousarray(data.labels, np.int64)
    return {
        "images": len(data),
        "identities": data.num_classes,
        "labels": hashlib.sha256(labels).hexdigest(),
    }


def describe_training_data(config: Config, data: TrainingSet) -> str:
    """A line about the training set, and what of it is left out, for the log."""
    text = f"{config.train_dataset}: {len(data):,} images, {data.num_classes:,} identities"
    identities, images = data.left_out
    if identities:
        text += (
            f"; left out: {identities:,} identities with fewer than {config.min_images} images, "
            f"{images:,} images together"
        )
    return text


def _open(config: Config) -> TrainingSet:
    if config.train_dataset == "Demo":
        demo = ensure_demo_sets(Path(config.demo_dataset_path))
        return open_training_set(demo.train_images, demo.train_list)
    path, file_list = training_paths(config)
    return open_training_set(path, file_list or None)


def saved_settings(resume: str, save_dir: str, processes: Processes = ALONE) -> dict[str, Any]:
    """The settings inside the checkpoint that `resume` means, with its path as their `resume`; for
    `Config.read_config`.

    Started again by torchrun, the checkpoint is the last of the run that this launch was training.
    processes: call this together, and all get the checkpoint that the first of them finds. Raises
    RunError where there is none, CheckpointError where it can't be read.
    """
    # Asked once for all: what is the last one may change meanwhile.
    path = processes.from_main(
        lambda: resumed_before(save_dir) or find_checkpoint(resume, save_dir)
    )
    settings = {**read_run(path, lazily=True)["settings"], "resume": str(path)}
    if resume == "last":
        settings["save_dir"] = save_dir  # a run may have been moved; it goes on where it was found
    return settings
