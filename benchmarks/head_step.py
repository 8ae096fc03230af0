"""Time and memory of the head's step, as ratios to a plain ArcFace with CrossEntropyLoss.

    python -m benchmarks.head_step [--classes 85742 1000000] [--processes 1 2] [--rates 1 0.1]

A step samples the classes and computes the loss of N = 256 embeddings of D = 512 values and its
gradients; no optimiser runs. The batch, the classes and the machine's threads are divided among the
processes, which communicate through gloo. The plain head has the whole batch, all classes and all
threads; it runs before each of our steps, while the other processes wait, and the table shows
medians. Memory is what one step adds to the first process, which already has the class weights.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn

from benchmarks.baselines.head import PlainArcFace
from benchmarks.memory import MemoryWatch
from Head import build_head
from Head.classifier import MarginHead

N, D, S, M = 256, 512, 64.0, 0.5


class Steps:
    """Our step and the plain one of the same problem, in one of the processes."""

    def __init__(self, group: dist.ProcessGroup, classes: int, rate: float, threads: int) -> None:
        torch.manual_seed(0)
        self.group, self.threads = group, threads
        self.x, self.labels = torch.randn(N, D), torch.randint(classes, (N,))
        alone = group.size() == 1
        self.head: MarginHead = build_head(
            *("ArcFace", D, classes, S, M), group=None if alone else group, sample_rate=rate
        )
        self.plain = PlainArcFace(D, classes, S, M) if group.rank() == 0 else None
        self._draws = 0

    def ours(self) -> None:
        torch.set_num_threads(max(1, self.threads // self.group.size()))
        share = N // self.group.size()
        own = slice(self.group.rank() * share, (self.group.rank() + 1) * share)
        self._draws += 1
        self.head.sample(self.labels[own], self._draws)
        self.head.loss(self.x[own].requires_grad_(), self.labels[own]).loss.backward()
        self.head.weight.grad = None

    def theirs(self) -> None:
        if self.plain is not None:
            torch.set_num_threads(self.threads)
            logits = self.plain(self.x.clone().requires_grad_(), self.labels)
            nn.CrossEntropyLoss()(logits, self.labels).backward()
            self.plain.weight.grad = None


def seconds(step: Callable[[], None]) -> float:
    """Seconds that the step takes until all processes have finished it."""
    dist.barrier()
    start = time.perf_counter()
    step()
    dist.barrier()
    return time.perf_counter() - start


def mebibytes(step: Callable[[], None]) -> float:
    dist.barrier()
    with MemoryWatch() as memory:
        step()
    dist.barrier()
    return memory.used / 2**20


def work(
    rank: int, processes: int, folder: str, classes: int, rate: float, rounds: int, threads: int
) -> None:
    """One process of one line of the table."""
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    steps = Steps(dist.group.WORLD, classes, rate, threads)
    memory = mebibytes(steps.ours), mebibytes(steps.theirs)
    times = [(seconds(steps.theirs), seconds(steps.ours)) for _ in range(rounds)]
    if rank == 0:
        plain, ours = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(ours / plain for plain, ours in times)
        print(
            f"{classes:>9,} {processes:>9} {rate:>5g} {ours:>9.3f} {plain:>10.3f} {ratio:>6.2f}"
            f" {memory[0]:>11,.0f} {memory[1]:>11,.0f} {memory[0] / memory[1]:>6.2f}",
            flush=True,
        )
    dist.destroy_process_group()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[85_742, 1_000_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 0.1])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"{threads} threads, N {N}, D {D}, median of {arguments.rounds} rounds")
    print(
        "  classes processes  rate   ours (s)  plain (s)  ratio  ours (MiB) plain (MiB)  ratio",
        flush=True,
    )
    for classes in arguments.classes:
        for processes in arguments.processes:
            for rate in arguments.rates:
                with tempfile.TemporaryDirectory() as folder:
                    settings = (processes, folder, classes, rate, arguments.rounds, threads)
                    multiprocessing.spawn(work, settings, nprocs=processes)


if __name__ == "__main__":
    main()
