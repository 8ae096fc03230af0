"""Sets in which identities have few or many images: balanced epochs, and leaving small ones out."""

import zipfile

import cv2
import numpy as np
import pytest

from Utils.Datasets_Utils import open_training_set
from Utils.errors import DataError
from Utils.Training_Utils.data import EpochSampler, TrainingLoader, balanced_order


class Unequal:
    """Identity i has counts[i] images, mixed; an image's pixels are its number."""

    def __init__(self, counts):
        self.labels = np.random.default_rng(5).permutation(np.repeat(range(len(counts)), counts))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return np.full((4, 4, 3), index, np.uint8), int(self.labels[index])

    def epoch_order(self, generator):
        return generator.permutation(len(self))


@pytest.mark.parametrize("counts", [[1, 2, 90, 7], [5] * 8, [1, 1, 1], [300, 1], [3]])
def test_identities_come_equally_often_and_so_do_the_images_of_each(counts):
    labels = Unequal(counts).labels
    order = balanced_order(labels, np.random.default_rng(0))
    assert len(order) == len(labels)
    per_identity = np.bincount(labels[order], minlength=len(counts))
    assert np.ptp(per_identity) <= 1
    per_image = np.bincount(order, minlength=len(labels))
    for identity in range(len(counts)):
        assert np.ptp(per_image[labels == identity]) <= 1


def test_who_gets_the_odd_turns_changes_from_epoch_to_epoch():
    labels = Unequal([40, 3, 2]).labels
    seen = np.zeros(len(labels), int)
    for epoch in range(300):
        seen += np.bincount(
            balanced_order(labels, np.random.default_rng((1, epoch))), minlength=len(labels)
        )
    shown = seen[labels == 0]  # each of the 40 in 15 of 40 epochs
    assert shown.min() > 300 * 15 / 40 * 0.6
    assert shown.max() < 300 * 15 / 40 * 1.4


def test_a_balanced_epoch_can_be_entered_anywhere_and_depends_on_seed_and_epoch_alone():
    data = Unequal([20, 2, 1, 1])
    loader = TrainingLoader(data, EpochSampler(data, 4, seed=1, balanced=True), (4, 4))
    epochs = [[b.labels.tolist() for b in loader.epoch(e)] for e in (0, 1, 0)]
    assert epochs[0] == epochs[2]
    assert epochs[0] != epochs[1]
    assert np.bincount(np.ravel(epochs[0])).tolist() == [6, 6, 6, 6]
    assert [b.labels.tolist() for b in loader.epoch(1, start=4)] == epochs[1][4:]
    orders = [np.concatenate(list(EpochSampler(data, 4, seed, True))) for seed in (1, 2, 1)]
    assert (orders[0] == orders[2]).all()
    assert (orders[0] != orders[1]).any()


def test_without_balance_the_order_is_the_sets_own():
    data = Unequal([20, 2, 1, 1])
    order = np.concatenate(list(EpochSampler(data, 4, 3)))
    assert order.tolist() == np.random.default_rng((3, 0)).permutation(24).tolist()


def write_tree(root, counts):
    for person, count in enumerate(counts):
        for photo in range(count):
            path = root / f"{person:02d}/{photo}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((16, 16, 3), 20 * person + photo, np.uint8))


@pytest.mark.parametrize("form", ["folder", "list", "zip", "shuffled list in zip"])
def test_small_identities_are_left_out_and_the_rest_numbered_anew(tmp_path, form):
    root = tmp_path / "tree"
    write_tree(root, [1, 3, 2, 4])
    names = [f"{p:02d}/{i}.png  {p}" for p, n in enumerate([1, 3, 2, 4]) for i in range(n)]
    if "shuffled" in form:
        np.random.default_rng(0).shuffle(names)
    path, file_list = root, None
    if "list" in form:
        file_list = tmp_path / "list.txt"
        file_list.write_text("\n".join(names) + "\n")
    if "zip" in form:
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for image in sorted(root.rglob("*.png")):
                archive.write(image, image.relative_to(root))
    data = open_training_set(path, file_list)
    rest = data.without_small(3)
    assert rest.num_classes == 2
    assert rest.left_out == (2, 3)
    old = {0: 1, 1: 3}
    seen = [(int(image[0, 0, 0]) // 20, label) for image, label in rest]
    assert len(seen) == 7
    assert all(person == old[label] for person, label in seen)
    assert rest.name(0) == data.name(next(i for i in range(10) if data.labels[i] in (1, 3)))
    assert sorted(rest.epoch_order(np.random.default_rng(0))) == list(range(7))
    assert data.without_small(1) is data
    with pytest.raises(DataError, match="no identity has 5 images; the largest has 4"):
        data.without_small(5)


@pytest.mark.parametrize("name", ["rec_ms1m_layout", "rec_plain"])
def test_small_identities_of_a_record_file_are_left_out(shared_data, name):
    data = open_training_set(shared_data / "formats" / name)
    counts = np.bincount(data.labels)
    least = int(np.median(counts)) + 1
    rest = data.without_small(least)
    assert rest.left_out == ((counts < least).sum(), counts[counts < least].sum())
    assert rest.num_classes == (counts >= least).sum()
    kept = np.flatnonzero(counts[data.labels] >= least)
    for index in (0, len(rest) // 2, len(rest) - 1):
        assert (rest[index][0] == data[kept[index]][0]).all()
