"""The lineages' networks, written out as functions of named tensors, in float64.

Names, shapes and arithmetic are facts about the public repositories, written down here a second
time, without a look at the project's own tables. A `Recorder` makes each tensor when a function
first names it, so that running a network once gives both its state dict and its output; on the
meta device only names and shapes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Recorder:
    """Layers by name. `state` holds float32 tensors; arithmetic is float64 on the same values."""

    def __init__(self, seed: int = 0, device: str = "cpu") -> None:
        self.state: dict[str, Tensor] = {}
        self.device = device
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, name: str, shape: tuple[int, ...], low: float, high: float) -> Tensor:
        if self.device == "meta":
            self.state[name] = torch.empty(shape, device="meta")
            return torch.empty(shape, device="meta", dtype=torch.float64)
        values = torch.rand(shape, generator=self.generator)
        self.state[name] = values * (high - low) + low
        return self.state[name].double()

    def conv(self, name, x, out, kernel, stride=1, padding=0, groups=1) -> Tensor:
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        fan_in = x.shape[1] // groups * height * width
        bound = math.sqrt(3 / fan_in)
        weight = self.uniform(
            f"{name}.weight", (out, x.shape[1] // groups, height, width), -bound, bound
        )
        if groups == 1:
            return F.conv2d(x, weight, None, stride, padding)
        return grouped_conv(F.pad(x, [padding] * 4), weight, stride, groups)

    def linear(self, name: str, x: Tensor, out: int, bias: bool = True) -> Tensor:
        bound = math.sqrt(3 / x.shape[-1])
        y = x @ self.uniform(f"{name}.weight", (out, x.shape[-1]), -bound, bound).T
        return y + self.uniform(f"{name}.bias", (out,), -0.2, 0.2) if bias else y

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        weight = self.uniform(f"{name}.weight", x.shape[-1:], 0.5, 1.5)
        bias = self.uniform(f"{name}.bias", x.shape[-1:], -0.2, 0.2)
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias

    def bn(self, name: str, x: Tensor, affine=True, gain=1.0, eps=1e-5) -> Tensor:
        shape = (1, -1) + (1,) * (x.ndim - 2)
        count = (x.shape[1],)
        mean = self.uniform(f"{name}.running_mean", count, -0.2, 0.2).view(shape)
        variance = self.uniform(f"{name}.running_var", count, 0.5, 1.5).view(shape)
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7, device=self.device)
        weight, bias = 1.0, 0.0
        if affine:
            weight = self.uniform(f"{name}.weight", count, 0.5 * gain, 1.5 * gain).view(shape)
            bias = self.uniform(f"{name}.bias", count, -0.2, 0.2).view(shape)
        if self.device == "meta":
            return x
        return (x - mean) / (variance + eps).sqrt() * weight + bias

    def prelu(self, name: str, x: Tensor) -> Tensor:
        slope = self.uniform(f"{name}.weight", (x.shape[1],), 0.0, 0.5).view(1, -1, 1, 1)
        return x if self.device == "meta" else torch.where(x > 0, x, x * slope)


def grouped_conv(x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    """The definition; torch's own takes seconds in float64."""
    if x.is_meta:
        return F.conv2d(x, weight, stride=stride, groups=groups)
    out, per_group, height, width = weight.shape
    weight = weight.view(groups, out // groups, per_group, height, width)
    rows = (x.shape[2] - height) // stride + 1
    columns = (x.shape[3] - width) // stride + 1
    total = 0.0
    for i in range(height):
        for j in range(width):
            part = x[:, :, i : i + stride * rows : stride, j : j + stride * columns : stride]
            part = part.unflatten(1, (groups, per_group))
            total = total + (part[:, :, None] * weight[None, :, :, :, i, j, None, None]).sum(3)
    return total.flatten(1, 2)


# --- ResNet-IR -----------------------------------------------------------------------------------

DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    152: (3, 8, 36, 3),
    200: (6, 26, 60, 6),
}
ADAFACE_DEPTHS = {152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}


