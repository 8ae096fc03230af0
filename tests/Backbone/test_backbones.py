"""Backbones: shapes, parameter counts of the lineage, forward and backward of each."""

import copy
from functools import partial

import pytest
import torch

from Backbone import BACKBONES, Preprocessing, build_backbone, describe_backbone
from Backbone.layers import PReLU
from Backbone.vit import DropPath
from Config import Config, ConfigError
from Head import build_head
from Utils.Datasets_Utils.alignment.transform import template
from Utils.Pretrained_Utils import load_backbone
from Utils.Training_Utils.start import starting_backbone

# Counted on the lineage's own networks.
PARAMETERS = {
    ("MobileFaceNet", 128): 1_003_136,
    ("ResNet50_IR", 512): 43_590_848,
    ("SEResNet50_IR", 512): 43_813_568,
    ("ResNet100_IR", 512): 65_156_160,
    ("SEResNet100_IR", 512): 65_528_384,
    ("ViT_T", 512): 19_137_792,
    ("ViT_S", 512): 76_023_296,
    ("ViT_B", 512): 113_833_472,
    ("ViT_L", 512): 255_684_352,
    ("ViT_H", 512): 756_393_984,
    ("ViT_S_KPRPE", 512): 96_004_128 + 512,  # and the vector for masked patches
    ("ViT_B_KPRPE", 512): 115_076_736 + 512,
}


@pytest.mark.parametrize(("name", "feature_dim"), PARAMETERS)
def test_parameter_counts_are_the_lineages(name, feature_dim):
    with torch.device("meta"):
        backbone = build_backbone(name, feature_dim)
    assert sum(p.numel() for p in backbone.parameters()) == PARAMETERS[name, feature_dim]


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_maps_images_to_embeddings_at_any_size(name):
    with torch.device("meta"):
        for size in ((112, 112), (112, 96), (32, 48)):
            backbone = build_backbone(name, 64, size)
            assert backbone(torch.empty(2, 3, *size)).shape == (2, 64)
            assert backbone.preprocessing.input_size == size
            assert backbone.feature_dim == 64


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *((name, {}) for name in ("MobileFaceNet", "ResNet18_IR", "SEResNet18_IR", "ViT_T_KPRPE")),
        ("ViT_T", {"mask_ratio": 0.0}),
    ],
)
def test_forward_and_backward_reach_every_parameter(name, variant):
    torch.manual_seed(0)
    backbone = build_backbone(name, 16, (32, 32), **variant)
    embeddings = backbone(torch.randn(4, 3, 32, 32))
    embeddings.square().sum().backward()
    assert embeddings.isfinite().all()
    for parameter_name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", ["MobileFaceNet", "ResNet18_IR", "ResNet50", "ViT_T_KPRPE"])
def test_computed_again_in_the_backward_pass_all_is_equal_and_less_is_kept(name):
    torch.manual_seed(0)
    backbone = build_backbone(name, 16, (32, 32))
    pixels = torch.randn(4, 3, 32, 32)
    found, kept = [], []

    def keep(tensor):
        kept[-1] += tensor.nbytes
        return tensor

    for backbone.recompute in (False, True):
        network = copy.deepcopy(backbone)  # as for an average of the weights
        kept.append(0)
        torch.manual_seed(1)  # dropout, drop path and masked patches
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = network(pixels).square().sum()
        loss.backward()
        found.append([*network.state_dict().values(), *(p.grad for p in network.parameters())])
    for plain, again in zip(*found, strict=True):  # BatchNorm's statistics among them
        assert torch.equal(plain, again)
    assert kept[1] < kept[0] / 2


