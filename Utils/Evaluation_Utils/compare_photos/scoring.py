"""From crops to features, scores and the answer at a threshold; the flags of both commands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from Config import Config, ConfigError
from Config.command_line import make_parser
from Config.config import settings_of
from Utils.Datasets_Utils.alignment.detectors import DETECTORS
from Utils.Datasets_Utils.alignment.faces import WHICH
from Utils.Datasets_Utils.alignment.work import Settings
from Utils.devices import find_device
from Utils.errors import DataError
from Utils.Evaluation_Utils.analysis.further import read_results
from Utils.Evaluation_Utils.analysis.thresholds import read_thresholds, show_threshold
from Utils.Evaluation_Utils.compare_photos.photos import Photo
from Utils.Evaluation_Utils.embedding import embed
from Utils.Evaluation_Utils.features import weights_digest
from Utils.Evaluation_Utils.inputs import NETWORK_SETTINGS, given_config, load_network, make_output
from Utils.Evaluation_Utils.verification import PROTOCOLS, combine_flip, pair_scores
from Utils.Pretrained_Utils import find_weights
from Utils.Pretrained_Utils.load import describe

# The settings of Config that the commands take.
SETTINGS = (*NETWORK_SETTINGS, "threshold_from")
FAR = 1e-3  # of the threshold, if none is named
# What a score is called, and which of two is more alike.
_UNITS = {"cosine": ("cosine", ">="), "insightface": ("squared distance", "<=")}
_NO_ANSWER = (
    "No answer is given without a threshold: --threshold_from names the JSON file of an evaluation "
    "of this checkpoint, such as LFW_Evaluation.py writes."
)


@dataclass(frozen=True)
class Threshold:
    """The threshold of an evaluation. value: on the scale of the scores, None accepts nothing.
    impostors: how many pairs of two people it was found on."""

    file: str
    benchmark: str
    far: float
    value: float | None
    impostors: int


@dataclass(frozen=True, eq=False)
class Judge:
    """A network, the rule of its scores, and the threshold, if one is given."""

    backbone: nn.Module
    config: Config
    device: torch.device
    protocol: str
    threshold: Threshold | None
    faces: Settings
    output: Path

    def features(self, photos: Sequence[Photo]) -> np.ndarray:
        """N×D′ of photographs that have crops, as the protocol combines image and mirror image."""
        both = embed(
            self.backbone,
            [photo.crop for photo in photos],
            self.device,
            batch_size=self.config.eval_batch_size,
            progress="Embedding" if len(photos) > self.config.eval_batch_size else None,
        )
        rows = combine_flip(*both, self.protocol)
        if broken := np.flatnonzero(~np.isfinite(rows).all(axis=1)).tolist():
            raise DataError(
                f"the network's embedding of {photos[broken[0]].name} holds NaN or infinity; check "
                f"its weights, and that they were trained with this preprocessing."
            )
        return rows

    def scores(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """L×R scores (higher = more alike) of each row of features with each other one."""
        found = [
            pair_scores(np.broadcast_to(row, right.shape), right, self.protocol) for row in left
        ]
        return np.stack(found)

    def accepts(self, scores: np.ndarray) -> np.ndarray:
        """Bools: which scores mean the same person. Only with a threshold."""
        value = self.threshold.value
        return scores >= (np.inf if value is None else value)

    def shown(self, score: float) -> str:
        """A score in the protocol's unit."""
        return show_threshold(score, self.protocol)

    @property
    def unit(self) -> str:
        """What a score is."""
        return _UNITS[self.protocol][0]

    @property
    def legend(self) -> str:
        """What the numbers and the frames in a picture are."""
        return f"{self.unit}; framed: the same person" if self.threshold else self.unit

    @property
    def rule(self) -> str:
        """A sentence about the threshold, or about the lack of one."""
        if self.threshold is None:
            return _NO_ANSWER
        at, (unit, sign) = self.threshold, _UNITS[self.protocol]
        if at.value is None:
            return (
                f"No score means the same person: at FAR {at.far:g}, {at.file} has no threshold "
                f"that accepts anything."
            )
        few = ""
        if at.far * at.impostors < 1:
            few = f"; its {at.impostors:,} mismatched pairs, too few for that FAR, are all rejected"
        return (
            f"The same person: {unit} {sign} {self.shown(at.value)}, the threshold at FAR "
            f"{at.far:g} on {at.benchmark} ({at.file}{few})."
        )

    def about(self) -> dict[str, Any]:
        """The head of a results file."""
        at = self.threshold
        in_unit = None if at is None or at.value is None else self.in_unit(at.value)
        return {
            "checkpoint": self.config.checkpoint,
            "network": describe(self.backbone),
            "weights": weights_digest(self.backbone),
            "protocol": self.protocol,
            "unit": self.unit,
            "threshold": at
            and {"file": at.file, "benchmark": at.benchmark, "far": at.far, "value": in_unit},
        }

    def in_unit(self, scores: Any) -> Any:
        """Scores as plain values in the protocol's unit."""
        return (np.asarray(scores) * PROTOCOLS[self.protocol].score_sign + 0.0).tolist()


