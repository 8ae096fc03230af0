"""Judging a checkpoint on MegaFace, alone or as one of the processes of torchrun."""

import os

import torch

from Config import Config, settings_for, validate
from Utils.devices import find_device
from Utils.Evaluation_Utils.extraction import weights_digest
from Utils.Evaluation_Utils.megaface.compare import read_compared
from Utils.Evaluation_Utils.megaface.data import MegaFaceData, open_megaface
from Utils.Evaluation_Utils.megaface.report import write_report
from Utils.Evaluation_Utils.megaface.run import Network, judge_megaface
from Utils.Evaluation_Utils.report import Report, load_network, make_output
from Utils.processes import Processes, started_by_torchrun


def evaluate_megaface(config: Config) -> Report | None:
    """Judge `config.checkpoint`, or the features that are given in place of photos.

    Writes <output>/megaface.json with every number of the table, pictures beside it, and the
    features below <output>/features. Returns None in all processes of torchrun but the first.
    Raises ConfigError, DataError, CheckpointError or RunError.
    """
    with started_by_torchrun() as processes:
        validate(config, torch.cuda.device_count(), settings_for("megaface"))
        device = _device(config, processes)
        read_compared(config.compare)  # what can't be read is found before hours of work
        data = _open(config, processes)
        network = _load(config, data, device)
        folder = make_output(config)
        say = print if processes.rank == 0 else _silent
        judged = judge_megaface(
            config, data, network, device, folder / "features", processes, say=say
        )
        if processes.rank > 0:
            return None
        name = config.checkpoint if network else "features of other origin"
        return Report(write_report(config, judged, name, folder), folder)


def _open(config: Config, processes: Processes) -> MegaFaceData:
    if processes.rank > 0:
        processes.barrier()  # the first process may have to draw the demo's faces
        return open_megaface(config)
    data = open_megaface(config)
    processes.barrier()
    return data


def _device(config: Config, processes: Processes) -> torch.device:
    device = find_device(config.device)
    found = torch.cuda.device_count()
    if processes.world_size > 1 and device.type == "cuda" and ":" not in config.device:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % found)
    return device


def _load(config: Config, data: MegaFaceData, device: torch.device) -> Network | None:
    if not (data.probes.needs_network or data.distractors.needs_network):
        return None
    backbone = load_network(config, device)
    return Network(backbone, weights_digest(backbone))


def _silent(_: str) -> None:
    pass