def test_the_ir_unit_is_bn_conv_bn_prelu_conv_bn_plus_shortcut():
    torch.manual_seed(0)
    unit = build_backbone("ResNet18_IR", 16, (32, 32)).layer1[0].double().eval()
    x = torch.randn(2, 64, 8, 8, dtype=torch.float64)

    def norm(bn, x):
        scale = bn.weight / (bn.running_var + 1e-5).sqrt()
        return (x - bn.running_mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + bn.bias.view(
            1, -1, 1, 1
        )

    for module in unit.modules():  # statistics that would show a swapped layer
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    conv2d = torch.nn.functional.conv2d
    y = norm(unit.bn2, conv2d(norm(unit.bn1, x), unit.conv1.weight, padding=1))
    y = torch.where(y > 0, y, y * unit.prelu.weight.view(1, -1, 1, 1))
    y = norm(unit.bn3, conv2d(y, unit.conv2.weight, padding=1, stride=2))
    shortcut = norm(unit.downsample[1], conv2d(x, unit.downsample[0].weight, stride=2))
    torch.testing.assert_close(unit(x), y + shortcut)


def test_a_vit_sees_no_masked_patch_in_training_and_puts_one_vector_in_its_place():
    torch.manual_seed(0)
    vit = build_backbone("ViT_T", 16, (32, 32), patch_size=8, drop_path=0.0, mask_ratio=0.3)
    vit.double().blocks = vit.blocks[:2]
    pixels = torch.randn(3, 3, 32, 32, dtype=torch.float64)  # of 16 patches, int(16·0.7) are seen
    inside = []
    vit.feature[0].register_forward_hook(lambda module, given, out: inside.append(given[0]))

    def embedding(pixels):
        torch.manual_seed(7)
        return vit(pixels)

    expected = embedding(pixels)
    learned = (inside[0][1].unflatten(0, (16, 256)) == vit.mask_token[0]).all(1)
    assert learned.sum() == 16 - 11
    for patch in range(16):
        changed = pixels.clone()
        changed[1].unfold(1, 8, 8).unfold(2, 8, 8)[:, patch // 4, patch % 4] += 1
        assert torch.equal(embedding(changed), expected) == learned[patch]
    vit.eval()
    assert not torch.equal(vit(pixels), vit(pixels.roll(8, 2)))
    assert torch.equal(vit(pixels), vit(pixels))


def filled(state):
    """Weights that any program can make, for the names and shapes of a network."""
    for number, (name, tensor) in enumerate(sorted(state.items())):
        wave = torch.arange(tensor.numel(), dtype=torch.float64).mul(0.7 + 0.01 * number).sin()
        wave = wave.view(tensor.shape)
        if "running_var" in name or ("norm" in name and name.endswith("weight")):
            wave = 1 + wave / 2
        elif "keypoint" in name:
            wave = 3 * wave
        elif tensor.ndim > 1 and name != "pos_embed":
            wave = wave * (6 / tensor[0].numel()) ** 0.5
        if tensor.is_floating_point():
            tensor.copy_(wave)
    return state


def test_kp_rpe_gives_the_figures_of_its_authors_class():
    """Their VisionTransformerWithKPRPE, of CVLface, gave these with the same weights and input."""
    vit = build_backbone("ViT_T_KPRPE", 16, (64, 64)).eval()
    renamed = {k.replace("keypoint_encoding.linear", "keypoint_linear"): k
               for k in vit.state_dict() if k != "mask_token"}  # fmt: skip
    with torch.no_grad():
        filled({theirs: vit.state_dict()[ours] for theirs, ours in renamed.items()})
        pixels = torch.arange(2 * 3 * 64 * 64, dtype=torch.float64).mul(0.37).sin()
        points = torch.tensor([[[.3, .4], [.7, .45], [.5, .6], [.35, .8], [.65, .85]],
                               [[.6, .2], [.8, .5], [.55, .45], [.3, .4], [.45, .65]]])  # fmt: skip
        found = vit(pixels.view(2, 3, 64, 64).float(), points)
    expected = torch.tensor(
        [[0.64186, -1.54143, -0.07316, 0.54706], [0.61782, -1.55880, -0.06968, 0.53664]]
    )
    torch.testing.assert_close(found[:, 1:5], expected, atol=2e-5, rtol=0)


def test_kp_rpe_moves_with_the_points_and_without_them_takes_the_templates():
    torch.manual_seed(0)
    vit = build_backbone("ViT_T_KPRPE", 16, (48, 64)).eval()
    assert not any(p.any() for p in vit.keypoint_encoding.parameters())  # as a ViT at the start
    torch.nn.init.normal_(vit.keypoint_encoding.linear.weight)
    pixels, points = torch.randn(2, 3, 48, 64), torch.rand(2, 5, 2)

    def bias(points):  # of 6×8 patches, in the third block
        encoding = vit.keypoint_encoding
        return encoding.bias(encoding(points), 2).unflatten(3, (6, 8)).unflatten(2, (6, 8))

    # The points, and both patches, one patch further to the right.
    moved = bias(points + torch.tensor([8 / 64, 0.0]))[:, :, :, 1:, :, 1:]
    torch.testing.assert_close(moved, bias(points)[:, :, :, :-1, :, :-1])
    size = torch.tensor([64.0, 48.0])
    usual = torch.from_numpy(template((48, 64))).float() / size
    with torch.no_grad():
        torch.testing.assert_close(vit(pixels), vit(pixels, usual.expand(2, 5, 2)))
        assert not torch.allclose(vit(pixels), vit(pixels, points))
        with pytest.raises(ValueError, match="has no KP-RPE"):
            build_backbone("ViT_T", 16, (48, 64))(pixels, points)


def test_drop_path_leaves_out_whole_branches_of_images_and_keeps_the_mean():
    rates = [
        block.drop_path.probability for block in build_backbone("ViT_T", drop_path=0.22).blocks
    ]
    assert rates == pytest.approx([0.02 * i for i in range(12)])
    torch.manual_seed(0)
    dropped = DropPath(0.25)(torch.ones(4000, 2, 3))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))
    assert dropped.mean() == pytest.approx(1, abs=0.05)
    assert torch.equal(DropPath(0.25).eval()(dropped), dropped)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"name": "ViT_T", "heads": 7}, "heads is 7; it must divide the width, 256"),
        ({"name": "ViT_T", "mask_ratio": 1.0}, "mask_ratio is 1.0"),
        ({"name": "ViT_S_KPRPE", "mask_ratio": 0.1}, "mask_ratio is 0.1; with KP-RPE"),
        ({"name": "ViT_T", "input_size": (16, 16), "patch_size": 17}, "patch_size is 17"),
        ({"name": "resnet50_ir"}, "ResNet50_IR"),
        ({"name": "MobileFaceNet", "feature_dim": 0}, "feature_dim is 0"),
        ({"name": "MobileFaceNet", "input_size": (112, 90)}, "multiples of 16"),
    ],
)
def test_errors_say_what_is_allowed(kwargs, said):
    with pytest.raises(ValueError, match=said):
        build_backbone(**kwargs)


