"""What a run tells while it trains: progress bar, log line, metrics.csv, live curves."""

import logging
import sys
import time

from tqdm import tqdm

from Utils.Training_Utils.metrics import Metrics
from Utils.Training_Utils.visdom_curves import VisdomCurves


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
