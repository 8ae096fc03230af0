"""How fast images are read from each format, compared with `cv2.imread` in a plain loop.

    python -m benchmarks.read_formats [--data FOLDER] [--seconds S] [--records N]

The same faces are written as an image list, a record file, tar shards and a .blp set. The table
shows decoded images per second as multiples of the loop's, in one process and with two workers, as
medians of several interleaved rounds. The last line has the time and the memory of opening a record
file of 4 million records. FOLDER holds class folders of JPEGs; without it, the demo's faces are
used.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from Utils.cpu import peak_memory
from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.convert_dataset import convert
from Utils.Datasets_Utils.demo.sets import ensure_demo_sets
from Utils.Datasets_Utils.formats.blp_set import BlpImages
from Utils.Datasets_Utils.formats.record_set import Record
from Utils.Datasets_Utils.formats.writers import pack_record
from Utils.Datasets_Utils.generate_dataset_list import write_list
from Utils.Datasets_Utils.verification_set import StoredImages
from Utils.errors import DataError, run_script

ROUNDS = 5
MAX_IMAGES = 4000
WORKERS = 2
_BATCH = 64
_PREFETCHED = 2  # batches of each worker


def rates(sources: dict[str, Sequence], files: list[str], seconds: float) -> dict[str, list[float]]:
    """For each reader, images a second over those of the plain loop, one value for each round."""
    readers: dict[str, Callable[[], Iterable]] = {"cv2.imread": lambda: map(cv2.imread, files)}
    for name, images in sources.items():
        readers[f"{name}, 1 process"] = lambda images=images: (images[i] for i in _forever(images))
    for name, images in sources.items():
        # Made once: the start of the workers is not measured.
        loader = DataLoader(
            images,
            batch_size=_BATCH,
            sampler=_Endless(len(images)),
            num_workers=WORKERS,
            collate_fn=_stack,
            prefetch_factor=_PREFETCHED,
        )
        readers[f"{name}, {WORKERS} workers"] = partial(_counted, iter(loader))
    found: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(ROUNDS):
        measured = {name: _rate(reader(), seconds) for name, reader in readers.items()}
        for name, value in measured.items():
            found[name].append(value / measured["cv2.imread"])
    return found


class _Endless:
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self):
        return _forever(range(self.count))


def _forever(images: Sequence):
    while True:
        yield from range(len(images))


def _counted(batches: Iterator[torch.Tensor]):
    """One item for each image; the first batches, which were loaded in advance, are not counted."""
    for _ in range(WORKERS * _PREFETCHED):
        next(batches)
    for batch in batches:
        yield from range(len(batch))


def _stack(samples: list) -> torch.Tensor:
    images = [sample[0] if isinstance(sample, tuple) else sample for sample in samples]
    return torch.from_numpy(np.stack(images))


def _rate(items: Iterable, seconds: float) -> float:
    """Items a second, measured for `seconds` or until there are no more items."""
    items = iter(items)
    next(items)  # the first one may include some setting up
    count, begin = 0, time.perf_counter()
    for _ in items:
        count += 1
        if time.perf_counter() - begin > seconds:
            break
    return count / (time.perf_counter() - begin)


def lay_out(faces: Path, root: Path) -> tuple[dict[str, Sequence], list[str]]:
    """The same images in each format, and their files for the plain loop."""
    write_list(faces, root / "all.txt")
    lines = (root / "all.txt").read_text().splitlines(keepends=True)[:MAX_IMAGES]
    (root / "list.txt").write_text("".join(lines))
    listed = open_training_set(faces, root / "list.txt")
    convert(faces, root / "record/train.rec", root / "list.txt")
    convert(faces, root / "shards/%06d.tar", root / "list.txt", shard_size=1000)
    write_blp([listed[i][0] for i in range(min(len(listed), 600))], root / "blp")
    sources = {
        "list": listed,
        "record": open_training_set(root / "record"),
        "tar shards": open_training_set(root / "shards"),
        ".blp": StoredImages(BlpImages(root / "blp")),
    }
    return sources, [listed.images.place(row) for row in range(len(listed))]


def write_blp(images: Sequence[np.ndarray], folder: Path, rows_per_chunk: int = 3) -> None:
    """An array as bcolz writes it: LZ4, shuffled, in chunks as in the sets in circulation."""
    import blosc2

    (folder / "meta").mkdir(parents=True)
    (folder / "data").mkdir()
    pixels = np.stack(images)[..., ::-1].transpose(0, 3, 1, 2)
    values = ((pixels / 255 - 0.5) / 0.5).astype(np.float32)
    shape = list(values.shape)
    (folder / "meta/sizes").write_text(f'{{"shape": {shape}}}')
    (folder / "meta/storage").write_text(f'{{"dtype": "float32", "chunklen": {rows_per_chunk}}}')
    frame = b"blpk\x01\0\0\0" + (1).to_bytes(8, "little")
    for number, start in enumerate(range(0, len(values), rows_per_chunk)):
        chunk = values[start : start + rows_per_chunk].tobytes()
        packed = blosc2.compress(chunk, typesize=4, clevel=5, codec=blosc2.Codec.LZ4)
        (folder / f"data/__{number}.blp").write_bytes(frame + packed)


def write_big_index(folder: Path, records: int) -> None:
    """Write a record file of `records` tiny records in insightface's layout, 100 per identity."""
    images = [pack_record(Record(0, np.float32([i]), 0, 0, b"\xff\xd8\xff\xe0")) for i in range(2)]
    size, identities = len(images[0]), -(-records // 100)
    first = pack_record(Record(2, np.float32([records + 1, records + 1 + identities]), 0, 0, b""))
    starts = np.arange(identities) * 100 + 1
    ends = np.minimum(starts + 100, records + 1)
    block = np.frombuffer(images[0] * 100, np.uint8).reshape(100, size).copy()
    offsets = len(first) + np.arange(records) * size
    with open(folder / "train.rec", "wb") as f:
        f.write(first)
        for identity in range(identities):
            block[:, 12:16] = np.frombuffer(np.float32(identity).tobytes(), np.uint8)
            f.write(block[: ends[identity] - starts[identity]].tobytes())
        tail = f.tell() + np.arange(identities) * len(first)
        for start, end in zip(starts, ends, strict=True):
            f.write(pack_record(Record(2, np.float32([start, end]), 0, 0, b"")))
    with open(folder / "train.idx", "w") as f:
        for key, offset in enumerate([0, *offsets.tolist(), *tail.tolist()]):
            f.write(f"{key}\t{offset}\n")


def open_big_index(folder: Path) -> str:
    """The time and the memory of opening the set, measured in a new process, as a line of text."""
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.read_formats", "--only_open", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


def _measure_opening(folder: Path) -> None:
    before = peak_memory()
    begin = time.perf_counter()
    data = open_training_set(folder)
    seconds = time.perf_counter() - begin
    held = data.images.offsets.nbytes + data.labels.nbytes
    print(
        f"{len(data):,} records, {data.num_classes:,} identities: opened in {seconds:.1f} s, "
        f"{held / 1e6:.0f} MB in arrays, peak memory {(peak_memory() - before) / 1e6:.0f} MB above "
        f"that before"
    )


def main() -> None:
    """Read the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="class folders of JPEGs; default: the demo's faces")
    parser.add_argument("--seconds", type=float, default=0.5, help="duration of one measurement")
    parser.add_argument("--records", type=int, default=4_000_000, help="in the record file to open")
    parser.add_argument("--only_open", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only_open:
        _measure_opening(Path(arguments.only_open))
        return
    cv2.setNumThreads(1)
    faces = arguments.data or ensure_demo_sets(Path("Datasets/Demo")).train_images
    with tempfile.TemporaryDirectory() as root:
        sources, files = lay_out(Path(faces), Path(root))
        found = rates(sources, files, arguments.seconds)
        if not files:
            raise DataError(f"{faces} holds no images.")
        print(f"{len(files):,} images; decoded images a second, as multiples of cv2.imread\n")
        print(f"{'':<24}{'median':>8}{'least':>8}{'most':>8}")
        for name, values in found.items():
            median = statistics.median(values)
            print(f"{name:<24}{median:>8.2f}{min(values):>8.2f}{max(values):>8.2f}")
    with tempfile.TemporaryDirectory() as root:
        write_big_index(Path(root), arguments.records)
        print(f"\n{open_big_index(Path(root))}", end="")


if __name__ == "__main__":
    run_script(main, keep_memory=False)
