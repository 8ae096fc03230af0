"""The lineages' MobileFaceNets, written out in float64; see `lineage_networks.py`."""

from torch import Tensor

from tests.lineage_networks import Recorder


def named(name: str) -> tuple[str, str, str]:
    return f"{name}.conv", f"{name}.bn", f"{name}.prelu"


def numbered(name: str) -> tuple[str, str, str]:
    return f"{name}.layers.0", f"{name}.layers.1", f"{name}.layers.2"


def conv_block(net, x, names, out, kernel, stride=1, padding=0, groups=1, linear=False) -> Tensor:
    conv, bn, prelu = names
    x = net.bn(bn, net.conv(conv, x, out, kernel, stride, padding, groups), gain=1.2)
    return x if linear else net.prelu(prelu, x)


def bottleneck(net, x, parts, hidden, out, stride) -> Tensor:
    y = conv_block(net, x, parts[0], hidden, 1)
    y = conv_block(net, y, parts[1], hidden, 3, stride, 1, groups=hidden)
    y = conv_block(net, y, parts[2], out, 1, linear=True)
    return x + y if stride == 1 and x.shape[1] == out else y


def halving_blocks(repeats=(4, 6, 2)) -> list[tuple[int, int, int]]:
    """(hidden, out, stride) of each bottleneck, as in the paper's table 1."""
    return [
        *((128, 64, 2), *[(128, 64, 1)] * repeats[0]),
        *((256, 128, 2), *[(256, 128, 1)] * repeats[1]),
        *((512, 128, 2), *[(256, 128, 1)] * repeats[2]),
    ]


def sequential_mobilefacenet(
    net: Recorder,
    x: Tensor,
    stem: str,
    depthwise: str,
    blocks: str,
    last: str,
    global_depthwise: str,
    output: str,
    nested: bool = False,
) -> Tensor:
    """wujiyang's, Xiaoccer's and QuasarLight's, with eight layers in one sequence; this project's
    is `nested`: three blocks in it."""
    x = conv_block(net, x, named(stem), 64, 3, 2, 1)
    x = conv_block(net, x, named(depthwise), 64, 3, 1, 1, groups=64)
    for i, (hidden, out, stride) in enumerate(halving_blocks()):
        conv = f"{blocks}.{i}.conv"
        flat = [tuple(f"{conv}.{3 * part + k}" for k in range(3)) for part in range(3)]
        parts = [named(f"{conv}.{part}") for part in range(3)] if nested else flat
        x = bottleneck(net, x, parts, hidden, out, stride)
    x = conv_block(net, x, named(last), 512, 1)
    kernel = tuple(x.shape[2:])
    x = conv_block(net, x, named(global_depthwise), 512, kernel, groups=512, linear=True)
    return conv_block(net, x, named(output), 128, 1, linear=True).flatten(1)


def treb1en_mobilefacenet(net: Recorder, x: Tensor, feature_dim: int = 512) -> Tensor:
    """TreB1eN's before normalisation; FaceX-Zoo's is the same."""
    x = conv_block(net, x, named("conv1"), 64, 3, 2, 1)
    x = conv_block(net, x, named("conv2_dw"), 64, 3, 1, 1, groups=64)
    names = [
        *("conv_23", *(f"conv_3.model.{i}" for i in range(4))),
        *("conv_34", *(f"conv_4.model.{i}" for i in range(6))),
        *("conv_45", *(f"conv_5.model.{i}" for i in range(2))),
    ]
    for name, (hidden, out, stride) in zip(names, halving_blocks(), strict=True):
        parts = [named(f"{name}.{part}") for part in ("conv", "conv_dw", "project")]
        x = bottleneck(net, x, parts, hidden, out, stride)
    x = conv_block(net, x, named("conv_6_sep"), 512, 1)
    kernel = tuple(x.shape[2:])
    x = conv_block(net, x, named("conv_6_dw"), 512, kernel, groups=512, linear=True)
    return net.bn("bn", net.linear("linear", x.flatten(1), feature_dim, bias=False))


def insightface_mbf(net: Recorder, x: Tensor, scale: int, repeats: tuple[int, ...]) -> Tensor:
    """get_mbf (scale 2, blocks 1-4-6-2) and get_mbf_large (scale 4, blocks 2-8-12-4)."""

    def parts(name: str):
        return [numbered(f"{name}.layers.{part}") for part in range(3)]

    x = conv_block(net, x, numbered("layers.0"), 64 * scale, 3, 2, 1)
    if repeats[0] == 1:
        x = conv_block(net, x, numbered("layers.1"), 64 * scale, 3, 1, 1, groups=64)
    else:
        for i in range(repeats[0]):
            x = bottleneck(net, x, parts(f"layers.1.layers.{i}"), 128, 64 * scale, 1)
    names = []
    for layer, count in zip((2, 4, 6), repeats[1:], strict=True):
        names += [f"layers.{layer}", *(f"layers.{layer + 1}.layers.{i}" for i in range(count))]
    for name, (hidden, out, stride) in zip(names, halving_blocks(repeats[1:]), strict=True):
        x = bottleneck(net, x, parts(name), hidden, out * scale, stride)
    x = conv_block(net, x, numbered("conv_sep"), 512, 1)
    kernel = tuple(x.shape[2:])
    x = conv_block(net, x, numbered("features.layers.0"), 512, kernel, groups=512, linear=True)
    return net.bn("features.layers.3", net.linear("features.layers.2", x.flatten(1), 512, False))
