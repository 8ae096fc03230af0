"""What a method does to the cosines of a head: the part of a margin loss that may have state."""

from collections.abc import Callable

from torch import Tensor, nn


class Method(nn.Module):
    """Changes cosines θ before they are multiplied with the scale; this one leaves them alone.

    Everything in it is differentiable in cosines and norms, except where a method says otherwise.
    """

    changes_others = False  # whether `others` does anything: saves a pass over N×C where not

    def target(self, cosine: Tensor, norm: Tensor) -> Tensor:
        """What stands in place of the targets' cos θ_y: N from cosines N, embedding norms N."""
        return cosine

    def others(self, cosines: Tensor, target_cosine: Tensor) -> Tensor:
        """What stands in place of the other classes' cos θ_j, of the shape of cosines.

        target_cosine: cos θ_y of the same images, in a shape that broadcasts against cosines; no
        gradient passes through it.
        """
        return cosines

    def observe(self, target_cosine: Tensor, norm: Tensor) -> None:
        """Take a training batch (N cosines, N norms, without gradient) into running statistics.

        Called before `target` and `others` of the same batch.
        """


class TargetMargin(Method):
    """A margin that is a pure function of the target cosine."""

    def __init__(self, margin: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.margin = margin

    def target(self, cosine: Tensor, norm: Tensor) -> Tensor:
        return self.margin(cosine)
