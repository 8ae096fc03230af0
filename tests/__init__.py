"""Tests, and what they share: a backbone that takes a tenth of MobileFaceNet's time, which most of
their runs train."""

import os

# One thread each, here and in the scripts that tests start: networks this small gain nothing from
# two, and lose minutes where the cores are busy and threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from torch import Tensor, nn

from Backbone import BACKBONES, Preprocessing
from Backbone.mobilefacenet import ConvBlock


class SmallNet(nn.Module):
    """Three of MobileFaceNet's convolutions, for tests. https://arxiv.org/abs/1804.07573."""

    def __init__(self, feature_dim: int = 16, input_size: tuple[int, int] = (32, 32)) -> None:
        super().__init__()
        self.preprocessing = Preprocessing(input_size=input_size)
        self.feature_dim = feature_dim
        self.conv1 = ConvBlock(3, 8, 4, stride=4)
        self.conv2 = ConvBlock(8, 16, 4, stride=4)
        self.linear1 = ConvBlock(16, feature_dim, tuple(n // 16 for n in input_size), linear=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear1(self.conv2(self.conv1(x))).flatten(1)  # N×D


BACKBONES["SmallNet"] = SmallNet  # before Config, which allows these names, is imported
