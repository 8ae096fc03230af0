"""Watching a run live: its figures are sent to each place that the settings ask for.

Each place has a thread of its own, so that training never waits for one. Whatever goes wrong there
is logged once and tried again with the next figures; it never ends a run.
"""

import logging
import threading

from Config import Config
from Utils.Datasets_Utils.verification_set import VerificationSet
from Utils.Evaluation_Utils.plots import worst_pairs
from Utils.Evaluation_Utils.verification import VerificationResult
from Utils.run_folder import RunFolder, run_name
from Utils.Training_Utils.reports.curves import curves_of
from Utils.Training_Utils.reports.figures import Metrics
from Utils.Training_Utils.reports.places import RECORDS, Place, ShownTest, VisdomServer, Windows


class Watcher:
    """Sends a run's figures to a place. metrics: those of earlier work on the run too."""

    def __init__(self, place: Place, metrics: Metrics, log: logging.Logger) -> None:
        self._place, self._metrics, self._log = place, metrics, log
        self.shows_tests = place.shows_tests
        self._windows: Windows = {}
        # The newest of each set that is not sent yet: if drawing is slower than testing, older
        # ones are left out.
        self._tests: dict[str, ShownTest] = {}
        self._has_warned = False
        self._closing = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watcher", daemon=True)
        self._thread.start()

    def show(self, test: ShownTest) -> None:
        """Have a test shown with the next update."""
        self._tests[test.name] = test

    def update(self) -> None:
        """Have the curves shown with the figures so far; returns at once."""
        # In the caller's thread, so that a bug in here is not taken for a failure of the place.
        self._windows = curves_of(self._metrics)
        self._wake.set()

    def close(self) -> None:
        """Show the last figures; waits only some seconds for a place that does not answer, and says
        so in the log."""
        self._closing = True
        self.update()
        self._thread.join(self._place.seconds)
        if self._thread.is_alive():
            self._log.info(
                f"{self._place.name} did not take the last figures within "
                f"{self._place.seconds:g} s: they may be missing there."
            )

    def _work(self) -> None:
        closing = False
        while not closing:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing
            windows = self._windows  # before the tests: then none is older than these figures
            tests = [self._tests.pop(name) for name in list(self._tests)]
            try:
                self._place.send(windows, tests)
                if closing:
                    self._place.close()
            except Exception as error:  # whatever a place causes must not end the run
                self._place.reset()
                self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._log.info(self._place.advice)
            self._log.debug(f"{type(self._place).__name__}: {type(error).__name__}: {error}")


class Watchers:
    """Everything that the settings have a run watched with; may be nothing.

    run: None in para_adj_mode, which writes no files. iteration: where the run begins or continues.
    """

    def __init__(
        self,
        config: Config,
        run: RunFolder | None,
        metrics: Metrics,
        iteration: int,
        log: logging.Logger,
    ) -> None:
        places: list[Place] = []
        if config.use_visdom:
            name = run.name if run else run_name(config)
            places.append(VisdomServer(config.visdom_server, config.visdom_port, name))
        for switch, record in RECORDS.items():
            if getattr(config, switch) and run:
                places.append(record(run, config, metrics, iteration))
            elif getattr(config, switch):
                log.info(f"{switch} has no effect: para_adj_mode writes no files.")
        self._watchers = [Watcher(place, metrics, log) for place in places]
        self._show_tests = [watcher for watcher in self._watchers if watcher.shows_tests]

    def update(self) -> None:
        """Have the figures so far shown; returns at once."""
        for watcher in self._watchers:
            watcher.update()

    def show(
        self, name: str, iteration: int, data: VerificationSet, result: VerificationResult
    ) -> None:
        """Have the scores of a test set, and its worst errors, shown with the next update."""
        if self._show_tests:
            test = ShownTest(name, iteration, result, worst_pairs(data, result))
            for watcher in self._show_tests:
                watcher.show(test)

    def close(self) -> None:
        """Have the last figures shown; waits only some seconds for each place."""
        for watcher in self._watchers:
            watcher.close()
