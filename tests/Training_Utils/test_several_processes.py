"""Training in several processes: the same losses, and checkpoints that fit any number of them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.plain_training import STEPS, plain_config, plain_losses, train_all
from tests.processes import in_processes
from Utils.Training_Utils.checkpoints.run_checkpoints import read_run
from Utils.Training_Utils.merge_checkpoint import merge_folder

CLASSES = 6


def in_number(count, folder, cases):
    """`train_all` in so many processes; what each of them found."""
    if count == 1:
        return [train_all(None, cases)]
    return in_processes(count, folder, train_all, cases)


@pytest.fixture(scope="module")
def config(tiny_faces, tmp_path_factory):
    """Settings of 20 steps of 48 images, of which 96 are listed, in 6 classes."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "list.txt").write_text(tiny_faces.train_list.read_text() * 4)
    return plain_config(tiny_faces.train, folder / "list.txt", folder / "runs")


@pytest.fixture(scope="module")
def expected(config):
    losses = plain_losses(config)
    assert len(losses) == STEPS
    assert losses[-1] < 0.8 * losses[0]
    return losses


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_losses_are_those_of_one_process_in_float64(config, expected, count, tmp_path):
    config = dataclasses.replace(config, para_adj_mode=True)
    cases = [
        (dataclasses.replace(config, accumulate_steps=steps, head_parallel=head), dtype)
        for steps in (1, 4)
        for head in (("replicated", "sharded") if count > 1 else ("auto",))
        for dtype in (torch.float64, torch.float32)[: 1 if steps > 1 else 2]
    ]
    found = (
        [train_all(None, cases)] if count == 1 else in_processes(count, tmp_path, train_all, cases)
    )
    for of_process in found:
        for (losses, _), (_, dtype) in zip(of_process, cases, strict=True):
            digits = 1e-6 if dtype == torch.float64 else 1e-4
            assert losses == pytest.approx(expected, rel=digits)


@pytest.fixture(scope="module")
def saved_on_four(config, tmp_path_factory):
    """Runs of 4 processes, stopped in the middle of an epoch: with either head, in either form."""
    cases = [
        (
            dataclasses.replace(config, total_epoch=5, save_freq=7, milestones=(), **form),
            torch.float64,
        )
        for form in (
            {"head_parallel": "sharded", "checkpoint_format": "sharded"},
            {"head_parallel": "sharded", "checkpoint_format": "file"},
            {"head_parallel": "replicated", "checkpoint_format": "sharded"},
        )
    ]
    found = in_processes(4, tmp_path_factory.mktemp("four"), train_all, cases)
    return [Path(run) / "checkpoints" for _, run in found[0]]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_saved_on_four_and_resumed_on_others_the_losses_go_on(
    config, expected, saved_on_four, count, tmp_path
):
    cases = [
        (
            dataclasses.replace(
                config, resume=str(path), head_parallel=head, save_dir=str(tmp_path)
            ),
            torch.float64,
        )
        for checkpoints in saved_on_four
        for path in checkpoints.glob("iteration_00000007.*")
        for head in ("sharded", "replicated")[: min(count, 2)]
    ]
    assert len(cases) == 3 * min(count, 2)
    found = (
        [train_all(None, cases)] if count == 1 else in_processes(count, tmp_path, train_all, cases)
    )
    for of_process in found:
        for losses, _ in of_process:
            assert losses == pytest.approx(expected[7:], rel=1e-6)


def test_a_folder_merged_is_the_file_that_would_have_been_saved(saved_on_four):
    folder, file, other = saved_on_four
    merged, _ = merge_folder(folder / "last.dcp")
    whole = read_run(file / "last.pt")
    assert merged.keys() == whole.keys()
    assert merged["head"]["weight"].shape[0] == CLASSES
    for name, weights in (*whole["backbone"].items(), *whole["head"].items()):
        assert torch.equal(weights, merged["head" if name in whole["head"] else "backbone"][name])
    for number, state in whole["optimizer"]["state"].items():
        assert torch.equal(
            state["momentum_buffer"], merged["optimizer"]["state"][number]["momentum_buffer"]
        )
    replicated, _ = merge_folder(other / "last.dcp")
    np.testing.assert_allclose(replicated["head"]["weight"], whole["head"]["weight"], rtol=1e-9)
