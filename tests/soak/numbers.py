"""Numbers that are not finite, or of no use: gradients, weights, learning rates, batches.

A try survives if no file holds a value that is not finite, all processes do the same, and the run
ends either as it should or with a message that names the iteration, or the file, and a remedy.
"""

import dataclasses
import random
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from Config import Config
from Config.fields import settings_of
from Head import build_head
from tests.conftest import TinyFaces, make_tiny_faces
from tests.processes import in_processes
from tests.soak.campaign import Allowance, Row, Try, tried
from Utils.errors import UserError
from Utils.processes import Processes
from Utils.run_folder import is_checkpoint_folder
from Utils.Training_Utils.checkpoints.run_checkpoints import read_run
from Utils.Training_Utils.merge_checkpoint import merge_folder
from Utils.Training_Utils.optimization import build_scaler
from Utils.Training_Utils.trainer import Trainer

ITERATIONS = 24
_FP16 = {"amp_dtype": "fp16"}
_REMEDY = r"by iteration \d+\. .*A lower initial_lr"


@dataclasses.dataclass(frozen=True)
class Bad:
    """Values that a hook puts into the gradient of an image's embedding.

    iterations: from 1, in which it does. rank: the process in which it does.
    """

    value: float = 0.0
    iterations: range = range(0)
    rank: int = 0


@dataclasses.dataclass(frozen=True)
class End:
    """How a run ended. error: the user's message. weights: the last ones, in this process."""

    iteration: int
    scale: float
    error: str | None
    weights: Tensor


def train(group: dist.ProcessGroup | None, config: Config, bad: Bad) -> End:
    """Train, in one process of a group."""
    processes = Processes()
    if group is not None:
        processes = Processes(group.rank(), group.size(), group, group)
    error = None
    torch.set_num_threads(1)  # on busy cores, threads would wait for each other
    with redirect_stdout(StringIO()):
        trainer = Trainer(config, processes)
        state = trainer.state
        if config.amp_dtype == "fp16":  # its loss scale alone: fp16 itself takes a CPU minutes
            state.scaler = build_scaler(state.device, torch.float16, state.head.group)
        embed = trainer.networks.embed

        def spoilt(pixels: Tensor) -> Tensor:
            embeddings = embed(pixels)
            if trainer.state.iteration + 1 in bad.iterations and processes.rank == bad.rank:
                embeddings.register_hook(lambda gradient: gradient.index_fill(
                    0, torch.tensor([1]), bad.value
                ))  # fmt: skip
            return embeddings

        trainer.networks.embed = spoilt
        try:
            trainer.run()
        except UserError as raised:
            error = str(raised)
    weights = torch.cat([weight.detach().flatten() for weight in state.backbone.parameters()])
    return End(state.iteration, state.scaler.get_scale(), error, weights)


