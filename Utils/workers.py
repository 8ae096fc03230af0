"""Loaders whose worker processes survive the signals that are meant for the run, and whose end is
told to the user with its likely cause."""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from Utils.errors import RunError, UserError

_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CAN_WAIT = hasattr(signal, "sigwaitinfo")  # not on macOS, where PyTorch's own handlers stay
_TIME_TO_END = 1.0  # seconds, from a worker's last sign until the system says how it ended

_MEMORY = (
    "The system does that where memory runs out (`dmesg` tells): fewer num_workers ({workers} now) "
    "and a smaller batch need less."
)
_SHARED_MEMORY = (
    "/dev/shm, through which workers pass images, is full: make it larger (docker run "
    "--shm-size=8g), or give fewer num_workers ({workers} now); 0 needs none of it."
)
_FEWER = "Give fewer num_workers ({workers} now); 0 needs no other process."
_CRASH = (
    "It crashed, perhaps on a damaged image: `python -m Utils.Datasets_Utils.check_dataset` reads "
    "every image of a set, and num_workers 0 shows where it happens."
)


_STUCK = (
    "no images have come for {seconds} seconds; the workers are still reading {places}. Does the "
    "file server answer?"
)
PATIENCE = 600  # seconds, in which a file server is started again


class WorkerError(RunError):
    """A worker process has ended before its work was done, or can't pass its images on."""


class _SharedMemoryError(Exception):
    """In a worker: there is no room for its batch in shared memory."""


class SteadyLoader(DataLoader):
    """A DataLoader whose workers survive the signals that ask the whole process group to stop:
    Ctrl-C, SIGTERM, and the SIGHUP of a closed terminal.

    The run answers them, and still needs its workers to finish the iteration and to save. SIGTERM
    from the run itself ends a worker: that is how multiprocessing stops what is left at exit. If
    the run is killed, its workers notice that within seconds.

    Iterating raises WorkerError if the workers can't be started, and, between two batches, if one
    has crashed or was killed, or if no batch comes for `PATIENCE` seconds; it then names what the
    workers were reading, where the data set has `place(index)`. A `collate_fn` that makes tensors
    gives them to `shared`.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int = 1, num_workers: int = 0, **kwargs: Any
    ) -> None:
        self._processes: list[BaseProcess] = []
        self._noted = _Noted(dataset, num_workers)
        self._waits_since = math.inf
        self._stuck = ""  # what the workers were reading when this loader lost its patience
        super().__init__(
            self._noted if num_workers else dataset,
            batch_size,
            num_workers=num_workers,
            worker_init_fn=_leave_signals_to_parent,
            **kwargs,
        )

    def __iter__(self) -> Iterator[Any]:
        if not self.num_workers:
            return super().__iter__()
        try:
            batches = self._begin()
        except OSError as error:  # of memory, of processes, or of the locks in /dev/shm
            remedy = _SHARED_MEMORY if error.errno == errno.ENOSPC else _FEWER
            raise WorkerError(
                f"worker processes, which read images, can't be started: {error}. "
                f"{remedy.format(workers=self.num_workers)}"
            ) from None
        except RuntimeError:  # a worker of the last epoch, which this one goes on with, has ended
            self._raise_if_ended()
            raise
        # PyTorch's own list: multiprocessing.active_children() forgets those that have ended.
        self._processes = batches._workers
        return self._watched(batches)

    def _begin(self) -> Iterator[Any]:
        if not _CAN_WAIT:
            return super().__iter__()
        resource_tracker.ensure_running()  # its start would unblock two of them
        # Workers inherit what is blocked, so no signal finds them before they are set up.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
        on_end = signal.getsignal(signal.SIGCHLD)
        try:
            return super().__iter__()
        finally:
            if threading.current_thread() is threading.main_thread():
                # PyTorch's own would raise its error wherever this process is at that moment: in
                # a step, with half of the weights changed.
                signal.signal(signal.SIGCHLD, on_end)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _watched(self, batches: Iterator[Any]) -> Iterator[Any]:
        done = threading.Event()
        threading.Thread(target=self._end_the_stuck, args=(done,), daemon=True).start()
        try:
            while True:
                self._waits_since = time.monotonic()
                batch = next(batches, done)
                self._waits_since = math.inf
                if batch is done:
                    return
                yield batch
        except UserError as error:
            raise _as_it_was(error) from None
        except _SharedMemoryError:
            raise WorkerError(_SHARED_MEMORY.format(workers=self.num_workers)) from None
        except Exception:  # of many kinds, where the main process was receiving a batch
            if self._stuck:
                raise WorkerError(_STUCK.format(seconds=PATIENCE, places=self._stuck)) from None
            self._raise_if_ended()
            raise
        finally:
            done.set()

    def _end_the_stuck(self, done: threading.Event) -> None:
        """In a thread: end the workers if one reads something for too long, which PyTorch notices.

        PyTorch's own time-out would name nothing, and see no worker die before it is over.
        """
        while not done.wait(min(1, PATIENCE)):
            late = time.monotonic() - self._waits_since > PATIENCE
            if late and (places := self._noted.places()):
                self._stuck = places
                for process in self._processes:
                    process.kill()
                return

    def _raise_if_ended(self) -> None:
        """Raise WorkerError if a worker did not end by itself."""
        deadline = time.monotonic() + _TIME_TO_END
        while time.monotonic() < deadline:
            for process in self._processes:
                if process.exitcode:
                    raise WorkerError(self._describe(process.exitcode)) from None
            time.sleep(0.05)

    def _describe(self, status: int) -> str:
        """status: an exit status; negative: a signal's number."""
        by = signal.Signals(-status).name if status < 0 else f"with status {status}"
        causes = {"SIGKILL": _MEMORY, "SIGBUS": _SHARED_MEMORY}
        cause = causes.get(by, _CRASH).format(workers=self.num_workers)
        return f"a worker process, which reads images for this one, was ended by {by}. {cause}"


class _Noted(Dataset):
    """A data set that notes, for the main process, which index each worker is reading."""

    def __init__(self, dataset: Dataset, num_workers: int) -> None:
        self._dataset = dataset
        self._reading = multiprocessing.RawArray("q", [-1] * num_workers)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        worker = get_worker_info().id
        self._reading[worker] = index
        found = self._dataset[index]
        self._reading[worker] = -1
        return found

    def places(self) -> str:
        """What the workers are reading now, for people."""
        place = getattr(self._dataset, "place", lambda index: f"image {index}")
        return ", ".join(place(index) for index in self._reading if index >= 0)


def _as_it_was(error: UserError) -> UserError:
    """A worker's error without the traceback that PyTorch puts before its text."""
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    before, _, text = str(error).rpartition(name)
    return type(error)(text.strip()) if before.startswith("Caught ") else error


def shared(tensor: Tensor) -> Tensor:
    """The tensor; in a worker, moved to shared memory, where the main process finds it.

    PyTorch does that in a thread of the worker, where an error loses the batch: where /dev/shm is
    full, the main process would wait for it for ever.
    """
    if get_worker_info() is not None:
        try:
            tensor.share_memory_()
        except RuntimeError as error:
            raise _SharedMemoryError(str(error)) from None
    return tensor


def _leave_signals_to_parent(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if _CAN_WAIT:
        parent = multiprocessing.parent_process().pid
        threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
