"""Readers under mutated files, each in a process that may crash.

    python -m tests.soak.fuzz FOLDER SECONDS SEED [READER ...]

Atheris (libFuzzer for Python) chooses the files to change: those that reached new lines of this
project's code, or of the parsers in Python that it uses. All processes are forked from this one,
because importing takes a minute. Prints a line of JSON for each reader: name, tries, lost.
"""

import importlib
import importlib.util
import json
import mmap
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from random import Random

import atheris

os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
with atheris.instrument_imports(include=["Utils", "Config", "zipfile", "tarfile", "pickletools"]):
    for module in ("datasets", "lists", "weights", "results", "hugging_face", "kept"):
        importlib.import_module(f"tests.soak.readers.{module}")
from tests.soak import structures
from tests.soak.readers.table import READERS, Reader, Subject
from Utils.cpu import peak_memory
from Utils.errors import UserError

SLOWEST = 10.0  # seconds of CPU time for one file
MOST_MEMORY = 1 << 30  # bytes, beside what the process has before the first file
LONGEST = 20_000  # characters of a message
DEATHS = 20  # of processes, after which a reader is given up
TOO_MUCH = 71  # libFuzzer's exit status for too much memory


class Trial:
    """Reads one mutated file after the other, and notes what is wrong."""

    def __init__(self, subject: Subject, folder: Path, box: Path) -> None:
        self.subject, self.folder, self.box = subject, folder, box
        self.kept = {os.fspath(path) for path in box.iterdir()} | {os.fspath(subject.path)}
        self.seen: set[str] = set()
        self.most = peak_memory() + MOST_MEMORY
        with open(folder / "tries", "a+b") as file:
            file.truncate(8)
            self.tries = mmap.mmap(file.fileno(), 8)

    def read(self, content: bytes) -> None:
        self.tries[:] = (int.from_bytes(self.tries[:], "little") + 1).to_bytes(8, "little")
        self.subject.path.write_bytes(content)
        signal.setitimer(signal.ITIMER_PROF, SLOWEST)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.subject.read()
        except UserError as error:
            if len(str(error)) > LONGEST:
                self.note(error, f"a message of {len(str(error)):,} characters", content)
        except BaseException as error:
            self.note(error, str(error)[:200], content)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 > self.most:
            os._exit(TOO_MUCH)
        self.clean()

    def note(self, error: BaseException, what: str, content: bytes) -> None:
        """Keep the first file of each kind of fault: the error, and the place in this project."""
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/Utils/" in f.filename]
        last = frames[-1] if frames else None
        place = f"{last.filename.rpartition('/Utils/')[2]}:{last.lineno}" if last else "?"
        kind = f"{type(error).__name__} in {place}"
        if kind in self.seen:
            return
        self.seen.add(kind)
        name = f"{os.getpid()}_{len(self.seen)}"
        (self.folder / name).write_bytes(content)
        with open(self.folder / "faults.jsonl", "a") as file:
            file.write(json.dumps([kind, f"{kind}: {what} ({self.folder / name})"]) + "\n")

    def clean(self) -> None:
        """Remove what the reader made, such as an unpacked archive."""
        for entry in os.scandir(self.box):
            if entry.path not in self.kept:
                shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)


