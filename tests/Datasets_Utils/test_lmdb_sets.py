"""LMDB databases: those that the lmdb and msgpack packages write and read are what is compared."""

import pickle
import struct
import sys

import numpy as np
import pytest

from tests.conftest import assert_one_paragraph, run_script
from Utils.Datasets_Utils import convert_dataset as converter
from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.convert_dataset import convert
from Utils.Datasets_Utils.formats import storage, writers
from Utils.errors import DataError, RunError
from Utils.Training_Utils.data import EpochSampler, TrainingLoader

lmdb = pytest.importorskip("lmdb", reason="make extras installs lmdb")
msgpack = pytest.importorskip("msgpack")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def source(shared_data):
    return open_training_set(shared_data / "formats" / "rec_ms1m_layout")


def write(path, values, dumps=msgpack.packb, subdir=False):
    """A database as HSFace's converter writes it, of values by key, in transactions of 100."""
    database = lmdb.open(str(path), subdir=subdir, map_size=1 << 28)
    items = list(values.items())
    for start in range(0, len(items), 100):
        with database.begin(write=True) as transaction:
            for key, value in items[start : start + 100]:
                transaction.put(key, value)
    with database.begin(write=True) as transaction:
        if dumps:
            transaction.put(b"__keys__", dumps(list(values)))
            transaction.put(b"__len__", dumps(len(values)))
            transaction.put(b"__classnum__", dumps(60))
    database.close()
    return path


def pairs(source, dumps=msgpack.packb):
    numbers = range(len(source))
    return {
        str(n).encode(): dumps((bytes(source.encoded(n)), int(source.labels[n]))) for n in numbers
    }


def assert_holds(data, source):
    np.testing.assert_array_equal(data.labels, source.labels)
    assert [data.name(n) for n in range(len(data))] == [str(n) for n in range(len(source))]
    for number in range(len(source)):
        assert bytes(data.encoded(number)) == bytes(source.encoded(number))
    np.testing.assert_array_equal(data[5][0], source[5][0])


def pickled_by_3(value):
    return pickle.dumps(value, 3)


def packed_as_text(value):
    """As msgpack before 1.0 packs bytes."""
    return msgpack.packb(value, use_bin_type=False)


@pytest.mark.parametrize("dumps", [msgpack.packb, packed_as_text, pickle.dumps, pickled_by_3])
@pytest.mark.parametrize("subdir", [False, True])
def test_a_set_in_the_public_layout_opens(source, tmp_path, dumps, subdir):
    path = write(tmp_path / "hsface.lmdb", pairs(source, dumps), dumps, subdir)
    data = open_training_set(path)
    assert_holds(data, source)
    assert data.notes == ()
    assert_holds(open_training_set(path / "data.mdb" if subdir else tmp_path), source)


