"""The readers of images, data sets and lists."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np

from tests.soak import messages
from tests.soak import structures as change
from tests.soak.readers.table import (
    Subject,
    all_of,
    faces,
    image,
    reader,
    tar_of,
    write_files,
)
from Utils.Datasets_Utils.alignment.photograph import open_photograph
from Utils.Datasets_Utils.alignment.sources import open_photographs
from Utils.Datasets_Utils.formats import open_training_set, open_verification_set
from Utils.Datasets_Utils.formats.bin_set import open_bin
from Utils.Datasets_Utils.formats.lmdb_set import values
from Utils.Datasets_Utils.formats.writers import LmdbWriter, RecordWriter, ShardWriter
from Utils.Datasets_Utils.images import image_size, inspect_image
from Utils.errors import UserError

SUFFIXES = (".png", ".jpg", ".bmp", ".tif", ".webp", ".ppm", ".sr", ".gif", ".hdr", ".pfm", ".avif")


@reader("images", change.png)
def _images(box: Path) -> Subject:
    path = box / "a"

    def read() -> None:
        content = path.read_bytes()
        image_size(content)
        inspect_image(content, "a")

    seeds = [*map(image, SUFFIXES), image(".jp2", side=32), image(".pgm")]
    text = [b"P5 2 1 9 ab", b"P3 2 1 255 1 2 3 4 5 6", b"P1 2 2 0 1 1 0", b"P2 2 1 15 1 9"]
    return Subject([*seeds, *text], path, read)


@reader("photographs with EXIF", change.png)
def _photographs(box: Path) -> Subject:
    from PIL import Image

    path, seeds = box / "a", []
    for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        exif, out = Image.Exif(), io.BytesIO()
        exif[0x0112] = 6
        Image.fromarray(np.zeros((8, 12, 4 if kind == "TIFF" else 3), np.uint8)).save(
            out, kind, exif=exif, progressive=True
        )
        seeds.append(out.getvalue())
    return Subject(seeds, path, lambda: open_photograph(path.read_bytes(), "a"))


def _bin_seeds() -> list[bytes]:
    encoded, same = [image(seed=n) for n in range(4)], [True, False]
    arrays = [np.frombuffer(content, np.uint8) for content in encoded]
    return [
        *(pickle.dumps((encoded, same), protocol) for protocol in range(6)),
        *(pickle.dumps((arrays, np.array(same)), protocol) for protocol in range(2, 6)),
        pickle.dumps((_objects(arrays), np.array([1, -1])), 2),
        pickle.dumps({"images": encoded, "same": ["1", "0"]}, 4),
    ]


def _objects(values: list) -> np.ndarray:
    made = np.empty(len(values), object)
    made[:] = values
    return made


@reader(".bin sets", change.pickled)
def _bin(box: Path) -> Subject:
    path = box / "a.bin"
    return Subject(_bin_seeds(), path, lambda: all_of(open_bin(path).images))


def _training(path: Path, **named: object) -> None:
    data = open_training_set(path, **named)
    all_of([data.encoded(0)]) if len(data) == 1 else all_of(data)


@reader("record files", messages.records)
def _records(box: Path) -> Subject:
    write_records(box)
    seed = (box / "train.rec").read_bytes()
    (box / "train.idx").unlink()
    return Subject([seed], box / "train.rec", lambda: _training(box / "train.rec"))


@reader("indexes of record files", messages.lines)
def _index(box: Path) -> Subject:
    write_records(box)
    seed = (box / "train.idx").read_bytes()
    return Subject([seed], box / "train.idx", lambda: _training(box / "train.rec"))


def write_records(box: Path) -> None:
    writer = RecordWriter(box / "train.rec", np.array([0, 0, 1, 1]))
    for number in range(4):
        writer.write(number, image(seed=number) + struct.pack("<I", 0xCED7230A) * (number == 3))
    writer.finish(["a", "b", "c", "d"])


@reader("zips", change.zip_file)
def _zips(box: Path) -> Subject:
    seeds = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as archive:
            for name, content in faces().items():
                archive.writestr(name, content)
            archive.writestr("ünï/1.png", image())
            archive.writestr("pairs.txt", "1\t1\nAnn\t1\t2\nAnn\t1\tBo\t2\n")
        seeds.append(out.getvalue())
    path = box / "a.zip"
    return Subject(seeds, path, lambda: _archive(path))


def _archive(path: Path) -> None:
    for read in (_training, open_verification_set, open_photographs):
        try:
            read(path)
        except UserError:
            continue


@reader("tars", change.tar)
def _tars(box: Path) -> Subject:
    path = box / "a.tar"
    longer = {"n" * 150 + "/1.png": image(), **faces()}
    return Subject([tar_of(longer, form=form) for form in range(3)], path, lambda: _archive(path))


@reader("compressed tars", change.packed)
def _compressed(box: Path) -> Subject:
    path = box / "a.tgz"
    return Subject(
        [tar_of(faces(), f"w:{kind}") for kind in ("gz", "xz", "bz2")],
        path,
        lambda: _archive(path),
    )


def write_shards(folder: Path, labels: list[int]) -> list[Path]:
    """Write an image of each label into shards in a new folder, and return these."""
    folder.mkdir()
    writer = ShardWriter(folder / "%06d.tar", np.array(labels))
    for number in range(len(labels)):
        writer.write(number, image(seed=number))
    writer.close()
    return sorted(folder.glob("*.tar"))


@reader("tar shards", change.tar)
def _shards(box: Path) -> Subject:
    (shard,) = write_shards(box / "made", [0, 1, 2])
    seed = shard.read_bytes()
    path = write_files(box / "set", {"1.tar": seed}) / "1.tar"
    return Subject([seed], path, lambda: _training(path.parent))


@reader("LMDB databases", needs="lmdb")
def _lmdb(box: Path) -> Subject:
    writer = LmdbWriter(box / "a.lmdb", np.array([0, 1, 1]))
    for number in range(3):
        writer.write(number, image(seed=number, side=12 + 30 * (number == 2)))
    writer.finish(["a", "b", "c"])
    path = box / "a.lmdb"
    return Subject([path.read_bytes()], path, lambda: _training(path))


@reader("values of LMDB databases", change.pickled)
def _values(box: Path) -> Subject:
    path, content = box / "a", image()
    seeds = [values.pack_sample(content, 3)]
    seeds += [pickle.dumps((content, 3), protocol) for protocol in range(6)]

    def read() -> None:
        found = values.read_sample(memoryview(path.read_bytes()))
        values.read_number(memoryview(path.read_bytes()))
        assert found is None or found[0] >= 0

    return Subject(seeds, path, read)


def make_blp(box: Path, name: str) -> Subject:
    import blosc2

    pixels = np.random.default_rng(0).uniform(-1, 1, (4, 3, 4, 4)).round(1)
    packed = blosc2.compress(pixels.tobytes(), typesize=8)
    frame = b"blpk" + bytes([1, 0, 0, 8]) + struct.pack("<iq", -1, 1)[:8]
    write_files(
        box,
        {
            "lfw/meta/sizes": b'{"shape": [4, 3, 4, 4], "nbytes": 1536, "cbytes": 9}',
            "lfw/meta/storage": b'{"dtype": "float64", "chunklen": 8, "expectedlen": 4}',
            "lfw/data/__0.blp": frame.ljust(16, b"\0")[:16] + packed,
        },
    )
    np.save(box / "lfw_list.npy", np.array([True, False]))

    def read() -> None:
        if name.endswith(".blp"):  # whose size its own header says
            content = path.read_bytes()
            size = struct.pack("<I", max(len(content) - 16, 0))
            path.write_bytes(content[:28] + size + content[32:])
        all_of(open_verification_set(box / "lfw").images)

    path = box / name
    return Subject([path.read_bytes()], path, read)


@reader("chunks of .blp sets", needs="blosc2")
def _chunk(box: Path) -> Subject:
    return make_blp(box, "lfw/data/__0.blp")


@reader("metadata of .blp sets", messages.json_text, needs="blosc2")
def _meta(box: Path) -> Subject:
    return make_blp(box, "lfw/meta/storage")


@reader("sizes of .blp sets", messages.json_text, needs="blosc2")
def _sizes(box: Path) -> Subject:
    return make_blp(box, "lfw/meta/sizes")


@reader("lists of .blp sets (.npy)", change.npy, needs="blosc2")
def _issame(box: Path) -> Subject:
    return make_blp(box, "lfw_list.npy")
