"""Measuring one side of a job (time and memory), and the limits of the machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from Utils.cpu import peak_memory

MATRIX = 1024  # rows and columns of the matrices that are multiplied


@dataclass(frozen=True)
class Measured:
    """seconds: the median of the repetitions. amount: units of work in one repetition. peak: the
    most memory in bytes, beyond what the process used before."""

    seconds: float
    amount: float
    peak: int

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.amount / self.seconds


def repeat(work: Callable[[], object], amount: float, seconds: float) -> Measured:
    """Do the work once to warm up, then repeat it for about `seconds`, at least twice."""
    before = peak_memory()
    work()
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return Measured(statistics.median(times), amount, peak_memory() - before)


def best_seconds(work: Callable[[], object], seconds: float = 0.5) -> float:
    """The shortest repetition among those that fit in the time."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def matmul_rate(dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of a large matrix multiplication."""
    a, b = (torch.randn(MATRIX, MATRIX).to(dtype) for _ in range(2))
    return 2 * MATRIX**3 / best_seconds(lambda: a @ b)


def convolution_rate(dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of the most frequent convolution in ResNet50-IR."""
    layer = torch.nn.Conv2d(256, 256, 3, padding=1).to(dtype, memory_format=torch.channels_last)
    x = torch.randn(16, 256, 14, 14).to(dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        return 2 * 9 * 256 * 256 * x.shape[0] * 14 * 14 / best_seconds(lambda: layer(x))


def memory_bandwidth() -> float:
    """Bytes a second read and written by a copy of a large array."""
    source = torch.zeros(64 << 20)
    target = torch.zeros_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source))


def decode_rate(files: list[str]) -> float:
    """Images a second that OpenCV alone decodes in one thread."""
    cv2.setNumThreads(1)
    encoded = [np.fromfile(path, np.uint8) for path in files]
    return len(files) / best_seconds(lambda: [cv2.imdecode(e, cv2.IMREAD_COLOR) for e in encoded])
