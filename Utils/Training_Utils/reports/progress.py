"""What a run tells while it trains: progress bar, log line, metrics.csv, live curves.

The mean loss since the last report, summed on the device.

The log of a run: lines on the screen, between the progress bar's redraws, and in train.log.

What can't be written in the encoding of either, such as a file name that is not UTF-8, is written
as an escape like \udce9.
"""

import logging
import sys
import time
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from Utils.processes import Processes
from Utils.Training_Utils.reports.curves import VisdomCurves
from Utils.Training_Utils.reports.metrics import Metrics


class Progress:
    """Reports figures to wherever they go.

    total: iterations of the whole run; done: of those, before now. bar: show one, on a terminal.
    """

    def __init__(
        self,
        log: logging.Logger,
        metrics: Metrics,
        curves: VisdomCurves | None,
        total: int,
        done: int,
        bar: bool = True,
    ) -> None:
        self._log = log
        self._metrics = metrics
        self._curves = curves
        # Without a terminal a bar is a thousand lines; there the log's lines go to the screen.
        self._on_terminal = bar and sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc="Training",
            unit="it",
            dynamic_ncols=True,
            disable=not self._on_terminal,
        )
        self._total = total
        self._start = self._since = time.perf_counter()
        self._start_iteration = done
        self._images = 0

    def step(self, images: int) -> None:
        """Count one iteration."""
        self._images += images
        self._bar.update()

    def report(
        self, iteration: int, epoch: int, loss: float, accuracy: float, learning_rate: float
    ) -> None:
        """Report training figures; images/s counts from the last report."""
        now = time.perf_counter()
        speed = self._images / max(now - self._since, 1e-9)
        self._images, self._since = 0, now
        self._metrics.add(
            {
                "iteration": iteration,
                "epoch": epoch,
                "loss": round(loss, 6),
                "accuracy": round(accuracy, 6),
                "learning_rate": learning_rate,
                "images_per_second": round(speed, 1),
            }
        )
        self._bar.set_postfix_str(
            f"loss {loss:.3f}, acc {accuracy:.3f}, lr {learning_rate:.3g}, {speed:.0f} images/s"
        )
        line = (
            f"epoch {epoch}  iteration {iteration}/{self._total}  loss {loss:.4f}  "
            f"accuracy {accuracy:.4f}  lr {learning_rate:.4g}  {speed:.0f} images/s  "
            f"left {_duration(self._time_left(iteration, now))}"
        )
        (self._log.debug if self._on_terminal else self._log.info)(line)
        self._update_curves()

    def report_tests(self, iteration: int, epoch: int, accuracies: dict[str, float]) -> None:
        """Report test accuracies. The time they took is not training time."""
        self._since = time.perf_counter()
        row = {name: round(accuracy, 6) for name, accuracy in accuracies.items()}
        self._metrics.add({"iteration": iteration, "epoch": epoch, **row})
        figures = "  ".join(f"{name} {value:.4f}" for name, value in accuracies.items())
        self._log.info(f"iteration {iteration}  test accuracy  {figures}")
        self._update_curves()

    def elapsed(self) -> str:
        """The time since the start, for people."""
        return _duration(time.perf_counter() - self._start)

    def close(self) -> None:
        """Take the bar away and send the last figures."""
        self._bar.close()
        if self._curves:
            self._curves.close()

    def _time_left(self, iteration: int, now: float) -> float:
        done = max(iteration - self._start_iteration, 1)
        return (now - self._start) / done * (self._total - iteration)

    def _update_curves(self) -> None:
        if self._curves:
            self._curves.update()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class LossMeter:
    """Sums losses without reading them: to read one in each iteration would wait for the device.

    A loss that is not finite stays in the sum, so it can't slip through between two reports.
    processes: whose losses are averaged. last: the mean until the first loss comes.
    """

    def __init__(self, processes: Processes, last: float = 0.0) -> None:
        self._processes = processes
        self._sum: Tensor | None = None
        self._count = 0
        self._last = last

    def add(self, loss: Tensor) -> None:
        """Take in the loss of one iteration, a scalar."""
        loss = loss.detach()
        self._sum = loss if self._sum is None else self._sum + loss
        self._count += 1

    def mean(self) -> float:
        """The mean since `restart`, or what it was then if nothing has come since; waits for the
        device. Called by all processes together."""
        if self._sum is not None:
            self._last = self._processes.mean(self._sum.item() / self._count)
        return self._last

    def restart(self) -> None:
        """Begin a new mean."""
        self._sum, self._count = None, 0


class _Screen(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
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
        file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(file)
    return log


def close_log(log: logging.Logger) -> None:
    """Close the log's file."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
