"""Disks that are full or fail, or lack what others have; files that are damaged afterwards."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import runpy
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from Config import Config
from tests.conftest import make_tiny_faces
from tests.processes import run_script
from tests.soak import faults
from tests.soak.campaign import Allowance, Row, shared_time
from tests.soak.faults import Fault
from Utils.errors import UserError
from Utils.files import write_tensors
from Utils.run_folder import RunFolder

_CALLS = (*faults.MAKES, *faults.RENAMES, *faults.LINKS, *faults.SYMLINKS, "fsync")
_SESSION = "import sys; from tests.soak.disks import session; session(sys.argv[1])"

# Sessions of tries: the name of the row, the function, its settings, its share of the time.
_SESSIONS: tuple[tuple[str, str, dict[str, Any], float], ...] = (
    ("training: disk full at one write", "training", {"error": "ENOSPC", "times": 1}, 5),
    ("training: disk full from a write on, until its end", "training", {"space": True}, 4),
    ("training: disk full from a write on, then resumed", "training", {}, 4),
    ("training: a disk that fails (EIO), then resumed", "training", {"error": "EIO"}, 2),
    ("training: quota used up (EDQUOT), then resumed", "training", {"error": "EDQUOT"}, 2),
    ("training: folder read-only from a write on (EROFS)", "training", {"error": "EROFS"}, 2),
    ("training: checkpoint folders, disk full, then resumed", "training", {"sharded": True}, 3),
    ("file systems without links, fsync, or renames over files", "file_systems", {}, 3),
    ("a checkpoint cut short or with zeros in it", "damage", {}, 3),
    ("metrics, log or settings cut short before --resume", "records", {}, 2),
    ("other scripts: disk full at one write, then again", "scripts", {}, 8),
)


def campaign(allowance: Allowance) -> Iterator[Row]:
    """The rows of full, failing and odd disks."""
    if not faults.can_break():
        print("disks: needs Linux on x86-64 or arm64")
        return
    kinds = [(name, (kind, about), share) for name, kind, about, share in _SESSIONS]
    for number, (name, attempt, until) in enumerate(shared_time(allowance, kinds)):
        row = Row(name)
        if allowance.left():
            folder = allowance.folder / str(number)
            folder.mkdir()
            run_session(row, _SESSION, [*attempt, str(folder), allowance.seed, until])
            shutil.rmtree(folder)
        yield row


def run_session(row: Row, code: str, values: list[Any]) -> None:
    """Count the tries of a process, which prints a line of JSON for each: its failure, or null."""
    done = run_script("-c", code, json.dumps(values))
    for line in done.stdout.splitlines():
        if line.startswith('{"failure"'):
            row.count(json.loads(line)["failure"])
        elif line.startswith('{"note"'):
            row.note = json.loads(line)["note"]
    if done.returncode:
        row.count(f"the session ended with {done.returncode}: {done.stderr[-500:]}")


def session(values: str) -> None:
    """Tries of one row, until its time is over; prints a line for each."""
    kind, about, folder, seed, until = json.loads(values)
    faults.broken(lambda: _tries(kind, about, Path(folder), seed, until), _CALLS)


def _tries(kind: str, about: dict[str, Any], folder: Path, seed: int, until: float) -> None:
    torch.set_num_threads(1)
    out, rng = sys.stdout, random.Random(seed)
    tries = {
        "training": _training,
        "file_systems": _file_systems,
        "damage": _damage,
        "records": _records,
        "scripts": _scripts,
    }[kind](folder, rng, **about)
    for failure in tries:
        out.write(json.dumps({"failure": failure}) + "\n")
        out.flush()
        if time.monotonic() > until:
            return


# --- one process -----------------------------------------------------------------------------


def config_of(folder: Path, **settings: Any) -> Config:
    tiny = make_tiny_faces(folder / "tiny faces") if not (folder / "tiny faces").exists() else None
    root = tiny.root if tiny else folder / "tiny faces"
    defaults = {
        **{"train_dataset": "Tiny", "train_dataset_path": str(root / "train")},
        **{"train_file_list": str(root / "train.txt"), "lfw_dataset_path": str(root / "lfw")},
        **{"lfw_file_list": str(root / "pairs.txt"), "save_dir": str(folder / "runs")},
        **{"input_size": (32, 32), "feature_dim": 16, "batch_size": 8, "total_epoch": 1},
        **{"milestones": (), "log_freq": 1, "test_freq": 2, "save_freq": 1, "num_workers": 0},
        **{"use_visdom": False, "use_tensorboard": True, "device": "cpu"},
    }
    return Config(**{**defaults, **settings})


def run_here(config: Config, wait: Callable[[], None] = lambda: None) -> tuple[str, str]:
    """(what was printed, the error if there was one) of a run in this process."""
    from Utils.Training_Utils import trainer

    trainer._TRIES, trainer._PAUSE = 2, 0.0
    sleep, out, err = time.sleep, io.StringIO(), io.StringIO()
    trainer.time.sleep = lambda seconds: wait() if seconds == 0 else sleep(seconds)
    error = ""
    try:
        with redirect_stdout(out), redirect_stderr(err):
            trainer.Trainer(config).run()
    except UserError as raised:
        error = str(raised)
    except Exception:
        error = f"a traceback: {traceback.format_exc()[-600:]}"
    finally:
        trainer.time.sleep = sleep
    said = err.getvalue()
    if "Traceback" in said and "tensorboard" not in said:  # whose own thread prints one
        error += f"a traceback: {said[-600:]}"
    return out.getvalue(), error


def values_of(run: RunFolder) -> dict[str, torch.Tensor]:
    """All tensors of a run's last checkpoint, of its class tables too."""
    from Utils.Training_Utils.merge_checkpoint import merge_folder

    path = run.last
    if path.is_dir():
        merged = run.path / "merged.pt"
        write_tensors(merged, merge_folder(path)[0])
        path = merged
    state = torch.load(path, weights_only=True)
    found = {f"backbone.{name}": value for name, value in state["backbone"].items()}
    found |= {f"head.{name}": value for name, value in state["head"].items()}
    for index, values in state["optimizer"]["state"].items():
        found |= {f"{index}.{name}": v for name, v in values.items() if torch.is_tensor(v)}
    return found


