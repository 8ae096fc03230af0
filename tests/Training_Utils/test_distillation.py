"""A teacher: the losses by formula, its embeddings kept and computed, exact resume, mistakes."""

import csv
import dataclasses
import re
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from Backbone import BACKBONES, Preprocessing, build_backbone, describe_backbone
from Config import Config, ConfigError, validate
from tests.plain_training import Plain, plain_config, train_all
from tests.processes import in_processes
from tests.Training_Utils.test_step import NoMethodWaits, NoOperatorWaits
from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.images import ImageError
from Utils.errors import CheckpointError, RunError
from Utils.Pretrained_Utils import load_backbone
from Utils.Pretrained_Utils.files import Description, write_backbone
from Utils.processes import ALONE
from Utils.Training_Utils import start
from Utils.Training_Utils.data import Batch, FittedImages
from Utils.Training_Utils.distillation.loss import Distillation, distillation_loss
from Utils.Training_Utils.distillation.teacher import TeacherNetwork, check_teacher, load_teacher
from Utils.Training_Utils.networks import Networks
from Utils.Training_Utils.start import build_state
from Utils.Training_Utils.step import TrainingStep
from Utils.Training_Utils.trainer import Trainer

CPU = torch.device("cpu")
T = 12  # values of the teacher's embedding; the student's has 8


@pytest.fixture(autouse=True)
def plain_networks():
    """`Plain` is a backbone, though no word that the setting allows."""
    with mock.patch.dict(BACKBONES, Plain=Plain), mock.patch(f"{start.__name__}.validate"):
        yield


def write_teacher(path: Path, seed: int = 1, feature_dim: int = T) -> Path:
    """A network that reads blue, green, red, and has another mean and scale than its student."""
    torch.manual_seed(seed)
    teacher = build_backbone("Plain", feature_dim, (32, 32))
    teacher.preprocessing = Preprocessing("BGR", 100.0, 50.0, (32, 32))
    write_backbone(path, teacher.state_dict(), Description(describe_backbone(teacher), "a test"))
    return path


@pytest.fixture
def config(tiny_faces, tmp_path, unpainted):
    """3 epochs of 3 steps of 8 images."""
    teacher = write_teacher(tmp_path / "teacher.pt")
    config = plain_config(tiny_faces.train, tiny_faces.train_list, tmp_path / "runs")
    settings = {"batch_size": 8, "total_epoch": 3, "milestones": (2,), "save_freq": 1}
    return dataclasses.replace(config, teacher=str(teacher), log_freq=2, **settings)


