"""ResNet with bottleneck units, and the output layer of face recognition in place of pooling.

He, Zhang, Ren, Sun: "Deep Residual Learning", https://arxiv.org/abs/1512.03385, with the stride
on the 3×3 convolution (as torchvision has it) and, after the last stage, BN-Dropout-FC-BN as in
ArcFace. face.evoLVe calls these networks ResNet_50, ResNet_101 and ResNet_152.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from Backbone.layers import run_units
from Backbone.preprocessing import Preprocessing

# Units in the four stages, for each depth.
UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
WIDTHS = (64, 128, 256, 512)
EXPANSION = 4
DROPOUT = 0.5


class Bottleneck(nn.Module):
    """1×1, 3×3 (with the stride), 1×1 convolutions, each with BatchNorm, and a shortcut."""

    def __init__(self, in_channels: int, width: int, stride: int, first: bool) -> None:
        super().__init__()
        channels = width * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = nn.Identity()
        if first:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class ResNet(nn.Module):
    """The residual network with bottleneck units.

    depth: one of `UNITS`.
    feature_dim: size D of the embedding.
    input_size: (height, width) in pixels, each divisible by 16.

    Weights start with He's normal initialisation over fan-out, and the last BatchNorm of each
    unit at zero (https://arxiv.org/abs/1706.02677), as torchvision does it.
    """

    def __init__(
        self, depth: int, feature_dim: int = 512, input_size: tuple[int, int] = (112, 112)
    ) -> None:
        super().__init__()
        self.preprocessing = Preprocessing(input_size=input_size)
        self.feature_dim = feature_dim
        self.recompute = False  # see `run_units`
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        units = UNITS[depth]
        self.layer1 = _stage(64, WIDTHS[0], units[0], stride=1)
        self.layer2 = _stage(WIDTHS[0] * EXPANSION, WIDTHS[1], units[1], stride=2)
        self.layer3 = _stage(WIDTHS[1] * EXPANSION, WIDTHS[2], units[2], stride=2)
        self.layer4 = _stage(WIDTHS[2] * EXPANSION, WIDTHS[3], units[3], stride=2)
        channels = WIDTHS[3] * EXPANSION
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(DROPOUT)
        positions = -(-input_size[0] // 32) * -(-input_size[1] // 32)  # rounded up
        self.fc = nn.Linear(channels * positions, feature_dim)
        self.features = nn.BatchNorm1d(feature_dim)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Map float N×3×H×W to N×feature_dim embeddings, not normalised."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))  # N×64×H/4×W/4
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = run_units(stage, x, self.recompute and self.training)  # N×2048×H/32×W/32 in the end
        x = self.dropout(self.bn2(x)).flatten(1)
        return self.features(self.fc(x))


def _stage(in_channels: int, width: int, units: int, stride: int) -> nn.Sequential:
    first = Bottleneck(in_channels, width, stride, first=True)
    rest = [Bottleneck(width * EXPANSION, width, 1, first=False) for _ in range(units - 1)]
    return nn.Sequential(first, *rest)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(module, Bottleneck):
        nn.init.zeros_(module.bn3.weight)
