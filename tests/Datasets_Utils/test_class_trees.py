"""Whose the images of a tree are: on disk, in a zip, in a tar; what never counts; what is said."""

import io
import tarfile
import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image

from Config import Config
from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.formats.shards import open_shards
from Utils.Datasets_Utils.generate_dataset_list import write_list
from Utils.Datasets_Utils.images import IMAGE_SUFFIXES, inspect_image
from Utils.Datasets_Utils.photos import open_folder
from Utils.errors import DataError
from Utils.Training_Utils.data import describe_training_data, open_training_data

PHOTO = cv2.imencode(".png", np.full((8, 8, 3), 90, np.uint8))[1].tobytes()
PEOPLE = ["a/0.png", "a/1.png", "b/0.png", "c/0.png"]


@pytest.fixture(params=["folder", "zip", "tar"])
def make(request, tmp_path):
    """Writes a tree as a folder, a zip or a tar; an item is a name, or (name, bytes)."""

    def write(*items):
        files = dict((item, PHOTO) if isinstance(item, str) else item for item in items)
        path = tmp_path / f"faces.{request.param}"
        if request.param == "folder":
            for name, content in files.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(content)
        elif request.param == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
        else:
            with tarfile.open(path, "w") as archive:
                for name, content in files.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        return path

    return write


def read(path, identity_folder="top"):
    """({name: label}, notes) of a training set."""
    data = open_training_set(path, identity_folder=identity_folder)
    names = [data.name(i) for i in range(len(data))]
    return dict(zip(names, data.labels.tolist(), strict=True)), data.notes


LITTER = {
    "a Mac's zip": [f"__MACOSX/{name.replace('/', '/._')}" for name in PEOPLE],
    "a Mac's disk": [*(name.replace("/", "/._") for name in PEOPLE), ".DS_Store"],
    "Jupyter": [".ipynb_checkpoints/0-checkpoint.png", "b/.ipynb_checkpoints/0-checkpoint.png"],
    "Synology": [f"a/@eaDir/{k}.png/SYNOPHOTO_THUMB_M.png" for k in range(2)],
    "a desktop": ["c/.thumbnails/0.png", "a/Thumbs.db", "Desktop.ini", "$RECYCLE.BIN/x.png"],
}


@pytest.mark.parametrize("kind", LITTER)
def test_what_systems_leave_behind_never_counts(make, kind):
    found, notes = read(make(*PEOPLE, *LITTER[kind]))
    assert found == {"a/0.png": 0, "a/1.png": 0, "b/0.png": 1, "c/0.png": 2}
    assert len(notes) == 1
    assert "hidden or system" in notes[0]


def test_litter_around_the_folder_of_everything_is_left_out_too(make):
    inner = [f"lfw/{name}" for name in PEOPLE]
    twins = [f"__MACOSX/lfw/{name.replace('/', '/._')}" for name in PEOPLE]
    found, notes = read(make(*inner, *twins))
    assert found == {"lfw/a/0.png": 0, "lfw/a/1.png": 0, "lfw/b/0.png": 1, "lfw/c/0.png": 2}
    assert notes == (
        "the people's folders are those in lfw/",
        "left out: 1 hidden or system files or folders: __MACOSX",
    )


def test_an_image_beside_the_peoples_folders_is_nobodys(make):
    found, notes = read(make("lfw/sheet.png", *(f"lfw/{name}" for name in PEOPLE)))
    assert list(found) == [f"lfw/{name}" for name in PEOPLE]
    assert "the people's folders are those in lfw/" in notes
    assert "no person's folder (expected <person>/<image>): lfw/sheet.png" in notes[1]


@pytest.mark.parametrize("name", ["_a/_0.png", "@eaDirk/0.png", "MACOSX/0.png", "#1/0.png"])
def test_names_that_only_look_like_litter_count(make, name):
    found, notes = read(make(*PEOPLE, name))
    assert name in found
    assert len(set(found.values())) == 4
    assert notes == ()


def test_every_suffix_counts_in_any_case_and_is_an_image_to_both_decoders(tmp_path):
    """Pillow writes each, OpenCV reads it, and check_dataset's second decoder finds it whole."""
    Image.init()
    for number, suffix in enumerate(IMAGE_SUFFIXES):
        name = tmp_path / f"{number % 2}/x{suffix if number % 3 else suffix.upper()}"
        name.parent.mkdir(exist_ok=True)
        image = Image.new({".pgm": "L", ".pbm": "1"}.get(suffix, "RGB"), (8, 8), "white")
        image.save(name, "JPEG" if suffix == ".jpe" else Image.EXTENSION[suffix])
    data = open_training_set(tmp_path)
    assert len(data) == len(IMAGE_SUFFIXES)
    for index in range(len(data)):
        pixels, _ = inspect_image(data.encoded(index), data.name(index))
        assert pixels.shape == (8, 8, 3)
        assert pixels.min() > 250


def test_files_that_are_left_out_are_counted_by_kind(make, tmp_path):
    path = make(
        *PEOPLE, ("a/x.heic", b"1"), ("a/y.HEIC", b"2"), ("list.txt", b"3"), ("b/raw", b"4")
    )
    note = "left out: 4 files that are no images: .heic (2), .txt (1), without a suffix (1)"
    assert note in write_list(path, tmp_path / "list.txt")
    own = {"train_dataset": "Mine", "train_dataset_path": str(path), "input_size": (8, 8)}
    config = Config(**own, batch_size=2)
    lines = describe_training_data(config, open_training_data(config))
    assert lines == ["Mine: 4 images, 3 identities", f"Mine: {note}"]


