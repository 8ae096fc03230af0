"""The memory plan by hand-worked numbers, and beside what a small run takes."""

import pytest

from Backbone import build_backbone
from benchmarks.memory_check import measure
from benchmarks.memory_plan import Activations, Setup, Teacher, header, line, plan

NONE = Activations(each=0, once=0, parameters=0)


def test_ten_million_classes_over_eight_processes():
    found = plan(Setup(classes=10_000_000, world=8, batch=1024, sample_rate=0.1), NONE)
    assert found.classes == 2 * 1_250_000 * 512 * 4  # weights and momentum
    assert found.trained_rows == 2 * 125_000 * 512 * 4  # drawn rows and their gradient
    blocks_and_embeddings = (2 * 2**25 + 5 * 1024 * 512) * 4
    assert found.logits == 1024 * 125_000 * 4 + blocks_and_embeddings
    assert found.peak == found.classes + found.trained_rows + found.logits
    # Gathered embeddings and gradients and twice the labels; five numbers an image reduced.
    assert found.sent == 7 / 8 * 1024 * (2 * 512 * 4 + 2 * 8 + 2 * 5 * 4)


def test_a_head_on_every_process_and_the_backbone():
    backbone = Activations(each=1000, once=50, parameters=100)
    setup = Setup(classes=1000, world=4, batch=64, optimizer="adamw", parallel="replicated")
    found = plan(setup, backbone)
    assert found.backbone == 100 * 4 * 4  # weights, gradients, two moments
    assert found.activations == 16 * 1000 + 50
    assert found.classes == 3 * 1000 * 512 * 4
    assert found.trained_rows == 1000 * 512 * 4
    assert found.sent == 2 * 3 / 4 * (100 + 1000 * 512) * 4


def test_a_teacher_has_weights_and_embeds_before_the_network():
    backbone = Activations(each=1000, once=50, parameters=100)
    setup = Setup(classes=10, world=4, batch=64, teacher="MobileFaceNet", input_size=(32, 32))
    alone = plan(setup, backbone)
    assert alone.teacher == 0
    small = plan(setup, backbone, teacher=Teacher(weights=7000, each=1))
    assert (small.teacher, small.peak) == (7000 + 16, alone.peak + 7000)
    large = plan(setup, backbone, teacher=Teacher(weights=7000, each=10**9))
    fixed = alone.backbone + alone.classes + alone.trained_rows
    assert large.peak == fixed + 7000 + 16 * 10**9
    assert " teacher " in header(setup)
    assert len(header(setup)) == len(line(setup, small))

    measured = Teacher.measure(setup)
    network = build_backbone("MobileFaceNet", 512, (32, 32))
    weights = [*network.parameters(), *network.buffers()]
    assert measured.weights == sum(w.numel() * w.element_size() for w in weights)
    # In bf16: the first convolution makes 64 maps of 16×16, which the next layer reads and writes.
    assert 2 * 64 * 16 * 16 * 2 <= measured.each <= 4 * 128 * 16 * 16 * 2


def test_with_activation_checkpointing_an_image_keeps_the_inputs_of_the_blocks():
    setup = Setup("ViT_T", dtype="fp32", input_size=(32, 32), recompute=True)
    inputs = 12 * 9 * 256 * 4  # of 12 blocks: 9 patches, 256 values of 4 bytes
    assert inputs <= Activations.measure(setup).each <= 1.5 * inputs


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_a_small_run_takes_what_was_planned(rate):
    setup = Setup(
        *("MobileFaceNet", 50_000, 1, 32, rate, "fp32"), feature_dim=128, input_size=(32, 32)
    )
    planned = plan(setup, Activations.measure(setup), on_gpu=False).peak
    assert measure(setup) == pytest.approx(planned, rel=0.1)