@pytest.mark.parametrize("kind", ["cosine", "l2"])
def test_the_loss_and_its_gradient_are_those_of_the_formula(kind):
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 5, 7))
    norms, others = (np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    cosines = (a * b).sum(1, keepdims=True) / (norms * others)
    if kind == "cosine":
        expected = (1 - cosines).mean()
        gradient = (cosines * a / norms**2 - b / (norms * others)) / 5
        assert expected == pytest.approx(((a / norms - b / others) ** 2).sum() / 5 / 2)
    else:
        expected, gradient = ((a - b) ** 2).mean(), 2 * (a - b) / a.size
    student = torch.tensor(a, requires_grad=True)
    loss = distillation_loss(student, torch.tensor(b), kind)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(student.grad, gradient, rtol=1e-9)


def test_embeddings_of_another_size_are_mapped_and_those_of_the_same_are_not():
    student, targets = torch.randn(4, 8), torch.randn(4, T)
    mapped = Distillation("l2", 8, T)
    expected = ((student @ mapped.projection.weight.T - targets) ** 2).mean()
    torch.testing.assert_close(mapped(student, targets.half()), expected, rtol=1e-3, atol=0)
    same = Distillation("l2", T, T)
    assert not list(same.parameters())
    assert same(targets, targets) == 0


class Seen(nn.Module):
    """Gives back the pixels that it gets."""

    def __init__(self, *size: int) -> None:
        super().__init__()
        self.preprocessing = Preprocessing(mean=100.0, scale=50.0, input_size=size)
        self.feature_dim = 0

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels


def test_a_teacher_of_another_input_sees_the_face_at_its_size():
    pixels = torch.randn(2, 3, 32, 32)
    narrow = TeacherNetwork(Seen(32, 24), (32, 32))(pixels)
    assert torch.equal(narrow, pixels[..., 4:28])
    wide = TeacherNetwork(Seen(32, 32), (32, 24))(narrow)
    assert torch.equal(wide[..., 4:28], narrow)
    new = torch.cat((wide[..., :4], wide[..., 28:]))
    assert (new == -2).all()  # (0 - 100) / 50: black
    large = TeacherNetwork(Seen(64, 64), (32, 32))(pixels)
    torch.testing.assert_close(large.mean((2, 3)), pixels.mean((2, 3)), atol=2e-2, rtol=0)
    assert large.shape == (2, 3, 64, 64)


def prepared(config: Config, data=None):
    data = data or open_training_set(config.train_dataset_path, config.train_file_list)
    teacher = load_teacher(config)
    teacher.prepare(config, data, CPU, ALONE)
    return teacher, data


def test_embeddings_that_are_kept_are_those_that_are_computed(config):
    kept, data = prepared(config)
    computed, _ = prepared(dataclasses.replace(config, jitter_prob=0.1))
    unwritten, _ = prepared(dataclasses.replace(config, para_adj_mode=True))
    assert (kept.network, computed.table, unwritten.table) == (None, None, None)
    images = torch.from_numpy(np.stack([image for image, _ in data]))
    flips = torch.arange(len(data)) % 3 == 0
    known = torch.from_numpy(np.stack([kept.table[row] for row in range(len(data))]))
    assert known.shape == (len(kept.table), 2, T) == (len(data), 2, T)

    mirrored = torch.where(flips[:, None, None, None], images.flip(2), images)
    pixels = (mirrored.flip(3).permute(0, 3, 1, 2).double() - 100) / 50
    expected = load_backbone(config.teacher).double()(pixels)
    for teacher in (computed, unwritten):
        found = teacher(images, flips, known[:, :, :0])
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
        assert not found.requires_grad
    found = kept(images, flips, known)
    torch.testing.assert_close(found.double(), expected, rtol=2**-10, atol=1e-4)  # kept in float16
    said = [teacher.lines[-1] for teacher in (kept, computed, unwritten)]
    assert re.search(f"computed once.*{kept.table.path.parent}", said[0])
    assert all("computed in each step" in line for line in said[1:])


def test_a_table_is_used_again_but_not_for_other_images_or_another_teacher(config, tmp_path):
    train = tmp_path / "train"
    shutil.copytree(config.train_dataset_path, train)
    config = dataclasses.replace(config, train_dataset_path=str(train))
    first, _ = prepared(config)
    written = first.table.path.stat().st_mtime_ns
    assert prepared(config)[0].table.path == first.table.path
    assert first.table.path.stat().st_mtime_ns == written, "computed again"

    photo = train / "person 0/0.png"
    photo.write_bytes((train / "person 1/0.png").read_bytes())
    lines = Path(config.train_file_list).read_text().splitlines()
    turned = tmp_path / "turned.txt"
    turned.write_text("\n".join(reversed(lines)))
    other = str(write_teacher(tmp_path / "other.pt", feature_dim=9))
    tables = {first.table.path}

    def made(changed: Config) -> None:
        teacher, data = prepared(changed)
        assert len(teacher.table) == len(data)
        assert teacher.table.path not in tables
        tables.add(teacher.table.path)

    made(config)  # with another photograph
    made(dataclasses.replace(config, train_file_list=str(turned)))
    made(dataclasses.replace(config, teacher=other))
    write_teacher(Path(config.teacher), seed=2)
    made(config)
    swapped = open_training_set(config.train_dataset_path, config.train_file_list)
    swapped.channel_order = "BGR"
    assert prepared(config, swapped)[0].table.path not in tables


def test_an_image_without_an_embedding_in_the_table_is_replaced_by_the_next_one(config):
    data = open_training_set(config.train_dataset_path, config.train_file_list)
    decode = data.images.decode

    def fails_once(row: int) -> np.ndarray:
        if row == 2:
            raise ImageError("the disk was away")
        return decode(row)

    with mock.patch.object(data.images, "decode", fails_once):
        teacher, _ = prepared(dataclasses.replace(config, num_workers=0), data)
    images = FittedImages(data, config.input_size, teacher.table)
    image, label, unreadable, _, known = images[2]
    assert np.array_equal(image, images[3][0])
    assert (label, known.tolist()) == (data[3][1], teacher.table[3].tolist())
    assert re.search(f"{data.name(2)} could not be read when the teacher's", unreadable[0])


def one_step(config: Config, batch: Batch, **settings: object):
    """The state after a step on a batch, and the step's result."""
    config = dataclasses.replace(config, **settings)
    teacher = prepared(config)[0] if config.teacher else None
    state = build_state(config, 6, 3, CPU, None, teacher=teacher)
    networks = Networks(
        state.backbone, state.head, config, CPU, ALONE, distillation=state.distillation
    )
    step = TrainingStep(config, state, networks, teacher=teacher)
    before = state.head.weight.detach().clone()
    with NoOperatorWaits(), NoMethodWaits():
        result = step(batch)
    return state, before, result


def test_the_weights_of_the_losses_and_micro_batches(config):
    teacher, data = prepared(config)
    images = torch.from_numpy(np.stack([data[row][0] for row in range(8)]))
    known = torch.from_numpy(np.stack([teacher.table[row] for row in range(8)]))
    batch = Batch(images, torch.arange(8) % 6, [], known=known)

    def weights(state):
        return torch.cat([p.detach().flatten() for p in state.backbone.parameters()])

    alone, _, _ = one_step(config, batch, teacher="")
    ignored, _, _ = one_step(config, batch, teacher_weight=0.0)
    assert torch.equal(weights(alone), weights(ignored))
    state, before, result = one_step(config, batch, margin_weight=0.0, weight_decay=0.0)
    assert torch.equal(state.head.weight, before)
    assert 0.5 < result.distillation < 1.5, "of directions that have nothing in common"
    whole, _, result = one_step(config, batch)
    assert not torch.equal(weights(whole), weights(alone))
    parts, _, same = one_step(config, batch, accumulate_steps=4)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(same.distillation, result.distillation)
    computed, _, result = one_step(config, batch, para_adj_mode=True)
    torch.testing.assert_close(weights(computed), weights(whole), rtol=1e-3, atol=1e-5)


def contents(checkpoint: Path) -> dict:
    return torch.load(checkpoint, weights_only=True)


def test_a_run_shows_both_losses_resumes_exactly_and_its_weights_need_no_teacher(config, tmp_path):
    config = dataclasses.replace(config, ema_decay=0.9, head_lr=0.05)
    run = Trainer(config).run().run
    with open(run / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["distillation_loss"]) for row in rows]
    assert [int(row["iteration"]) for row in rows] == [2, 4, 6, 8, 9]
    assert losses[-1] < 0.8 * losses[0]
    log = (run / "train.log").read_text()
    assert f"  distillation {losses[-1]:.4f}  " in log
    assert "teacher.pt: Plain, 12-d" in log

    middle = run / "checkpoints/iteration_00000004.pt"  # in the middle of an epoch
    again = dataclasses.replace(config, resume=str(middle), save_dir=str(tmp_path / "b"))
    other = Trainer(again).run().run
    ours, theirs = (contents(folder / "checkpoints/last.pt") for folder in (run, other))
    assert ours["distillation"]["weights"]["projection.weight"].shape == (T, 8)
    for name in ("backbone", "head"):
        for key, value in ours[name].items():
            assert torch.equal(value, theirs[name][key]), key
    for key, value in ours["optimizer"]["state"].items():
        assert torch.equal(value["momentum_buffer"], theirs["optimizer"]["state"][key]
                           ["momentum_buffer"])  # fmt: skip
    for key, value in ours["distillation"]["weights"].items():
        assert torch.equal(value, theirs["distillation"]["weights"][key]), key

    without = dataclasses.replace(again, teacher="")
    with pytest.raises(
        CheckpointError, match=r"projection.weight of \(12, 8\), and the settings have no"
    ):
        Trainer(without)
    write_teacher(tmp_path / "teacher.pt", seed=2)
    with pytest.raises(CheckpointError, match="has other weights now than when the run was saved"):
        Trainer(again)
    Path(config.teacher).unlink()
    with pytest.raises(CheckpointError, match=r"teacher can't be used: .*give its path with"):
        Trainer(again)
    assert load_backbone(run / "checkpoints/last.pt").feature_dim == 8


