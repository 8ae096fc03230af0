"""Evaluates the network during training: on verification sets regularly, on MegaFace at the end.

Both are opened before training starts, so that a wrong path ends the run at once.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from Config import Config
from Utils.Datasets_Utils.alignment.detectors import DETECTORS
from Utils.Datasets_Utils.appearance import image_warnings
from Utils.Datasets_Utils.verification_set import VerificationSet
from Utils.errors import DataError
from Utils.Evaluation_Utils.embedding import EVAL_DTYPES, embed
from Utils.Evaluation_Utils.inputs import BENCHMARKS, benchmark_paths, open_benchmark
from Utils.Evaluation_Utils.megaface.data import names_megaface, open_megaface
from Utils.Evaluation_Utils.megaface.evaluation import evaluate_data, write_report
from Utils.Evaluation_Utils.report import evaluate_pairs
from Utils.Evaluation_Utils.verification import VerificationResult
from Utils.files import make_folder
from Utils.Pretrained_Utils.load import weights_digest
from Utils.processes import Processes
from Utils.Training_Utils.reports.figures import averaged_name

ShowTest = Callable[[str, VerificationSet, VerificationResult], None]


class TestSets:
    """The verification sets that the settings name; with the demo's training set, also the demo's.

    processes: evaluate the sets together. descriptions: a line for the log about each benchmark.
    flaws: what is wrong with images that were read all the same, once for each time.
    Raises DataError if a set can't be opened.
    """

    __test__ = False  # pytest takes classes whose names begin with Test for tests

    def __init__(self, config: Config, device: torch.device, processes: Processes) -> None:
        self._config = config
        self._device = device
        self._processes = processes
        self._protocol = "cosine" if config.protocol == "both" else config.protocol
        self._sets: dict[str, VerificationSet] = {}
        self.descriptions: list[str] = []
        self.flaws: list[str] = []
        # A list of landmarks is of the training set.
        opened = config if config.align in DETECTORS else replace(config, align="")
        for benchmark in BENCHMARKS:
            path, _ = benchmark_paths(config, benchmark)
            if path or (benchmark.in_demo and config.train_dataset == "Demo"):
                data, source = open_benchmark(opened, benchmark, True, config.input_size)
                self._sets[benchmark.title] = data
                text = f"{len(data.images):,} images, {len(data.same):,} pairs, {source}"
                text = "; ".join((text, *data.notes))
                for warning in image_warnings(data.images, config.input_size):
                    text += f"\n{benchmark.title}: warning: {warning}"
            else:
                text = f"no {benchmark.prefix}_dataset_path, not evaluated"
            self.descriptions.append(f"{benchmark.title}: {text}")

    def columns(self, averaged: bool) -> list[str]:
        """The names of the accuracies; averaged: with those of the averaged weights."""
        names = list(self._sets)
        return [*names, *map(averaged_name, names)] if averaged else names

    def evaluate(
        self, backbone: nn.Module, averaged: nn.Module | None = None, show: ShowTest | None = None
    ) -> dict[str, float]:
        """The mean 10-fold accuracy, 0..1, on each set; all processes must call this.

        averaged: the backbone with averaged weights, whose accuracies are added under the names of
        `averaged_name`. show: called in the main process with the name, the set and its result.
        Raises DataError or ImageError if an image can't be read.
        """
        sets = self._sets.items()
        accuracies = {name: self._accuracy(name, backbone, data, show) for name, data in sets}
        if averaged is not None:
            for name, data in sets:
                name = averaged_name(name)
                accuracies[name] = self._accuracy(name, averaged, data, show)
        return accuracies

    def _accuracy(
        self, name: str, backbone: nn.Module, data: VerificationSet, show: ShowTest | None
    ) -> float:
        config, protocol = self._config, self._protocol
        embeddings = embed(
            backbone,
            data.images,
            self._device,
            config.eval_batch_size,
            config.num_workers,
            dtype=EVAL_DTYPES[config.eval_dtype],
            processes=self._processes,
            flaws=self.flaws,
        )

        def accuracy() -> float:
            result = evaluate_pairs(data, embeddings, [protocol])[protocol]
            if show:
                show(name, data, result)
            return result.accuracy

        return self._processes.from_main(accuracy)


class MegaFaceTest:
    """MegaFace as the settings name it, on which a network is evaluated at the end of training.

    Raises DataError if a file is missing.
    """

    def __init__(
        self, config: Config, device: torch.device, log: logging.Logger, processes: Processes
    ) -> None:
        self._config, self._device, self._log = config, device, log
        self._processes = processes
        if config.train_dataset != "Demo" and not names_megaface(config):
            raise DataError(
                "test_on_megaface is on, but no MegaFace is named: give facescrub_dataset_path and "
                "megaface_dataset_path, with their file lists."
            )
        for name in ("probe_features", "distractor_features"):
            if getattr(config, name):
                raise DataError(
                    f"test_on_megaface evaluates the network that is trained, so {name} can't be "
                    f"given in place of photos; leave it out."
                )
        self._data = open_megaface(config)
        listed = self._data.distractors.listed
        log.info(f"MegaFace, at the end: {len(listed.names):,} distractors, {listed.source}")

    def evaluate(self, backbone: nn.Module, run: Path | None) -> None:
        """Evaluate a trained backbone, and log the figures; all processes must call this.

        run: the run's folder; features, figures and pictures are written to its `megaface`. None
        writes them to a temporary folder.
        """
        if run is not None:
            folder = run / "megaface"
            make_folder(folder)
            self._evaluate(backbone, folder)
            self._log.info(f"MegaFace figures and pictures: {folder}")
            return
        temporary = Path(self._processes.from_main(tempfile.mkdtemp))
        try:
            self._evaluate(backbone, temporary)
            self._processes.barrier()
        finally:
            if self._processes.is_main:
                shutil.rmtree(temporary, ignore_errors=True)

    def _evaluate(self, backbone: nn.Module, folder: Path) -> None:
        result = evaluate_data(
            self._config,
            self._data,
            backbone,
            self._device,
            folder / "features",
            self._processes,
            progress=False,
            say=self._log.debug,
        )
        if not self._processes.is_main:
            return
        name = "the network at the end of training"
        table = write_report(self._config, result, name, weights_digest(backbone), folder)
        for line in table.splitlines():
            self._log.info(line)
