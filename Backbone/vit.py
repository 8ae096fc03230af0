"""ViT: the vision transformers of insightface and CVLface.

Dosovitskiy et al.: "An Image is Worth 16x16 Words", https://arxiv.org/abs/2010.11929: patches,
position embeddings and pre-norm blocks, eq. 1 to 4. For faces, An et al.: "Killing Two Birds with
One Stone", https://arxiv.org/abs/2203.15565, has no class token: a linear layer maps all patches to
the embedding. Kim et al.: "KeyPoint Relative Position Encoding", https://arxiv.org/abs/2403.14852,
compares with such a ViT, of 8×8 patches, and adds a position encoding: see `kprpe.py`.

Huang et al.: "Deep Networks with Stochastic Depth", https://arxiv.org/abs/1603.09382 (drop path).
Masked patches as in He et al.: "Masked Autoencoders", https://arxiv.org/abs/2111.06377, section 3.
"""

from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from Backbone.kprpe import KeypointEncoding
from Backbone.layers import ArchitectureError, Bias, run_units
from Backbone.preprocessing import Preprocessing

# insightface's: width D of a patch's vector, number of blocks, share of the masked patches.
SIZES = {
    "T": (256, 12, 0.1),
    "S": (512, 12, 0.1),
    "B": (512, 24, 0.1),
    "L": (768, 24, 0.1),
    "H": (1024, 48, 0.0),
}
DEFAULTS = {"patch_size": 9, "heads": 8, "mlp_ratio": 4}  # of ViT: insightface's
# With KP-RPE, the settings of each size: those of CVLface's small and base; T is for small runs.
KPRPE_SIZES = {
    "T": {"patch_size": 8, "keypoints": True},
    "S": {"patch_size": 8, "mlp_ratio": 5, "keypoints": True},
    "B": {"patch_size": 8, "mlp_ratio": 3, "heads": 16, "keypoints": True},
}
# Of initial weights; theirs are cut off at ±2, which none of them reaches.
DEVIATION = 0.02


