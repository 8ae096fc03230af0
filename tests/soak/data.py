"""Data that changes or fails while it is read, and files that promise more than they hold."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import shutil
import struct
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.soak import faults
from tests.soak.campaign import Allowance, Row, shared_time
from tests.soak.disks import config_of, run_here, run_session, values_of
from tests.soak.faults import Fault
from Utils.Datasets_Utils import open_training_set, open_verification_set
from Utils.errors import UserError
from Utils.run_folder import RunFolder

_SESSION = "import sys; from tests.soak.data import session; session(sys.argv[1])"
_GIF = struct.Struct("<HHBBB6sBHHHHB")  # the screen, two colours, the frame
_MOST_GROWTH = 200  # MiB of memory, in which a bomb must be refused

_ROWS: tuple[tuple[str, str, float], ...] = (
    ("an image deleted, cut, emptied or made a pipe during an epoch", "images", 3),
    ("a record file, LMDB, shard or zip replaced during an epoch", "replaced", 3),
    ("reads that fail once or thrice (EIO, ESTALE), then work", "reads", 3),
    ("1 % of the images of a set are broken", "broken", 2),
    ("small files that promise pixels, members or arrays without end", "bombs", 2),
)


def campaign(allowance: Allowance) -> Iterator[Row]:
    """The rows of data that fails."""
    for name, kind, until in shared_time(allowance, _ROWS):
        row = Row(name)
        if kind == "reads" and not faults.can_break():
            row.note = "skipped: it takes Linux on x86-64 or arm64"
        elif allowance.left():
            folder = allowance.folder / kind
            folder.mkdir()
            run_session(row, _SESSION, [kind, str(folder), allowance.seed, until])
            shutil.rmtree(folder)
        yield row


def session(values: str) -> None:
    """Tries of one row, until its time is over; prints a line for each."""
    kind, folder, seed, until = json.loads(values)
    torch.set_num_threads(1)
    tries = {"images": _images, "replaced": _replaced, "reads": _reads, "broken": _broken}

    def work() -> None:
        out, rng = sys.stdout, random.Random(seed)
        make = tries.get(kind, _bombs)
        for tried in make(Path(folder), rng):
            key = "note" if isinstance(tried, tuple) else "failure"
            out.write(json.dumps({key: tried[0] if key == "note" else tried}) + "\n")
            out.flush()
            if time.monotonic() > until:
                return

    if kind == "reads":
        faults.broken(work, (*faults.READS, "open", "openat"))
    else:
        work()


class _Disturbed:
    """A run whose data is disturbed after its first batch."""

    def __init__(self, disturb: Callable[[], None]) -> None:
        from Utils.Training_Utils.data import TrainingLoader

        self.disturb, self.epoch, self.loader = disturb, TrainingLoader.epoch, TrainingLoader

    def __enter__(self) -> None:
        epoch, disturb = self.epoch, self.disturb

        def disturbed(loader: Any, number: int, start: int = 0) -> Iterator[Any]:
            for batch in epoch(loader, number, start):
                yield batch
                if number == start == 0:
                    disturb()
                    start = 1

        self.loader.epoch = disturbed

    def __exit__(self, *_: object) -> None:
        self.loader.epoch = self.epoch


def _images(folder: Path, rng: random.Random) -> Iterator[str | None]:
    config = config_of(folder)
    kept = folder / "kept"
    shutil.copytree(config.train_dataset_path, kept)
    while True:
        for kind in ("deleted", "cut", "emptied", "a pipe", "no image"):
            shutil.rmtree(config.train_dataset_path)
            shutil.copytree(kept, config.train_dataset_path)
            paths = sorted(Path(config.train_dataset_path).rglob("*.png"))
            hit = rng.sample(paths, 5)

            def disturb(kind: str = kind, hit: list[Path] = hit) -> None:
                for path in hit:
                    content = path.read_bytes()
                    path.unlink()
                    if kind == "a pipe":
                        os.mkfifo(path)
                    elif kind != "deleted":
                        cut = {"cut": content[:-60], "emptied": b"", "no image": b"no image" * 50}
                        path.write_bytes(cut[kind])

            shutil.rmtree(config.save_dir, ignore_errors=True)
            with _Disturbed(disturb):
                _, ended = run_here(config)
            (run,) = Path(config.save_dir).iterdir()
            named = sum(str(path) in (run / "train.log").read_text() for path in hit)
            if not ended and not named:
                ended = "no image was named"  # two of three batches came after it
            yield f"{kind}: {ended}" if ended else None


def _replaced(folder: Path, rng: random.Random) -> Iterator[str | None]:
    config = config_of(folder)
    faces, data = config.train_dataset_path, "Utils.Datasets_Utils.convert_dataset"
    targets = {"records": "train.rec", "LMDB": "x.lmdb", "shard": "%06d.tar", "zip": "x.zip"}
    for name, target in targets.items():
        (folder / name).mkdir()
        if name == "zip":
            shutil.make_archive(str(folder / name / "x"), "zip", faces)
        else:
            from tests.soak.disks import script_here

            script_here([data, faces, folder / name / target])
    while True:
        for name, target in targets.items():
            for way in ("longer", "shorter"):
                path = folder / name / ("000000.tar" if "%" in target else target)
                kept = path.read_bytes()

                def disturb(path: Path = path, kept: bytes = kept, way: str = way) -> None:
                    time.sleep(0.05)
                    change = kept + kept if way == "longer" else kept[: rng.randrange(len(kept))]
                    path.write_bytes(change)

                given = str(folder / name if name == "shard" else path)
                run = config_of(
                    folder, train_dataset_path=given, train_file_list="", total_epoch=2,
                    num_workers=rng.choice([0, 1]),
                )  # fmt: skip
                shutil.rmtree(run.save_dir, ignore_errors=True)
                with _Disturbed(disturb):
                    _, ended = run_here(run)
                path.write_bytes(kept)
                told = "was changed while it was in use" in ended and "a traceback" not in ended
                told = told and "last.pt" in ended
                yield None if told else f"{name}, {way}, {run.num_workers} workers: {ended!r}"


def _reads(folder: Path, rng: random.Random) -> Iterator[str | None]:
    from Utils.Datasets_Utils import images

    images._PAUSES = (0.0, 0.0, 0.0)
    config = config_of(folder)
    under = config.train_dataset_path + "/"
    calls = (*faults.READS, "open", "openat")
    faults.set_fault(Fault(calls, under))
    run_here(config)
    count = faults.counted()
    (run,) = Path(config.save_dir).iterdir()
    wanted = values_of(RunFolder(run))
    while True:
        for error in ("EIO", "ESTALE"):
            first, times = rng.randint(1, count), rng.choice([1, 3])
            shutil.rmtree(config.save_dir)
            faults.set_fault(Fault(calls, under, error, first, times))
            _, ended = run_here(config)
            faults.set_fault(Fault())
            (run,) = Path(config.save_dir).iterdir()
            found = values_of(RunFolder(run))
            same = all(torch.equal(found[name], wanted[name]) for name in wanted)
            if not ended and not same:
                ended = "other weights than an undisturbed run"
            yield f"{error} at read {first} of {count}, {times} times: {ended}" if ended else None


def _broken(folder: Path, rng: random.Random) -> Iterator[str | tuple[str] | None]:
    from tests.soak.disks import script_here
    from Utils.Training_Utils.data import EpochSampler, TrainingLoader

    count, noise = 10_000, np.random.default_rng(0)
    faces = folder / "faces"
    for person in range(100):
        (faces / str(person)).mkdir(parents=True)
        for number in range(count // 100):
            pixels = noise.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(faces / str(person) / f"{number}.png")
    hit = rng.sample(sorted(faces.rglob("*.png")), count // 100)
    for path in hit:
        path.write_bytes(rng.choice([b"", path.read_bytes()[:-40], b"no image"]))
    data = open_training_set(faces)
    loader = TrainingLoader(data, EpochSampler(data, 100, 0), (32, 32))
    named = [reason for batch in loader.epoch(0) for reason in batch.unreadable]
    missing = [path for path in hit if not any(reason.startswith(str(path)) for reason in named)]
    yield f"not named while training: {missing[:3]}" if missing else None
    out = folder / "out"
    script_here(["Utils.Datasets_Utils.check_dataset", faces, "--output", out])
    clean = {line.split()[0] for line in (out / "clean_list.txt").read_text().splitlines()}
    report = json.loads((out / "report.json").read_text())["unreadable"]
    left = [path for path in hit if f"{path.parent.name}/{path.name}" in clean]
    wrong = len(report) != len(hit) or left
    yield f"check_dataset names {len(report)} of {len(hit)}, leaves {left[:3]}" if wrong else None
    yield (f"{len(hit)} of {count:,} images",)


# --- files that promise more than they hold --------------------------------------------------


def _bombs(folder: Path, rng: random.Random) -> Iterator[str | tuple[str] | None]:
    soft = 3 * 2**30 + 2**30 * (_memory("VmSize") // 1024)
    resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
    grown, opened = 0, 0
    for name, path, open_it in _bomb_files(folder):
        with suppress(OSError):  # the peak from now on: making the file took more
            Path("/proc/self/clear_refs").write_text("5")
        before, failure = _memory("VmHWM"), None
        try:
            open_it(path)
            failure = f"{name}: was read"
        except UserError as error:
            failure = None if path.name.split(".")[0] in str(error) else f"{name}: {error}"
        except Exception as error:
            failure = f"{name}: {type(error).__name__}: {error}"
        growth = _memory("VmHWM") - before
        grown, opened = max(grown, growth), opened + 1
        if growth > _MOST_GROWTH:
            failure = f"{name}: needed {growth} MiB of memory"
        yield failure
    yield (f"at most {grown} MiB of memory for one",)


def _memory(key: str) -> int:
    """MiB of this process, as Linux counts them; 0 elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith(key)), 0)