def gate(net: Recorder, first: str, second: str, pooled: Tensor, channels: int) -> Tensor:
    hidden = net.conv(first, pooled, channels // 16, 1).clamp(min=0)
    return net.conv(second, hidden, channels, 1)


def squeeze_excite(net: Recorder, name: str, x: Tensor) -> Tensor:
    pooled = x.mean((2, 3), keepdim=True)
    return x * torch.sigmoid(gate(net, f"{name}.fc1", f"{name}.fc2", pooled, x.shape[1]))


def channel_attention(net: Recorder, name: str, x: Tensor) -> Tensor:
    names = (f"{name}.shared_mlp.0", f"{name}.shared_mlp.2")
    mean = gate(net, *names, x.mean((2, 3), keepdim=True), x.shape[1])
    # The same weights again: a second call would make others.
    hidden = F.conv2d(x.amax((2, 3), keepdim=True), net.state[f"{names[0]}.weight"].double())
    peak = F.conv2d(hidden.clamp(min=0), net.state[f"{names[1]}.weight"].double())
    return x * torch.sigmoid(mean + peak)


def spatial_attention(net: Recorder, name: str, x: Tensor) -> Tensor:
    summary = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)
    return x * torch.sigmoid(net.conv(f"{name}.conv", summary, 1, 3, padding=1))


def cbam_resnet(net: Recorder, x: Tensor, depth: int, mode: str, feature_dim=512) -> Tensor:
    """wujiyang's and QuasarLight's CBAMResNet."""
    x = input_layer(net, x)
    for stage, (units, channels) in enumerate(zip(DEPTHS[depth], (64, 128, 256, 512), strict=True)):
        for i in range(units):
            name, stride = f"layer{stage + 1}.{i}", 2 if i == 0 else 1
            y = unit_with_middle_norm(net, f"{name}.res_layer", x, channels, stride)
            if mode == "ir_se":
                y = squeeze_excite(net, f"{name}.res_layer.6", y)
            if mode in ("ir_cam", "ir_cbam"):
                y = channel_attention(net, f"{name}.res_layer.6", y)
            if mode in ("ir_sam", "ir_cbam"):
                y = spatial_attention(net, f"{name}.res_layer.{6 if mode == 'ir_sam' else 7}", y)
            x = y + (conv_shortcut(net, f"{name}.shortcut_layer", x, channels, 2) if i == 0 else x)
    return output_layer(net, x, feature_dim)


def old_seresnet_ir(net: Recorder, x: Tensor, depth: int, mode: str, feature_dim=512) -> Tensor:
    """wujiyang's arcfacenet.py."""
    x = input_layer(net, x)
    for name, channels, stride in body(DEPTHS[depth]):
        y = unit_with_middle_norm(net, f"{name}.res_layer", x, channels, stride)
        if mode == "se_ir":
            y = squeeze_excite(net, f"{name}.res_layer.6", y)
        x = y + pool_or_conv_shortcut(net, f"{name}.shortcut_layer", x, channels, stride)
    return output_layer(net, x, feature_dim)


def irse(net: Recorder, x: Tensor, depth: int, mode: str, feature_dim=512, affine=True) -> Tensor:
    """TreB1eN's Backbone; face.evoLVe's and FaceX-Zoo's are the same, CurricularFace's has no
    weight and bias in its last BatchNorm."""
    x = input_layer(net, x)
    for name, channels, stride in body(DEPTHS[depth]):
        layer = f"{name}.res_layer"
        y = net.conv(f"{layer}.1", net.bn(f"{layer}.0", x), channels, 3, 1, 1)
        y = net.conv(f"{layer}.3", net.prelu(f"{layer}.2", y), channels, 3, stride, 1)
        y = net.bn(f"{layer}.4", y, gain=0.3)
        if mode == "ir_se":
            y = squeeze_excite(net, f"{layer}.5", y)
        x = y + pool_or_conv_shortcut(net, f"{name}.shortcut_layer", x, channels, stride)
    return output_layer(net, x, feature_dim, affine)


def adaface(net: Recorder, x: Tensor, depth: int, mode: str, feature_dim=512) -> Tensor:
    """AdaFace's Backbone before it splits off the norm; CVLface's iresnet is the same."""
    x = input_layer(net, x)
    wide = depth in ADAFACE_DEPTHS
    for name, channels, stride in body(ADAFACE_DEPTHS[depth] if wide else DEPTHS[depth]):
        layer, channels = f"{name}.res_layer", channels * (4 if wide else 1)
        if wide:
            inner = channels // 4
            y = net.conv(f"{layer}.1", net.bn(f"{layer}.0", x), inner, 1)
            y = net.prelu(f"{layer}.3", net.bn(f"{layer}.2", y))
            y = net.conv(f"{layer}.4", y, inner, 3, 1, 1)
            y = net.prelu(f"{layer}.6", net.bn(f"{layer}.5", y))
            y = net.bn(f"{layer}.8", net.conv(f"{layer}.7", y, channels, 1, stride), gain=0.3)
        else:
            y = unit_with_middle_norm(net, layer, x, channels, stride)
        if mode == "ir_se":
            y = squeeze_excite(net, f"{layer}.se_block", y)
        x = y + pool_or_conv_shortcut(net, f"{name}.shortcut_layer", x, channels, stride)
    return output_layer(net, x, feature_dim, affine=False)