class Numbers:
    """The tries; each takes the generator of its draws and an empty folder, and returns what was
    lost."""

    def __init__(self, folder: Path) -> None:
        self.faces: TinyFaces = make_tiny_faces(folder / "tiny faces")
        self.good = folder / "good"
        end = train(None, self.config(self.good, ema_decay=0.9, total_epoch=1), Bad())
        assert end.error is None, end.error

    def config(self, save_dir: Path, **changes: Any) -> Config:
        """Settings of a run of 24 iterations."""
        faces = self.faces
        config = Config(
            train_dataset="Tiny",
            train_dataset_path=str(faces.train),
            train_file_list=str(faces.train_list),
            **{"input_size": (32, 32), "feature_dim": 16, "batch_size": 8, "num_workers": 0},
            **{"total_epoch": 8, "milestones": (), "log_freq": 2, "save_freq": 4},
            **{"test_freq": 10**6, "use_visdom": False, "device": "cpu"},
            **{"save_dir": str(save_dir)},
        )
        return dataclasses.replace(config, **changes)

    def gradient(self, draw: random.Random, folder: Path, **form: Any) -> str | None:
        """One gradient of one of two processes is not finite."""
        first = draw.randrange(5, ITERATIONS - 4)
        value = draw.choice([float("nan"), float("inf")])
        bad = Bad(value, range(first, first + 1), draw.randrange(2))
        config = self.config(folder / "runs", **form)
        (folder / "meeting").mkdir()
        ends = in_processes(2, folder / "meeting", _train_saved, config, bad)
        if len({(end["iteration"], end["scale"], end["error"]) for end in ends}) != 1:
            return f"the processes ended differently: {ends}"
        if not torch.equal(ends[0]["weights"], ends[1]["weights"]) and config.amp_dtype == "fp16":
            return "the processes have different weights"
        end = ends[0]
        if config.amp_dtype == "fp16":  # the step is skipped, and the scale halved once
            right = end["error"] is None and end["iteration"] == ITERATIONS
            return None if right and end["scale"] == 2**15 else f"{bad}: {end}"
        return self._ended(end["error"], folder) or self._continued(folder, **form)

    def gradient_in_fp16(self, draw: random.Random, folder: Path) -> str | None:
        return self.gradient(draw, folder, **_FP16, head_parallel=draw.choice(_HEADS))

    def gradient_in_fp32(self, draw: random.Random, folder: Path) -> str | None:
        return self.gradient(draw, folder, head_parallel=draw.choice(_HEADS))

    def early_overflow(self, draw: random.Random, folder: Path) -> str | None:
        """The first 20 steps overflow, while the loss scale is found."""
        config = self.config(folder / "runs", **_FP16)
        end = train(None, config, Bad(float("inf"), range(1, 21)))
        if end.error or end.iteration != ITERATIONS or end.scale != 2.0**-4:
            return f"{end.error}, iteration {end.iteration}, scale {end.scale}"
        return not_finite(folder)

    def lasting_overflow(self, draw: random.Random, folder: Path) -> str | None:
        """Every step overflows."""
        config = self.config(folder / "runs", **_FP16, total_epoch=20)
        error = train(None, config, Bad(float("inf"), range(1, 100))).error
        if error is None or "fp16's loss scale" not in error:
            return f"said: {error}"
        return self._ended(error, folder)

    def learning_rate(self, draw: random.Random, folder: Path) -> str | None:
        """A learning rate from far too high to absurd."""
        rate = 10 ** draw.uniform(2, 30)
        end = train(None, self.config(folder / "runs", initial_lr=rate), Bad())
        if end.error is None:
            return not_finite(folder)
        return self._ended(end.error, folder)

    def loaded(self, draw: random.Random, folder: Path) -> str | None:
        """A value of a file is not finite: a weight, a statistic, an average, a momentum."""
        (last,) = self.good.glob("*/checkpoints/last.pt")
        state = torch.load(last, weights_only=True)
        tensors = list(tensors_in({name: state[name] for name in _ENTRIES}))
        name, tensor = draw.choice(tensors)
        place = tuple(map(draw.randrange, tensor.shape))
        tensor[place] = draw.choice([float("nan"), -float("inf")])
        path = folder / "spoilt.pt"
        torch.save(state, path)
        used = {"resume": str(path), "total_epoch": 2, "ema_decay": 0.9}
        if draw.random() < 0.5 and name.split(".")[0] in ("backbone", "averaged", "head"):
            weights = "averaged" if name.startswith("averaged") else "raw"
            used = {"pretrained": str(path), "weights": weights}
        try:
            end = train(None, self.config(folder / "runs", **used), Bad())
        except UserError as error:
            right = str(path) in str(error) and "not finite" in str(error)
            return None if right else f"{name}, {used}: {error}"
        if end.error is None and not torch.isfinite(end.weights).all():
            return f"{name}, {used}: trained on"
        return f"{name}, {used}: {end.error or 'trained as if nothing was'}"

    def batch(self, draw: random.Random, folder: Path) -> str | None:
        """Every head, on a batch with a zero embedding, or of one class."""
        name = draw.choice(settings_of(Config)["margin"].words)
        embeddings = torch.randn(8, 16, generator=torch.Generator().manual_seed(draw.randrange(99)))
        labels = torch.arange(8) % 6
        if draw.random() < 0.5:
            embeddings[draw.randrange(8)] = draw.choice([0.0, 1e-30])
        else:
            labels[:] = draw.randrange(6)
        head = build_head(name, 16, 6)
        embeddings.requires_grad_()
        loss = head.loss(embeddings, labels).loss
        loss.backward()
        values = (loss, embeddings.grad, head.weight.grad, *head.buffers())
        return None if all(value.isfinite().all() for value in values) else f"{name} {labels}"

    def one_image(self, draw: random.Random, folder: Path) -> str | None:
        """BatchNorm would learn from one image."""
        form = draw.choice([{"batch_size": 1}, {"accumulate_steps": 8}])
        try:
            train(None, self.config(folder, **form), Bad())
        except UserError as error:
            return None if "batch_size" in str(error) else f"{form}: {error}"
        return f"{form}: trained"

    def _ended(self, error: str | None, folder: Path) -> str | None:
        """None if a run ended as it should where nothing can be trained any more."""
        if error is None or not re.search(_REMEDY, error):
            return f"said: {error}"
        return not_finite(folder)

    def _continued(self, folder: Path, **form: Any) -> str | None:
        """None if the run, without the fault, goes on from its last checkpoint to its end."""
        (last,) = (folder / "runs").glob("*/checkpoints/last.*")
        config = self.config(folder / "runs", **form, resume=str(last))
        end = train(None, dataclasses.replace(config, head_parallel="auto"), Bad())
        wrong = end.error or end.iteration != ITERATIONS
        return f"resumed: {end.error}, {end.iteration}" if wrong else not_finite(folder)


