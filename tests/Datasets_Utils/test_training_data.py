"""Image lists, class folders and the list maker; batches in an order that can be repeated."""

import os
import zipfile

import cv2
import numpy as np
import pytest
import torch

from tests.conftest import assert_one_paragraph, run_script
from Utils.Datasets_Utils import formats, open_training_set, open_verification_set
from Utils.Datasets_Utils.demo.sets import ensure_demo_sets
from Utils.Datasets_Utils.formats.storage import PathTable
from Utils.Datasets_Utils.generate_dataset_list import write_list
from Utils.Datasets_Utils.images import fit_image
from Utils.Datasets_Utils.pairs import PairsError, read_pairs
from Utils.Datasets_Utils.photos import open_folder
from Utils.Datasets_Utils.training_set import ImageStore, Labelled
from Utils.errors import DataError, RunError
from Utils.Training_Utils.data import EpochSampler, TrainingLoader

LIST_MAKER = "Utils.Datasets_Utils.generate_dataset_list"


@pytest.fixture
def tree(tmp_path):
    """Three people with 2, 1 and 3 photos, an empty folder, and files that are no photos."""
    root = tmp_path / "faces"
    for name, photos in (("b", 2), ("a person", 1), ("c", 3)):
        (root / name).mkdir(parents=True)
        for photo in range(photos):
            cv2.imwrite(str(root / name / f"{photo}.jpg"), np.full((8, 8, 3), 40 * photo, np.uint8))
    (root / "empty").mkdir()
    (root / "c" / "notes.txt").write_text("no image")
    (root / "stray.jpg").write_bytes(b"in no class")
    return root


def test_the_list_maker_sorts_numbers_and_reports(tree, tmp_path):
    out = tmp_path / "list.txt"
    run = run_script("-m", LIST_MAKER, tree, out, check=True)
    assert out.read_text().splitlines() == [
        "a person/0.jpg  0",
        "b/0.jpg  1",
        "b/1.jpg  1",
        "c/0.jpg  2",
        "c/1.jpg  2",
        "c/2.jpg  2",
    ]
    assert "6 images, 3 identities" in run.stdout
    assert "1 folders without images: empty" in run.stdout
    assert "1 files that are no images: .txt (1)" in run.stdout
    assert (
        "1 images that are in no person's folder (expected <person>/<image>): stray" in run.stdout
    )


def test_identities_with_few_images_can_be_left_out(tree, tmp_path):
    report = write_list(tree, tmp_path / "list.txt", min_images=2)
    assert "5 images, 2 identities" in report
    dataset = open_training_set(tree, tmp_path / "list.txt")
    assert dataset.num_classes == 2
    assert [dataset[i][1] for i in range(5)] == [0, 0, 1, 1, 1]


def test_a_list_and_its_tree_are_the_same_set(tree, tmp_path):
    write_list(tree, tmp_path / "list.txt")
    listed, folders = open_training_set(tree, tmp_path / "list.txt"), open_training_set(tree)
    assert len(listed) == len(folders) == 6
    assert listed.num_classes == folders.num_classes == 3
    for (a, label_a), (b, label_b) in zip(listed, folders, strict=True):
        assert a.dtype == np.uint8
        assert a.shape == (8, 8, 3)
        assert label_a == label_b
        np.testing.assert_array_equal(a, b)


def test_real_photos_are_read_as_rgb_and_counted(shared_data, tmp_path):
    images = shared_data / "lfw_half" / "images"
    report = write_list(images, tmp_path / "list.txt")
    assert "3381 images, 1839 identities" in report
    dataset = open_training_set(images, tmp_path / "list.txt")
    bgr = cv2.imread(str(images / dataset.name(100)))
    np.testing.assert_array_equal(dataset[100][0], bgr[..., ::-1])


