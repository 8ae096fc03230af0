"""Hand-made hostile files, given to the commands that open or convert what users fetch.

Nothing in them is executed; nothing is written but the target; the command ends within a minute of
CPU time and a gigabyte of memory, with what it made or with one paragraph of an error, in which no
control codes of a terminal are left.
"""

import hashlib
import importlib
import os
import re
import resource
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.processes import ROOT
from tests.soak.attacks.table import CANARY, KINDS, Attack
from tests.soak.campaign import Allowance, Row

SLOWEST = 60  # seconds of CPU time
MOST_MEMORY = 1 << 30  # bytes, beside what this process has
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def campaign(allowance: Allowance) -> Iterator[Row]:
    """A row for each kind of attack, with one try at least and an equal share of the time."""
    _import_all()
    torch.set_num_threads(1)  # threads of this process are not there in its forks, which would wait
    for number, (name, make) in enumerate(KINDS.items()):
        row, folder = Row(f"hostile {name}"), allowance.folder / str(number)
        left = (allowance.until - time.monotonic()) / (len(KINDS) - number)
        end = time.monotonic() + left
        for part in ("in", "out", "outside"):
            (folder / part).mkdir(parents=True)
        (folder / "outside" / "kept").write_bytes(b"kept")
        for attack in make(folder):
            row.count(try_it(attack, folder))
            if time.monotonic() > end:
                row.note = "(not all: the time was over)"
                break
        yield row
        shutil.rmtree(folder)


def try_it(attack: Attack, folder: Path) -> str | None:
    """What an attack achieved, as a line; None if it achieved nothing."""
    before = _files(folder)
    status, usage, out, err = _run(attack.words, folder)
    wrong = _wrong(attack, status, usage.ru_maxrss * 1024, out, err)
    if (folder / CANARY).exists():
        (folder / CANARY).unlink()
        wrong = "it ran code"
    elif changed := sorted(_files(folder).items() ^ before.items()):
        wrong = f"it changed {changed[0][0]!r}"
    shutil.rmtree(folder / "out")
    (folder / "out").mkdir()
    return f"{attack.name}: {wrong}" if wrong else None


def _wrong(attack: Attack, status: int, memory: int, out: str, err: str) -> str:
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    error = err[err.rfind("Error:") :] if "Error:" in err else ""
    last = (err.strip().splitlines() or [""])[-1][:200]
    if status < 0:
        return f"more than {SLOWEST} s" if status == -signal.SIGPROF else f"signal {-status}"
    if "Traceback" in err:
        return f"a traceback: {last}"
    if memory - own > MOST_MEMORY:
        return f"{(memory - own) >> 20:,} MB of memory"
    if status not in (0, 1, 2) or (status == 1 and (not error or "\n\n" in error.strip())):
        return f"no paragraph of an error (status {status}): {last}"
    if len(error) > 20_000:
        return f"an error of {len(error):,} characters"
    if attack.refused is not None and attack.refused != (status != 0):
        return f"status {status}: {last or out[-200:]}"
    if found := _CONTROL.search(out.replace("\r", "") + error):
        return f"the control code {found[0]!r} was printed"
    return ""


def _run(words: list[str], folder: Path) -> tuple[int, resource.struct_rusage, str, str]:
    """(status, resources, output, errors) of a command, in a process forked from this one."""
    outputs = [folder / "stdout", folder / "stderr"]
    if pid := os.fork():
        _, status, usage = os.wait4(pid, 0)
        texts = [path.read_bytes().decode("utf-8", "replace") for path in outputs]
        for path in outputs:
            path.unlink()
        return os.waitstatus_to_exitcode(status), usage, *texts
    try:
        os.setsid()
        for number, path in enumerate(outputs, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8")
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace")
        os.chdir(ROOT)
        os.environ |= {"XDG_CACHE_HOME": str(folder / "out" / "cache"), "HOME": str(folder / "out")}
        signal.setitimer(signal.ITIMER_PROF, SLOWEST)
        signal.alarm(10 * int(SLOWEST))  # by the clock
        sys.argv = words[1:]
        if words[0] == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0].endswith(".py"):
            sys.argv = words
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        else:
            exec(words[1], {"__name__": "__main__"})
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _files(folder: Path) -> dict[str, str]:
    """What is in the folder but the target, by path."""
    found = {}
    for above, folders, files in os.walk(folder):
        if Path(above) == folder:
            folders.remove("out")
        for name in (*folders, *files):
            path = Path(above, name)
            kind = f"to {os.readlink(path)}" if path.is_symlink() else "folder"
            if path.is_file() and not path.is_symlink():
                kind = hashlib.sha256(path.read_bytes()).hexdigest()
            found[os.fspath(path)] = kind
    return found


def _import_all() -> None:
    """The attacks; and the readers, so that no command has to import PyTorch."""
    for module in ("names", "numbers", "pickles", "texts", "folders", "training"):
        importlib.import_module(f"tests.soak.attacks.{module}")
    for module in ("datasets", "lists", "weights", "results"):
        importlib.import_module(f"tests.soak.readers.{module}")
