"""Sets of Hugging Face's `datasets`, as that package writes them where it is installed, and as
pyarrow writes the same tables."""

import importlib.util
import json
import sys

import numpy as np
import pytest

from Utils.Datasets_Utils import open_training_set, open_verification_set
from Utils.Datasets_Utils.convert_dataset import convert
from Utils.Datasets_Utils.formats.bin_set import read_bin
from Utils.Datasets_Utils.photos import image_files
from Utils.errors import DataError

pyarrow = pytest.importorskip("pyarrow", reason="make extras installs pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

DATASETS = importlib.util.find_spec("datasets")
IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


@pytest.fixture(scope="module")
def lfw(shared_data):
    """(the .bin file, its 2P encoded images, P flags)"""
    path = shared_data / "formats/lfw_small.bin"
    return path, *read_bin(path)


def table(columns, classes=None):
    """A table with image files in the form that `datasets` gives them, and its metadata."""
    arrays, features = {}, {}
    for name, values in columns.items():
        image = isinstance(values[0], bytes)
        if image:
            values = pyarrow.array([{"bytes": v, "path": None} for v in values], IMAGE)
        arrays[name] = values
        features[name] = {"_type": "Image"} if image else {"dtype": "int64", "_type": "Value"}
    for name, names in (classes or {}).items():
        features[name] = {"names": names, "_type": "ClassLabel"}
    made = pyarrow.table(arrays)
    about = {"info": {"features": features}}
    return made.replace_schema_metadata({"huggingface": json.dumps(about)})


def save(folder, made, files=1):
    """As save_to_disk writes a table: streams of batches of 100 rows, and state.json."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    rows = -(-len(made) // files)
    for number, name in enumerate(names):
        with pyarrow.ipc.new_stream(folder / name, made.schema) as writer:
            writer.write_table(made.slice(number * rows, rows), max_chunksize=100)
    state = {"_data_files": [{"filename": name} for name in names], "_format_type": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def save_parquet(folder, made, files=1, split="test"):
    """As push_to_hub writes a table."""
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("a card")
    rows = -(-len(made) // files)
    for number in range(files):
        name = folder / "data" / f"{split}-{number:05d}-of-{files:05d}.parquet"
        part = made.slice(number * rows, rows)
        parquet.write_table(part, name, compression="snappy", row_group_size=100)
    return folder


def cvlface(lfw, order=None):
    """The columns of CVLface's facerec_val sets."""
    _, encoded, same = lfw
    rows = np.arange(len(encoded)) if order is None else order
    return {
        "image": [encoded[row] for row in rows],
        "index": rows.tolist(),
        "is_same": [bool(same[row // 2]) for row in rows],
    }


def assert_is_lfw(found, lfw):
    expected = open_verification_set(lfw[0])
    for name in ("left", "right", "same", "folds"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.sizes == expected.sizes
    for row in range(len(expected.images)):
        assert bytes(found.images.encoded(row)) == bytes(expected.images.encoded(row))
    np.testing.assert_array_equal(found.images[7], expected.images[7])


@pytest.mark.parametrize("files", [1, 3])
def test_cvlfaces_sets_are_those_of_the_bin_file(lfw, tmp_path, files):
    assert_is_lfw(open_verification_set(save(tmp_path / "lfw", table(cvlface(lfw)), files)), lfw)
    shuffled = np.random.default_rng(0).permutation(2 * len(lfw[2]))
    data = save(tmp_path / "shuffled", table(cvlface(lfw, shuffled)), files)
    found = open_verification_set(data)
    expected = open_verification_set(lfw[0])
    np.testing.assert_array_equal(found.same, expected.same)
    for side in ("left", "right"):
        for at, image in zip(getattr(found, side), getattr(expected, side), strict=True):
            assert bytes(found.images.encoded(at)) == bytes(expected.images.encoded(image))


def test_parquet_is_rewritten_once(lfw, tmp_path, monkeypatch):
    data = save_parquet(tmp_path / "lfw", table(cvlface(lfw)), files=2)
    assert_is_lfw(open_verification_set(data), lfw)
    assert len(list((data / "data").glob(".test*.arrow"))) == 2
    monkeypatch.setattr(parquet, "ParquetFile", None)
    assert_is_lfw(open_verification_set(data), lfw)
    found = open_verification_set(data / "data/test")
    assert_is_lfw(found, lfw)
    files = [*image_files(found.images, data / "data/test")]  # which is no file itself
    assert [file.is_file() for file in files] == [True, True]


@pytest.mark.skipif(DATASETS is None, reason="the package datasets is not installed")
def test_what_the_package_itself_writes(lfw, tmp_path):
    import datasets

    columns = cvlface(lfw)
    columns["image"] = [{"bytes": image, "path": None} for image in columns["image"]]
    kinds = {"image": datasets.Image(), "index": datasets.Value("int64")}
    features = datasets.Features({**kinds, "is_same": datasets.Value("bool")})
    made = datasets.Dataset.from_dict(columns, features)
    made.save_to_disk(tmp_path / "lfw", num_shards=2)
    assert_is_lfw(open_verification_set(tmp_path / "lfw"), lfw)
    datasets.DatasetDict({"test": made}).save_to_disk(tmp_path / "dict")
    assert_is_lfw(open_verification_set(tmp_path / "dict"), lfw)
    (tmp_path / "hub/data").mkdir(parents=True)
    made.to_parquet(tmp_path / "hub/data/test-00000-of-00001.parquet")
    assert_is_lfw(open_verification_set(tmp_path / "hub"), lfw)


@pytest.mark.parametrize(
    ("name", "of", "classes"),
    [
        ("is_same", bool, None),
        ("label", int, None),
        ("same", lambda same: 1 if same else -1, None),
        ("different", lambda same: int(not same), None),
        ("label", int, ["different", "same"]),
        ("label", lambda same: int(not same), ["Same person", "Different person"]),
    ],
)
def test_two_columns_of_images_and_a_flag(lfw, tmp_path, name, of, classes):
    _, encoded, same = lfw
    columns = {"first": encoded[::2], "second": encoded[1::2], name: [of(s) for s in same.tolist()]}
    made = table(columns, {name: classes} if classes else None)
    assert_is_lfw(open_verification_set(save(tmp_path / "x", made)), lfw)


def test_a_column_of_folds_makes_the_folds(lfw, tmp_path):
    encoded, same = lfw[1:]
    folds = (np.arange(len(same)) // 2 % 3 + 1).tolist()
    columns = {"a": encoded[::2], "b": encoded[1::2], "same": same.tolist(), "fold": folds}
    found = open_verification_set(save(tmp_path / "x", table(columns)))
    np.testing.assert_array_equal(found.folds, np.array(folds) - 1)


@pytest.mark.parametrize("writer", [save, save_parquet])
def test_images_with_labels_are_a_training_set(shared_data, tmp_path, writer):
    source = open_training_set(shared_data / "formats/rec_ms1m_layout")
    encoded = [bytes(source.encoded(n)) for n in range(len(source))]
    columns = {"image": encoded, "label": source.labels.tolist()}
    data = open_training_set(writer(tmp_path / "faces", table(columns), files=2))
    np.testing.assert_array_equal(data.labels, source.labels)
    assert [bytes(data.encoded(n)) for n in range(len(data))] == encoded
    np.testing.assert_array_equal(data[5][0], source[5][0])
    convert(tmp_path / "faces", tmp_path / "x.rec")
    assert open_training_set(tmp_path / "x.rec").num_classes == source.num_classes


def test_names_for_a_list_or_a_pairs_file(lfw, tmp_path):
    _, encoded, same = lfw
    names = [f"id{n}/{n}.png" for n in range(len(encoded))]
    people = [f"person {n % 3}" for n in range(len(encoded))]
    made = table({"image": encoded, "file_name": names, "label": people})
    folder = save(tmp_path / "x", made)
    assert open_training_set(folder).labels.tolist()[:4] == [0, 1, 2, 0]
    flags = ["1" if flag else "-1" for flag in same]
    pairs = zip(names[::2], names[1::2], flags, strict=True)
    (tmp_path / "pairs.txt").write_text("".join(f"{' '.join(pair)}\n" for pair in pairs))
    found = open_verification_set(folder, tmp_path / "pairs.txt")
    np.testing.assert_array_equal(found.same, same)
    assert bytes(found.images.encoded(found.left[3])) == encoded[6]


def test_what_does_not_fit_is_said_in_words(lfw, tmp_path):
    encoded = lfw[1]
    few = [encoded[0], encoded[1], encoded[2], encoded[3]]
    for number, (columns, said) in enumerate(
        (
            ({"image": few, "is_same": [1, 1, 0, 1]}, "differs between images 2 and 3"),
            ({"image": few, "is_same": [1, 1, 2, 2]}, "has values such as"),
            ({"image": few[:3], "is_same": [1, 1, 0]}, "holds 3 images; expected two for each"),
            ({"image": few, "is_same": [1] * 4, "index": [0, 1, 2, 2]}, "is no numbering of its 4"),
            ({"a": few, "b": few, "c": few, "same": [1] * 4}, "3 columns of image files"),
            ({"text": [1, 2]}, r"no column of image files; its columns are text \(int64\)"),
        )
    ):
        with pytest.raises(DataError, match=said):
            open_verification_set(save(tmp_path / str(number), table(columns)))
    classes = {"label": ["cat", "dog"]}
    two = table({"a": few, "b": few, "label": [0, 1, 0, 1]}, classes)
    with pytest.raises(DataError, match=r"has the classes cat, dog; expected two"):
        open_verification_set(save(tmp_path / "cat", two))
    elsewhere = pyarrow.array([{"bytes": None, "path": "/home/me/1.png"}] * 2, IMAGE)
    made = pyarrow.table({"image": elsewhere, "is_same": [1, 1]})
    with pytest.raises(DataError, match="the image files are elsewhere"):
        open_verification_set(save(tmp_path / "elsewhere", made))
    with pytest.raises(DataError, match="holds its own pairs; leave out"):
        open_verification_set(save(tmp_path / "own", table(cvlface(lfw))), tmp_path / "pairs.txt")


def test_files_that_are_missing_or_several_splits_are_named(lfw, tmp_path):
    made = table(cvlface(lfw))
    folder = save(tmp_path / "lost", made, files=3)
    (folder / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(DataError, match=r"lacks data-00001-of-00003\.arrow, which its state.json"):
        open_verification_set(folder)
    folder = save_parquet(tmp_path / "parquet", made, files=3)
    (folder / "data/test-00002-of-00003.parquet").unlink()
    with pytest.raises(DataError, match="lacks 1 of its files, that of number 00002"):
        open_verification_set(folder)
    for name in ("test", "train"):
        save(tmp_path / "dict" / name, made)
    (tmp_path / "dict/dataset_dict.json").write_text('{"splits": ["test", "train"]}')
    with pytest.raises(
        DataError, match=r"has 2 splits; give one of them as the path: `.*dict/test"
    ):
        open_verification_set(tmp_path / "dict")
    for bad in ("../secret.arrow", "/etc/passwd", 3):
        state = {"_data_files": [{"filename": bad}]}
        (tmp_path / "dict/test/state.json").write_text(json.dumps(state))
        with pytest.raises(DataError, match=r"state\.json names"):
            open_verification_set(tmp_path / "dict/test")
    (tmp_path / "script").mkdir()
    (tmp_path / "script/script.py").write_text("raise SystemExit")
    with pytest.raises(DataError):
        open_training_set(tmp_path / "script")


def test_a_tree_of_images_with_a_table_about_them_stays_a_tree(lfw, tmp_path):
    for person in range(2):
        (tmp_path / f"tree/{person}").mkdir(parents=True)
        (tmp_path / f"tree/{person}/1.png").write_bytes(lfw[1][person])
    parquet.write_table(pyarrow.table({"age": [1, 2]}), tmp_path / "tree/meta.parquet")
    assert open_training_set(tmp_path / "tree").num_classes == 2


@pytest.mark.parametrize("writer", [save, save_parquet])
def test_a_truncated_file_is_never_a_shorter_set(lfw, tmp_path, writer):
    folder = writer(tmp_path / "x", table(cvlface(lfw)))
    (path,) = [p for p in folder.rglob("*") if p.suffix in (".arrow", ".parquet")]
    whole = path.read_bytes()
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 1000, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=rf"{path.name} can't be read: .*[Ff]etch it again"):
            open_verification_set(folder)


@pytest.mark.parametrize("writer", [save, save_parquet])
def test_damaged_bytes_never_end_the_process(tmp_path, writer):
    """An error of one paragraph, or a set that opens."""
    made = table({"image": [b"\xff\xd8" + bytes(n) for n in range(40)], "is_same": [1, 1] * 20})
    folder = writer(tmp_path / "x", made)
    (path,) = [p for p in folder.rglob("*") if p.suffix in (".arrow", ".parquet")]
    whole = path.read_bytes()
    rng, errors = np.random.default_rng(0), []
    for _ in range(50):
        content = bytearray(whole)
        at = int(rng.integers(len(whole)))
        content[at : at + 4] = rng.bytes(4)
        path.write_bytes(content)
        try:
            found = open_verification_set(folder)
            for row in range(len(found.images)):
                found.images.encoded(row)
        except DataError as error:
            errors.append(str(error))
    assert len(errors) > 10
    assert all(str(folder) in error and len(error) < 700 for error in errors)


def test_few_bytes_that_unpack_to_many_are_refused(tmp_path):
    path, packed = tmp_path / "a.arrow", pyarrow.ipc.IpcWriteOptions(compression="zstd")
    made = pyarrow.table({"image": [bytes(1 << 20)], "is_same": [1]})
    with pyarrow.ipc.new_stream(path, made.schema, options=packed) as writer:
        writer.write_table(made)
    content = path.read_bytes()
    at = content.rindex((1 << 20).to_bytes(8, "little"))  # the size of the image, unpacked
    path.write_bytes(content[:at] + (1 << 33).to_bytes(8, "little") + content[at + 8 :])
    with pytest.raises(DataError, match=r"a\.arrow can't be read: its .* too much memory"):
        open_verification_set(path)


def test_a_damaged_name_of_a_column_is_no_traceback(lfw, tmp_path):
    folder = save(tmp_path / "x", table(cvlface(lfw)))
    path = folder / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes().replace(b"is_same", b"is_\xff\xfe\x80e"))
    with pytest.raises(DataError, match="can't be read: it is damaged"):
        open_verification_set(folder)


def test_other_files_of_that_name_are_named(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"can't be read: it is a pointer of Git LFS"):
        open_training_set(tmp_path / "x.parquet")


def test_without_the_package_the_error_says_how_to_get_it(lfw, tmp_path, monkeypatch):
    folder = save(tmp_path / "x", table(cvlface(lfw)))
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    with pytest.raises(DataError, match=r"package pyarrow, .*`make extras` installs it"):
        open_verification_set(folder)