def test_absolute_paths_blanks_and_single_spaces_are_read(tree, tmp_path):
    file_list = tmp_path / "list.txt"
    file_list.write_text(f"{tree}/a person/0.jpg 0\n\nb/0.jpg\t1\n")
    dataset = open_training_set(tree, file_list)
    assert len(dataset) == 2
    assert dataset[1][0].shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "names no images"),
        ("b/0.jpg  0\nb/9.jpg  0\nd/0.jpg  1\n", "2 of 3 files are missing"),
        ("b/0.jpg  0\nb/1.jpg  -1\n", "line 2"),
        ("b/0.jpg  0\nb/1.jpg\n", "line 2"),
        ("b/0.jpg  0\nb/1.jpg  one\n", "line 2"),
        ("b/0.jpg  0\nb/1.jpg  9223372036854775807\n", "line 2.*at most 18 digits"),
        ("b/0.jpg  0\nb/1.jpg  99999999999999999999\n", "line 2.*at most 18 digits"),
        pytest.param(f"b/0.jpg  0\nb/1.jpg  {'9' * 5000}\n", "line 2.*18 digits", id="5000 digits"),
    ],
)
def test_a_bad_list_is_named_with_what_is_wrong(tree, tmp_path, content, said):
    file_list = tmp_path / "list.txt"
    file_list.write_text(content)
    with pytest.raises(DataError, match=said) as error:
        open_training_set(tree, file_list)
    assert str(file_list) in str(error.value)


@pytest.mark.parametrize("label", ["99999999999999999999", "1e300", "0.5", "-1"])
def test_a_label_too_large_for_an_lst_is_named(tmp_path, label):
    (tmp_path / "train.lst").write_text(f"0\t1\ta.jpg\n1\t{label}\tb.jpg\n")
    with pytest.raises(DataError, match=r"train\.lst, line 2"):
        write_list(tmp_path / "train.lst", tmp_path / "list.txt")


def test_a_byte_order_mark_and_leading_blanks_are_no_part_of_a_path(tree, tmp_path):
    text = "\ufeffb/0.jpg  0\r\n \tc/0.jpg  1\r\n  a person/0.jpg 2\r\n"
    (tmp_path / "list.txt").write_text(text, encoding="utf-8", newline="")
    wanted = ["b/0.jpg", "c/0.jpg", "a person/0.jpg"]
    dataset = open_training_set(tree, tmp_path / "list.txt")
    assert [dataset.name(i) for i in range(3)] == wanted
    with zipfile.ZipFile(tmp_path / "tree.zip", "w") as archive:
        for name in wanted:
            archive.write(tree / name, name)
        archive.write(tmp_path / "list.txt", "list.txt")
    dataset = open_training_set(tmp_path / "tree.zip", "list.txt")
    assert [dataset.name(i) for i in range(3)] == wanted


@pytest.mark.parametrize("order", [1, -1], ids=["sorted", "any order"])
def test_folders_and_links_to_nowhere_are_no_files(tree, tmp_path, order):
    (tree / "b" / "folder.jpg").mkdir()
    (tree / "b" / "broken.jpg").symlink_to("gone.jpg")
    (tree / "b" / "itself.jpg").symlink_to("itself.jpg")
    (tree / "b" / "link.jpg").symlink_to("0.jpg")
    names = ["b/0.jpg", "b/broken.jpg", "b/folder.jpg", "b/itself.jpg", "b/link.jpg"]
    # Where the lines of a folder are apart, its later files are looked for one by one.
    names = names if order == 1 else ["b/0.jpg", "c/0.jpg", *names[1:]]
    (tmp_path / "list.txt").write_text("".join(f"{name}  0\n" for name in names))
    said = rf"3 of {len(names)} files are missing.*: b/broken\.jpg, b/folder\.jpg, b/itself\.jpg;"
    with pytest.raises(DataError, match=said):
        open_training_set(tree, tmp_path / "list.txt")


def test_a_missing_file_is_found_in_a_list_of_any_order(tree, tmp_path):
    file_list = tmp_path / "list.txt"
    file_list.write_text("b/0.jpg  0\nc/0.jpg  1\nb/1.jpg  0\nc/1.jpg  1\nb/7.jpg  0\n")
    with pytest.raises(DataError, match=r"1 of 5 files are missing.*b/7\.jpg"):
        open_training_set(tree, file_list)


def test_folders_that_cannot_be_a_data_set(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="names no images"):
        open_training_set(tmp_path / "empty")
    with pytest.raises(DataError, match="does not exist"):
        open_training_set(tmp_path / "absent")
    run = run_script("-m", LIST_MAKER, tmp_path / "empty", tmp_path / "list.txt")
    assert_one_paragraph(run, "nothing to list")