def test_the_stored_index_gives_the_same_set(source, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SECONDS_WORTH_KEEPING", 0)
    path = write(tmp_path / "x.lmdb", pairs(source))
    (tmp_path / "._x.lmdb").write_bytes(b"of another system")
    open_training_set(path)
    assert (tmp_path / "x.index.npz").exists()
    assert_holds(open_training_set(tmp_path), source)


def test_small_values_lie_in_the_leaves_themselves(source, tmp_path):
    """Keys and values of odd sizes, some of them large, some in their page."""
    rng = np.random.default_rng(0)
    images = [b"\xff\xd8" + rng.bytes(n) for n in (1, 2, 700, 1900, 2100, 4096, 9000) * 40]
    values = {f"{n:08d}".encode(): msgpack.packb([image, n]) for n, image in enumerate(images)}
    data = open_training_set(write(tmp_path / "x.lmdb", values))
    assert [bytes(data.encoded(n)) for n in range(len(data))] == images
    assert data.labels.tolist() == list(range(280))
    assert data.name(3) == "00000003"


def test_bytes_labels_and_names_come_back_from_shards(source, tmp_path):
    write(tmp_path / "a.lmdb", pairs(source))
    convert(tmp_path / "a.lmdb", tmp_path / "shards/%04d.tar", shard_size=100)
    convert(tmp_path / "shards", tmp_path / "b/b.lmdb")
    assert_holds(open_training_set(tmp_path / "b"), source)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["b.lmdb"]
    # The public reader's way.
    with lmdb.open(str(tmp_path / "b/b.lmdb"), subdir=False, readonly=True, lock=False) as database:
        transaction = database.begin()
        assert msgpack.loads(transaction.get(b"__len__")) == len(source)
        assert msgpack.loads(transaction.get(b"__classnum__")) == source.num_classes
        keys = msgpack.loads(transaction.get(b"__keys__"))
        assert len(keys) == len(source)
        for number, key in enumerate(keys):
            image, label = msgpack.loads(transaction.get(key))
            assert image == bytes(source.encoded(number))
            assert label == source.labels[number]


def test_only_writing_needs_the_package(source, tmp_path, monkeypatch):
    write(tmp_path / "x.lmdb", pairs(source))
    monkeypatch.setitem(sys.modules, "lmdb", None)  # as if it were not installed
    assert_holds(open_training_set(tmp_path / "x.lmdb"), source)
    monkeypatch.setattr(writers, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"needs the package lmdb.*python -m pip install lmdb"):
        convert(tmp_path / "x.lmdb", tmp_path / "y.lmdb")


def test_the_database_grows_beyond_its_first_map(tmp_path):
    """The package's default is a map of 10 MB."""
    for person in range(3):
        (tmp_path / f"faces/{person}").mkdir(parents=True)
        for photo in range(3):
            (tmp_path / f"faces/{person}/{photo}.jpg").write_bytes(b"\xff\xd8" + bytes(3 << 20))
    convert(tmp_path / "faces", tmp_path / "x.lmdb")
    data = open_training_set(tmp_path / "x.lmdb")
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(data.encoded(8)) == (3 << 20) + 2


def test_an_interrupted_conversion_is_resumed(shared_data, source, tmp_path, monkeypatch):
    opened = converter.open_training_set
    first = []

    def failing(*arguments):
        data = opened(*arguments)
        data.encoded = lambda n: interrupt() if n == 180 else source.encoded(n)
        return data

    def interrupt():
        raise KeyboardInterrupt

    def counting(*arguments):
        data = opened(*arguments)
        data.encoded = lambda n: first.append(n) or source.encoded(n)
        return data

    record = shared_data / "formats" / "rec_ms1m_layout"
    monkeypatch.setattr(converter, "open_training_set", failing)
    with pytest.raises(KeyboardInterrupt):
        convert(record, tmp_path / "x.lmdb")
    assert not (tmp_path / "x.lmdb").exists()
    monkeypatch.setattr(converter, "open_training_set", counting)
    convert(record, tmp_path / "x.lmdb")
    assert first[0] == 180
    assert_holds(open_training_set(tmp_path / "x.lmdb"), source)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_read_what_one_process_reads(source, tmp_path, workers):
    write(tmp_path / "x.lmdb", pairs(source))
    data = open_training_set(tmp_path / "x.lmdb")
    data[0]  # the file is mapped in this process when the workers are forked
    batches = list(EpochSampler(data, batch_size=100, seed=3))
    loader = TrainingLoader(data, EpochSampler(data, batch_size=100, seed=3), (112, 112), workers)
    for batch, indices in zip(loader.epoch(0), batches, strict=True):
        assert batch.labels.tolist() == [source.labels[index] for index in indices]
        np.testing.assert_array_equal(batch.images[7].numpy(), source[indices[7]][0])


def test_images_alone_take_their_labels_from_a_list(source, tmp_path):
    values = {f"id/{n}.jpg".encode(): bytes(source.encoded(n)) for n in range(20)}
    write(tmp_path / "x.mdb", values, dumps=None)
    with pytest.raises(DataError, match="20 of 20 values are images without a label"):
        open_training_set(tmp_path / "x.mdb")
    (tmp_path / "list.txt").write_text("".join(f"id/{n}.jpg {n % 2}\n" for n in range(20)))
    data = open_training_set(tmp_path / "x.mdb", tmp_path / "list.txt")
    assert data.labels.tolist() == [0, 1] * 10
    assert bytes(data.encoded(13)) == values[b"id/13.jpg"]


class Harmful:
    def __reduce__(self):
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    "value",
    [
        pickle.dumps((b"\xff\xd8", np.int64(3))),
        pickle.dumps((b"\xff\xd8", Harmful())),
        pickle.dumps((b"\xff\xd8", 3))[:-4],
        msgpack.packb([b"\xff\xd8", -1]),
        msgpack.packb([b"\xff\xd8", 2.0]),
        msgpack.packb([b"\xff\xd8", 1, 2]),
        msgpack.packb({"image": b"\xff\xd8"}),
        msgpack.packb([b"\xff\xd8" * 300, 1])[:-100],
        b"\x08\x03\x10\x70",  # of Caffe
        b"",
    ],
)
def test_other_values_are_refused_in_words(tmp_path, capsys, value):
    write(tmp_path / "x.lmdb", {b"0": msgpack.packb([b"\xff\xd8", 0]), b"1": value})
    with pytest.raises(DataError, match=r"the key b'1' begins with.*write the set again as pairs"):
        open_training_set(tmp_path / "x.lmdb")
    assert capsys.readouterr().out == ""