def _bomb_files(folder: Path) -> Iterator[tuple[str, Path, Callable[[Path], Any]]]:
    from Utils.Datasets_Utils.images import read_image
    from Utils.Evaluation_Utils.features import FeatureFolder

    side = 30_000
    for kind, suffix in (("PNG", "png"), ("TIFF", "tif"), ("JPEG", "jpg")):
        path = folder / f"bomb.{suffix}"
        options = {"TIFF": {"compression": "tiff_deflate"}, "JPEG": {"quality": 1}}.get(kind, {})
        blank = Image.new("L" if kind == "JPEG" else "1", (side, side))
        blank.save(path, kind, **options)
        del blank
        yield f"{kind} of {path.stat().st_size:,} bytes", path, read_image
    frame = b"\0\0\0\0\0\0\0\0"
    small = io.BytesIO()
    Image.new("RGB", (16, 16)).save(small, "BMP")
    content = bytearray(small.getvalue())
    struct.pack_into("<ii", content, 18, side, side)
    for name, data in (
        ("bomb.bmp", bytes(content)),
        (
            "bomb.gif",
            b"GIF89a" + _GIF.pack(side, side, 128, 0, 0, bytes(6), 44, 0, 0, side, side, 0) + frame,
        ),
        ("bomb.ppm", b"P6 30000 30000 255\n" + frame),
        ("bomb.hdr", b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 30000 +X 30000\n" + frame),
    ):
        (folder / name).write_bytes(data)
        yield name, folder / name, read_image
    for name in ("zip_bomb", "nested", "says_1TB", "overlapping"):
        path = folder / f"{name}.zip"
        _zip_bomb(path, name)
        yield f"zip, {name}", path, lambda path: _read_all(open_training_set(path))
    path = folder / "says_1TB.tar"
    with tarfile.open(path, "w") as tar:
        for person in "ab":
            member = tarfile.TarInfo(f"{person}/0.jpg")
            member.size = 2**40
            tar.fileobj.write(member.tobuf(tarfile.GNU_FORMAT))
    yield "tar, a member of 1 TB", path, open_training_set
    path = folder / "growing.tgz"
    _growing_tgz(path)
    yield "tgz that grows to 2 GB", path, open_training_set
    for shape in ("(1000000000000, 512)", "(4000000000,)"):
        features = folder / f"features{len(shape)}"
        features.mkdir()
        for name in ("list.json", "done.bin"):
            (features / name).write_text('{"path": ["a/b.jpg"]}')
        _npy(features / "features.npy", shape)
        yield f"npy of {shape}", features, lambda path: FeatureFolder(path).open()
    path = folder / "pickled.bin"
    path.write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x")
    yield "pickle with bytes of 1 TB", path, open_verification_set
    path = folder / "many.bin"
    path.write_bytes(pickle.dumps(([], [True]))[:-3] + b"B" + struct.pack("<I", 2**32 - 1) + b".")
    yield "pickle with bytes of 4 GB", path, open_verification_set


def _read_all(data: Any) -> None:
    for index in range(len(data)):
        data[index]


def _zip_bomb(path: Path, kind: str) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for person in "ab":
            with archive.open(f"{person}/0.jpg", "w", force_zip64=True) as member:
                if kind == "zip_bomb":
                    for _ in range(400):
                        member.write(bytes(2**20))
                elif kind == "nested":
                    inner = io.BytesIO()
                    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as nested:
                        nested.writestr("0.jpg", bytes(2**26))
                    member.write(inner.getvalue())
                else:
                    member.write(b"\xff\xd8\xff" + bytes(1000))
        if kind == "says_1TB":
            for info in archive.infolist():
                info.file_size = 2**40
        elif kind == "overlapping":
            first, *others = archive.infolist()
            for info in others:
                info.header_offset, info.file_size = first.header_offset, 2**28
                info.CRC = zlib.crc32(b"another")


def _growing_tgz(path: Path) -> None:
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("a/0.jpg")
        member.size = 2**31
        tar.addfile(member, _Zeros())


class _Zeros(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        return bytes(size)


def _npy(path: Path, shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    header = header.ljust(118 - 1) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header.encode())
