"""Memory and threads of a process on the CPU: freed memory, peak, limit, threads that share work.

glibc returns large blocks to the system as soon as they are freed, and the system gives out new
ones page by page, filled with zeros. A network on a CPU frees and allocates the memory of every
layer again and again, which took a quarter to a half of its time. So scripts keep freed memory.
"""

from __future__ import annotations

import ctypes
import itertools
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

# mallopt(3) of glibc; numbers from its malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1  # bytes: the largest value that mallopt takes
_GROWTH = 64 << 20  # bytes asked of the system at once


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its own next use; returns whether that can be done.

    `run_script` calls it before a script computes. It changes speed, not results. It does nothing
    where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):  # musl has a mallopt that does nothing
        return False
    # Blocks never get a mapping of their own; the heap is never trimmed, and it grows in large
    # steps, since each step is a call of the system.
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _GROWTH))
    return all([library.mallopt(option, value) == 1 for option, value in wanted])


def peak_memory() -> int:
    """The most memory, in bytes, that this process has used so far (its resident set)."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would include the memory of the process that started this one
        (line,) = (text for text in status.read_text().splitlines() if text.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # macOS counts bytes


@contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """Let this process have at most `more` bytes more in the block; then a MemoryError is raised.

    It is the limit of the whole process: two threads must not use it at once.

    For libraries that unpack what a file of few bytes says it has. On Linux; elsewhere it does
    nothing.
    """
    sizes, before = Path("/proc/self/statm"), resource.getrlimit(resource.RLIMIT_AS)
    if not sizes.exists():
        yield
        return
    most = int(sizes.read_text().split()[0]) * resource.getpagesize() + more
    if before[0] != resource.RLIM_INFINITY:
        most = min(most, before[0])
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def describe_memory(device: torch.device) -> str:
    """A line for a log: the most memory that this process has used, also on the device."""
    line = f"peak memory {peak_memory() / 2**20:,.0f} MiB"
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
        line += f", on {device} {most / 2**20:,.0f} MiB"
    return line


Item = TypeVar("Item")
Result = TypeVar("Result")


class LoneThreads:
    """A pool of `count` threads; inside each, PyTorch computes with one thread."""

    def __init__(self, pool: ThreadPoolExecutor, count: int) -> None:
        self._pool = pool
        self.count = count

    def submit(self, work: Callable[[Item], Result], item: Item) -> Future[Result]:
        """Have one of the threads compute `work(item)`."""
        return self._pool.submit(work, item)

    def map(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """The results for all items, in order.

        A thread that is free takes the next item: a task for each would cost about a millisecond.
        Never call it from one of these threads: all might wait for each other.
        """
        results: list[Result | None] = [None] * len(items)
        indices = itertools.count()

        def take_turns() -> None:
            while (index := next(indices)) < len(items):
                results[index] = work(items[index])

        tasks = [self._pool.submit(take_turns) for _ in range(min(self.count, len(items)))]
        for task in tasks:
            task.result()
        return results


@contextmanager
def lone_threads() -> Iterator[LoneThreads]:
    """As many threads as PyTorch computes with; its setting is restored afterwards."""
    count = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield LoneThreads(pool, count)
    finally:
        torch.set_num_threads(count)  # threads started later inherit the last setting
