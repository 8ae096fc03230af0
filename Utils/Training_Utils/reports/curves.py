"""The curves of a run over its iterations: as a picture, and live in a Visdom server.

The server may be absent: a thread sends the curves, and training never waits for it. When the
server can't be reached the log says once how to start it, and as soon as it answers it gets all
figures so far.
"""

import logging
import threading
from pathlib import Path
from typing import Any

from Utils.Evaluation_Utils.plots import save_figure
from Utils.Training_Utils.reports.figures import Metrics

SECONDS_TO_FINISH = 5.0

Curves = dict[str, tuple[list[float], list[float]]]  # by name: iterations, values


def curves_of(metrics: Metrics) -> dict[str, Curves]:
    """The curves of each panel of the picture, or window of Visdom, by its name."""
    columns = {
        "loss": ["loss"],
        "test_accuracy": metrics.test_names,
        "accuracy": ["accuracy"],
        "learning_rate": ["learning_rate"],
    }
    return {
        window: {column: metrics.series(column) for column in names}
        for window, names in columns.items()
    }


def draw_curves(metrics: Metrics, path: Path, title: str) -> None:
    """Draw loss, test accuracies, training accuracy and learning rate as a PNG."""
    # Imported here: a script starts sooner without it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), dpi=110, layout="constrained")
    figure.suptitle(title)
    loss, tests, accuracy, rate = panels = figure.subplots(2, 2, sharex=True).flatten()
    for panel, curves in zip(panels, curves_of(metrics).values(), strict=True):
        panel.grid(alpha=0.3)
        for name, (iterations, values) in curves.items():
            marker = "o" if panel is tests else None
            panel.plot(iterations, values, label=name, marker=marker, markersize=4)
    loss.set_title("training loss", fontsize=10)
    tests.set_title("test accuracy", fontsize=10)
    if metrics.test_names:
        tests.legend(loc="lower right", fontsize=8)
    accuracy.set_title("training accuracy, without the margin", fontsize=10)
    accuracy.set_xlabel("iteration")
    rate.set_title("learning rate", fontsize=10)
    rate.set_xlabel("iteration")
    rate.set_yscale("log")
    save_figure(figure, path)


class VisdomCurves:
    """Live curves of one run, in a Visdom environment of its own.

    environment: its name in Visdom. metrics: the figures, those of earlier work on the run too.
    """

    def __init__(
        self, server: str, port: int, environment: str, metrics: Metrics, log: logging.Logger
    ) -> None:
        self._address = {"server": server, "port": port}
        # In Visdom an underscore separates the name of an environment from that of its group.
        self._environment = environment.replace("_", "-")
        self._metrics = metrics
        self._log = log
        self._client: Any = None
        self._has_warned = False
        self._windows: dict[str, Curves] = {}
        self._closing = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="visdom", daemon=True)
        self._thread.start()

    def update(self) -> None:
        """Have the curves drawn with the figures so far; returns at once."""
        # In the caller's thread, so that a bug in here is not taken for a server's failure.
        self._windows = curves_of(self._metrics)
        self._wake.set()

    def close(self) -> None:
        """Draw the last figures; waits only some seconds for a server that does not answer."""
        self._closing = True
        self.update()
        self._thread.join(SECONDS_TO_FINISH)

    def _work(self) -> None:
        closing = False
        while not closing:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing
            try:
                self._send(self._windows)
            except Exception as error:  # whatever a server causes must not end the run
                self._client = None
                self._warn(error)

    def _send(self, windows: dict[str, Curves]) -> None:
        if self._client is None:
            self._client = _connect(self._environment, self._address)
        for window, curves in windows.items():
            options = {
                "title": window.replace("_", " "),
                "xlabel": "iteration",
                "legend": list(curves),
                "showlegend": window == "test_accuracy",
                "markers": window == "test_accuracy",  # a line of one point is not visible
                "markersize": 6,
            }
            update = None
            for name, (iterations, values) in curves.items():
                if not iterations:
                    continue
                answer = self._client.line(
                    Y=values, X=iterations, win=window, name=name, update=update, opts=options
                )
                if answer != window:  # another program has the port, or the server is broken
                    raise ConnectionError(f"the answer was {str(answer)[:80]!r}")
                update = "append"

    def _warn(self, error: Exception) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        where = f"{self._address['server']}:{self._address['port']}"
        self._log.info(
            f"Visdom at {where} can't be reached; training continues without live curves. They "
            f"appear as soon as it runs: python -m visdom.server -port {self._address['port']}"
        )
        self._log.debug(f"Visdom: {type(error).__name__}: {error}")


def _connect(environment: str, address: dict[str, Any]) -> Any:
    # Imported here: it takes a second, and only runs that draw live curves need it.
    import visdom

    logging.getLogger("visdom").setLevel(logging.ERROR)
    return visdom.Visdom(
        env=environment, raise_exceptions=True, use_incoming_socket=False, **address
    )