_HEADS = ("replicated", "sharded")
_ENTRIES = ("backbone", "averaged", "head", "optimizer")


def _train_saved(group: dist.ProcessGroup, config: Config, bad: Bad) -> dict[str, Any]:
    return dataclasses.asdict(train(group, config, bad))


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All float tensors of nested dictionaries, by name."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from tensors_in(item, f"{name}.{key}".lstrip("."))
    elif isinstance(value, Tensor) and value.is_floating_point() and value.numel():
        yield name, value


def not_finite(folder: Path) -> str | None:
    """The first value in a checkpoint, of any run in a folder, that is not finite."""
    for path in folder.glob("runs/*/checkpoints/*"):
        state = merge_folder(path)[0] if is_checkpoint_folder(path) else read_run(path)
        for name, tensor in tensors_in(state):
            if not tensor.isfinite().all():
                return f"{path.name}: {name}"
    return None


def campaign(allowance: Allowance) -> Iterator[Row]:
    """Each kind gets its weight's share of the time; those of weight 0 are tried once."""
    numbers = Numbers(allowance.folder)
    kinds: list[tuple[str, Try | None, float]] = [
        ("a gradient NaN or infinite on one of two processes, fp32", numbers.gradient_in_fp32, 4),
        ("a gradient NaN or infinite on one of two processes, fp16", numbers.gradient_in_fp16, 3),
        ("fp16 gradients overflow in the first 20 steps", numbers.early_overflow, 0),
        ("fp16 gradients overflow in every step", numbers.lasting_overflow, 0),
        ("a learning rate of 1e2 to 1e30", numbers.learning_rate, 3),
        ("a value of a loaded file not finite", numbers.loaded, 3),
        ("a batch with a zero embedding, or of one class; every head", numbers.batch, 1),
        ("one image for BatchNorm", numbers.one_image, 0),
    ]
    yield from tried(allowance, kinds)
