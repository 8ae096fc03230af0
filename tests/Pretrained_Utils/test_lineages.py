"""Every lineage's weights: recognised, and computed as that lineage computes them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from torch import Tensor

from Backbone import build_backbone
from tests import lineage_mobilefacenets as mobilefacenets
from tests import lineage_networks as networks
from tests.lineage_networks import Recorder
from Utils.Pretrained_Utils import load_backbone
from Utils.Pretrained_Utils.contents import open_contents
from Utils.Pretrained_Utils.lineages.recognise import matches, most_likely

MOBILE = {
    "quasarlight": ("conv3", "dw_conv3", "bottlenecks", "conv1", "linear_GDConv7", "linear_conv1"),
    "wujiyang": ("conv1", "dw_conv1", "blocks", "conv2", "linear7", "linear1"),
}


@dataclass
class Case:
    """network: of (recorder, input). file: what the lineage's file holds, made of the tensors.

    sizes: of the numeric check, which needs no more than a few pixels.
    """

    lineage: str
    name: str
    network: Callable[[Recorder, Tensor], Tensor]
    file: Callable[[dict], dict] = lambda state: state
    preprocessing: tuple = ("RGB", 127.5, 127.5)
    normalised: bool = False
    size: tuple[int, int] = (32, 32)
    options: dict = field(default_factory=dict)


def prefixed(prefix: str, state: dict) -> dict:
    return {prefix + key: tensor for key, tensor in state.items()}


def partial_fc_checkpoint(state: dict) -> dict:
    head = {"weight": torch.zeros(11, 512)}
    return {
        "epoch": 3,
        "global_step": 400,
        "state_dict_backbone": state,
        "state_dict_softmax_fc": head,
        "state_optimizer": {"state": {}, "param_groups": []},
    }


def lightning(state: dict) -> dict:
    head = {"head.kernel": torch.zeros(512, 11), "head.t": torch.zeros(1)}
    return {"epoch": 1, "state_dict": {**prefixed("model.", state), **head}, "callbacks": {}}


def facex_zoo(state: dict) -> dict:
    head = {"head.weight": torch.zeros(512, 11)}
    return {"state_dict": {**prefixed("backbone.", state), **head}, "epoch": 1, "batch_id": 7}


def magface(state: dict, prefix: str = "features.module.") -> dict:
    """As MagFace's trainer saves it, with the head's D×C weights beside the network."""
    fc = prefix.partition("features.")[0] + "fc.weight"
    return {
        "epoch": 25,
        "arch": "iresnet18",
        "state_dict": {**prefixed(prefix, state), fc: torch.zeros(512, 11)},
        "optimizer": {"state": {}, "param_groups": []},
    }


def wujiyang(state: dict) -> dict:
    return {"iters": 12, "net_state_dict": state}


BGR = ("BGR", 127.5, 127.5)
BGR_128 = ("BGR", 127.5, 128.0)


def quasarlight_mobile(net, x):
    return mobilefacenets.sequential_mobilefacenet(net, x, *MOBILE["quasarlight"])


def wujiyang_mobile(net, x):
    return mobilefacenets.sequential_mobilefacenet(net, x, *MOBILE["wujiyang"])


def own_mobile(net, x):
    return mobilefacenets.sequential_mobilefacenet(net, x, *MOBILE["wujiyang"], nested=True)


def mbf(net, x):
    return mobilefacenets.insightface_mbf(net, x, 2, (1, 4, 6, 2))


def mbf_large(net, x):
    return mobilefacenets.insightface_mbf(net, x, 4, (2, 8, 12, 4))


def depth(network, number, mode="ir"):
    return partial(network, depth=number, mode=mode)


def cvlface_vit(net, x, depth=24, heads=16, ratio=3, points=None):
    settings = {"heads": heads, "ratio": ratio, "points": points}
    return networks.vit(net, x, 512, depth, patch=8, masks=False, **settings)


def cvlface_kprpe(net, x, **settings):
    """As with the points of an aligned face."""
    points = torch.tensor(networks.POINTS, device=x.device).double()[None] / 112
    return cvlface_vit(net, x, points=points, **settings)


CASES = [
    Case("own", "MobileFaceNet", own_mobile),
    Case("own", "SEResNet18_IR", depth(networks.iresnet, 18, "ir_se")),
    Case("quasarlight", "MobileFaceNet", quasarlight_mobile, preprocessing=BGR),
    *(
        Case(
            "quasarlight",
            "SEResNet50_IR" if mode == "ir_se" else "ResNet50_IR",
            depth(networks.cbam_resnet, 50, mode),
            preprocessing=BGR,
        )
        for mode in ("ir", "ir_se", "ir_cam", "ir_sam", "ir_cbam")
    ),
    Case("wujiyang", "MobileFaceNet", wujiyang_mobile, wujiyang, BGR),
    Case("wujiyang", "SEResNet50_IR", depth(networks.cbam_resnet, 50, "ir_se"), wujiyang, BGR),
    Case("wujiyang", "SEResNet50_IR", depth(networks.old_seresnet_ir, 50, "se_ir"), wujiyang, BGR),
    Case(
        "xiaoccer",
        "MobileFaceNet",
        wujiyang_mobile,
        lambda state: {"epoch": 68, "net_state_dict": state},
        ("RGB", 127.5, 128.0),
        size=(112, 96),
    ),
    Case(
        "treb1en",
        "MobileFaceNet",
        mobilefacenets.treb1en_mobilefacenet,
        preprocessing=BGR,
        normalised=True,
    ),
    Case(
        "treb1en",
        "SEResNet50_IR",
        depth(networks.irse, 50, "ir_se"),
        preprocessing=BGR,
        normalised=True,
        options={"name": "treb1en"},
    ),
    Case("face_evolve", "ResNet50_IR", depth(networks.irse, 50), options={"name": "face_evolve"}),
    Case(
        "face_evolve",
        "SEResNet50_IR",
        depth(networks.irse, 50, "ir_se"),
        options={"name": "face_evolve"},
    ),
    Case("face_evolve", "ResNet50", partial(networks.evolve_resnet, depth=50), size=(64, 64)),
    Case("insightface", "ResNet18_IR", depth(networks.iresnet, 18)),
    Case("insightface", "ResNet34_IR", depth(networks.iresnet, 34), partial_fc_checkpoint),
    Case("insightface", "MobileFaceNet", mbf),
    Case("insightface", "MobileFaceNet", mbf_large),
    Case(
        "curricularface", "ResNet50_IR", partial(networks.irse, depth=50, mode="ir", affine=False)
    ),
    Case("tface", "ResNet18_IR", depth(networks.adaface, 18), options={"name": "tface"}),
    Case("magface", "ResNet18_IR", depth(networks.iresnet, 18), magface, ("BGR", 0.0, 255.0)),
    Case("adaface", "ResNet18_IR", depth(networks.adaface, 18), lightning, BGR),
    Case("adaface", "SEResNet34_IR", depth(networks.adaface, 34, "ir_se"), lightning, BGR),
    Case("adaface", "ResNet152_IR", depth(networks.adaface, 152), lightning, BGR),
    Case("cvlface", "ResNet18_IR", depth(networks.adaface, 18), partial(prefixed, "net.")),
    Case("cvlface", "ResNet18_IR", depth(networks.iresnet, 18), partial(prefixed, "net.")),
    Case("insightface", "ViT_T", partial(networks.vit, width=256, depth=12), size=(64, 64)),
    Case("cvlface", "ViT_B", cvlface_vit, partial(prefixed, "net."), size=(32, 32)),
    Case(
        "cvlface",
        "ViT_S_KPRPE",
        partial(cvlface_kprpe, depth=12, heads=8, ratio=5),
        partial(prefixed, "net."),
    ),
    Case("facex_zoo", "ResNet50_IR", depth(networks.irse, 50), facex_zoo, BGR_128),
    Case("facex_zoo", "MobileFaceNet", mobilefacenets.treb1en_mobilefacenet, facex_zoo, BGR_128),
]


def label(case: Case) -> str:
    return f"{case.lineage}-{case.name}"


@pytest.mark.parametrize("case", CASES, ids=label)
def test_the_output_is_the_lineages_own_arithmetic(case, tmp_path):
    net = Recorder()
    images = torch.rand(1, 3, *case.size, generator=net.generator) * 2 - 1
    expected = case.network(net, images.double())
    if case.normalised:
        expected = expected / expected.square().sum(1, keepdim=True).sqrt()
    torch.save(case.file(net.state), tmp_path / "weights.pt")

    backbone = load_backbone(tmp_path / "weights.pt", **case.options)
    with torch.inference_mode():
        embeddings = backbone(images)
    worst = (embeddings.double() - expected).abs().max() / expected.abs().max()
    assert worst < 1e-5
    assert embeddings.dtype == torch.float32
    assert not backbone.training
    assert backbone.architecture["name"] == case.name
    assert backbone.feature_dim == expected.shape[1]
    given = backbone.preprocessing
    assert (given.channel_order, given.mean, given.scale) == case.preprocessing
    assert given.input_size == case.size


DEEP = [
    *(
        ("quasarlight", f"{se}ResNet{d}_IR", depth(networks.cbam_resnet, d, mode), dict, (112, 112))
        for d in (100, 152)
        for mode, se in (
            ("ir", ""),
            ("ir_se", "SE"),
            ("ir_cam", ""),
            ("ir_sam", ""),
            ("ir_cbam", ""),
        )
    ),
    *(
        ("wujiyang", f"ResNet{d}_IR", depth(networks.cbam_resnet, d), wujiyang, (112, 112))
        for d in (50, 100, 152)
    ),
    *(
        ("treb1en", f"SEResNet{d}_IR", depth(networks.irse, d, "ir_se"), dict, (112, 112))
        for d in (50, 100, 152)
    ),
    *(
        ("face_evolve", f"ResNet{d}_IR", depth(networks.irse, d), dict, size)
        for d in (50, 100, 152)
        for size in ((112, 112), (224, 224))
    ),
    *(
        ("face_evolve", f"ResNet{d}", partial(networks.evolve_resnet, depth=d), dict, (112, 112))
        for d in (50, 101, 152)
    ),
    *(
        ("insightface", f"ResNet{d}_IR", depth(networks.iresnet, d), dict, (112, 112))
        for d in (18, 34, 50, 100, 200)
    ),
    *(
        ("adaface", f"{se}ResNet{d}_IR", depth(networks.adaface, d, mode), lightning, (112, 112))
        for d in (18, 34, 50, 100, 152, 200)
        for mode, se in (("ir", ""), ("ir_se", "SE"))
    ),
    *(
        (
            "cvlface",
            f"ResNet{d}_IR",
            depth(networks.adaface, d),
            partial(prefixed, "net."),
            (112,) * 2,
        )
        for d in (18, 50, 100)
    ),
    *(
        ("facex_zoo", f"{se}ResNet{d}_IR", depth(networks.irse, d, mode), facex_zoo, (112, 112))
        for d in (50, 100, 152)
        for mode, se in (("ir", ""), ("ir_se", "SE"))
    ),
    ("insightface", "MobileFaceNet", mbf, dict, (112, 112)),
    ("insightface", "MobileFaceNet", mbf_large, dict, (112, 112)),
    ("treb1en", "MobileFaceNet", mobilefacenets.treb1en_mobilefacenet, dict, (112, 112)),
    ("facex_zoo", "MobileFaceNet", mobilefacenets.treb1en_mobilefacenet, facex_zoo, (112, 96)),
    ("quasarlight", "MobileFaceNet", quasarlight_mobile, dict, (112, 112)),
    *(
        (lineage, f"ViT_{name}", partial(networks.vit, width=width, depth=d), dict, size)
        for lineage in ("insightface", "own")
        for name, width, d in (("S", 512, 12), ("B", 512, 24), ("L", 768, 24), ("H", 1024, 48))
        for size in ((112, 112), (112, 96))
    ),
    (
        "cvlface",
        "ViT_S",
        partial(cvlface_vit, depth=12, heads=8, ratio=5),
        partial(prefixed, "net."),
        (112, 112),
    ),
    ("cvlface", "ViT_B_KPRPE", cvlface_kprpe, partial(prefixed, "net."), (112, 112)),
    ("own", "SEResNet200_IR", depth(networks.iresnet, 200, "ir_se"), dict, (112, 112)),
]


@pytest.mark.parametrize("name", ["ResNet152_IR", "ResNet200_IR", "SEResNet200_IR"])
def test_this_projects_bottlenecks_are_told_from_its_plain_networks(name):
    """Of both kinds there is a network of depth 200, and one has units of all the other's names."""
    for variant in ({"bottleneck": True}, {}):
        with torch.device("meta"):
            state = build_backbone(name, 512, (112, 112), **variant).state_dict()
        (_, match), *_ = most_likely(matches(state), open_contents(state)[0])
        found = match.architecture
        assert (found["name"], found["variant"]) == (name, variant)


@pytest.mark.parametrize(
    ("lineage", "name", "network", "file", "size"), DEEP, ids=lambda value: str(value)[:20]
)
def test_every_depth_is_recognised_by_names_and_shapes(lineage, name, network, file, size):
    net = Recorder(device="meta")
    network(net, torch.empty(1, 3, *size, dtype=torch.float64, device="meta"))
    contents = open_contents(file(net.state))[0]
    likely = most_likely(matches(contents.network), contents)
    assert lineage in [row.key for row, _ in likely]
    for _, match in likely:
        assert match.architecture["name"] == name
        assert tuple(match.architecture["input_size"]) == size
