"""Judging on the verification sets in the middle of training.

MegaFace at the end of training.
"""

import logging
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from Config import Config
from Utils.Datasets_Utils.verification_set import VerificationSet
from Utils.errors import DataError
from Utils.Evaluation_Utils.embedding import EVAL_DTYPES, embed
from Utils.Evaluation_Utils.extraction import weights_digest
from Utils.Evaluation_Utils.megaface.data import names_megaface, open_megaface
from Utils.Evaluation_Utils.megaface.report import write_report
from Utils.Evaluation_Utils.megaface.run import Network, judge_megaface
from Utils.Evaluation_Utils.report import (
    BENCHMARKS,
    benchmark_paths,
    evaluate_pairs,
    open_benchmark,
)
from Utils.processes import Processes
from Utils.Training_Utils.reports.results import averaged_name


class TestSets:
    """The verification sets of the settings; for demo training, the demo's where none is named.

    processes: which judge them together. descriptions: a line about each, and about each that
    there is not.
    """

    __test__ = False  # the name begins like a test's

    def __init__(self, config: Config, device: torch.device, processes: Processes) -> None:
        self._config = config
        self._device = device
        self._processes = processes
        self._protocol = "cosine" if config.protocol == "both" else config.protocol
        self._sets: dict[str, VerificationSet] = {}
        self.descriptions: list[str] = []
        for benchmark in BENCHMARKS:
            path, _ = benchmark_paths(config, benchmark)
            if path or config.train_dataset == "Demo":
                data, source = open_benchmark(config, benchmark)
                self._sets[benchmark.title] = data
                text = f"{len(data.images):,} images, {len(data.same):,} pairs, {source}"
            else:
                text = f"no {benchmark.prefix}_dataset_path, not judged"
            self.descriptions.append(f"{benchmark.title}: {text}")

    def columns(self, averaged: bool) -> list[str]:
        """Names of the accuracies; averaged: with those of the averaged weights."""
        names = list(self._sets)
        return [*names, *map(averaged_name, names)] if averaged else names

    def evaluate(self, backbone: nn.Module, averaged: nn.Module | None = None) -> dict[str, float]:
        """Mean 10-fold accuracy of each set, with averaged weights too where there are any."""
        accuracies = self._accuracies(backbone)
        if averaged is not None:
            found = self._accuracies(averaged)
            accuracies |= {averaged_name(name): accuracy for name, accuracy in found.items()}
        return accuracies

    def _accuracies(self, backbone: nn.Module) -> dict[str, float]:
        """Mean 10-fold accuracy, 0..1, of each set; called by all processes together."""
        return {name: self._accuracy(backbone, data) for name, data in self._sets.items()}

    def _accuracy(self, backbone: nn.Module, data: VerificationSet) -> float:
        config, protocol = self._config, self._protocol
        embeddings = embed(
            backbone,
            data.images,
            self._device,
            config.eval_batch_size,
            config.num_workers,
            dtype=EVAL_DTYPES[config.eval_dtype],
            processes=self._processes,
        )
        return self._processes.from_main(
            lambda: evaluate_pairs(data, embeddings, [protocol])[protocol].accuracy
        )


class MegaFaceTest:
    """The MegaFace data of the settings, found before training starts rather than after it.

    Raises DataError for what is missing.
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
                    f"test_on_megaface judges the network that is trained, so {name} can't be "
                    f"given in place of photos; leave it out."
                )
        self._data = open_megaface(config)
        listed = self._data.distractors.listed
        log.info(f"MegaFace, at the end: {len(listed.names):,} distractors, {listed.source}")

    def evaluate(self, backbone: nn.Module, run: Path | None) -> None:
        """Judge a trained backbone, and log the figures.

        run: the run's folder, which gets them below `megaface`; without one nothing is written.
        All processes call this together.
        """
        if run is None:
            with ExitStack() as stack:
                make = tempfile.TemporaryDirectory
                folder = self._processes.from_main(lambda: stack.enter_context(make()))
                self._judge(backbone, Path(folder))
                self._processes.barrier()
        else:
            folder = run / "megaface"
            folder.mkdir(exist_ok=True)
            self._judge(backbone, folder)
            self._log.info(f"MegaFace figures and pictures: {folder}")

    def _judge(self, backbone: nn.Module, folder: Path) -> None:
        judged = judge_megaface(
            self._config,
            self._data,
            Network(backbone, weights_digest(backbone)),
            self._device,
            folder / "features",
            self._processes,
            progress=False,
            say=self._log.debug,
        )
        if not self._processes.is_main:
            return
        name = "the network at the end of training"
        for line in write_report(self._config, judged, name, folder).splitlines():
            self._log.info(line)
