"""The mean loss since the last report, summed on the device."""

from torch import Tensor

from Utils.processes import Processes


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
