r"""What a run reports while it trains: to the log, the progress bar, metrics.csv and live curves.

The log of a run has its lines on the screen, between the redraws of the progress bar, and in
train.log. Characters that the encoding of either can't write, such as those of a file name that is
not UTF-8, are written as an escape like \udce9.
"""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from Config import Config
from Utils.Datasets_Utils.verification_set import VerificationSet
from Utils.errors import RunError
from Utils.Evaluation_Utils.verification import VerificationResult
from Utils.files import not_by_link, not_written
from Utils.processes import Processes
from Utils.run_folder import RunFolder
from Utils.Training_Utils.data import Batch
from Utils.Training_Utils.profiling import StepProfile
from Utils.Training_Utils.reports.curves import draw_curves
from Utils.Training_Utils.reports.figures import DISTILLATION, Metrics
from Utils.Training_Utils.reports.means import MeanFigures, StepResult
from Utils.Training_Utils.reports.watchers import Watchers
from Utils.Training_Utils.state import TrainingState

_FLAWS_SHOWN = 5  # the others are in the log's file
MOST_LEFT_OUT = 0.1  # of the training set: with more, the run ends
_FEW = 100  # images that may be left out of a small set too
_FIND_THEM = (
    "`python -m Utils.Datasets_Utils.check_dataset` finds all of them, and writes a list without "
    "them; --help says how."
)