def iresnet(net: Recorder, x: Tensor, depth: int, mode: str = "ir", feature_dim=512) -> Tensor:
    """insightface's iresnet; with SE it is this project's."""
    x = net.prelu("prelu", net.bn("bn1", net.conv("conv1", x, 64, 3, 1, 1)))
    for stage, (units, channels) in enumerate(zip(DEPTHS[depth], (64, 128, 256, 512), strict=True)):
        for i in range(units):
            name, stride = f"layer{stage + 1}.{i}", 2 if i == 0 else 1
            y = net.conv(f"{name}.conv1", net.bn(f"{name}.bn1", x), channels, 3, 1, 1)
            y = net.prelu(f"{name}.prelu", net.bn(f"{name}.bn2", y))
            y = net.conv(f"{name}.conv2", y, channels, 3, stride, 1)
            y = net.bn(f"{name}.bn3", y, gain=0.3)
            if mode == "ir_se":
                y = squeeze_excite(net, f"{name}.se", y)
            x = y + (conv_shortcut(net, f"{name}.downsample", x, channels, 2) if i == 0 else x)
    x = net.linear("fc", net.bn("bn2", x).flatten(1), feature_dim)
    return net.bn("features", x)


def input_layer(net: Recorder, x: Tensor) -> Tensor:
    x = net.bn("input_layer.1", net.conv("input_layer.0", x, 64, 3, 1, 1))
    return net.prelu("input_layer.2", x)


def output_layer(net: Recorder, x: Tensor, feature_dim: int, affine: bool = True) -> Tensor:
    x = net.linear("output_layer.3", net.bn("output_layer.0", x).flatten(1), feature_dim)
    return net.bn("output_layer.4", x, affine)


def unit_with_middle_norm(net: Recorder, layer: str, x: Tensor, channels: int, stride: int):
    y = net.conv(f"{layer}.1", net.bn(f"{layer}.0", x), channels, 3, 1, 1)
    y = net.prelu(f"{layer}.3", net.bn(f"{layer}.2", y))
    return net.bn(f"{layer}.5", net.conv(f"{layer}.4", y, channels, 3, stride, 1), gain=0.3)


def conv_shortcut(net: Recorder, name: str, x: Tensor, channels: int, stride: int) -> Tensor:
    return net.bn(f"{name}.1", net.conv(f"{name}.0", x, channels, 1, stride))


def pool_or_conv_shortcut(net: Recorder, name: str, x: Tensor, channels: int, stride: int):
    if x.shape[1] == channels:
        return x[:, :, ::stride, ::stride]
    return conv_shortcut(net, name, x, channels, stride)


def body(units: tuple[int, ...]):
    """(name, channels, stride) of units that are numbered through."""
    number = 0
    for count, channels in zip(units, (64, 128, 256, 512), strict=True):
        for i in range(count):
            yield f"body.{number}", channels, 2 if i == 0 else 1
            number += 1


# --- face.evoLVe's ResNet ------------------------------------------------------------------------

EVOLVE_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def evolve_resnet(net: Recorder, x: Tensor, depth: int) -> Tensor:
    x = net.bn("bn1", net.conv("conv1", x, 64, 7, 2, 3)).clamp(min=0)
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, (units, width) in enumerate(
        zip(EVOLVE_DEPTHS[depth], (64, 128, 256, 512), strict=True)
    ):
        for i in range(units):
            name, stride = f"layer{stage + 1}.{i}", 2 if i == 0 and stage else 1
            y = net.bn(f"{name}.bn1", net.conv(f"{name}.conv1", x, width, 1)).clamp(min=0)
            y = net.conv(f"{name}.conv2", y, width, 3, stride, 1)
            y = net.bn(f"{name}.bn2", y).clamp(min=0)
            y = net.bn(f"{name}.bn3", net.conv(f"{name}.conv3", y, 4 * width, 1), gain=0.3)
            if i == 0:
                x = conv_shortcut(net, f"{name}.downsample", x, 4 * width, stride)
            x = (x + y).clamp(min=0)
    x = net.linear("fc", net.bn("bn_o1", x).flatten(1), 512)
    return net.bn("bn_o2", x)