def _only_run(config: Config) -> RunFolder:
    return RunFolder(max(Path(config.save_dir).iterdir(), key=os.path.getmtime))


def _differs(run: RunFolder, wanted: dict[str, torch.Tensor]) -> str | None:
    try:
        found = values_of(run)
    except Exception as error:
        return f"the last checkpoint can't be read: {error}"
    if found.keys() != wanted.keys():
        return "the last checkpoint has other entries"
    other = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    return f"other values than an undisturbed run: {other[:3]}" if other else None


def _records_whole(run: RunFolder) -> str | None:
    lines = run.metrics.read_text().splitlines()
    done = [line.split(",")[0] for line in lines[1:] if line.split(",")[2]]
    if done != ["1", "2", "3"]:
        return f"metrics.csv has the iterations {done}"
    return None if run.results.is_file() else "there is no results.json"


def _fresh(config: Config) -> Config:
    shutil.rmtree(config.save_dir, ignore_errors=True)
    return config


def _training(
    folder: Path,
    rng: random.Random,
    error: str = "ENOSPC",
    times: int = -1,
    space: bool = False,
    sharded: bool = False,
) -> Iterator[str | None]:
    """Runs with a fault at one of their writes; each must end with the weights of an undisturbed
    run: by itself, or resumed after the fault is over."""
    config = config_of(folder, checkpoint_format="sharded" if sharded else "auto")
    under = config.save_dir
    faults.set_fault(Fault(faults.MAKES, under))
    if failure := run_here(config)[1]:
        yield f"undisturbed: {failure}"
        return
    count, wanted = faults.counted(), values_of(_only_run(config))
    places = list(range(1, count + 1))
    rng.shuffle(places)
    for first in places:
        _fresh(config)
        faults.set_fault(Fault(faults.MAKES, under, error, first, times))
        _, ended = run_here(config, _make_space if space else lambda: None)
        faults.set_fault(Fault())
        about = f"{error} at write {first} of {count}: "
        if "a traceback" in ended:
            yield about + ended
            continue
        if not ended:
            run = _only_run(config)
            failure = _differs(run, wanted) or _records_whole(run)
        elif not Path(under).exists() or not any(Path(under).glob("*/checkpoints/last.*")):
            failure = None if _explains(ended) else f"it said: {ended}"
        else:
            failure = _resumed(config, wanted) if _explains(ended) else f"it said: {ended}"
        yield about + failure if failure else None


def _make_space() -> None:
    faults.set_fault(Fault())