def test_a_run_goes_on_with_a_teacher_that_it_did_not_have(config, tmp_path):
    before = dataclasses.replace(config, teacher="", total_epoch=1)
    run = Trainer(before).run().run
    last = run / "checkpoints/last.pt"
    longer = dataclasses.replace(config, total_epoch=2, resume=str(last))
    assert Trainer(longer).run().run == run
    assert "projection.weight" in contents(last)["distillation"]["weights"]
    with open(run / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["distillation_loss"]) for row in rows] == [False] * 2 + [True] * 2


def test_another_teacher_than_before_is_named_in_the_log(config):
    teacher = load_teacher(config)
    saved = {"settings": {"teacher": "other.pt"}}
    for digest, count in ((teacher.digest, 0), ("0" * 64, 1)):
        saved["distillation"] = {"teacher": digest, "weights": {}}
        check_teacher(saved, Path("last.pt"), config, teacher)
        assert sum("another network" in line for line in teacher.lines) == count


def test_two_processes_train_as_one(config, tmp_path):
    cases = [
        (dataclasses.replace(config, head_parallel=head, accumulate_steps=2), torch.float32)
        for head in ("replicated", "sharded")
    ]
    meeting = tmp_path / "two"
    meeting.mkdir()
    expected, _ = train_all(None, cases[:1])[0]
    alone, _ = train_all(None, [(dataclasses.replace(config, teacher=""), torch.float32)])[0]
    for of_process in in_processes(2, meeting, train_all, cases):
        for losses, _ in of_process:
            assert losses == pytest.approx(expected, rel=1e-4)
    assert losses != pytest.approx(alone, rel=1e-2)


def test_settings_that_train_nothing_are_refused():
    taught = Config(teacher="teacher.pt", margin_weight=0.0)
    validate(taught)
    with pytest.raises(ConfigError, match="teacher_weight is 0 too"):
        validate(dataclasses.replace(taught, teacher_weight=0.0))
    frozen = {"pretrained": "a.pt", "freeze_backbone_epochs": 1}
    with pytest.raises(ConfigError, match="freeze_backbone_epochs is 1: with margin_weight 0"):
        validate(dataclasses.replace(taught, **frozen))


def test_a_file_that_is_no_network_and_a_folder_that_cannot_be_written(config, tmp_path):
    (tmp_path / "no.pt").write_text("no network")
    with pytest.raises(CheckpointError, match=r"the teacher can't be used: checkpoint .*no\.pt"):
        load_teacher(dataclasses.replace(config, teacher=str(tmp_path / "no.pt")))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/teacher_embeddings").write_text("a file")
    with pytest.raises(RunError, match="teacher_embeddings can't be made"):
        prepared(config)