def test_a_conversion_that_did_not_end_is_named(source, tmp_path):
    write(tmp_path / "x.lmdb", pairs(source), dumps=None)
    assert "no __len__" in open_training_set(tmp_path / "x.lmdb").notes[0]
    database = lmdb.open(str(tmp_path / "x.lmdb"), subdir=False)
    with database, database.begin(write=True) as transaction:
        transaction.put(b"__len__", msgpack.packb(400))
    with pytest.raises(DataError, match="holds 347 images, but its __len__ says 400"):
        open_training_set(tmp_path / "x.lmdb")


def test_a_truncated_file_ends_in_one_paragraph(source, tmp_path):
    whole = write(tmp_path / "whole.lmdb", pairs(source)).read_bytes()
    path = tmp_path / "cut.lmdb"
    for size in (0, 10, 5000, 8192, len(whole) // 2, len(whole) - 20_000):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"cut short or damaged|no LMDB database"):
            open_training_set(path)
    run = run_script("-m", "Utils.Datasets_Utils.check_dataset", path)
    assert_one_paragraph(run, f"cut.lmdb ends at byte {len(whole) - 20_000}", "Fetch or convert")


def test_damaged_pages_never_end_the_process(source, tmp_path):
    """Bytes anywhere in the pages of the tree: an error of one paragraph, or a set that opens."""
    whole = write(tmp_path / "whole.lmdb", pairs(source)).read_bytes()
    pages = [(at, *struct.unpack_from("<Q2xH", whole, at)) for at in range(0, len(whole), 4096)]
    tree = [at for at, number, flags in pages if number == at // 4096 and flags in (1, 2, 8)]
    rng, errors = np.random.default_rng(0), []
    path = tmp_path / "damaged.lmdb"
    for _ in range(150):
        content = bytearray(whole)
        at = int(rng.choice(tree)) + int(rng.integers(0, 200))
        content[at : at + 4] = rng.bytes(4)
        path.write_bytes(content)
        try:
            data = open_training_set(path)
            for number in range(len(data)):
                data.encoded(number)
        except DataError as error:
            errors.append(str(error))
    assert len(errors) > 30  # half of these pages are older copies that nothing refers to
    assert all(str(path) in error and len(error) < 700 for error in errors)


def test_leaf_pages_that_changed_places_are_noticed(tmp_path):
    samples = {b"%04d" % i: msgpack.packb([b"\xff\xd8", i]) for i in range(400)}
    path = write(tmp_path / "x.lmdb", samples, dumps=None)
    whole = path.read_bytes()
    leaves = [at for at in range(8192, len(whole), 4096) if whole[at + 10] == 2]
    content = bytearray(whole)
    for here, there in ((leaves[0], leaves[1]), (leaves[1], leaves[0])):
        content[here + 8 : here + 4096] = whole[there + 8 : there + 4096]
    path.write_bytes(content)
    with pytest.raises(DataError, match="the keys are not in order"):
        open_training_set(path)


def test_other_files_of_that_name_are_named(tmp_path):
    (tmp_path / "x.lmdb").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"x\.lmdb is no LMDB database: it is a pointer of Git LFS"):
        open_training_set(tmp_path / "x.lmdb")
    write(tmp_path / "y.lmdb", {}, dumps=None)
    with pytest.raises(DataError, match="names no images"):
        open_training_set(tmp_path / "y.lmdb")
    with lmdb.open(str(tmp_path / "z"), max_dbs=2) as database:
        database.open_db(b"train")
    with pytest.raises(DataError, match="a database of its own"):
        open_training_set(tmp_path / "z")


def test_entries_that_the_tree_lost_are_noticed(tmp_path):
    """The meta page says how many there are."""
    path = write(tmp_path / "x.lmdb", {b"0": msgpack.packb([b"\xff\xd8", 0])}, dumps=None)
    content = bytearray(path.read_bytes())
    entries = 16 + 24 + 48 + 32  # of the main tree, in either meta page
    content[4096 + entries] += 1
    content[entries] += 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="has 1 of its 2 entries"):
        open_training_set(path)


def test_a_meta_page_that_lost_its_tree_is_not_taken_for_an_empty_set(tmp_path):
    path = write(tmp_path / "x.lmdb", {b"0": msgpack.packb([b"\xff\xd8", 0])})
    content = bytearray(path.read_bytes())
    for meta in (0, 4096):  # depth and entries of the main tree, as in a new database
        struct.pack_into("<H", content, meta + 16 + 24 + 48 + 6, 0)
        struct.pack_into("<Q", content, meta + 16 + 24 + 48 + 32, 0)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bytes, but no images: .* is damaged, or"):
        open_training_set(path)


def test_a_set_of_another_byte_order_is_refused(source, tmp_path):
    content = bytearray(write(tmp_path / "x.lmdb", pairs(source)).read_bytes())
    content[16:20] = struct.pack(">I", 0xBEEFC0DE)
    (tmp_path / "x.lmdb").write_bytes(content)
    with pytest.raises(DataError, match="as 64-bit machines write"):
        open_training_set(tmp_path / "x.lmdb")