VIDEOS = [f"{person}/{video}/{frame}.png" for person in "ab" for video in "01" for frame in "xy"]
MIXED = ["a/0.png", "a/more/1.png", "b/0.png", "b/more/1.png"]


@pytest.mark.parametrize(
    ("files", "deepest"), [(VIDEOS, [0, 0, 1, 1, 2, 2, 3, 3]), (MIXED, [0, 1, 2, 3])]
)
def test_the_folder_under_the_root_is_the_person(make, files, deepest):
    path = make(*files)
    found, notes = read(path)
    assert found == {name: int(name[0] == "b") for name in files}
    assert len(notes) == 1
    assert "Taken: 2 identities" in notes[0]
    assert "With identity_folder deepest: 4 identities" in notes[0]
    found, notes = read(path, "deepest")
    assert list(found.values()) == deepest
    assert "Taken: 4 identities" in notes[0]


def test_what_a_folder_of_probes_leaves_out_is_said(tmp_path):
    for name in ("set/a/0.png", "set/a/1.png", "set/b/0.png", "__MACOSX/set/a/._0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PHOTO)
    listed = open_folder(tmp_path, with_ids=True).listed
    assert (len(listed.names), len(set(listed.ids))) == (3, 2)
    assert listed.note.endswith("; left out: 1 hidden or system files or folders: __MACOSX")
    (tmp_path / "set/stray.png").write_bytes(PHOTO)
    with pytest.raises(DataError, match=r"set/stray\.png is in no person's folder"):
        open_folder(tmp_path, with_ids=True)


def test_probes_of_a_folder_belong_to_the_person_at_the_top(tmp_path):
    for name in VIDEOS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PHOTO)
    listed = open_folder(tmp_path, with_ids=True).listed
    assert listed.ids == ["a"] * 4 + ["b"] * 4
    assert "With identity_folder deepest: 4 identities" in listed.note
    listed = open_folder(tmp_path, with_ids=True, identity_folder="deepest").listed
    assert listed.ids == [name[:3] for name in VIDEOS]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (["0.png", "1.png"], r"names no images; left out: 2 images that are in no person's folder"),
        (["img_align_celeba/0.png", "img_align_celeba/1.png"], r"images of one identity"),
        (["a/0.png", "a/more/1.png"], r"one identity.*identity_folder deepest: 2 identities"),
    ],
)
def test_photos_without_peoples_folders_are_refused(make, files, problem):
    path = make(*files, ("notes.txt", b""))
    with pytest.raises(DataError, match=problem) as error:
        open_training_data(Config(train_dataset="Mine", train_dataset_path=str(path), batch_size=2))
    assert "<person>/<image>" in str(error.value)


def test_the_list_of_one_identity_says_that_it_cannot_be_trained_on(make, tmp_path):
    report = write_list(make("img_align_celeba/0.png", "img_align_celeba/1.png"), tmp_path / "x")
    assert "warning: one identity can't be trained on; expected a folder for each" in report


def test_a_list_or_min_images_that_leave_one_identity_are_refused(tmp_path):
    for name in PEOPLE:
        (tmp_path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / name).write_bytes(PHOTO)
    (tmp_path / "list.txt").write_text("a/0.png  0\nb/0.png  0\n")
    base = {"train_dataset": "Mine", "train_dataset_path": str(tmp_path / "faces"), "batch_size": 2}
    for more in ({"train_file_list": str(tmp_path / "list.txt")}, {"min_images": 2}):
        with pytest.raises(DataError, match="images of one identity"):
            open_training_data(Config(**base, **more))
    assert open_training_data(Config(**base)).num_classes == 3


def test_litter_in_a_shard_is_no_sample(tmp_path):
    files = {"0.png": PHOTO, "0.cls": b"0", "._0.png": b"x", "@eaDir/0.png/THUMB.png": PHOTO}
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert len(open_shards(tmp_path).images) == 1


@pytest.mark.parametrize(("link", "target"), [("c/all", ".."), ("c/self", "."), ("d/out", "../..")])
def test_links_in_a_circle_give_no_image_twice(tmp_path, link, target):
    for name in PEOPLE:
        (tmp_path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / name).write_bytes(PHOTO)
    (tmp_path / "faces" / link).parent.mkdir(exist_ok=True)
    (tmp_path / "faces" / link).symlink_to(target)
    assert list(read(tmp_path / "faces")[0]) == PEOPLE
    assert open_folder(tmp_path / "faces", with_ids=True).listed.names == PEOPLE


def test_links_to_folders_elsewhere_are_followed(tmp_path):
    for name in ("faces/a/0.png", "faces/c/0.png", "elsewhere/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PHOTO)
    for name in ("b", "b2"):
        (tmp_path / "faces" / name).symlink_to(tmp_path / "elsewhere")
    assert list(read(tmp_path / "faces")[0]) == ["a/0.png", "b/0.png", "b2/0.png", "c/0.png"]