def test_path_table_holds_any_file_name():
    names = ["a/b.jpg", "", "ü/雪.png", os.fsdecode(b"caf\xe9.jpg")]
    table = PathTable(names)
    assert list(table) == names
    assert table[-1] == names[-1]
    with pytest.raises(IndexError):
        table[4]


def test_images_are_cut_or_scaled_to_the_networks_size():
    image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    assert fit_image(image, (112, 112)) is image
    np.testing.assert_array_equal(fit_image(image, (112, 96)), image[:, 8:104])
    halves = fit_image(np.repeat(np.repeat(image, 2, 0), 2, 1), (112, 112))
    np.testing.assert_array_equal(halves, image)
    assert fit_image(image[:40, :30], (112, 112)).shape == (112, 112, 3)


def numbered_set(count):
    return [(np.full((4, 4, 3), i, np.uint8), i) for i in range(count)]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_one_permutation_and_can_be_entered_anywhere(workers):
    data = numbered_set(23)
    loader = TrainingLoader(data, EpochSampler(data, 4, seed=1), (4, 4), num_workers=workers)
    epochs = [[b.labels.tolist() for b in loader.epoch(e)] for e in (0, 1, 0)]
    assert loader.batches_per_epoch == 5  # the 3 left over are not a full batch
    assert epochs[0] == epochs[2]
    assert epochs[0] != epochs[1]
    assert len({label for batch in epochs[0] for label in batch}) == 20
    assert [b.labels.tolist() for b in loader.epoch(1, start=3)] == epochs[1][3:]
    batch = next(loader.epoch(0))
    assert (batch.images[:, 0, 0, 0] == batch.labels).all()


def test_reading_does_not_move_the_global_random_state():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    data = numbered_set(8)
    list(TrainingLoader(data, EpochSampler(data, 4, seed=1), (4, 4)).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


class ArrayImages(ImageStore):
    """A new format, as a contributor would write it: one .npy of N×H×W×3 pixels."""

    def __init__(self, source):
        self.source, self.pixels = source, np.load(source, mmap_mode="r")

    def __len__(self):
        return len(self.pixels)

    def encoded(self, row):
        return cv2.imencode(".png", self.pixels[row][..., ::-1])[1]

    def name(self, row):
        return str(row)


def test_a_new_format_is_one_row_of_the_table(tmp_path, monkeypatch):
    def find(path):
        images = ArrayImages(path)
        return Labelled(images, np.arange(len(images)) // 2)

    row = formats.Format("an .npy of pixels", lambda path: path.suffix == ".npy", find)
    monkeypatch.setattr(formats, "FORMATS", (row, *formats.FORMATS))
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    dataset = open_training_set(tmp_path / "x.npy")
    assert dataset.num_classes == 3
    np.testing.assert_array_equal(np.stack([image for image, _ in dataset]), pixels)
    (tmp_path / "list.txt").write_text("4  0\n1  1\n")
    np.testing.assert_array_equal(
        open_training_set(tmp_path / "x.npy", tmp_path / "list.txt")[0][0], pixels[4]
    )
    (tmp_path / "pairs.txt").write_text("0 1 1\n" * 10)
    pairs = open_verification_set(tmp_path / "x.npy")
    np.testing.assert_array_equal(pairs.images[1], pixels[1])
    with pytest.raises(DataError, match=r"Expected one of: an \.npy of pixels"):
        open_training_set(tmp_path / "nowhere")


def test_paths_that_cannot_be_read_or_written_are_named(tree, tmp_path):
    with pytest.raises(DataError, match=r"image list .*empty can't be read: Is a directory"):
        open_training_set(tree, tree / "empty")
    with pytest.raises(PairsError, match=r"pairs file .*gone\.txt can't be read: No such file"):
        read_pairs(tmp_path / "gone.txt")
    with pytest.raises(DataError, match=r"folder of photos .*gone can't be read: No such file"):
        open_folder(tmp_path / "gone", with_ids=False)
    with pytest.raises(RunError, match=r"folder .*stray\.jpg can't be made"):
        write_list(tree, tree / "stray.jpg/list.txt")
    with pytest.raises(RunError, match=r"stray\.jpg holds files other than demo faces"):
        ensure_demo_sets(tree / "stray.jpg")
    with pytest.raises(RunError, match=r"demo can't be written"):
        ensure_demo_sets(tree / "stray.jpg/demo")
