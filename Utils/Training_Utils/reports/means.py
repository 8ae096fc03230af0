"""What a step says of its images, and the means of that between two lines of a run's log."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

import torch
from torch import Tensor

from Utils.processes import Processes

_SUMS = ("loss", "nearest", "distillation")
_COUNTS = ("images", "iterations")
_LAST = ("last_loss", "last_accuracy", "last_distillation")
ENTRIES = (*_SUMS, *_COUNTS, *_LAST)
_OF_IMAGES = ("nearest", "images")


class StepResult(NamedTuple):
    """What a step says of its N images, without gradient.

    loss: mean margin loss. correct, nearest: bool N, see `HeadLoss`. distillation: mean distance to
    the teacher's embeddings, see `distillation_loss`; None without a teacher.
    """

    loss: Tensor
    correct: Tensor
    nearest: Tensor
    distillation: Tensor | None = None


class MeanFigures(NamedTuple):
    """Means over images: margin loss, training accuracy, and distillation loss (0 without it)."""

    loss: float = 0.0
    accuracy: float = 0.0
    distillation: float = 0.0


class Means:
    """The mean losses and training accuracy since `restart`, summed on the device.

    To read a figure in each iteration would wait for the device. A loss that is not finite stays in
    the sum, so it can't go unnoticed between two reports.

    The accuracy is the share of images whose cosine to their own class, without the margin, is the
    highest, each image counted with the weights that it was trained on.

    last: the means that were read last.
    """

    def __init__(self) -> None:
        self.last = MeanFigures()
        self._is_read = True
        self.restart()

    def restart(self) -> None:
        """Begin new means."""
        self._loss_sum = self._nearest = self._distilled = torch.zeros(())
        self._images = self._iterations = 0

    def add(self, result: StepResult) -> None:
        """Add the losses of one iteration, scalars, and the outcomes of its N images."""
        self._loss_sum = self._loss_sum + result.loss.detach()
        if result.distillation is not None:
            self._distilled = self._distilled + result.distillation
        self._nearest = self._nearest + result.nearest.sum()  # whole numbers
        self._images += len(result.nearest)
        self._iterations += 1
        self._is_read = False

    def read(self, processes: Processes) -> MeanFigures:
        """The means over all processes, which must all call this; waits for the device.

        If nothing was added since `restart`, what they were before.
        """
        if not self._is_read:
            losses = (self._loss_sum, self._distilled)
            loss, distilled = (total.item() / self._iterations for total in losses)
            own = (loss, self._nearest.item() / self._images, distilled)
            columns = zip(*processes.gather(own), strict=True)
            # Each process has as many images as the others.
            self.last = MeanFigures(*(sum(column) / len(column) for column in columns))
            self._is_read = True
        return self.last

    def checkpoint(self, processes: Processes) -> list[dict[str, float]]:
        """The sums of each process, in the main process; all must call this."""
        sums = (total.item() for total in (self._loss_sum, self._nearest, self._distilled))
        own = (*sums, self._images, self._iterations, *self.last)
        return processes.collect(dict(zip(ENTRIES, own, strict=True)))

    def restore(self, saved: list[dict[str, Any]], processes: Processes) -> None:
        """The inverse of `checkpoint`. Where the number of processes has changed, each takes its
        share of the sums of all. saved: empty if the checkpoint has none."""
        if not saved:
            return
        if len(saved) == processes.world_size:
            own = saved[processes.rank]
        else:
            own = {name: statistics.fmean(one[name] for one in saved) for name in ENTRIES}
            own |= {n: own[n] * len(saved) / processes.world_size for n in _OF_IMAGES}
        sums = (torch.tensor(float(own[name])) for name in _SUMS)
        self._loss_sum, self._nearest, self._distilled = sums
        self._images, self._iterations = own["images"], own["iterations"]
        self.last = MeanFigures(*(own[name] for name in _LAST))
        self._is_read = not self._iterations
