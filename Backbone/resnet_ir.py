"""ResNet-IR and SE-ResNet-IR: the improved residual networks of ArcFace.

Deng, Guo, Xue, Zafeiriou: "ArcFace", https://arxiv.org/abs/1801.07698, section 3.1 (unit
BN-Conv-BN-PReLU-Conv-BN, output BN-Dropout-FC-BN, first convolution 3×3 with stride 1), after
Han, Kim, Kim: "Deep Pyramidal Residual Networks" (the improved unit). Squeeze and excitation is
Hu, Shen, Sun: https://arxiv.org/abs/1709.01507, with reduction 16 and no biases.

"100" counts as the face-recognition literature does; elsewhere the same net is called 101.
"""

from torch import Tensor, nn

from Backbone.prelu import PReLU
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
CHANNELS = (64, 128, 256, 512)
SE_REDUCTION = 16
DROPOUT = 0.4


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from the channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, channels // SE_REDUCTION, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(channels // SE_REDUCTION, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(self.relu(self.fc1(self.pool(x))))  # N×C×1×1
        return x * gate.sigmoid()


class IRUnit(nn.Module):
    """One improved residual unit; the first of a stage halves the map and has its own shortcut."""

    def __init__(self, in_channels: int, channels: int, first: bool, se: bool) -> None:
        super().__init__()
        stride = 2 if first else 1
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.se = SqueezeExcitation(channels) if se else nn.Identity()
        self.downsample = nn.Identity()
        if first:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out = self.se(self.bn3(self.conv2(out)))
        return out + self.downsample(x)


class ResNetIR(nn.Module):
    """ResNet-IR (se=False) or SE-ResNet-IR (se=True) of a depth in `UNITS`.

    feature_dim: size D of the embedding.
    input_size: (height, width) in pixels, each divisible by 16.

    Weights start with Glorot's uniform initialisation and zero biases, as the lineage trains.
    """

    def __init__(
        self,
        depth: int,
        se: bool = False,
        feature_dim: int = 512,
        input_size: tuple[int, int] = (112, 112),
    ) -> None:
        super().__init__()
        self.preprocessing = Preprocessing(input_size=input_size)
        self.feature_dim = feature_dim
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = PReLU(64)
        self.layer1 = _stage(64, CHANNELS[0], UNITS[depth][0], se)
        self.layer2 = _stage(CHANNELS[0], CHANNELS[1], UNITS[depth][1], se)
        self.layer3 = _stage(CHANNELS[1], CHANNELS[2], UNITS[depth][2], se)
        self.layer4 = _stage(CHANNELS[2], CHANNELS[3], UNITS[depth][3], se)
        self.bn2 = nn.BatchNorm2d(CHANNELS[3])
        self.dropout = nn.Dropout(DROPOUT)
        positions = (input_size[0] // 16) * (input_size[1] // 16)
        self.fc = nn.Linear(CHANNELS[3] * positions, feature_dim)
        self.features = nn.BatchNorm1d(feature_dim)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Map float N×3×H×W to N×feature_dim embeddings, not normalised."""
        x = self.prelu(self.bn1(self.conv1(x)))  # N×64×H×W
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # N×512×H/16×W/16
        x = self.dropout(self.bn2(x)).flatten(1)
        return self.features(self.fc(x))


def _stage(in_channels: int, channels: int, units: int, se: bool) -> nn.Sequential:
    first = IRUnit(in_channels, channels, first=True, se=se)
    rest = [IRUnit(channels, channels, first=False, se=se) for _ in range(units - 1)]
    return nn.Sequential(first, *rest)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
