"""Runs with augmentation, balanced epochs and small identities left out: exact after a stop."""

import dataclasses

import pytest

from tests.scripts.test_training import assert_same_weights, only_run, tiny_config  # noqa: F401
from Utils.errors import CheckpointError, DataError
from Utils.Training_Utils.trainer import Trainer

AUGMENTED = {
    f"{name}_prob": 0.5 for name in ("flip", "crop", "low_res", "jitter", "jpeg", "erasing")
}


@pytest.fixture
def augmented(tiny_config, tiny_faces, tmp_path):  # noqa: F811
    """All of it, on a list with a lonely image and one identity that has half of the images."""
    lines = tiny_faces.train_list.read_text().splitlines()
    kept = [line for line in lines if int(line.rsplit(None, 1)[1]) < 5]
    kept += [line.rsplit(None, 1)[0] + "  0" for line in lines[16:] if line not in kept]
    kept += [lines[5].rsplit(None, 1)[0] + "  5"]
    (tmp_path / "unequal.txt").write_text("\n".join(kept) + "\n")
    return dataclasses.replace(
        tiny_config, train_file_list=str(tmp_path / "unequal.txt"), sampler="balanced",
        min_images=2, **AUGMENTED,
    )  # fmt: skip


def test_it_goes_on_exactly_in_the_middle_of_an_epoch(augmented, tmp_path):
    trainer = Trainer(augmented)
    assert (trainer.data.num_classes, len(trainer.data)) == (5, 24)
    trainer.run()
    run = only_run(augmented.save_dir)
    log = (run / "train.log").read_text()
    assert "24 images, 5 identities; left out: 1 identities with fewer than 2 images" in log
    start = run / "checkpoints/iteration_00000004.pt"
    again = dataclasses.replace(augmented, resume=str(start), save_dir=str(tmp_path / "again"))
    Trainer(again).run()
    ours, theirs = (
        only_run(config.save_dir) / "checkpoints/last.pt" for config in (augmented, again)
    )
    assert_same_weights(ours, theirs)
    without = dataclasses.replace(
        augmented, save_dir=str(tmp_path / "c"), **{name: 0.0 for name in AUGMENTED}
    )
    Trainer(without).run()
    with pytest.raises(AssertionError):
        assert_same_weights(ours, only_run(without.save_dir) / "checkpoints/last.pt")


def test_another_order_in_the_middle_of_an_epoch_is_refused(augmented):
    Trainer(augmented).run()
    start = only_run(augmented.save_dir) / "checkpoints/iteration_00000004.pt"
    changed = dataclasses.replace(augmented, resume=str(start), sampler="shuffled")
    with pytest.raises(CheckpointError, match="sampler balanced, now it is shuffled"):
        Trainer(changed)


def test_a_set_of_small_identities_alone_is_told(augmented):
    with pytest.raises(DataError, match="no identity has 50 images; the largest has 8"):
        Trainer(dataclasses.replace(augmented, min_images=50))


def test_the_annealing_goes_by_iterations_where_they_are_computed_in_parts(tiny_config):  # noqa: F811
    config = dataclasses.replace(
        tiny_config, margin="SphereFace", margin_size=None, scale_size=None, accumulate_steps=2
    )
    trainer = Trainer(config)
    trainer.run()
    assert trainer.state.head.method.iteration == trainer.state.iteration > 0
