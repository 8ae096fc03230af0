"""Runs checks, each in a process of its own, so that one that crashes or hangs fails alone."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

from benchmarks.gpu_checks.check import SKIPPED, WRONG, Check, Place, Row, describe

AT_ONCE = 6
_GRACE = 5.0  # seconds between the request to end and the end
_ON_CPU = 4  # times longer may a check take without a GPU
_LEAST = 8.0  # seconds: a check with less time would only be stopped
_LOG = 6000  # characters of the end of a check's output that are kept


@dataclass
class Outcome:
    """What a check gave. log: the end of its output, kept if something is wrong. unfinished: there
    was no time for it."""

    check: Check
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    log: str = ""
    unfinished: bool = False


class _Running:
    """A check in its process, which leads a process group of its own."""

    def __init__(self, check: Check, place: Place, limit: float) -> None:
        self.outcome = Outcome(check)
        self.limit = limit
        # A forked process starts at once, but can't use CUDA.
        context = multiprocessing.get_context("spawn" if place.on_gpu else "fork")
        self.pipe, theirs = context.Pipe(duplex=False)
        self._log = place.folder / f"{check.name}.log"
        self._process = context.Process(target=_work, args=(check, place, theirs, self._log))
        self._begin = time.monotonic()
        self._process.start()
        theirs.close()
        self._asked = False

    def receive(self, say: Callable[[str, Row], None]) -> bool:
        """Take rows that have come; whether there may be more."""
        alive = self._process.is_alive()
        try:
            while self.pipe.poll():
                found = self.pipe.recv()
                self.outcome.rows.append(found)
                say(self.outcome.check.name, found)
        except (EOFError, OSError):
            return False
        return alive  # what it has left behind may hold the pipe open

    def check_time(self) -> None:
        """Ask it and what it has started to end when its time is over; insist a little later."""
        over = time.monotonic() - self._begin - self.limit
        if over > 0 and not self._asked:
            self._signal(signal.SIGTERM)
            self._asked = True
        elif over > _GRACE:
            self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """End it and what it has started, before its time is over."""
        self.limit = 0.0
        self.check_time()
        self.end()

    def end(self) -> Row | None:
        """Wait for its end; the row that tells why, if that is not as it should be."""
        self._process.join(_GRACE)
        status = self._process.exitcode
        while self._asked and time.monotonic() - self._begin < self.limit + _GRACE:
            if not self._signal(0):  # torchrun, too, has ended what it started
                break
            time.sleep(0.1)
        self._signal(signal.SIGKILL)  # what it has left behind
        self._process.join()
        self.outcome.seconds = time.monotonic() - self._begin
        name = self.outcome.check.name
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        last = None
        if self._asked:
            last = Row(name, WRONG, "stopped", f"not done after its {self.limit:.0f} s")
        elif status != 0:
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            last = Row(name, WRONG, f"exit status {status}", lines[-1][:150] if lines else "")
        elif not self.outcome.rows:
            last = Row(name, WRONG, "no result")
        if last:
            self.outcome.rows.append(last)
        if any(found.verdict == WRONG for found in self.outcome.rows):
            self.outcome.log = text[-_LOG:]
        return last

    def _signal(self, number: int) -> bool:
        """Send it to the whole group; whether there is any process left in it."""
        try:
            os.killpg(self._process.pid, number)
            return True
        except (ProcessLookupError, PermissionError):  # it has ended, or not yet made its group
            if self._process.is_alive():
                os.kill(self._process.pid, number)
            return False


def run_checks(
    checks: Sequence[Check],
    place: Place,
    limit: float,
    say: Callable[[str, Row], None],
    done: Callable[[Outcome], None],
    at_once: int = AT_ONCE,
) -> list[Outcome]:
    """Run the checks in the order of the table, as far as `after` and `alone` allow.

    limit: seconds for all of them; checks that have not begun by then are skipped. say: called
    with the name of a check and each of its rows as it comes. done: with each check's outcome.
    """
    end = time.monotonic() + limit
    waiting, running, finished = list(checks), [], []

    def finish(outcome: Outcome, last: Row | None) -> None:
        if last:
            say(outcome.check.name, last)
        finished.append(outcome)
        done(outcome)

    try:
        while waiting or running:
            unfinished = {c.name for c in (*waiting, *(r.outcome.check for r in running))}
            for check in list(waiting):
                busy = len(running) >= (1 if check.alone else at_once)
                if busy or any(r.outcome.check.alone for r in running):
                    break
                if any(name in unfinished for name in check.after):
                    continue
                waiting.remove(check)
                left = end - time.monotonic()
                if left < _LEAST:
                    skipped = Row(check.name, SKIPPED, "", "no time left")
                    finish(Outcome(check, [skipped], unfinished=True), skipped)
                    break
                seconds = check.seconds if place.on_gpu else _ON_CPU * check.seconds
                running.append(_Running(check, place, min(seconds, left)))
            wait([r.pipe for r in running], timeout=0.5)
            for r in list(running):
                r.check_time()
                if not r.receive(say):
                    running.remove(r)
                    finish(r.outcome, r.end())
    finally:
        for r in running:  # after Ctrl-C
            r.stop()
    return finished


def _work(check: Check, place: Place, pipe: Connection, log: Path) -> None:
    os.setsid()
    faulthandler.enable(open(log, "a"))  # noqa: SIM115  open until the process ends
    for descriptor in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    try:
        for found in check.function(place):
            pipe.send(found)
    except Exception as error:
        pipe.send(Row(check.name, WRONG, type(error).__name__, describe(error)))
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