def _explains(message: str) -> bool:
    """Whether a message says what could not be written, and why."""
    why = ("No space left", "Input/output", "quota exceeded", "Read-only file system")
    return "can't be" in message and any(reason in message for reason in why)


def _resumed(config: Config, wanted: dict[str, torch.Tensor]) -> str | None:
    last = _only_run(config).last
    _, ended = run_here(dataclasses.replace(config, resume=str(last)))
    if ended and "total_epoch" in ended:  # all was written but what comes after the results
        ended = ""
    return f"resumed: {ended}" if ended else _differs(_only_run(config), wanted)


def _file_systems(folder: Path, rng: random.Random) -> Iterator[str | None]:
    """Whole runs, and resumed ones, on file systems that lack something."""
    lacks = {
        "hard links": Fault(faults.LINKS, error="EPERM", first=1),
        "symbolic links": Fault(faults.SYMLINKS, error="EPERM", first=1),
        "all links": Fault((*faults.LINKS, *faults.SYMLINKS), error="EOPNOTSUPP", first=1),
        "renames over files": Fault(faults.RENAMES, error="EEXIST", first=1, existing=True),
        "fsync": Fault(("fsync",), error="EINVAL", first=1),
    }
    for form in ("file", "sharded"):
        config = _fresh(config_of(folder, checkpoint_format=form))
        run_here(config)
        wanted = values_of(_only_run(config))
        for name, fault in lacks.items():
            _fresh(config)
            faults.set_fault(dataclasses.replace(fault, under=config.save_dir))
            _, ended = run_here(dataclasses.replace(config, total_epoch=1))
            failure = ended or _differs(_only_run(config), wanted)
            if not failure:
                last = str(_only_run(config).last)
                _, failure = run_here(dataclasses.replace(config, resume=last, total_epoch=2))
            faults.set_fault(Fault())
            yield f"no {name}, {form}: {failure}" if failure else None


def _damage(folder: Path, rng: random.Random) -> Iterator[str | None]:
    """Checkpoints damaged after a run: the message names a whole one, which continues the run."""
    config = _fresh(config_of(folder, total_epoch=2))
    run_here(dataclasses.replace(config, total_epoch=1))
    whole = _only_run(config).path
    kept = whole.with_name("kept")
    shutil.copytree(whole, kept)
    while True:
        shutil.rmtree(whole)
        shutil.copytree(kept, whole)
        run = RunFolder(whole)
        content = bytearray(run.last.read_bytes())
        start = rng.randrange(len(content))
        kind = rng.choice(["cut", "zeros", "block", "empty"])
        if kind == "block":
            content[start : start + 4096] = bytes(len(content[start : start + 4096]))
        damaged = {
            "cut": content[:start],
            "zeros": content[:start] + bytes(len(content) - start),
            "block": content,
            "empty": b"",
        }[kind]
        changed = bytes(damaged) != run.last.read_bytes()
        for path in (run.last, run.checkpoints / "iteration_00000003.pt"):
            path.write_bytes(damaged)
        resumed = dataclasses.replace(config, resume=str(run.last))
        yield _damage_noticed(resumed, kind, start) if changed else None


def _damage_noticed(config: Config, kind: str, start: int) -> str | None:
    _, ended = run_here(config)
    about = f"{kind} at byte {start}: "
    if not ended:
        return about + "was not noticed"
    if "a traceback" in ended or "--resume" not in ended:
        return about + ended
    other = ended.rpartition("--resume ")[2].strip("'")
    _, ended = run_here(dataclasses.replace(config, resume=other))
    return about + f"from the older one: {ended}" if ended else None


def _records(folder: Path, rng: random.Random) -> Iterator[str | None]:
    """Files beside the checkpoints, cut short: resuming goes on, and ends with the same weights."""
    config = _fresh(config_of(folder, total_epoch=2))
    run_here(config)
    wanted = values_of(_only_run(config))
    _fresh(config)
    run_here(dataclasses.replace(config, total_epoch=1))
    whole = _only_run(config).path
    kept = whole.with_name("kept")
    shutil.copytree(whole, kept)
    while True:
        for name in ("metrics.csv", "train.log", "settings.json"):
            shutil.rmtree(whole)
            shutil.copytree(kept, whole, copy_function=shutil.copy2)
            path = whole / name
            size = rng.randrange(path.stat().st_size)
            os.truncate(path, size)
            last = str(RunFolder(whole).last)
            _, ended = run_here(dataclasses.replace(config, resume=last))
            shutil.rmtree(kept.with_name("aside"), ignore_errors=True)
            run = max(
                (RunFolder(p) for p in whole.parent.iterdir() if p != kept),
                key=lambda run: run.last.stat().st_mtime,
            )
            failure = ended or _differs(run, wanted)
            for other in whole.parent.iterdir():
                if other not in (whole, kept):
                    shutil.rmtree(other)
            yield f"{name} cut at {size}: {failure}" if failure else None


