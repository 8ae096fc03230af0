"""Which input a backbone expects, and the one function that makes it from pixels.

Each backbone has its own description; data code only reads it. Images are uint8 N×H×W×3 in RGB
until they are on the device, and become float N×3×H×W there, once per batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from Backbone.layers import ArchitectureError

CHANNEL_ORDERS = ("RGB", "BGR")
_LARGEST = 2.0**63

# insightface's template ("ArcFace"): where an aligned face of 112×112 pixels has the left eye, the
# right eye, the tip of the nose, and the left and right corner of the mouth, as x and y in pixels.
TEMPLATE_SIDE = 112
TEMPLATE = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)


@dataclass(frozen=True)
class Preprocessing:
    """Input description of a backbone: value = (pixel - mean) / scale.

    channel_order: "RGB" or "BGR", the order in which the network was trained to read channels.
    mean, scale: in units of pixel values, 0..255; the default maps to -1..1.
    input_size: (height, width) in pixels.

    Raises ArchitectureError for a value that can't be used.
    """

    channel_order: str = "RGB"
    mean: float = 127.5
    scale: float = 127.5
    input_size: tuple[int, int] = (112, 112)

    def __post_init__(self) -> None:
        if self.channel_order not in CHANNEL_ORDERS:
            order = self.channel_order
            raise ArchitectureError(f"channel_order is {order!r}; it must be RGB or BGR")
        if not (abs(self.mean) < _LARGEST and 0 < self.scale < _LARGEST):  # false for NaN, too
            raise ArchitectureError(
                f"mean is {self.mean} and scale {self.scale}; both must be finite, not too large, "
                f"and scale above 0"
            )

    def __call__(self, images: Tensor, flip: Tensor | None = None) -> Tensor:
        """Turn uint8 N×H×W×3 RGB images into the network's float32 N×3×H×W input.

        flip: bool N; where true the image is mirrored left to right. The result has the
        memory format channels_last, in which the pixels are already stored.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)}; expected uint8 N×H×W×3"
            )
        if flip is not None:
            images = torch.where(flip[:, None, None, None], images.flip(2), images)
        if self.channel_order == "BGR":
            images = images.flip(3)
        pixels = images.permute(0, 3, 1, 2)  # N×H×W×3 seen as N×3×H×W: no copy
        return pixels.to(torch.float32).sub_(self.mean).div_(self.scale)
