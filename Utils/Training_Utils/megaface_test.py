"""MegaFace at the end of training."""

import logging
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from Config import Config
from Utils.errors import DataError
from Utils.Evaluation_Utils.extraction import weights_digest
from Utils.Evaluation_Utils.megaface import Network, judge_megaface
from Utils.Evaluation_Utils.megaface_data import names_megaface, open_megaface
from Utils.Evaluation_Utils.megaface_report import write_report
from Utils.processes import Processes


class MegaFaceTest:
    """The MegaFace data of the settings, found before training starts rather than after it.

    Raises DataError or FileNotFoundError for what is missing.
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

    def judge(self, backbone: nn.Module, run: Path | None) -> None:
        """Judge a trained backbone, and log the figures.

        run: the run's folder, which gets them below `megaface`; without one nothing is written.
        All processes call this together.
        """
        if run is None:
            with ExitStack() as stack:
                make = tempfile.TemporaryDirectory
                folder = self._processes.from_first(lambda: stack.enter_context(make()))
                self._judge(backbone, Path(folder))
                self._processes.wait()
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
        if not self._processes.first:
            return
        name = "the network at the end of training"
        for line in write_report(self._config, judged, name, folder).splitlines():
            self._log.info(line)
