"""The memory plan by hand-worked numbers, and beside what a small run takes."""

import pytest

from benchmarks.memory_check import measure
from benchmarks.memory_plan import Activations, Setup, plan

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
