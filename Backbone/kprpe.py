"""KP-RPE: position encoding relative to the five points of the face, for a ViT.

Kim, Su, Liu, Jain, Liu: "KeyPoint Relative Position Encoding for Face Recognition", CVPR 2024,
https://arxiv.org/abs/2403.14852. It adds to the logit of query i and key j a value B[i, d(i, j)] of
a table B, where d is one of 49 buckets of the offset between the two patches. The row of B for a
patch is an affine function of where the five points are, seen from that patch: so a face that is
shifted, turned or of another size in the image moves the encoding with it.

Here is the variant of CVLface's published networks: one affine function for each head of each
block. Buckets are those of Wu et al.: "Rethinking and Improving Relative Position Encoding for
Vision Transformer" (iRPE), https://arxiv.org/abs/2107.14222, "product" method with ratio 1.9.
"""

import math

import torch
from torch import Tensor, fx, nn

from Backbone.preprocessing import TEMPLATE, TEMPLATE_SIDE

RATIO = 1.9
ALPHA, BETA, GAMMA = RATIO, 2 * RATIO, 8 * RATIO  # of iRPE's eq. 18
SIDE = 2 * int(BETA) + 1  # buckets of the offset in rows, and of that in columns
BUCKETS = SIDE**2
POINTS = len(TEMPLATE)


def bucket(offset: int) -> int:
    """iRPE's eq. 18: offsets to ±1.9 as they are, larger ones by their logarithm: -3..3."""
    distance = abs(offset)
    if distance > ALPHA:
        share = math.log(distance / ALPHA) / math.log(GAMMA / ALPHA)
        distance = int(min(round(ALPHA + share * (BETA - ALPHA)), BETA))
    return distance if offset > 0 else -distance


def bucket_table(rows: int, columns: int) -> Tensor:
    """int64 P×P: the bucket of the offset from patch j to patch i, of P = rows·columns by rows."""
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))  # P×2
    most = max(rows, columns)
    buckets = torch.tensor([bucket(offset) for offset in range(-most, most + 1)]) + int(BETA)
    vertical, horizontal = buckets[places[:, None] - places + most].unbind(2)
    return vertical * SIDE + horizontal


@fx.wrap  # called when a traced network runs: tracing it would decide for all calls
def given_or(keypoints: Tensor | None, usual: Tensor) -> Tensor:
    """The points that are given, N×5×2, or else the usual ones of all images, 1×5×2."""
    return usual[None] if keypoints is None else keypoints


def mirrored(keypoints: Tensor) -> Tensor:
    """N×5×2 of the mirror images: what was on the left is on the right, and has its name."""
    x, y = keypoints[:, [1, 0, 2, 4, 3]].unbind(2)
    return torch.stack((1 - x, y), 2)


class KeypointEncoding(nn.Module):
    """The tables of all blocks, as one linear layer of the points seen from a patch.

    input_size: (height, width) in pixels. patch_size: the side of a patch in pixels. heads, depth:
    of the ViT.

    It starts with zeros, so that the network starts as a ViT without it.
    """

    def __init__(
        self, input_size: tuple[int, int], patch_size: int, heads: int, depth: int
    ) -> None:
        super().__init__()
        self.heads = heads
        self.linear = nn.Linear(2 * POINTS, depth * heads * BUCKETS)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        height, width = input_size
        rows, columns = height // patch_size, width // patch_size
        size = torch.tensor((width, height))
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(1)  # x, y
        centres = (places + 0.5) * patch_size / size
        scale = height / TEMPLATE_SIDE
        margin = torch.tensor(((width - TEMPLATE_SIDE * scale) / 2, 0.0))
        template = (torch.tensor(TEMPLATE) * scale + margin) / size
        self.register_buffer("centres", centres[:, None], persistent=False)  # P×1×2
        self.register_buffer("buckets", bucket_table(rows, columns), persistent=False)
        self.register_buffer("template", template, persistent=False)  # 5×2

    def forward(self, keypoints: Tensor | None) -> Tensor:
        """N×P×10: each patch's centre minus each of the points, x and y in 0..1 of the input.

        keypoints: N×5×2; None: the template's, where aligned faces have them, with N = 1.
        """
        keypoints = given_or(keypoints, self.template)
        seen = (self.centres - keypoints[:, None]).flatten(2)
        return seen.to(self.linear.weight.dtype)

    def bias(self, seen: Tensor, block: int) -> Tensor:
        """N×heads×P×P: what a block, counted from 0, adds to the logits of attention.

        seen: what `forward` returns.
        """
        own = slice(block * self.heads * BUCKETS, (block + 1) * self.heads * BUCKETS)
        tables = nn.functional.linear(seen, self.linear.weight[own], self.linear.bias[own])
        tables = tables.unflatten(2, (self.heads, BUCKETS)).transpose(1, 2)  # N×heads×P×49
        return tables.take_along_dim(self.buckets[None, None], 3)
