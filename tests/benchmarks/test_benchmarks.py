"""The plain baselines compute what we compute; the table's measures and rows."""

import sys
from timeit import timeit

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from Backbone import build_backbone
from benchmarks import measuring
from benchmarks.baselines.embedding import embed_pairs
from benchmarks.baselines.head import PlainArcFace
from benchmarks.baselines.loading import PlainImages, read_list
from benchmarks.baselines.network import PlainTraining, plain_backbone
from benchmarks.baselines.verification import fold_accuracies
from benchmarks.jobs import JOBS
from benchmarks.network_sides import lfw_like, network_operations
from benchmarks.run import main
from benchmarks.scale import Scale
from benchmarks.start_up import big_list
from Head import build_head
from tests.conftest import run_script
from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.verification_set import ImageFiles
from Utils.Evaluation_Utils.embedding import embed
from Utils.Evaluation_Utils.verification import combine_flip, evaluate

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[str]:
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("photos")
    paths = []
    for i in range(8):
        path = root / f"person_{i // 2}" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        image = cv2.resize(rng.integers(0, 256, (7, 7, 3), np.uint8), (112, 112))
        cv2.imwrite(str(path), image)
        paths.append(str(path))
    return paths


def test_both_heads_give_the_same_loss_and_gradients():
    torch.manual_seed(0)
    plain, ours = PlainArcFace(16, 40, 32.0, 0.5), build_head("ArcFace", 16, 40, 32.0, 0.5)
    ours.load_state_dict(plain.state_dict())
    labels = torch.randint(40, (12,))
    found = []
    for head in (plain, ours):
        embeddings = torch.randn(12, 16, generator=torch.Generator().manual_seed(1))
        embeddings.requires_grad_()
        if head is plain:
            loss = nn.CrossEntropyLoss()(head(embeddings, labels), labels)
        else:
            loss = head.loss(embeddings, labels).loss
        loss.backward()
        found.append((loss.detach(), embeddings.grad, head.weight.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_plain_step_is_a_step_of_the_same_network():
    torch.manual_seed(0)
    plain = plain_backbone("MobileFaceNet", 16)
    ours = build_backbone("MobileFaceNet", 16)
    ours.load_state_dict(plain.state_dict())
    assert not any(type(m) is not nn.PReLU for m in plain.modules() if isinstance(m, nn.PReLU))
    head, our_head = PlainArcFace(16, 5, 32.0, 0.5), build_head("ArcFace", 16, 5, 32.0, 0.5)
    our_head.load_state_dict(head.state_dict())
    pixels, labels = torch.randn(4, 3, 112, 112), torch.tensor([0, 1, 4, 2])
    loss = PlainTraining(plain.train(), head).step(pixels, labels)

    parameters = [*ours.parameters(), *our_head.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.05, 0.9, weight_decay=5e-4, nesterov=True)
    our_loss = our_head.loss(ours.train()(pixels), labels).loss
    our_loss.backward()
    optimizer.step()
    assert loss == pytest.approx(our_loss.item(), rel=1e-5)
    torch.testing.assert_close(head.weight, our_head.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        plain.conv1.conv.weight, ours.conv1.conv.weight, rtol=1e-3, atol=1e-4
    )


def test_pairs_embedded_one_by_one_are_the_photos_embedded_once(photos):
    torch.manual_seed(0)
    backbone = plain_backbone("MobileFaceNet", 16)
    names, left, right = lfw_like(6, photos)
    plain = embed_pairs(backbone, [names[i] for i in left], [names[i] for i in right], 4)
    rows = combine_flip(*embed(backbone, ImageFiles(names), CPU))
    for found, side in zip(plain, (left, right), strict=True):
        np.testing.assert_allclose(found, rows[side], rtol=1e-3, atol=1e-4)


def test_a_set_like_lfw_has_its_share_of_photos_in_several_pairs(photos):
    names, left, right = lfw_like(600, photos)
    assert len(names) == 770
    assert set(left) | set(right) == set(range(770))
    assert len(left) == len(right) == 600


def test_the_threshold_loop_finds_the_same_accuracies():
    rng = np.random.default_rng(0)
    left, noise = rng.normal(size=(2, 60, 8))
    same, folds = np.arange(60) % 2 == 0, np.arange(60) // 20
    right = np.where(same[:, None], left + noise, noise)
    plain = fold_accuracies(left, right, same, folds)
    assert plain == list(evaluate(left, right, same, folds).fold_accuracies)


def test_plain_images_are_the_same_pixels(photos, monkeypatch):
    monkeypatch.setattr("random.random", lambda: 0.9)
    images = PlainImages([(photos[0], 3)])
    pixels, label = images[0]
    ours = build_backbone("MobileFaceNet", 16).preprocessing
    expected = ours(torch.from_numpy(ImageFiles(photos)[0])[None])[0]
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)
    monkeypatch.setattr("random.random", lambda: 0.1)
    torch.testing.assert_close(images[0][0], expected.flip(2), rtol=0, atol=1e-6)
    assert label == 3


def test_the_big_list_opens_as_any_other(photos, tmp_path):
    faces, file_list = big_list(tmp_path, 500, photos)
    data = open_training_set(faces, file_list)
    assert (len(data), data.num_classes) == (500, 5)
    plain = read_list(str(faces), str(file_list))
    assert [label for _, label in plain] == data.labels.tolist()
    assert [path for path, _ in plain[::99]] == [data.images.place(i) for i in range(0, 500, 99)]
    assert data[499][0].shape == (112, 112, 3)


def test_what_a_repetition_took_and_held():
    program = """
import time, numpy as np
from benchmarks import measuring
from Utils.cpu import peak_memory
more = peak_memory() + (50 << 20)  # than this process ever held
held = measuring.repeat(lambda: (np.ones(more, np.uint8), time.sleep(0.02)), 10, 0.1)
assert held.seconds >= 0.02
assert held.rate == 10 / held.seconds
assert 50 << 20 < held.peak < more + (200 << 20)"""
    run_script("-c", program, check=True)  # a new process holds less than this one


def test_operations_are_those_of_the_published_networks():
    # MobileFaceNet's paper says 221 million multiply-adds at 112×112, with 128 numbers out.
    assert network_operations("MobileFaceNet", 128) == pytest.approx(2 * 221e6, rel=0.05)


@pytest.mark.parametrize("name", ["head", "step"])
def test_both_sides_of_a_training_job_run(name, photos, monkeypatch):
    monkeypatch.setattr("benchmarks.network_sides.STEP_BATCH", 2)
    monkeypatch.setattr("benchmarks.network_sides.STEP_CLASSES", 50)
    scale = Scale(photos, seconds=0.0, classes=50, batch=4)
    for side in (JOBS[name].ours, JOBS[name].plain):
        measured = side(scale)
        assert 0 < measured.rate < np.inf


def test_the_table_has_a_row_for_a_job(photos, monkeypatch, capsys):
    folder = photos[0].rsplit("/", 2)[0]
    command = ("benchmarks.run", "--quick", "--jobs", "load", "--data", folder)
    monkeypatch.setattr(sys, "argv", list(command))
    # Each side in a process that is forked, and need not import PyTorch again.
    monkeypatch.setattr("subprocess.run", lambda words, **_: run_script(*words[1:]))
    monkeypatch.setattr(measuring, "MATRIX", 32)
    monkeypatch.setattr(measuring, "best_seconds", lambda work: timeit(work, number=1))
    main()
    out = capsys.readouterr().out
    row = out.splitlines()[-1]
    assert row.startswith(JOBS["load"].title)
    assert "of decoding alone" in row
    assert sys.version.split()[0] in out