def fuzz(reader: Reader, folder: Path, box: Path, seconds: float, seed: int) -> None:
    """Mutate and read files for some seconds; does not return."""
    subject = reader.make(box)
    trial, corpus = Trial(subject, folder, box), folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, content in enumerate(subject.seeds):
        (corpus / f"seed{number}").write_bytes(content)

    def change(data: bytes, most: int, number: int) -> bytes:
        rng = Random(number)

        def inner(content: bytes) -> bytes:
            if content and rng.random() < 0.5:
                return atheris.Mutate(content, max(len(content) + 64, 64))
            return structures.raw(content, rng, subject.seeds)

        if reader.changes and rng.random() < 0.6:
            try:
                return rng.choice(reader.changes)(data, rng, inner)[:most]
            except Exception:  # no longer a file of that kind
                pass
        return inner(data)[:most]

    most = (trial.most >> 20) + 1000  # where this file's memory is not given back in time
    largest = max(map(len, subject.seeds))
    flags = [f"-max_total_time={max(1, int(seconds))}", f"-seed={seed}", "-timeout=1200"]
    flags += [f"-rss_limit_mb={most}", f"-max_len={4 * largest + 4096}", "-len_control=0"]
    flags += [f"-artifact_prefix={folder}/", "-reload=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], str(corpus), *flags], trial.read, custom_mutator=change)
    atheris.Fuzz()


class Work:
    """A reader's processes, one after the other, until its seconds are over."""

    def __init__(self, reader: Reader, folder: Path, seconds: float, seed: int) -> None:
        self.reader, self.folder, self.seed = reader, folder, seed
        self.end = time.monotonic() + seconds
        self.lost: list[str] = []
        folder.mkdir(parents=True)
        memory = Path("/dev/shm")
        root = memory if os.access(memory, os.W_OK) else folder
        self.box = Path(tempfile.mkdtemp(prefix="soak_", dir=root))
        self.pid = self.fork()

    def fork(self) -> int:
        shutil.rmtree(self.box)
        self.box.mkdir()
        if pid := os.fork():
            return pid
        os.environ["XDG_CACHE_HOME"] = str(self.box / "cache")
        log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            left = self.end - time.monotonic()
            fuzz(self.reader, self.folder, self.box, left, self.seed + len(self.lost))
        except BaseException:
            traceback.print_exc()
        os._exit(99)

    def is_over(self, status: int) -> bool:
        """Whether the reader is done, now that its process has ended."""
        if status == 0:
            return True
        code = os.waitstatus_to_exitcode(status)
        why = {
            -signal.SIGPROF: f"more than {SLOWEST:g} s",
            TOO_MUCH: "too much memory",
            77: "a crash",
        }
        kept = self.folder / f"died{len(self.lost)}"
        if self.box.is_dir():
            shutil.copytree(self.box, kept)
        self.lost.append(f"{why.get(code, f'it ended with {code}')} ({kept})")
        if len(self.lost) >= DEATHS or time.monotonic() > self.end:
            return True
        self.pid = self.fork()
        return False

    def row(self) -> dict:
        shutil.rmtree(self.box, ignore_errors=True)
        tries, faults = self.folder / "tries", self.folder / "faults.jsonl"
        kinds = dict(map(json.loads, faults.read_text().splitlines())) if faults.exists() else {}
        count = int.from_bytes(tries.read_bytes(), "little") if tries.exists() else 0
        return {"name": self.reader.name, "tries": count, "lost": [*self.lost, *kinds.values()]}


def main() -> None:
    folder, total, seed = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    names = []
    for name in sys.argv[4:] or list(READERS):
        needs = READERS[name].needs
        if needs and importlib.util.find_spec(needs) is None:
            note = f"skipped: the package {needs} is not installed"
            print(json.dumps({"name": name, "tries": 0, "lost": [], "note": note}), flush=True)
        else:
            names.append(name)
    os.nice(5)
    at_once = max(1, os.cpu_count() or 1)
    until, running, waiting = time.monotonic() + total, {}, list(enumerate(names))
    while running or waiting:
        while waiting and len(running) < at_once:
            number, name = waiting.pop(0)
            rounds = -(-(len(waiting) + 1) // at_once)
            seconds = max(1.0, (until - time.monotonic()) / rounds)
            work = Work(READERS[name], folder / str(number), seconds, 1000 * seed + 20 * number + 1)
            running[work.pid] = work
        pid, status = os.wait()
        work = running.pop(pid)
        if work.is_over(status):
            print(json.dumps(work.row()), flush=True)
        else:
            running[work.pid] = work


if __name__ == "__main__":
    main()
