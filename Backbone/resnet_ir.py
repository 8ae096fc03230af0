"""ResNet-IR and SE-ResNet-IR: the improved residual networks of ArcFace.

Deng, Guo, Xue, Zafeiriou: "ArcFace", https://arxiv.org/abs/1801.07698, section 3.1 (unit
BN-Conv-BN-PReLU-Conv-BN, output BN-Dropout-FC-BN, first convolution 3×3 with stride 1), after
Han, Kim, Kim: "Deep Pyramidal Residual Networks", https://arxiv.org/abs/1610.02915 (the improved
unit). Attention gates are those of `Backbone/layers.py`.

"100" is the name in the face-recognition literature; elsewhere the same network is called 101.

Published networks differ in the other settings, besides depth and attention; their weights need
them (see `Utils/Pretrained_Utils/lineages`).
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from Backbone.layers import ArchitectureError, PReLU, channel_gate, run_units, spatial_gate
from Backbone.preprocessing import Preprocessing

# Units in the four stages, for each depth.
UNITS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    152: (3, 8, 36, 3),
    200: (6, 26, 60, 6),
}
# The same with bottleneck units, as AdaFace's networks of these depths have them.
BOTTLENECK_UNITS = {
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
CHANNELS = (64, 128, 256, 512)
EXPANSION = 4
DROPOUT = 0.4
SHORTCUTS = ("conv", "pool")


class IRUnit(nn.Module):
    """One improved residual unit: two 3×3 convolutions, the second with the stride.

    middle_norm: whether BatchNorm stands between the first convolution and PReLU.
    The other settings are those of `ResNetIR`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        first: bool,
        attention: str,
        shortcut: str,
        middle_norm: bool = True,
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels) if middle_norm else nn.Identity()
        self.prelu = PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.se = channel_gate(attention, channels)
        self.sam = spatial_gate(attention)
        self.downsample = _shortcut(in_channels, channels, stride, first, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out = self.sam(self.se(self.bn3(self.conv2(out))))
        return out + self.downsample(x)


class IRBottleneck(nn.Module):
    """The unit with a bottleneck: 1×1, 3×3, 1×1 convolutions, the last with the stride."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        first: bool,
        attention: str,
        shortcut: str,
    ) -> None:
        super().__init__()
        inner = channels // EXPANSION
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.prelu = PReLU(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner)
        self.prelu2 = PReLU(inner)
        self.conv3 = nn.Conv2d(inner, channels, 1, stride, bias=False)
        self.bn4 = nn.BatchNorm2d(channels)
        self.se = channel_gate(attention, channels)
        self.sam = spatial_gate(attention)
        self.downsample = _shortcut(in_channels, channels, stride, first, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out = self.prelu2(self.bn3(self.conv2(out)))
        out = self.sam(self.se(self.bn4(self.conv3(out))))
        return out + self.downsample(x)


class ResNetIR(nn.Module):
    """ArcFace's residual network.

    depth: one of `UNITS`, or with bottleneck units of `BOTTLENECK_UNITS`.
    attention: one of `Backbone.layers.ATTENTIONS`; "se" makes it SE-ResNet-IR.
    feature_dim: size D of the embedding.
    input_size: (height, width) in pixels, each divisible by 16.
    shortcut: in the first unit of a stage, "conv" (1×1 convolution and BatchNorm) or "pool"
        (every second pixel, where the unit keeps the number of channels; else "conv").
    middle_norm: whether BatchNorm stands between a unit's first convolution and PReLU.
    bottleneck: three convolutions a unit, and four times the channels between units.
    output_affine: whether the last BatchNorm has weight and bias.
    normalise: whether embeddings are L2-normalised.

    Weights start with Glorot's uniform initialisation and zero biases, as the lineage trains.
    Raises ArchitectureError for settings that do not go together.
    """

    def __init__(
        self,
        depth: int,
        attention: str = "none",
        feature_dim: int = 512,
        input_size: tuple[int, int] = (112, 112),
        shortcut: str = "conv",
        middle_norm: bool = True,
        bottleneck: bool = False,
        output_affine: bool = True,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        if shortcut not in SHORTCUTS:
            raise ArchitectureError(
                f"shortcut is {shortcut!r}; it must be one of {', '.join(SHORTCUTS)}"
            )
        if bottleneck and (depth not in BOTTLENECK_UNITS or not middle_norm):
            raise ArchitectureError(
                f"bottleneck units go with middle_norm and depths "
                f"{', '.join(map(str, BOTTLENECK_UNITS))}; the depth is {depth}"
            )
        self.preprocessing = Preprocessing(input_size=input_size)
        self.feature_dim = feature_dim
        self.recompute = False  # see `run_units`
        self.normalise = normalise
        unit = IRBottleneck if bottleneck else partial(IRUnit, middle_norm=middle_norm)
        unit = partial(unit, attention=attention, shortcut=shortcut)
        units = (BOTTLENECK_UNITS if bottleneck else UNITS)[depth]
        channels = [c * EXPANSION if bottleneck else c for c in CHANNELS]
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = PReLU(64)
        self.layer1 = _stage(unit, 64, channels[0], units[0])
        self.layer2 = _stage(unit, channels[0], channels[1], units[1])
        self.layer3 = _stage(unit, channels[1], channels[2], units[2])
        self.layer4 = _stage(unit, channels[2], channels[3], units[3])
        self.bn2 = nn.BatchNorm2d(channels[3])
        self.dropout = nn.Dropout(DROPOUT)
        positions = (input_size[0] // 16) * (input_size[1] // 16)
        self.fc = nn.Linear(channels[3] * positions, feature_dim)
        self.features = nn.BatchNorm1d(feature_dim, affine=output_affine)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Map float N×3×H×W to N×feature_dim embeddings, L2-normalised only with `normalise`."""
        x = self.prelu(self.bn1(self.conv1(x)))  # N×64×H×W
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = run_units(stage, x, self.recompute and self.training)  # N×C×H/16×W/16 in the end
        x = self.dropout(self.bn2(x)).flatten(1)
        x = self.features(self.fc(x))
        return F.normalize(x) if self.normalise else x


def _stage(unit, in_channels: int, channels: int, units: int) -> nn.Sequential:
    """The first unit halves the map and has its own shortcut."""
    first = unit(in_channels, channels, stride=2, first=True)
    rest = [unit(channels, channels, stride=1, first=False) for _ in range(units - 1)]
    return nn.Sequential(first, *rest)


def _shortcut(
    in_channels: int, channels: int, stride: int, first: bool, shortcut: str
) -> nn.Module:
    if not first:
        return nn.Identity()
    if shortcut == "pool" and in_channels == channels:
        return nn.MaxPool2d(1, stride)
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
