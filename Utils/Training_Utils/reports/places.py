"""The places where a run can be watched: a Visdom server, TensorBoard's event files, W&B.

The packages are imported when something is sent first, and only for the places that are asked for.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import cv2
import numpy as np

from Config import Config
from Utils.Evaluation_Utils.plots import SheetPair, contact_sheet, plot_scores_of
from Utils.Evaluation_Utils.verification import VerificationResult
from Utils.run_folder import RunFolder
from Utils.Training_Utils.reports.curves import Curves, curves_of
from Utils.Training_Utils.reports.figures import Metrics

_SECONDS_TO_ANSWER = 5.0  # for a server that answers its figures in milliseconds
_PATIENCE = 30.0  # seconds, before a server that does not answer is asked anew
_SECONDS_TO_FINISH = 60.0  # for the last pictures; what W&B then has not, `wandb sync` uploads

Windows = Mapping[str, Curves]


@dataclass(frozen=True)
class ShownTest:
    """What is shown of a test set at one iteration. worst: the sections of its contact sheet."""

    name: str
    iteration: int
    result: VerificationResult
    worst: Mapping[str, Sequence[SheetPair]]

    def values(self) -> dict[str, np.ndarray]:
        """Scores (P) of the matched and of the mismatched pairs, and pictures, uint8 H×W×3 RGB."""
        scores, same = self.result.fold_scores, self.result.same
        title = f"{self.name}, iteration {self.iteration}"
        with TemporaryDirectory() as folder:
            histogram, sheet = Path(folder, "scores.png"), Path(folder, "worst.png")
            plot_scores_of(self.result, histogram, title)
            contact_sheet(self.worst, sheet, title)
            pictures = [cv2.imread(str(path))[:, :, ::-1] for path in (histogram, sheet)]
        return {
            f"scores/{self.name}_matched": scores[same],
            f"scores/{self.name}_mismatched": scores[~same],
            f"pictures/{self.name}_scores": pictures[0],
            f"pictures/{self.name}_worst_pairs": pictures[1],
        }


class Place(Protocol):
    """Where figures are shown. It is used by one thread alone, and may fail or hang.

    name: for the log. shows_tests: whether it shows more of a test set than its accuracy. seconds:
    that the end of a run waits for it at most. advice: for the log, when it can't be used.
    """

    name: str
    shows_tests: bool
    seconds: float
    advice: str

    def send(self, windows: Windows, tests: Sequence[ShownTest]) -> None:
        """Show the curves so far, and these tests."""

    def reset(self) -> None:
        """Begin anew with the next `send`; the last one failed."""

    def close(self) -> None:
        """All was sent."""


class VisdomServer:
    """A Visdom server, which may be started late: it gets all figures so far, in an environment
    of the run's name."""

    shows_tests = False
    seconds = _SECONDS_TO_ANSWER

    def __init__(self, server: str, port: int, environment: str) -> None:
        self._address = {"server": server, "port": port}
        # In Visdom an underscore separates the name of an environment from that of its group.
        self._environment = environment.replace("_", "-")
        self._client: Any = None
        self.name = f"Visdom at {server}:{port}"
        self.advice = (
            f"{self.name} can't be reached; training continues without its curves. They appear as "
            f"soon as it runs: python -m visdom.server -port {port} (its first start downloads its "
            f"page's scripts). Others: --use_tensorboard, which needs no internet, and "
            f"--use_wandb, see docs/training.md; --no-use_visdom turns Visdom off."
        )

    def send(self, windows: Windows, tests: Sequence[ShownTest]) -> None:
        if self._client is None:
            self._client = self._connect()
        for window, curves in windows.items():
            title = window.replace("_", " ")
            below_buttons = {"text": title, "y": 0.87}
            options = {
                "title": title,
                "layoutopts": {"plotly": {"title": below_buttons}},
                "xlabel": "iteration",
                "legend": list(curves),
                "showlegend": window == "test_accuracy" or len(curves) > 1,
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

    def reset(self) -> None:
        self._client = None

    def close(self) -> None:
        pass

    def _connect(self) -> Any:
        import visdom

        class Client(visdom.Visdom):
            """One that does not wait for ever, where a server hangs or its network is cut."""

            def _handle_post(self, url: str, data: str | None = None) -> str:
                return self.session.post(url, data=data, timeout=_PATIENCE).text

        logging.getLogger("visdom").setLevel(logging.ERROR)
        return Client(
            env=self._environment,
            raise_exceptions=True,
            use_incoming_socket=False,
            **self._address,
        )


class _Record:
    """A record in the run's folder, which each `send` adds to.

    iteration: where this work on the run begins. A record of earlier work is continued, with what
    it has after that iteration taken back; otherwise it begins with all figures so far.
    """

    shows_tests = True
    seconds = _SECONDS_TO_FINISH
    files: str  # a pattern: where there are some, there is a record

    def __init__(self, run: RunFolder, config: Config, metrics: Metrics, iteration: int) -> None:
        self._run, self._config = run, config
        continued = any(run.path.glob(self.files))
        self._last = iteration if continued else 0
        self._sent = _lengths(curves_of(metrics)) if continued else Counter()
        self._record: Any = None

    def send(self, windows: Windows, tests: Sequence[ShownTest]) -> None:
        if self._record is None:
            self._record = self._open(self._last)
        values: dict[int, dict[str, Any]] = defaultdict(dict)
        for tag, (iterations, figures) in _by_tag(windows).items():
            new = slice(self._sent[tag], None)
            for iteration, figure in zip(iterations[new], figures[new], strict=True):
                values[iteration][tag] = figure
        for test in tests:
            values[test.iteration] |= test.values()
        for iteration in sorted(values):
            self._add(iteration, values[iteration])
        self._flush()
        self._sent = _lengths(windows)
        self._last = max(self._last, *values, 0)

    def reset(self) -> None:
        self._record = None

    def _open(self, last: int) -> Any:
        """The record, without what it may have after iteration `last`."""
        raise NotImplementedError

    def _add(self, iteration: int, values: Mapping[str, Any]) -> None:
        """Add figures, scores (P) and pictures (H×W×3) by tag."""
        raise NotImplementedError

    def _flush(self) -> None:
        pass


class EventFiles(_Record):
    """TensorBoard's event files."""

    name = "TensorBoard's event files"
    files = "events.out.tfevents.*"
    advice = (
        "TensorBoard's event files can't be written, train.log says why; training continues "
        "without them."
    )

    def _open(self, last: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._run.path), purge_step=last + 1)

    def _add(self, iteration: int, values: Mapping[str, Any]) -> None:
        for tag, value in values.items():
            match np.ndim(value):
                case 0:
                    self._record.add_scalar(tag, value, iteration)
                case 1:
                    self._record.add_histogram(tag, value, iteration, bins="auto")
                case _:
                    self._record.add_image(tag, value, iteration, dataformats="HWC")

    def _flush(self) -> None:
        self._record.flush()

    def close(self) -> None:
        self._record.close()