def reading_photos(description: str, name: str, usage: str) -> argparse.ArgumentParser:
    """A parser with the flags of both commands. usage: what stands before the flags."""
    settings = settings_of(Config)
    parser = make_parser(description, [settings[name] for name in SETTINGS])
    parser.prog = f"python -m Utils.Evaluation_Utils.{name}"
    parser.usage = f"%(prog)s {usage} --checkpoint PATH [--SETTING VALUE ...]"
    own = parser.add_argument_group("Faces and their scores")
    own.add_argument(
        "--detector",
        choices=list(DETECTORS),
        default="",
        help="finds the faces; not given: the first whose weights are there",
    )
    own.add_argument(
        "--detector_file", type=Path, default=None, help="its weights; else those in Pretrained/"
    )
    own.add_argument(
        "--which",
        choices=[word for word in WHICH if word != "all"],
        default=WHICH[0],
        help=f"which face is taken where there are several (default: {WHICH[0]})",
    )
    own.add_argument(
        "--protocol",
        choices=list(PROTOCOLS),
        default="cosine",
        help="what the score is, as in an evaluation (default: cosine)",
    )
    own.add_argument(
        "--far",
        type=float,
        default=None,
        metavar="X",
        help=f"which of the thresholds in --threshold_from (default: {FAR:g})",
    )
    return parser


def open_judge(given: dict[str, Any]) -> Judge:
    """The network and the threshold that flags name. Raises ConfigError, CheckpointError, RunError,
    and DataError for a threshold of another network."""
    config = given_config(given, SETTINGS)
    device = find_device(config.device)
    backbone = load_network(config, device)
    faces = Settings(
        size=tuple(backbone.preprocessing.input_size),
        which=given["which"],
        detector=given["detector"],
        detector_file=given["detector_file"],
    )
    threshold, far = None, given["far"]
    if config.threshold_from:
        threshold = _threshold(config, backbone, given["protocol"], FAR if far is None else far)
    elif far is not None:
        raise ConfigError("far", far, "it is that of a threshold, which --threshold_from names.")
    return Judge(backbone, config, device, given["protocol"], threshold, faces, make_output(config))


def _threshold(config: Config, backbone: nn.Module, protocol: str, far: float) -> Threshold:
    """The threshold at a FAR. Raises DataError if the file has none, or is of another network."""
    path = config.threshold_from
    values = read_results(path)
    found = read_thresholds(path, [protocol])
    _check_network(path, values, config, backbone)
    at = dict(found.points[protocol])
    if far not in at:
        known = ", ".join(f"{target:g}" for target in at)
        raise DataError(f"{path} has no threshold at FAR {far:g}; --far is one of {known}.")
    own = values["results"][protocol]
    impostors = int(own["mismatched" if "mismatched" in own else "impostor"])
    return Threshold(path, found.benchmark, far, at[far], impostors)


def _check_network(path: str, values: dict[str, Any], config: Config, backbone: nn.Module) -> None:
    """Raise DataError unless a results file is of this network, its weights and its input."""
    there, here = values.get("checkpoint"), config.checkpoint
    if "weights" in values:
        same = values["weights"] == weights_digest(backbone)
    else:  # written before the file had them
        paths = [Path(str(there)).resolve(), Path(here).resolve()]
        same = paths[0] == paths[1] or paths[0] == find_weights(here).resolve()
        same = same and values.get("network") == describe(backbone)
    if not same:
        raise DataError(
            f"the thresholds of {path} are those of another network, or of other weights or "
            f"another input of it, and thresholds of one network do not suit another: they were "
            f"found with {there} ({values.get('network')}), and this is {here} "
            f"({describe(backbone)}). Evaluate this one, on LFW for example, and give the JSON "
            f"file of that."
        )
