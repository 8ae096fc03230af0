"""Work shared by threads: in order, at once, errors passed on, and PyTorch's setting restored."""

import threading

import numpy as np
import pytest
import torch

from Backbone import build_backbone
from Utils.cpu import lone_threads
from Utils.Evaluation_Utils import embedding


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_and_torch_is_as_it_was(two_threads):
    with lone_threads() as threads:
        found = threads.map(lambda n: (n, torch.get_num_threads()), range(100))
    assert found == [(n, 1) for n in range(100)]
    assert torch.get_num_threads() == 2
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]


def test_an_error_of_one_item_is_raised():
    def work(number):
        if number == 3:
            raise FloatingPointError(number)

    with lone_threads() as threads, pytest.raises(FloatingPointError, match="3"):
        threads.map(work, range(10))


def test_no_items_give_no_results():
    with lone_threads() as threads:
        assert threads.map(str, []) == []


def test_the_images_of_a_single_batch_are_embedded_by_all_threads(two_threads, monkeypatch):
    both = threading.Barrier(2, timeout=60)  # broken, and so an error, where one waits alone

    def network(pixels):
        both.wait()
        return pixels.mean(dim=(2, 3))

    monkeypatch.setattr(embedding, "fold", lambda backbone, dtype: network)
    backbone = build_backbone("MobileFaceNet", 3)
    images = np.random.default_rng(0).integers(0, 256, (16, 112, 112, 3), np.uint8)
    features, mirrored = embedding.embed(backbone, images, torch.device("cpu"), batch_size=64)
    np.testing.assert_allclose(features, mirrored, atol=1e-5)
    np.testing.assert_allclose(features, images.mean((1, 2)) / 127.5 - 1, atol=0.01)


def test_a_batch_is_launched_before_the_result_of_the_last_one_is_taken():
    """So a GPU has work while the caller has a result."""
    happened = []

    def work(batch):
        happened.append(f"launch {int(batch)}")
        return batch * 10

    for result in embedding._one_ahead(work, map(torch.tensor, range(3))):
        happened.append(f"take {int(result)}")
    assert happened == ["launch 0", "launch 1", "take 0", "launch 2", "take 10", "take 20"]
