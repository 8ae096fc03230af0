"""The picture of a run: loss, accuracy, learning rate and test accuracies over the iterations.

Live curves in a Visdom server, which may be away: training never waits for it.

A thread sends the curves. When the server can't be reached the figures are kept, the log says once
how to start it, and as soon as it answers everything is drawn.
"""

import logging
import queue
import threading
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from Utils.files import atomic_path
from Utils.Training_Utils.reports.metrics import TRAINING_COLUMNS, Metrics


def draw_curves(metrics: Metrics, path: Path, title: str) -> None:
    """Draw the four panels as PNG."""
    figure = Figure(figsize=(11, 7), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(2, 2, sharex=True).flat
    tests = [name for name in metrics.columns if name not in TRAINING_COLUMNS]
    for panel, heading, columns in zip(
        panels,
        ("training loss", "test accuracy", "training accuracy, margin applied", "learning rate"),
        (["loss"], tests, ["accuracy"], ["learning_rate"]),
        strict=True,
    ):
        panel.set_title(heading, fontsize=10)
        panel.grid(alpha=0.3)
        for column in columns:
            iterations, values = metrics.series(column)
            marker = "o" if column in tests else None
            panel.plot(iterations, values, label=column, marker=marker, markersize=4)
        if columns and columns == tests:
            panel.legend(loc="lower right", fontsize=8)
        if heading == "learning rate":
            panel.set_yscale("log")
    for panel in figure.axes[-2:]:
        panel.set_xlabel("iteration")
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


SECONDS_TO_FINISH = 5.0


class VisdomCurves:
    """Curves of one run, in an environment of its own.

    environment: its name in Visdom. metrics: the figures, with those of earlier work on the run.
    """

    def __init__(
        self, server: str, port: int, environment: str, metrics: Metrics, log: logging.Logger
    ) -> None:
        self._address = {"server": server, "port": port}
        # Visdom takes an underscore for the border between an environment's group and its name.
        self._environment = environment.replace("_", "-")
        self._metrics = metrics
        self._log = log
        self._client: Any = None
        self._told = False
        self._wake: queue.Queue[bool] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="visdom", daemon=True)
        self._thread.start()

    def update(self) -> None:
        """Have the curves drawn as the figures are now; returns at once."""
        self._wake.put(True)

    def close(self) -> None:
        """Draw what is left, but give a server that does not answer no more than some seconds."""
        self._wake.put(False)
        self._thread.join(SECONDS_TO_FINISH)

    def _work(self) -> None:
        go_on = True
        while go_on:
            go_on = self._wake.get()
            while not self._wake.empty():  # one drawing serves all that was asked meanwhile
                go_on = self._wake.get() and go_on
            try:
                self._draw()
            except Exception as error:  # a broken server must not end the run
                self._client = None
                self._tell(error)

    def _draw(self) -> None:
        if self._client is None:
            self._client = _connect(self._environment, self._address)
        tests = [name for name in self._metrics.columns if name not in TRAINING_COLUMNS]
        for window, columns in (
            ("loss", ["loss"]),
            ("accuracy", ["accuracy"]),
            ("learning_rate", ["learning_rate"]),
            ("test_accuracy", tests),
        ):
            self._draw_window(window, columns)

    def _draw_window(self, window: str, columns: list[str]) -> None:
        curves = {name: self._metrics.series(name) for name in columns}
        opts = {
            "title": window.replace("_", " "),
            "xlabel": "iteration",
            "legend": columns,
            "showlegend": window == "test_accuracy",
            "markers": window == "test_accuracy",  # a line of one point can't be seen
            "markersize": 6,
        }
        update = None
        for name, (iterations, values) in curves.items():
            if iterations:
                answer = self._client.line(
                    Y=values, X=iterations, win=window, name=name, update=update, opts=opts
                )
                if answer != window:  # another program listens there, or the server is broken
                    raise ConnectionError(f"the answer was {str(answer)[:80]!r}")
                update = "append"

    def _tell(self, error: Exception) -> None:
        if self._told:
            return
        self._told = True
        where = f"{self._address['server']}:{self._address['port']}"
        self._log.info(
            f"Visdom at {where} can't be reached; training goes on without live curves. They "
            f"appear once it runs: python -m visdom.server -port {self._address['port']}"
        )
        self._log.debug(f"Visdom: {type(error).__name__}: {error}")


def _connect(environment: str, address: dict[str, Any]) -> Any:
    # Imported here: it takes a second, and only runs that draw live curves need it.
    import visdom

    logging.getLogger("visdom").setLevel(logging.ERROR)
    return visdom.Visdom(
        env=environment, raise_exceptions=True, use_incoming_socket=False, **address
    )
