"""The random generators that training draws from.

Draws that belong to images, such as mirroring, are made for the whole batch, alike in each process.
What else is random, such as dropout, comes from each process's own generators.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from Utils.processes import Processes


def random_states(generator: torch.Generator, processes: Processes) -> dict[str, Any]:
    """The states of all generators; called by all processes together. The first one's are whole.

    generator: on the device, the one for images.
    """
    alone = processes.count == 1
    device = generator.device
    cuda = []
    if torch.cuda.is_available() and (alone or device.type == "cuda"):
        cuda = torch.cuda.get_rng_state_all() if alone else [torch.cuda.get_rng_state(device)]
    own = {"cpu": torch.get_rng_state(), "cuda": cuda}
    return {"flip": generator.get_state(), **own, "others": processes.collect(own)[1:]}


def set_random_states(
    state: dict[str, Any],
    generator: torch.Generator,
    processes: Processes,
    seed: int,
    iteration: int,
) -> None:
    """The inverse of `random_states`, as far as this machine has the same devices; a process that
    was not there then begins with generators of its own."""
    if state["flip"].shape == generator.get_state().shape:  # else: another kind of device
        generator.set_state(state["flip"])
    own = [state, *state.get("others", [])][processes.rank :][:1]
    if not own:
        seed_process(processes, seed, iteration)
        return
    torch.set_rng_state(own[0]["cpu"])
    cuda = own[0]["cuda"]
    if len(cuda) == 1 and generator.device.type == "cuda":
        torch.cuda.set_rng_state(cuda[0], generator.device)
    elif cuda and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)


def seed_process(processes: Processes, seed: int, iteration: int = 0) -> None:
    """Let the global generators of this process differ from those of the others; the first one's
    stay as they are, as they are without others."""
    if not processes.first:
        words = np.random.SeedSequence((seed, iteration, processes.rank)).generate_state(2)
        torch.manual_seed(int(words[0]) << 31 ^ int(words[1]))
