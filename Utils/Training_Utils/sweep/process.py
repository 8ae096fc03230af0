"""The process of one run of a sweep, and the signals that end it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import FrameType

from Config import Config
from Utils.cpu import keep_freed_memory
from Utils.errors import UserError
from Utils.Training_Utils.stopping import Sigterm
from Utils.Training_Utils.trainer import Trainer

INTERRUPTED = 130  # exit status
PATIENCE = 10.0  # seconds that an interrupted run has to end


class SweepStop(Sigterm):
    """Whether the sweep is to stop; as a context, SIGTERM asks for it.

    The signal is passed on to the run under way, which saves and ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self._process: BaseProcess | None = None

    def watch(self, process: BaseProcess) -> None:
        """Pass the signal on to a process, which has been started; now, if it came before."""
        self._process = process
        if self.asked:
            process.terminate()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        super()._note(signum, frame)
        if self._process is not None:
            self._process.terminate()  # nothing where it has ended


def train_in_a_process(config: Config, begun: Callable[[str], None], stop: SweepStop) -> str:
    """Train in a process; returns why it failed, "" if it did not.

    begun: called with the run's folder when it is there. stop: asked, when this returns, where the
    run was told to end, by whomever, before its end.
    """
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(config, theirs), name="sweep run")
    process.start()
    theirs.close()  # so that its end is seen when the process has gone
    reason = None
    try:
        stop.watch(process)
        while True:
            what, text = ours.recv()
            if what == "folder":
                begun(text)
            else:
                reason = text
                stop.asked |= what == "stopped"
    except EOFError:
        process.join()
    except KeyboardInterrupt:
        _end(process)
        raise
    finally:
        ours.close()
    if process.exitcode == INTERRUPTED:
        raise KeyboardInterrupt
    stop.asked |= process.exitcode == -signal.SIGTERM  # which came before it listened
    if reason is None:
        reason = f"its process ended with status {process.exitcode}; its messages are above"
    return reason


def _end(process: BaseProcess) -> None:
    """End an interrupted run: a terminal's Ctrl-C went to it too, a lone signal did not."""
    for number in (None, signal.SIGINT, signal.SIGKILL):
        if number and process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)
        process.join(PATIENCE if number else 1.0)


def _train(config: Config, reports: Connection) -> None:
    """The process of one run: reports its folder, then "" or why it failed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        keep_freed_memory()
        trainer = Trainer(config)
        reports.send(("folder", str(trainer.run_folder.path)))
        result = trainer.run()
        reports.send(("stopped" if result.stopped else "end", ""))
    except UserError as error:
        reports.send(("end", str(error) or type(error).__name__))
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)


def _end_with_parent() -> None:
    """End this process when the sweep is killed: else it would train on beside the next one."""
    multiprocessing.parent_process().join()
    os._exit(1)
