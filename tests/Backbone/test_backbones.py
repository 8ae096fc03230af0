"""Backbones: shapes, parameter counts of the lineage, forward and backward of each."""

import pytest
import torch

from Backbone import BACKBONES, Preprocessing, build_backbone
from Backbone.layers import PReLU

# Counted on the lineage's own networks.
PARAMETERS = {
    ("MobileFaceNet", 128): 1_003_136,
    ("ResNet50_IR", 512): 43_590_848,
    ("SEResNet50_IR", 512): 43_813_568,
    ("ResNet100_IR", 512): 65_156_160,
    ("SEResNet100_IR", 512): 65_528_384,
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


@pytest.mark.parametrize("name", ["MobileFaceNet", "ResNet18_IR", "SEResNet18_IR"])
def test_forward_and_backward_reach_every_parameter(name):
    torch.manual_seed(0)
    backbone = build_backbone(name, 16, (32, 32))
    embeddings = backbone(torch.randn(4, 3, 32, 32))
    embeddings.square().sum().backward()
    assert embeddings.isfinite().all()
    for parameter_name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


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


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
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