class DropPath(nn.Module):
    """In training, zeros a residual branch of each image with a probability, and divides those that
    are kept by the probability to be kept."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        return x * x.new_empty(len(x), 1, 1).bernoulli_(keep).div_(keep)


class Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values have no biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Bias | None = None) -> Tensor:
        """bias: makes what is added to the logits, N×heads×P×P."""
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))  # N×P×3×heads×d
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # N×heads×P×d each
        added = None if bias is None else bias().to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, added)
        return self.proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.ReLU6()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); maps N×P×D to N×P×D."""

    def __init__(self, width: int, heads: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, bias: Bias | None = None) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), bias))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """insightface's vision transformer.

    size: one of `SIZES`.
    feature_dim: size of the embedding.
    input_size: (height, width) in pixels; what is beyond the last whole patch is not seen.
    patch_size: side of a patch in pixels: insightface 9, CVLface 8.
    heads: of the attention: insightface 8; CVLface's of 24 blocks has 16.
    mlp_ratio: width inside a block's MLP, in multiples of D: insightface 4; CVLface 5 of 12 blocks,
        3 of 24.
    drop_path: probability that the last block's branches are left out of an image in training; it
        grows from 0 in the first block. In 0..1, without 1.
    mask_ratio: share of an image's patches, drawn at random, that the blocks do not see in
        training; a learned vector takes their places after the blocks. In 0..1, without 1; None:
        that of the size. (insightface's code masks 0.1 wherever its own ratio is above 0.)
    keypoints: whether there is a position encoding relative to the face's five points, KP-RPE;
        mask_ratio is 0 then.

    Raises ArchitectureError for settings that can't be used.
    """

    def __init__(
        self,
        size: str,
        feature_dim: int = 512,
        input_size: tuple[int, int] = (112, 112),
        patch_size: int = DEFAULTS["patch_size"],
        heads: int = DEFAULTS["heads"],
        mlp_ratio: int = DEFAULTS["mlp_ratio"],
        drop_path: float = 0.1,
        mask_ratio: float | None = None,
        keypoints: bool = False,
    ) -> None:
        super().__init__()
        width, depth, usual_ratio = SIZES[size]
        if mask_ratio is None:
            mask_ratio = 0.0 if keypoints else usual_ratio
        if not 1 <= patch_size <= min(input_size):
            raise ArchitectureError(
                f"patch_size is {patch_size}; it must be 1 to {min(input_size)}, the input's side"
            )
        if heads < 1 or width % heads:
            raise ArchitectureError(f"heads is {heads}; it must divide the width, {width}")
        if not 1 <= mlp_ratio <= 64:
            raise ArchitectureError(f"mlp_ratio is {mlp_ratio}; it must be 1 to 64")
        for name, share in (("drop_path", drop_path), ("mask_ratio", mask_ratio)):
            if not 0 <= share < 1:
                raise ArchitectureError(f"{name} is {share}; it must be at least 0 and below 1")
        if keypoints and mask_ratio:
            raise ArchitectureError(
                f"mask_ratio is {mask_ratio}; with KP-RPE all patches are seen, so it must be 0"
            )
        self.preprocessing = Preprocessing(input_size=input_size)
        self.feature_dim = feature_dim
        self.recompute = False  # see `run_units`
        self.mask_ratio = mask_ratio
        patches = (input_size[0] // patch_size) * (input_size[1] // patch_size)
        self.patch_embed = nn.Sequential(
            OrderedDict(proj=nn.Conv2d(3, width, patch_size, patch_size))
        )
        self.pos_embed = nn.Parameter(torch.empty(1, patches, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        rates = [drop_path * block / (depth - 1) for block in range(depth)]
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio * width, rate) for rate in rates)
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(patches * width, width, bias=False),
            nn.BatchNorm1d(width, eps=2e-5),
            nn.Linear(width, feature_dim, bias=False),
            nn.BatchNorm1d(feature_dim, eps=2e-5),
        )
        nn.init.normal_(self.pos_embed, std=DEVIATION)
        nn.init.normal_(self.mask_token, std=DEVIATION)
        self.apply(_initialise)
        self.keypoint_encoding = None
        if keypoints:
            self.keypoint_encoding = KeypointEncoding(input_size, patch_size, heads, depth)

    @property
    def takes_keypoints(self) -> bool:
        """Whether the five points of each face change its embedding."""
        return self.keypoint_encoding is not None

    def forward(self, x: Tensor, keypoints: Tensor | None = None) -> Tensor:
        """Map float N×3×H×W to N×feature_dim embeddings, not L2-normalised.

        keypoints: with KP-RPE, N×5×2, the five points of each face: left eye, right eye, nose, left
        and right corner of the mouth, left and right as in the image; x and y in 0..1 of the input.
        None: the template's points, which those of an aligned face are near to, but not at.
        Without KP-RPE it must be None.
        """
        # Not `is not None`: what stands for an argument while fx traces the network is no Tensor.
        if isinstance(keypoints, Tensor) and not self.takes_keypoints:
            raise ValueError("keypoints are given, but this network has no KP-RPE")
        biases = self._biases(keypoints)
        x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed  # N×P×D
        places = None
        if self.training and self.mask_ratio > 0:
            x, places = self._mask(x)
        x = run_units(self.blocks, x, self.recompute and self.training, biases)
        x = self.norm(x)
        if self.training:
            x = self._unmask(x, places)
        return self.feature(x.flatten(1))

    def _biases(self, keypoints: Tensor | None) -> list[Bias] | None:
        """For each block, what makes the bias of its attention: made in the block, as N×heads×P×P
        of all blocks at once is much memory. None without KP-RPE."""
        encoding = self.keypoint_encoding
        if encoding is None:
            return None
        seen = encoding(keypoints)
        return [partial(encoding.bias, seen, block) for block in range(len(self.blocks))]

    def _mask(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The patches that are seen, in random order; and for each of the P patches its row among
        those that are seen, followed by those that are not: N×P."""
        count, patches, width = x.shape
        seen = max(1, int(patches * (1 - self.mask_ratio)))
        order = torch.rand(count, patches, device=x.device).argsort(dim=1)
        x = x.gather(1, order[:, :seen, None].expand(-1, -1, width))
        return x, order.argsort(dim=1)

    def _unmask(self, x: Tensor, places: Tensor | None) -> Tensor:
        """All patches in their own order, the masked ones as the learned vector."""
        count, seen, width = x.shape
        masked = 0 if places is None else places.shape[1] - seen
        # Even if there are none: DDP waits for a gradient of each parameter.
        x = torch.cat((x, self.mask_token.expand(count, masked, width)), 1)
        return x if places is None else x.gather(1, places[..., None].expand(-1, -1, width))


class KeypointViT(ViT):
    """CVLface's vision transformer with KP-RPE. https://arxiv.org/abs/2403.14852"""


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=DEVIATION)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
