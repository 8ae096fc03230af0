"""Where the time of a few training steps goes: `--profile N`.

Writes a trace of torch.profiler (open it in chrome://tracing or https://ui.perfetto.dev), and logs
the operators that take longest and the share of time in which training waited for its data.
"""

import logging
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from Utils.files import atomic_path
from Utils.tables import format_table
from Utils.Training_Utils.data import Batch

SHOWN = 10  # operators
_SKIPPED = 2  # the first steps allocate memory and choose algorithms


class StepProfile:
    """Profiles `steps` steps of a run, once, after its first two.

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
        """The same batches. A step is what the caller does between asking for two of them."""
        if self._left:
            yield from islice(batches, _SKIPPED)
            yield from self._profiled(batches)
        yield from batches

    def _profiled(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        profiler = profile(activities=activities)
        profiler.start()
        waited, steps, begin = 0.0, 0, time.perf_counter()
        try:
            while self._left:
                asked = time.perf_counter()
                batch = next(batches, None)
                waited += time.perf_counter() - asked
                if batch is None:  # the epoch has ended: the steps so far are enough
                    break
                steps, self._left = steps + 1, self._left - 1
                yield batch
        finally:  # also where the caller leaves its loop at one of these batches
            self._left = 0
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            took = time.perf_counter() - begin
            profiler.stop()
            for line in operator_table(profiler, self._device).splitlines():
                self._log.info(line)
            share = 100 * waited / took
            self._log.info(f"{steps} steps in {took:.2f} s, {share:.1f} % of it waiting for data")
            if self._folder:
                path = self._folder / "trace.json"
                with atomic_path(path) as temporary:
                    profiler.export_chrome_trace(str(temporary))
                self._log.info(f"profile: {path}")


def operator_table(profiler: profile, device: torch.device) -> str:
    """A table of the operators that took longest on the device that computes, without the time of
    the operators that they call."""
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"

    def microseconds(event: Any) -> float:
        return getattr(event, key)

    events = sorted(profiler.key_averages(), key=microseconds, reverse=True)
    total = sum(map(microseconds, events)) or 1.0
    rows = [["operator", "calls", "ms", "share"]]
    for event in events[:SHOWN]:
        taken = microseconds(event)
        share = f"{100 * taken / total:.1f} %"
        rows.append([event.key[:42], str(event.count), f"{taken / 1e3:.1f}", share])
    return format_table(rows, "<>>>")
