"""The paths of several processes, in one process that counts as several: NCCL on a GPU, else gloo.

With one card there is no second process for NCCL to talk to; but the calls, their devices and
dtypes, the wrapping in DDP and the files are those of any number.
"""

from __future__ import annotations

import math
import os
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.gpu_checks.check import SKIPPED, Check, Place, Row, Rows, attempt, row
from Head import build_head
from Utils.processes import Processes
from Utils.Training_Utils.checkpoints.run_checkpoints import read_run
from Utils.Training_Utils.networks import lacks_compiler
from Utils.Training_Utils.state import TrainingState
from Utils.Training_Utils.trainer import Trainer

_SAMPLED = {
    **{"head_parallel": "sharded", "sample_rate": 0.3},
    **{"ema_decay": 0.9, "accumulate_steps": 2},
}
_RUNS: dict[str, dict[str, Any]] = {
    "replicated, fp16": {"use_amp": True, "amp_dtype": "fp16", "head_parallel": "replicated"},
    "sharded, fp16, clip": {
        **{"head_parallel": "sharded", "use_amp": True, "amp_dtype": "fp16", "clip_norm": 5.0},
    },
    "sharded, sampled, ema, accumulate": _SAMPLED,
    "sharded, saved as one file": {"head_parallel": "sharded", "checkpoint_format": "file"},
    "ddp_compression bf16": {"ddp_compression": "bf16"},
    "sync_batchnorm": {"sync_batchnorm": True},
}


class _Several(int):
    """A number that is equal to none, so that a world_size of 1 is not "alone"."""

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


def _join(place: Place) -> Processes:
    """This process as a group, as `Utils.processes` makes one."""
    backend = "cpu:gloo,cuda:nccl" if place.on_gpu else "gloo"
    store = dist.FileStore(str(place.folder / f"meeting_{os.getpid()}"), 1)
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    if place.on_gpu:
        torch.cuda.set_device(place.device)
    return Processes(0, _Several(1), dist.new_group(backend="gloo"), dist.group.WORLD, 0)


def together(place: Place) -> Rows:
    """Runs with DDP, replicated and sharded heads; what they save."""
    processes = _join(place)
    yield attempt("sharded head = whole head", partial(_same_head, place))
    for name, settings in _RUNS.items():
        if settings.get("sync_batchnorm") and not place.on_gpu:
            yield Row(_title(place, name), SKIPPED, note="PyTorch has it on GPUs only")
            continue
        yield attempt(_title(place, name), partial(_run, place, processes, name, settings))
    name = "resume of a sharded folder"
    yield attempt(_title(place, name), partial(_resumed, place, processes, _title(place, name)))
    dist.destroy_process_group()


def compiled(place: Place) -> Rows:
    """A compiled backbone in DDP."""
    if lack := lacks_compiler(place.device):
        yield Row("compiled DDP", SKIPPED, note=lack)
        return
    processes = _join(place)
    name = "compiled DDP, bf16"
    settings = {"compile": True, "use_amp": True, "amp_dtype": "bf16"}
    yield attempt(_title(place, name), partial(_run, place, processes, name, settings))
    dist.destroy_process_group()


def _title(place: Place, name: str) -> str:
    return f"{'NCCL' if place.on_gpu else 'gloo'} {name}"


def _trainer(place: Place, processes: Processes, folder: str, settings: dict[str, Any]) -> Trainer:
    batch = place.size(50, 12)
    small = {
        **{"batch_size": batch, "input_size": (32, 32), "total_epoch": 1, "initial_lr": 0.02},
        **{"log_freq": 20, "test_freq": 10**6, "save_freq": 20, "num_workers": 0},
        "save_dir": str(place.folder / folder),
    }
    return Trainer(place.config(with_data=True, **{**small, **settings}), processes)


def _folder(name: str) -> str:
    return "together_" + "".join(c if c.isalnum() else "_" for c in name)


def _run(place: Place, processes: Processes, name: str, settings: dict[str, Any]) -> Row:
    if not place.on_gpu and settings.get("amp_dtype") == "fp16":
        settings = {**settings, "amp_dtype": "bf16"}
    trainer = _trainer(place, processes, _folder(name), settings)
    result = trainer.run()
    saved = trainer.run_folder.last
    sharded = settings.get("head_parallel") == "sharded"
    wrapped = (trainer.state.head.group is not None) == sharded
    same = saved.is_dir() or _same_weights(read_run(saved), trainer.state)
    fine = math.isfinite(result.loss) and trainer.state.is_finite()
    found = f"loss {result.loss:.3f} after {result.iterations} iterations"
    note = f"saved as {saved.name}" if same else f"{saved.name} has other weights"
    return row(_title(place, name), fine and same and wrapped, found, note)


def _resumed(place: Place, processes: Processes, title: str) -> Row:
    """A run that is resumed from a folder has the weights that it was saved with."""
    half = _trainer(place, processes, "together_half", _SAMPLED)
    half.run()
    before = half.state.head.weight.detach().clone()
    again = {**_SAMPLED, "total_epoch": 2, "resume": str(half.run_folder.last)}
    trainer = _trainer(place, processes, "together_half", again)
    same = torch.equal(before, trainer.state.head.weight)
    same &= _same_weights({"backbone": half.state.backbone.state_dict()}, trainer.state)
    folder = half.run_folder.last.is_dir()
    result = trainer.run()
    right = folder and same and math.isfinite(result.loss) and trainer.state.epoch == 2
    found = "weights bit for bit" if same else "OTHER weights"
    return row(title, right, found, f"then to a loss of {result.loss:.3f}")


def _same_weights(saved: dict[str, Any], state: TrainingState) -> bool:
    pairs = [(saved["backbone"][key], own) for key, own in state.backbone.state_dict().items()]
    if "head" in saved:
        pairs.append((saved["head"]["weight"], state.head.weight))
    return all(torch.equal(a.cpu(), b.detach().cpu()) for a, b in pairs)


def _same_head(place: Place) -> Row:
    torch.backends.cuda.matmul.allow_tf32 = False
    classes, dim = place.size(5000, 200), 128
    x, y = torch.randn(64, dim), torch.randint(classes, (64,))
    found = []
    for group in (None, dist.group.WORLD):
        torch.manual_seed(0)
        head = build_head("ArcFace", dim, classes, group=group).to(place.device)
        embeddings = x.clone().to(place.device).requires_grad_()
        loss = head.loss(embeddings, y.to(place.device)).loss
        loss.backward()
        found.append((loss.detach(), embeddings.grad, head.weight.grad))
    apart = max(((a - b).norm() / a.norm()).item() for a, b in zip(*found, strict=True))
    return row("sharded head = whole head", apart < 1e-6, f"{apart:.1e}", "loss, both gradients")


CHECKS = (
    Check("together", 120, together, after=("faces",)),
    Check("together_compiled", 120, compiled, after=("faces",)),
)