class Progress:
    """The figures of a run: collects them and reports them. All processes must call its methods.

    run: the folder for metrics.csv and the profile; None writes neither. total: iterations of the
    whole run. images: of the training set. test_names: the columns of the test sets in metrics.csv.
    """

    def __init__(
        self,
        config: Config,
        state: TrainingState,
        run: RunFolder | None,
        total: int,
        images: int,
        test_names: list[str],
        log: logging.Logger,
        processes: Processes,
    ) -> None:
        self._state = state
        self._total = total
        self._log = log
        self._processes = processes
        main_run = run if processes.is_main else None
        path = main_run.metrics if main_run else None
        self.metrics = Metrics(path, test_names, has_teacher=state.distillation is not None)
        repeated = state.iteration if state.lacks_test(config) else None
        self.metrics.start(state.iteration, repeated)
        _, losses = self.metrics.series("loss")
        if losses and not state.means.last.loss:  # once, checkpoints had no means
            state.means.last = MeanFigures(losses[-1])
        self._unreadable: list[str] = []  # why images were left out since the last report
        self._flawed: list[str] = []  # what is wrong with those that were read all the same
        self._flaws = self._left_out = 0
        self._most_left_out = max(MOST_LEFT_OUT * images, _FEW)
        self._reported: set[str] = set()
        self._has_warned = False  # that metrics.csv can't be written
        self._profile = StepProfile(config.profile, state.device, run.path if run else None, log)
        self._watchers = None
        if processes.is_main:
            shown = state.iteration - (repeated is not None)
            self._watchers = Watchers(config, run, self.metrics, shown, log)
        # Without a terminal, a bar would print a line for each update; the log's lines are printed.
        self._on_terminal = processes.is_main and sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=state.iteration,
            desc="Training",
            unit="it",
            dynamic_ncols=True,
            disable=not self._on_terminal,
        )
        self._start = self._since = time.perf_counter()
        self._start_iteration = state.iteration
        self._images = 0

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the first steps are profiled where `--profile` asks for it."""
        return self._profile.watch(batches)

    def add(self, batch: Batch, result: StepResult) -> None:
        """Count one iteration; does not wait for the device."""
        self._unreadable += batch.unreadable
        self._flawed += batch.flawed
        self._state.means.add(result)
        self._images += len(batch.labels) * self._processes.world_size
        self._bar.update()

    def means(self) -> MeanFigures:
        """The means since the last report; waits for the device."""
        return self._state.means.read(self._processes)

    def report(self) -> None:
        """Report the training figures since the last report; waits for the device."""
        self._report_images()
        means = self.means()
        loss, accuracy = means.loss, means.accuracy
        self._state.means.restart()
        rate = self._state.optimizer.param_groups[0]["lr"]
        now = time.perf_counter()
        speed = self._images / max(now - self._since, 1e-9)
        self._images, self._since = 0, now
        has_teacher = self._state.distillation is not None
        distilled = f"distillation {means.distillation:.4f}  " if has_teacher else ""
        self._add_row(
            {
                "loss": round(loss, 6),
                **({DISTILLATION: round(means.distillation, 6)} if has_teacher else {}),
                "accuracy": round(accuracy, 6),
                "learning_rate": rate,
                "images_per_second": round(speed, 1),
            }
        )
        self._bar.set_postfix_str(
            f"loss {loss:.3f}, acc {accuracy:.3f}, lr {rate:.3g}, {speed:.0f} images/s"
        )
        position = self._position()
        line = (
            f"epoch {position['epoch']}  iteration {position['iteration']}/{self._total}  "
            f"loss {loss:.4f}  {distilled}accuracy without margin {accuracy:.4f}  lr {rate:.4g}  "
            f"{speed:.0f} images/s  left {_duration(self._time_left(now))}"
        )
        (self._log.debug if self._on_terminal else self._log.info)(line)
        self._update_watchers()

    def report_tests(self, accuracies: dict[str, float]) -> None:
        """Report accuracies of test sets. The time they took is not training time."""
        self._since = time.perf_counter()
        row = {name: round(accuracy, 6) for name, accuracy in accuracies.items()}
        self._add_row(row)
        figures = "  ".join(f"{name} {value:.4f}" for name, value in accuracies.items())
        self._log.info(f"iteration {self._state.iteration}  test accuracy  {figures}")
        self._update_watchers()

    def show_test(self, name: str, data: VerificationSet, result: VerificationResult) -> None:
        """Show the scores of a test set where the run is watched; called in the main process."""
        if self._watchers:
            self._watchers.show(name, self._state.iteration, data, result)

    def finish(self, run: RunFolder) -> None:
        """Write the figures that could not be written before, and draw their picture into the run's
        folder. Raises RunError if that can't be done."""
        if self._left_out:
            self._log.info(f"{self._left_out} images were left out as unreadable. {_FIND_THEM}")
        self.metrics.write()
        draw_curves(self.metrics, run.curves, run.name)

    def elapsed(self) -> str:
        """The time since the start, for people."""
        return _duration(time.perf_counter() - self._start)

    def close(self) -> None:
        """Remove the bar, draw the last figures, and close the log's file."""
        self._bar.close()
        if self._watchers:
            self._watchers.close()
        close_log(self._log)

    def report_flaws(self, flaws: list[str]) -> None:
        """Log what is wrong with images of test sets, and empty the list."""
        self._flawed += flaws
        flaws.clear()
        self._report_images()

    def _report_images(self) -> None:
        """Log once each reason for which a process left an image out, and each flaw of another;
        many flaws go to the log's file alone."""
        for reason in chain(*self._processes.gather(self._unreadable)):
            if reason not in self._reported:
                self._reported.add(reason)
                self._left_out += 1
                say = self._log.info if self._left_out <= _FLAWS_SHOWN else self._log.debug
                say(f"image left out, replaced by the next one ({self._left_out} so far): {reason}")
        if self._left_out > self._most_left_out:
            raise RunError(
                f"{self._left_out} images could not be read: more than one in ten of the training "
                f"set, so others were trained on too often in their place. {_FIND_THEM}"
            )
        for flaw in chain(*self._processes.gather(self._flawed)):
            if flaw not in self._reported:
                self._reported.add(flaw)
                self._flaws += 1
                say = self._log.info if self._flaws <= _FLAWS_SHOWN else self._log.debug
                say(f"image read in spite of a flaw ({self._flaws} so far): {flaw}")
        self._unreadable, self._flawed = [], []

    def _add_row(self, figures: dict[str, float]) -> None:
        """Add the figures of this iteration to metrics.csv; the run goes on if it can't be written,
        and the next row takes those before it along."""
        try:
            self.metrics.add({**self._position(), **figures})
            self._has_warned = False
        except RunError as error:
            if not self._has_warned:
                self._has_warned = True
                self._log.info(f"warning: {error} Training goes on; the figures will be added.")

    def _position(self) -> dict[str, int]:
        """The iteration, and the epoch that it is in, from 1."""
        state = self._state
        return {"iteration": state.iteration, "epoch": state.epoch + (state.batch > 0)}

    def _time_left(self, now: float) -> float:
        iteration = self._state.iteration
        done = max(iteration - self._start_iteration, 1)
        return (now - self._start) / done * (self._total - iteration)

    def _update_watchers(self) -> None:
        if self._watchers:
            self._watchers.update()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class _LogFile(logging.FileHandler):
    """Lines that a full disk does not take stay in memory, a megabyte of them, until it does."""

    def __init__(self, path: Path) -> None:
        self._has_warned = False
        super().__init__(path, encoding="utf-8", errors="backslashreplace")

    def _open(self) -> TextIO:
        file = open(self.baseFilename, "ab+", 2**20, opener=not_by_link)  # noqa: SIM115 - kept until close
        file.seek(-1, 2) if file.tell() else None
        cut = file.read(1) not in (b"", b"\n")  # a process was killed while it wrote a line
        text = io.TextIOWrapper(file, self.encoding, self.errors)
        text.write("\n" * cut)
        return text

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_warned:
            self._has_warned = True
            tqdm.write(f"warning: {not_written(self.baseFilename, error)}")

    def close(self) -> None:
        with suppress(OSError):  # of which `handleError` has warned
            super().close()


class _Screen(logging.Handler):
    """Prints lines; where that fails, as the terminal was closed or `tee` has ended, the run goes
    on without: the log's file has them."""

    def emit(self, record: logging.LogRecord) -> None:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        with suppress(OSError):
            tqdm.write(record.getMessage().encode(encoding, "backslashreplace").decode(encoding))


def open_log(path: Path | None, screen: bool = True) -> logging.Logger:
    """A logger to the screen, if wanted, and, unless path is None, to the end of a file.

    `info` goes to both, `debug` to the file alone. Each run has its own, outside logging's global
    registry: two runs in one process do not write into each other's file.
    """
    log = logging.Logger("training", logging.DEBUG)
    if screen:
        log.addHandler(_Screen(logging.INFO))
    if path is not None:
        file = _LogFile(path)
        file.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(file)
    return log


def close_log(log: logging.Logger) -> None:
    """Close the log's file."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
