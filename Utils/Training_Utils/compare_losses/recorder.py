"""Trains some steps in a tree of this repository's files, and tells about the tensors of each step.

This file is run by its path, so that it also works in a tree of an older commit, which lacks it. Of
that tree it needs `Config.read_config`, and `Trainer` with `step`, `state` and `run`. It answers in
lines of JSON: for each step the name and digest of every tensor; then it waits for a line, which is
"next", or the number of a tensor to write to a file.
"""

import hashlib
import inspect
import json
import os
import socket
import sys
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# The run writes nothing, is not watched, and tests nothing on the way.
_QUIET = {
    **{"para_adj_mode": True, "use_visdom": False, "use_tensorboard": False, "use_wandb": False},
    **{"test_on_megaface": False, "test_freq": 10**9, "save_freq": 10**9, "num_workers": 0},
}
_PLAIN = {"use_amp": False, "compile": False}  # nothing of less precision than float64


class EnoughError(Exception):
    """Ends the run: after the last step, or where nobody wants to know more."""


class Recorder:
    """In place of a trainer's `step`: calls it, and tells about it.

    job: steps, the last one. double: train in float64. ask: sends a value and returns the answer.
    """

    def __init__(self, trainer: Any, job: dict[str, Any], channel: Any) -> None:
        self._step, self._state = trainer.step, trainer.state
        self._job, self._channel = job, channel
        self._number = 0
        self._inputs: list[Tensor] = []
        self._gradients: list[tuple[str, Tensor]] = []
        if job["double"]:
            for _, network in self._networks():
                network.double()
        self._state.backbone.register_forward_pre_hook(self._see_input)
        # Before the update, because an optimiser may change gradients in place.
        self._state.optimizer.register_step_pre_hook(self._see_gradients)
        self._tell([])

    def __call__(self, batch: Any) -> Any:
        """A step of the trainer's."""
        self._inputs, self._gradients = [], []
        result = self._step(batch)
        self._number += 1
        inputs = [(f"input {i}", tensor) for i, tensor in enumerate(self._inputs, 1)]
        loss = ("loss", result.loss)
        self._tell([("labels", batch.labels), *inputs, loss, *self._gradients])
        if self._number == self._job["steps"]:
            raise EnoughError
        return result

    def _networks(self) -> list[tuple[str, nn.Module]]:
        """All that the state has; older commits lack some."""
        average = getattr(self._state, "average", None)
        networks = {
            "backbone": self._state.backbone,
            "head": self._state.head,
            "averaged": average and average.backbone,
            "distillation": getattr(self._state, "distillation", None),
        }
        return [(name, network) for name, network in networks.items() if network is not None]

    def _see_input(self, module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor] | None:
        self._inputs.append(arguments[0])
        return (arguments[0].double(),) if self._job["double"] else None

    def _see_gradients(self, *_: Any) -> None:
        self._gradients = [
            (f"gradient of {of}.{name}", parameter.grad.clone())
            for of, network in self._networks()
            for name, parameter in network.named_parameters()
            if parameter.grad is not None
        ]

    def _tell(self, tensors: list[tuple[str, Tensor]]) -> None:
        """Tell the tensors of a step and of the networks after it; answer until "next"."""
        for kind, named in (("parameter", "named_parameters"), ("buffer", "named_buffers")):
            for of, network in self._networks():
                found = getattr(network, named)()
                tensors = [*tensors, *((f"{kind} {of}.{name}", tensor) for name, tensor in found)]
        digests = [[name, _digest(tensor)] for name, tensor in tensors]
        answer = self._ask({"step": self._number, "tensors": digests})
        while answer != "next":
            name, tensor = tensors[answer]
            tensor = tensor.detach().cpu()
            np.save(self._job["file"], tensor.double().numpy())
            answer = self._ask({"name": name, "dtype": str(tensor.dtype).removeprefix("torch.")})

    def _ask(self, value: Any) -> Any:
        print(json.dumps(value), file=self._channel, flush=True)
        line = self._channel.readline()
        if not line:  # nobody listens any more
            raise EnoughError
        return json.loads(line)


def _digest(tensor: Tensor) -> str:
    """Of dtype, shape and bytes."""
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    about = f"{tensor.dtype} {tuple(tensor.shape)} "
    return about + hashlib.blake2b(values, digest_size=16).hexdigest()


def record(job: dict[str, Any], channel: Any) -> None:
    """Train in this process with the modules of `job["tree"]`."""
    import Config
    from Utils.Training_Utils import trainer

    # Older commits have no such file, and resume no run here.
    place = "Utils.Training_Utils.start"
    start = import_module(place) if find_spec(place) else None
    known = inspect.signature(Config.read_config).parameters
    doors = {name: getattr(start, name) for name in known if hasattr(start, name)}
    # Older commits have no such function; there, all settings are flags.
    only = Config.settings_for("training") if hasattr(Config, "settings_for") else None
    config = Config.read_config("", only, argv=job["flags"], **doors)
    changes = {**_QUIET, **(_PLAIN if job["double"] else {})}
    config = replace(config, **{name: v for name, v in changes.items() if hasattr(config, name)})
    torch.use_deterministic_algorithms(True, warn_only=True)
    run = trainer.Trainer(config)
    run.step = Recorder(run, job, channel)
    try:
        run.run()
    except EnoughError:
        return


def main(job: dict[str, Any]) -> None:
    """Record what a job, as `comparison` makes it, asks for."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for name, module in list(sys.modules.items()):  # a forked process may have another tree's
        ours = name.split(".")[0] in ("Backbone", "Config", "Head", "Utils")
        if ours and not str(module.__file__).startswith(job["tree"] + os.sep):
            del sys.modules[name]
    sys.path[:] = [job["tree"], *(path for path in sys.path if path not in job["not_from"])]
    os.chdir(job["folder"])
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(job["socket"])
        with connection.makefile("rw") as channel:
            record(job, channel)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