# --- other scripts ---------------------------------------------------------------------------


def _scripts(folder: Path, rng: random.Random) -> Iterator[str | None]:
    """Scripts with a full disk at one write: one paragraph; started again, the same files."""
    config = config_of(folder, use_tensorboard=False)
    run_here(config)
    best, tiny, out = _only_run(config).best, folder / "tiny faces", folder / "out"
    points = "10 12 22 12 16 18 11 23 21 23"
    names = [path.relative_to(tiny / "train") for path in sorted((tiny / "train").rglob("*.png"))]
    landmarks = folder / "points.csv"
    rows = [f"{name},{points.replace(' ', ',')}" for name in names]
    landmarks.write_text("\n".join(rows) + "\n")
    data = "Utils.Datasets_Utils"
    lfw = ["--data", tiny / "lfw", "--pairs", tiny / "pairs.txt", "--device", "cpu"]
    commands = {
        "evaluation": ["Utils.Evaluation_Utils", "--checkpoint", best, *lfw, "--output", out],
        "convert": ["Utils.Pretrained_Utils.convert", best, out / "n.safetensors"],
        "convert to .pt": ["Utils.Pretrained_Utils.convert", best, out / "n.pt"],
        "align_faces": [f"{data}.align_faces", tiny / "train", out / "crops"]
        + ["--landmarks", landmarks, "--num_workers", 0],
        "records": [f"{data}.convert_dataset", tiny / "train", out / "train.rec"],
        "shards": [f"{data}.convert_dataset", tiny / "train", out / "%06d.tar"],
        "lmdb": [f"{data}.convert_dataset", tiny / "train", out / "x.lmdb"],
        "image list": [f"{data}.generate_dataset_list", tiny / "train", out / "list.txt"],
        "pairs": [f"{data}.make_pairs", tiny / "lfw", out / "p.txt"] + ["--folds", 2, "--pairs", 2],
        "check_dataset": [f"{data}.check_dataset", tiny / "train", "--output", out / "check"],
    }
    wanted, counts = {}, {}
    for name, words in commands.items():
        _empty(out)
        faults.set_fault(Fault(faults.MAKES, str(folder)))
        ended = script_here(words)
        wanted[name], counts[name] = _contents(out), faults.counted()
        if ended not in ("", "2"):  # check_dataset says by 2 that a set is not clean
            yield f"{name}, undisturbed: {ended}"
    while True:
        for name, words in commands.items():
            _empty(out)
            first = rng.randint(1, max(counts[name], 1))
            faults.set_fault(Fault(faults.MAKES, str(folder), "ENOSPC", first, 1))
            ended = script_here(words)
            faults.set_fault(Fault())
            again = script_here(words)
            failure = ended if "a traceback" in ended else None
            if not failure and again not in ("", "2"):
                failure = f"{ended} Again: {again}"
            if not failure and (other := _other(_contents(out), wanted[name])):
                failure = f"other files when started again: {other}"
            yield f"{name}, write {first} of {counts[name]}: {failure}" if failure else None


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def script_here(words: list[Any]) -> str:
    """What a script printed as its error, and its exit status; "" where it ended well."""
    err = io.StringIO()
    sys.argv = [str(word) for word in words]
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(err):
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code in (None, 0):
            return ""
        text = err.getvalue()
        trace = "a traceback: " if "Traceback" in text else ""
        return f"{trace}{text[-600:].strip()}" if ended.code != 2 else "2"
    except BaseException:
        return f"a traceback: {traceback.format_exc()[-700:]}"
    return ""


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _other(found: dict[str, bytes], wanted: dict[str, bytes]) -> list[str]:
    """The names of files that are others, or missing, or too many. Of those with times in them, or
    with entries in any order, only the name counts."""
    timed = (".json", ".npz", ".png", ".mdb", ".lmdb", ".md", ".html", ".safetensors")
    return [
        name
        for name in sorted(found.keys() | wanted.keys())
        if (name in found) != (name in wanted)
        or (found[name] != wanted[name] and not name.endswith(timed))
    ]
