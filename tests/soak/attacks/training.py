"""What a run is started with: data, checkpoints to resume from, teachers, runs of a sweep."""

import contextlib
import io
import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

from Config import Config
from tests.conftest import TinyFaces, make_tiny_faces
from tests.soak.attacks import names
from tests.soak.attacks.pickles import _pickled, _Runs, _zip_checkpoint, calls
from tests.soak.attacks.table import CANARY, Attack, kind, written
from tests.soak.readers.table import image
from Utils.Training_Utils.trainer import Trainer

_SHORT = {"total_epoch": 1, "milestones": (), "lfw_dataset_path": "", "lfw_file_list": ""}
_WRITTEN = ("train.log", ".lock", "metrics.csv", "settings.json", "results.json", "curves.png")
_SOME = ("zip, ..", "tar, absolute", "tar, symbolic link out", "tar, device", "tar, pipe")


def _train(folder: Path, faces: TinyFaces, *words: object) -> list[str]:
    named = ("--save_dir", folder / "out" / "runs", "--total_epoch", 1, *words)
    return ["Train.py", *faces.flags, *map(str, named)]


@kind("training: data, test sets, teachers and weights to start from")
def _data(folder: Path) -> Iterator[Attack]:
    faces, store = make_tiny_faces(folder / "in" / "faces"), folder / "in"

    def data(path: Path, listed: Path | str = "") -> list[str]:
        given = ("--train_dataset_path", path, "--train_file_list", listed)
        return _train(folder, faces, *given, "--batch_size", 2)

    for label, path in names.archives(folder):
        if label in _SOME:
            yield Attack(f"data: {label}", data(path))
    for number, (label, name) in enumerate(names.names(folder).items()):
        lines = f"{name}\t0\nperson 0/0.png\t0\nperson 1/0.png\t1\n"
        listed = written(store, f"{number}.txt", lines)
        yield Attack(f"list: {label}", data(faces.train, listed))
    code = _Runs("os", "system", f"touch {folder / CANARY}")
    pickled = _pickled({"state_dict": code}, 2)
    weights = _zip_checkpoint(store / "weights.pt", pickled)
    pairs = written(store, "pairs.bin", _pickled(([image(), code], [True]), 2))
    for flag in ("--teacher", "--pretrained"):
        yield Attack(f"{flag}: code", _train(folder, faces, flag, weights), True)
        long = written(store, "a.safetensors", struct.pack("<Q", 1 << 62) + b"{" + bytes(99))
        yield Attack(f"{flag}: a long header", _train(folder, faces, flag, long), True)
    for flag in ("--lfw_dataset_path", "--train_dataset_path"):
        words = (flag, pairs, flag.replace("dataset_path", "file_list"), "")
        yield Attack(f"{flag}: code", _train(folder, faces, *words), True)


@kind("training: checkpoints to resume from, and the run's folder around them")
def _resume(folder: Path) -> Iterator[Attack]:
    faces, out = make_tiny_faces(folder / "in" / "faces"), folder / "out"
    runs = {
        form: _trained(folder / "in" / form, faces.config(folder / "in" / form, **_SHORT), form)
        for form in ("file", "sharded")
    }

    def resume(form: str) -> tuple[Path, list[str]]:
        """A copy of the run, and the command that resumes it; an epoch more is trained."""
        run = out / "runs" / "run"
        shutil.copytree(runs[form], run, symlinks=True)
        last = next((run / "checkpoints").glob("last.*"))
        words = ("--resume", last, "--save_dir", out / "runs", "--total_epoch", 2)
        return run, ["Train.py", *map(str, words)]

    outside = folder / "outside"
    for name in _WRITTEN:
        for target in ("kept", "new"):
            run, words = resume("file")
            (run / name).unlink(missing_ok=True)
            (run / name).symlink_to(outside / target)
            yield Attack(f"{name} is a link to {target}", words)
    for name, call in list(calls(folder).items())[:3]:
        pickled = _pickled({"format": "face-training-checkpoint-1", "settings": call}, 2)
        run, words = resume("file")
        for path in (run / "checkpoints").glob("*.pt"):
            path.unlink()
        _zip_checkpoint(run / "checkpoints" / "last.pt", pickled)
        yield Attack(f"last.pt asks for {name}", words, True)
        run, words = resume("sharded")
        _zip_checkpoint(_dcp(run) / "common.pt", pickled)
        yield Attack(f"common.pt asks for {name}", words, True)
        run, words = resume("sharded")
        written(_dcp(run), ".metadata", pickled)  # of another form of these folders
        yield Attack(f".metadata asks for {name}", words, False)
    shards = {
        "a long header": struct.pack("<Q", 1 << 62) + b"{" + bytes(99),
        "a large table": _header({"weight": [10**12, 10**6]}),
        "no table": _header({}),
        "depth": struct.pack("<Q", 100_000) + b"[" * 100_000,
    }
    for label, content in shards.items():
        run, words = resume("sharded")
        next(_dcp(run).glob("*.safetensors")).write_bytes(content)
        yield Attack(f"tables: {label}", words, True)
    index = {"weight_map": {"weight": "../../../../../outside/kept"}}
    run, words = resume("sharded")
    written(_dcp(run), "model.safetensors.index.json", json.dumps(index))
    yield Attack("an index that leads out", words)
    run, words = resume("sharded")
    shard = next(_dcp(run).glob("*.safetensors"))
    shard.unlink()
    shard.symlink_to(outside / "kept")
    yield Attack("tables are a link out", words, True)


@kind("sweeps: runs of strangers in save_dir")
def _sweeps(folder: Path) -> Iterator[Attack]:
    faces = make_tiny_faces(folder / "in" / "faces")
    start = Config().to_dict()
    for label, settings in {
        "other types": {name: [value] for name, value in start.items()},
        "a name that leads out": {**start, "save_dir": str(folder / "outside")},
        "depth": "[" * 100_000,
    }.items():
        run = folder / "out" / "runs" / "run"
        text = settings if isinstance(settings, str) else json.dumps(settings)
        written(run, "settings.json", text)
        written(run, "results.json", text)
        sweep = _train(folder, faces, "--sweep", "seed=1", "--batch_size", 9999)
        yield Attack(f"settings.json: {label}", sweep, True)


def _dcp(run: Path) -> Path:
    return (run / "checkpoints" / "last.dcp").resolve()


def _header(shapes: dict[str, list[int]]) -> bytes:
    tensors = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}
        for name, shape in shapes.items()
    }
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4)


def _trained(folder: Path, config: Config, form: str) -> Path:
    """The folder of a short run with checkpoints of that form."""
    import dataclasses

    config = dataclasses.replace(config, checkpoint_format=form, save_dir=str(folder))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        result = Trainer(config).run()
    return Path(result.run)
