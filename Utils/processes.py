"""The processes that torchrun started, or the single one without torchrun."""

from __future__ import annotations

import ctypes
import datetime
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from Utils.errors import RunError, UserError, print_error
from Utils.heartbeat import Heartbeat

# For short values, processes wait for the slowest one, which may need hours longer for its share of
# a million photos. A process that has died is still noticed at once, by its closed connection, and
# one that is frozen by its missing heartbeat.
_PATIENCE = datetime.timedelta(days=7)
# Gradients are exchanged in every step; a process that is this late has failed.
_STEP_PATIENCE = datetime.timedelta(minutes=30)

_TIME_TO_PRINT = 2.0  # seconds

_KEPT = "What is finished is kept; training continues from its last checkpoint with --resume last."

# What gloo's transport and NCCL say of a process that has ended, or is not heard of in time. Their
# other errors, such as a GPU used twice or a failing kernel, are bugs.
_LOST = re.compile(
    r"connection (was (likely )?)?(closed|reset|refused|timed out)|broken pipe|no route to host"
    r"|(host|network) is unreachable|timed out waiting|application timeout caused|wait timeout"
    r"|socket timeout|collective operation timeout|remote process exited|ncclRemoteError",
    re.I,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """world_size processes, of which this is number `rank`, and number `local_rank` on its machine.

    group: for short values and tensors in main memory, through gloo; None: a single process.
    device_group: for tensors on the devices: NCCL between GPUs, gloo between CPUs.
    """

    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None
    device_group: dist.ProcessGroup | None = None
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints: rank 0."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank, which may be any objects that can be pickled."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def collect(self, value: T) -> list[T]:
        """The values of all processes, by rank, in the main process; nothing in the others."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.world_size if self.is_main else []
        dist.gather_object(value, values or None, group=self.group)
        return values

    def mean(self, value: float) -> float:
        """The mean of the values of all processes."""
        return sum(self.gather(value)) / self.world_size

    def from_main(self, work: Callable[[], T]) -> T:
        """The result of work in the main process; the others only receive it.

        Where it raises a UserError there, all of them raise one with the same text. Any other
        exception is a bug: it keeps its traceback in the main process, which ends the others.
        """
        if self.group is None:
            return work()
        outcome: list[Any] = [None, None]  # the result, or an error's text
        error: UserError | None = None
        if self.is_main:
            try:
                outcome[0] = work()
            except UserError as raised:
                error, outcome = raised, [None, str(raised)]
        dist.broadcast_object_list(outcome, group=self.group, group_src=0)
        result, text = outcome
        if error is not None:
            raise error
        if text is not None:
            raise RunError(text)
        return result

    def one_by_one(self, work: Callable[[], T]) -> T:
        """Do work that may write files: in one process of each machine, then in the others."""
        if self.local_rank > 0:
            self.barrier()
        done = work()
        if self.local_rank == 0:
            self.barrier()
        return done

    def barrier(self) -> None:
        """Wait until all processes have called this."""
        if self.group is not None:
            dist.barrier(group=self.group)


ALONE = Processes()


def stop_with_parent() -> None:
    """Have this process receive SIGTERM when its parent dies; only on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG


@contextmanager
def started_by_torchrun() -> Iterator[Processes]:
    """The processes of a torchrun launch, joined; just this one without it.

    If torchrun itself is killed, they get SIGTERM: without it they would train on, while somebody
    continues the run with others.

    Where several fail, or one fails and the others with it, only the first to fail raises its
    error; the rest exit with status 1 and print nothing.

    The processes must not be kept after the context: where a group's threads still run when the
    interpreter ends, PyTorch aborts the process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Processes()
        return
    stop_with_parent()
    store, processes = _join()
    heartbeat = Heartbeat(partial(_end_alone, store))
    try:
        yield processes
    except KeyboardInterrupt:
        heartbeat.abandon()
        if not processes.is_main:
            sys.exit(130)
        raise
    except Exception as error:
        heartbeat.abandon()
        if not _first_to_fail(store):
            # When one process exits, torchrun ends the others: first the error must be printed.
            time.sleep(_TIME_TO_PRINT)
            sys.exit(1)
        if is_lost_connection(error):
            raise lost_connection(error) from None
        raise
    heartbeat.leave()
    dist.destroy_process_group()


def _end_alone(store: dist.Store, error: RuntimeError) -> None:
    """End this process, in any thread, because another one is silent."""
    asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
    # The store is in a process, which may be the silent one.
    ask = threading.Thread(target=lambda: asked.put(_first_to_fail(store)), daemon=True)
    ask.start()
    try:
        first = asked.get(timeout=_TIME_TO_PRINT)
    except queue.Empty:
        first = True
    if first:
        print_error(str(lost_connection(error)))
    else:
        time.sleep(_TIME_TO_PRINT)
    os._exit(1)


def _join() -> tuple[dist.Store, Processes]:
    """Raises RunError if the others can't be reached."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        store, rank, count = next(dist.rendezvous("env://", timeout=_STEP_PATIENCE))
        # The store may outlive the processes: what those before a restart left is not for these.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"attempt_{attempt}", store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
            store=store,
            rank=rank,
            world_size=count,
            timeout=_STEP_PATIENCE,
        )
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    except RuntimeError as error:
        raise RunError(
            f"process {os.environ.get('RANK')} can't join the others of this torchrun, at "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}: {error}"
        ) from None
    if on_gpus and local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    return store, Processes(rank, count, group, dist.group.WORLD, local_rank)


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error was caused by another process's death, or by a failing network."""
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
        return True
    from_gloo = type(error) is RuntimeError and "gloo/transport" in str(error)
    is_theirs = from_gloo or isinstance(error, dist.DistBackendError)
    return is_theirs and bool(_LOST.search(str(error)))


def lost_connection(error: BaseException, kept: str = _KEPT) -> RunError:
    """What to tell the user of such an error, which is quoted whole. kept: what is not lost."""
    cause, _, _ = str(error).partition("\nException raised from")  # then PyTorch's own C++ frames
    return RunError(
        f"another process of this job has ended or can't be reached any more, so this one ends "
        f"too. {kept} The cause, as this process saw it: {' '.join(cause.split())}"
    )


def _first_to_fail(store: dist.Store) -> bool:
    try:
        return store.add("failed", 1) == 1
    except RuntimeError:  # the store was in a process that has ended, which failed first
        return False