# --- insightface's and CVLface's ViT -------------------------------------------------------------


# CVLface's KP-RPE: the bucket of each distance in patches, below 4; from there on it is 3. And the
# five points of an aligned face of 112 pixels.
NEAR = (0, 1, 2, 2)
POINTS = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655),
          (70.7299, 92.2041))  # fmt: skip


def keypoint_biases(net: Recorder, side: int, points: Tensor, heads: int, depth: int) -> Tensor:
    """depth×N×heads×P×P for side×side patches; points: N×5×2, 0..1."""
    count = depth * heads * 49
    weight = net.uniform("keypoint_linear.weight", (count, 10), -3, 3)
    bias = net.uniform("keypoint_linear.bias", (count,), -1, 1)
    if points.is_meta:
        return torch.zeros(depth, 1, heads, side**2, side**2, device="meta", dtype=torch.float64)
    patches = [(row, column) for row in range(side) for column in range(side)]
    found = torch.empty(len(patches), len(patches), len(points), depth, heads).double()
    for i, (row, column) in enumerate(patches):
        centre = torch.tensor([column + 0.5, row + 0.5]).double() / side
        tables = (centre - points).flatten(1) @ weight.T + bias
        tables = tables.view(len(points), depth, heads, 7, 7)
        for j, (other_row, other_column) in enumerate(patches):
            signed = []
            for offset in (row - other_row, column - other_column):
                size = NEAR[abs(offset)] if abs(offset) < 4 else 3
                signed.append(3 + size if offset > 0 else 3 - size)
            found[i, j] = tables[:, :, :, signed[0], signed[1]]
    return found.permute(3, 2, 4, 0, 1)


def vit(
    net: Recorder,
    x: Tensor,
    width,
    depth,
    patch=9,
    heads=8,
    ratio=4,
    masks=True,
    points=None,
    feature_dim=512,
) -> Tensor:
    """In evaluation; masks: whether its file has the vector for masked patches; points: N×5×2 for
    KP-RPE."""
    if masks:
        net.uniform("mask_token", (1, 1, width), -0.2, 0.2)
    cut = x.unfold(2, patch, patch).unfold(3, patch, patch)  # N×3×rows×columns×patch×patch
    cut = cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    bound = math.sqrt(1 / patch**2)
    weight = net.uniform("patch_embed.proj.weight", (width, 3, patch, patch), -bound, bound)
    x = cut @ weight.flatten(1).T + net.uniform("patch_embed.proj.bias", (width,), -0.2, 0.2)
    x = x + net.uniform("pos_embed", (1, *x.shape[1:]), -0.5, 0.5)
    biases = [0.0] * depth
    if points is not None:
        biases = keypoint_biases(net, math.isqrt(x.shape[1]), points, heads, depth)
    for i in range(depth):
        y = net.linear(
            f"blocks.{i}.attn.qkv", net.layer_norm(f"blocks.{i}.norm1", x), 3 * width, bias=False
        )
        q, k, v = (part.unflatten(2, (heads, -1)) for part in y.chunk(3, 2))
        scores = torch.einsum("nphd,nqhd->nhpq", q, k) / math.sqrt(width // heads)
        scores = scores + biases[i]
        y = torch.einsum("nhpq,nqhd->nphd", scores.softmax(3), v).flatten(2)
        x = x + net.linear(f"blocks.{i}.attn.proj", y, width)
        y = net.linear(f"blocks.{i}.mlp.fc1", net.layer_norm(f"blocks.{i}.norm2", x), ratio * width)
        x = x + net.linear(f"blocks.{i}.mlp.fc2", y.clamp(0, 6), width)
    x = net.linear("feature.0", net.layer_norm("norm", x).flatten(1), width, bias=False)
    x = net.linear("feature.2", net.bn("feature.1", x, eps=2e-5), feature_dim, bias=False)
    return net.bn("feature.3", x, eps=2e-5)
