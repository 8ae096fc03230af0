"""Both sides of the jobs around the networks: evaluating, reading, listing, starting."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import default_collate

from benchmarks import measuring
from benchmarks import megaface_scoring as scoring
from benchmarks.baselines.loading import PlainImages, read_list
from benchmarks.baselines.verification import fold_accuracies
from benchmarks.measuring import Measured, repeat
from benchmarks.scale import Scale
from benchmarks.start_up import big_list, start_training
from Utils.cpu import keep_freed_memory
from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.verification_set import ImageFiles
from Utils.Evaluation_Utils.identification import evaluate as identify
from Utils.Evaluation_Utils.verification import evaluate
from Utils.Training_Utils.data import FittedImages, collate

LOADED = 512


def verification_problem(count: int) -> tuple[np.ndarray, ...]:
    """Pairs in 10 folds like LFW's, with features of 256 numbers and some errors."""
    rng = np.random.default_rng(0)
    fold = count // 10
    same = np.arange(count) % fold < fold // 2
    left, right, noise = rng.normal(size=(3, count, 256)).astype(np.float32)
    right[same] = left[same] + 4 * noise[same]
    return left, right, same, np.arange(count) // fold


def our_verification(scale: Scale) -> Measured:
    keep_freed_memory()
    problem = verification_problem(scale.evaluated)
    return repeat(partial(evaluate, *problem), 1, scale.seconds / 3)


def plain_verification(scale: Scale) -> Measured:
    left, right, *rest = verification_problem(scale.evaluated)
    pairs = left.astype(np.float64), right.astype(np.float64), *rest
    return repeat(lambda: fold_accuracies(*pairs), 1, scale.seconds / 3)


def our_loading(scale: Scale) -> Measured:
    keep_freed_memory()
    _one_core()
    images = FittedImages(_Labelled(scale.files[:LOADED]), (112, 112))
    batches = np.array_split(np.arange(len(images.dataset)), max(1, len(images.dataset) // 64))
    work = partial(_each, lambda rows: collate([images[i] for i in rows]), batches)
    return repeat(work, len(images.dataset), scale.seconds / 2)


class _Labelled(ImageFiles):
    """Image files as a training set of one identity."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return super().__getitem__(index), 0


def plain_loading(scale: Scale) -> Measured:
    _one_core()
    images = PlainImages([(path, 0) for path in scale.files[:LOADED]])
    batches = np.array_split(np.arange(len(images)), max(1, len(images) // 64))
    work = partial(_each, lambda rows: default_collate([images[i] for i in rows]), batches)
    return repeat(work, len(images), scale.seconds / 2)


def _one_core() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _each(work: Callable, parts: list) -> None:
    for part in parts:
        work(part)


def decode_bound(scale: Scale) -> tuple[float, str]:
    return measuring.decode_rate(scale.files[:LOADED]), "decoding alone"


def our_scoring(scale: Scale) -> Measured:
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        probes, ids = scoring.make_probes(256)
        path = Path(folder) / "distractors.npy"
        distractors = scoring.make_distractors(path, scale.distractors, 256)
        return repeat(lambda: identify(probes, ids, distractors), scale.distractors, 0)


def bare_scoring(scale: Scale) -> Measured:
    """The matrix products alone. They are the limit and not a baseline: no other repository's
    implementation fits in memory."""
    with tempfile.TemporaryDirectory() as folder:
        probes, _ = scoring.make_probes(256)
        path = Path(folder) / "distractors.npy"
        distractors = scoring.make_distractors(path, scale.distractors, 256)
        block = scoring.BLOCK_SIZES["cpu"]
        return repeat(lambda: scoring.multiply(probes, distractors, block), scale.distractors, 0)


def our_listing(scale: Scale) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        faces, file_list = big_list(Path(folder), scale.listed, scale.files)
        return repeat(lambda: open_training_set(faces, file_list), scale.listed, 0)


def plain_listing(scale: Scale) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        faces, file_list = big_list(Path(folder), scale.listed, scale.files)
        return repeat(lambda: read_list(str(faces), str(file_list)), scale.listed, 0)


def our_start(scale: Scale) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        faces, file_list = big_list(Path(folder), scale.listed, scale.files)
        seconds, peak = start_training(faces, file_list)
        return Measured(seconds, 1, peak)