class WandbRun(_Record):
    """A run of W&B of the same name: online, or with WANDB_MODE=offline in the run's folder."""

    name = "W&B"
    files = "wandb"
    advice = (
        "W&B can't be used, train.log says why; training continues without it. Log in (wandb "
        "login), or set WANDB_MODE=offline and upload later (wandb sync)."
    )

    def _open(self, last: int) -> Any:
        import wandb

        settings = wandb.Settings(
            console="off", silent=True, disable_git=True, finish_timeout=_SECONDS_TO_FINISH
        )
        online = wandb.setup(settings).settings.mode in ("online", "shared")
        if online and not wandb.login(prompt=False):  # a question would be lost in the log
            raise ConnectionError("not logged in")
        return wandb.init(
            id=self._run.name,
            name=self._run.name,
            dir=str(self._run.path),
            config=self._config.to_dict(),
            resume="allow",  # W&B itself leaves out steps that it has already
            settings=settings,
        )

    def _add(self, iteration: int, values: Mapping[str, Any]) -> None:
        import wandb

        kinds = {0: float, 1: wandb.Histogram, 3: wandb.Image}
        figures = {tag: kinds[np.ndim(value)](value) for tag, value in values.items()}
        self._record.log(figures, step=iteration)

    def close(self) -> None:
        self._record.finish()


def _by_tag(windows: Windows) -> dict[str, tuple[list[float], list[float]]]:
    """The curves by a name such as curves/loss or curves/test_accuracy_LFW: TensorBoard and W&B
    show those with one beginning together."""
    return {
        f"curves/{window}" if name == window else f"curves/{window}_{name}": curve
        for window, curves in windows.items()
        for name, curve in curves.items()
    }


def _lengths(windows: Windows) -> Counter[str]:
    return Counter({tag: len(values) for tag, (_, values) in _by_tag(windows).items()})


# The places that have their files in the run's folder, by their switch.
RECORDS: dict[str, type[_Record]] = {"use_tensorboard": EventFiles, "use_wandb": WandbRun}
