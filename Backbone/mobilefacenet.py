"""MobileFaceNet: an efficient network for face verification on mobile devices.

Chen, Liu, Gao, Han: "MobileFaceNets", https://arxiv.org/abs/1804.07573, table 1. The stem halves
the image, bottlenecks of inverted residuals (MobileNetV2) with PReLU follow, and a global
depthwise convolution replaces average pooling, so that each position of the last feature map
has its own weight.
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from Backbone.layers import ArchitectureError, PReLU, run_units
from Backbone.preprocessing import Preprocessing

# Channels inside the bottlenecks, their output channels, stride of the first: table 1 of the
# paper, with its 5 = 1 + 4 bottlenecks of 64 channels in two rows. How often each row is repeated:
# see `repeats`.
BOTTLENECKS = (
    (128, 64, 2),
    (128, 64, 1),
    (256, 128, 2),
    (256, 128, 1),
    (512, 128, 2),
    (256, 128, 1),
)
REPEATS = (1, 4, 6, 2)
LARGEST_WIDTH = 64


class ConvBlock(nn.Module):
    """Convolution without bias, BatchNorm and, unless `linear`, PReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.prelu = nn.Identity() if linear else PReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.prelu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Inverted residual: 1×1 expansion, 3×3 depthwise, 1×1 linear projection."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, hidden: int) -> None:
        super().__init__()
        self.residual = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            ConvBlock(in_channels, hidden, 1),
            ConvBlock(hidden, hidden, 3, stride, 1, groups=hidden),
            ConvBlock(hidden, out_channels, 1, linear=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileFaceNet(nn.Module):
    """Small and fast, for mobile devices.

    For any input size divisible by 16.

    feature_dim: size D of the embedding; the paper's is 128.
    input_size: (height, width) in pixels.
    width: factor on the channels between bottlenecks (not inside them); insightface's mbf has 2,
        its mbf_large 4. The second convolution keeps 64 groups, so it is depthwise at width 1 only.
    repeats: the numbers of bottlenecks at a half, a quarter, an eighth and a sixteenth of the
        image's size, without those that halve it. The first is 1 for the paper's second
        convolution; if it is more, bottlenecks replace that convolution.
    normalise: whether embeddings are L2-normalised.

    Weights start as in MobileNetV2's reference code: He initialisation over fan-out with gain
    sqrt(2), taken over the kernel's area and output channels whatever the groups. Raises
    ArchitectureError for a width or repeats that make no network.
    """

    def __init__(
        self,
        feature_dim: int = 128,
        input_size: tuple[int, int] = (112, 112),
        width: int = 1,
        repeats: Sequence[int] = REPEATS,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        fits = len(repeats) == len(REPEATS) and min(repeats) >= 0 and repeats[0] >= 1
        if not (1 <= width <= LARGEST_WIDTH and fits):
            raise ArchitectureError(
                f"width is {width} and repeats {repeats}; expected 1 to {LARGEST_WIDTH}, and "
                f"{len(REPEATS)} integers of at least 0, the first at least 1"
            )
        self.preprocessing = Preprocessing(input_size=input_size)
        self.feature_dim = feature_dim
        self.recompute = False  # see `run_units`
        self.normalise = normalise
        channels = 64 * width
        self.conv1 = ConvBlock(3, channels, 3, stride=2, padding=1)
        if repeats[0] == 1:
            self.dw_conv1 = ConvBlock(channels, channels, 3, padding=1, groups=64)
        else:
            stem = [Bottleneck(channels, channels, 1, hidden=128) for _ in range(repeats[0])]
            self.dw_conv1 = nn.Sequential(*stem)
        self.blocks = nn.Sequential(*_bottlenecks(width, repeats))
        self.conv2 = ConvBlock(128 * width, 512, 1)
        last_map = (input_size[0] // 16, input_size[1] // 16)
        self.linear7 = ConvBlock(512, 512, last_map, groups=512, linear=True)
        self.linear1 = ConvBlock(512, feature_dim, 1, linear=True)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Map float N×3×H×W to N×feature_dim embeddings, L2-normalised only with `normalise`."""
        x = self.dw_conv1(self.conv1(x))  # N×64×H/2×W/2
        x = run_units(self.blocks, x, self.recompute and self.training)
        x = self.conv2(x)  # N×512×H/16×W/16
        x = self.linear1(self.linear7(x)).flatten(1)  # N×D
        return F.normalize(x) if self.normalise else x


def _bottlenecks(width: int, repeats: Sequence[int]) -> list[Bottleneck]:
    channels = 64 * width
    layers = []
    times = (1, repeats[1], 1, repeats[2], 1, repeats[3])
    for (hidden, out_channels, stride), repeat in zip(BOTTLENECKS, times, strict=True):
        for _ in range(repeat):
            layers.append(Bottleneck(channels, out_channels * width, stride, hidden))
            channels = out_channels * width
    return layers


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
