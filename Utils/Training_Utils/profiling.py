"""Where the time of a few training steps goes: `--profile N`.

A trace by torch.profiler (open it in chrome://tracing or https://ui.perfetto.dev), the operators
that take longest, and the share of time in which training waited for its next batch.
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from Utils.files import atomic_path
from Utils.Training_Utils.data import Batch

SHOWN = 10
_SKIPPED = 2  # the first steps allocate, and choose algorithms


class StepProfile:
    """Profiles the first `steps` steps of a run that come after its start; once.

    steps: 0 profiles nothing. folder: gets trace.json; None writes none.
    """

    def __init__(
        self, steps: int, device: torch.device, folder: Path | None, log: logging.Logger
    ) -> None:
        self._left = steps
        self._device = device
        self._folder = folder
        self._log = log

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches. What is done with each before the next is asked for is a step."""
        for _ in range(_SKIPPED if self._left else 0):
            yield from _first(batches)
        if self._left:
            yield from self._profiled(batches)
        yield from batches

    def _profiled(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        found = profile(activities=activities)
        found.start()
        waited, steps, begin = 0.0, 0, time.perf_counter()
        try:
            while self._left:
                asked = time.perf_counter()
                batch = next(batches, None)
                waited += time.perf_counter() - asked
                if batch is None:  # an epoch's end; what it had is enough
                    break
                steps, self._left = steps + 1, self._left - 1
                yield batch
        finally:  # also where the loop over the batches ends with one of these
            self._left = 0
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            took = time.perf_counter() - begin
            found.stop()
            self._tell(found, _share(waited, took, steps))

    def _tell(self, found: profile, share: str) -> None:
        for line in (*describe(found, self._device), share):
            self._log.info(line)
        if self._folder:
            with atomic_path(self._folder / "trace.json") as temporary:
                found.export_chrome_trace(str(temporary))
            self._log.info(f"profile: {self._folder / 'trace.json'}")


def describe(found: profile, device: torch.device) -> list[str]:
    """The operators that took longest themselves, on the device that computes: lines of a table."""
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"

    def taken(event: Any) -> float:
        return getattr(event, key)  # microseconds

    events = sorted(found.key_averages(), key=taken, reverse=True)
    total = sum(taken(event) for event in events) or 1.0
    lines = [f"{'operator':<44}{'calls':>8}{'ms':>10}{'share':>8}"]
    for event in events[:SHOWN]:
        share = 100 * taken(event) / total
        name = event.key[:42]
        lines.append(f"{name:<44}{event.count:>8}{taken(event) / 1e3:>10.1f}{share:>6.1f} %")
    return lines


def _share(waited: float, took: float, steps: int) -> str:
    return f"{steps} steps in {took:.2f} s, {100 * waited / took:.1f} % of it waiting for data"


def _first(batches: Iterator[Batch]) -> Iterator[Batch]:
    batch = next(batches, None)
    if batch is not None:
        yield batch