def test_preprocessing_maps_pixels_and_mirrors_chosen_images():
    images = torch.randint(0, 256, (2, 4, 6, 3), dtype=torch.uint8)
    out = Preprocessing()(images, flip=torch.tensor([False, True]))
    expected = (images.double() - 127.5) / 127.5
    torch.testing.assert_close(out[0].double(), expected[0].permute(2, 0, 1), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        out[1].double(), expected[1].flip(1).permute(2, 0, 1), atol=1e-6, rtol=0
    )
    bgr = Preprocessing("BGR", mean=100, scale=128)(images)
    torch.testing.assert_close(bgr[:, 0], (images[..., 2].float() - 100) / 128)
    assert out.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="expected uint8"):
        Preprocessing()(images.float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_prelu_has_pytorchs_values_and_gradients(dtype):
    torch.manual_seed(0)
    ours, theirs = PReLU(5).to(dtype), torch.nn.PReLU(5).to(dtype)
    with torch.no_grad():
        ours.weight.uniform_(-0.5, 1.5)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5, 6, 7, dtype=dtype).to(memory_format=torch.channels_last)
    x[0, :, 0] = 0
    gradient = torch.randn_like(x)
    results = []
    for module in (ours, theirs):
        leaf = x.clone().requires_grad_()
        module(leaf).backward(gradient)
        results.append((module(leaf).detach(), leaf.grad, module.weight.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["timm:convnext_atto", "timm:vit_tiny_patch16_224"])
def test_a_network_of_timm_is_a_backbone_with_its_own_input(name, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    backbone = build_backbone(name, 16, (64, 48)).eval()
    images = torch.randint(0, 256, (2, 64, 48, 3), dtype=torch.uint8)
    about = timm.get_pretrained_cfg(name.removeprefix("timm:"))
    pixels = (images / 255 - torch.tensor(about.mean)) / torch.tensor(about.std)
    with torch.no_grad():
        found = backbone(backbone.preprocessing(images))
        torch.testing.assert_close(found, backbone.network(pixels.permute(0, 3, 1, 2)))
    assert found.shape == (2, 16)
    state = {"architecture": describe_backbone(backbone), "backbone": backbone.state_dict()}
    torch.save({"format": "face-backbone-1", **state}, tmp_path / "net.pt")
    read = load_backbone(tmp_path / "net.pt")
    with torch.no_grad():
        assert torch.equal(read(read.preprocessing(images)), found)


@pytest.mark.parametrize(
    "build", [build_backbone, partial(build_head, feature_dim=4, num_classes=2)]
)
def test_a_nearest_name_is_suggested_only_where_one_is_near(build):
    with pytest.raises(ValueError, match=r"did you mean '\w+'\? Known: "):
        build({build_backbone: "MobilFaceNet"}.get(build, "ArcFase"))
    with pytest.raises(ValueError, match="is 'qqqq'; Known: "):
        build("qqqq")


def test_a_network_of_timm_that_cannot_take_the_input_size_says_so():
    pytest.importorskip("timm")
    config = Config(backbone="timm:crossvit_9_240", input_size=(112, 112))
    with pytest.raises(
        ConfigError, match=r"can't take images of 112×112 pixels .*another input_size"
    ):
        starting_backbone(config, None)
