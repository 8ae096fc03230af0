"""Threads that share work on the CPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class LoneThreads:
    """Threads, each of which computes by itself. count: how many."""

    def __init__(self, pool: ThreadPoolExecutor, count: int) -> None:
        self._pool = pool
        self.count = count

    def submit(self, work: Callable[[Item], Result], item: Item) -> Future[Result]:
        """Have one of them do it."""
        return self._pool.submit(work, item)

    def map(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """The results for all items, in order. Whoever is free takes the next: a task of its own
        for each item would cost about as much as a millisecond's work. Not to be called from one
        of them: all might wait for each other."""
        results: list[Result | None] = [None] * len(items)
        numbers = itertools.count()

        def take_turns() -> None:
            while (number := next(numbers)) < len(items):
                results[number] = work(items[number])

        tasks = [self._pool.submit(take_turns) for _ in range(min(self.count, len(items)))]
        for task in tasks:
            task.result()
        return results


@contextmanager
def lone_threads() -> Iterator[LoneThreads]:
    """As many threads as torch computes with."""
    count = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield LoneThreads(pool, count)
    finally:
        torch.set_num_threads(count)  # what a thread sets for itself, later threads inherit
