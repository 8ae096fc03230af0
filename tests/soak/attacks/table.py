"""An attack, the table of kinds of attacks, and the commands that get hostile files."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.soak.readers.table import faces, write_files

CANARY = "executed"


@dataclass(frozen=True)
class Attack:
    """name: of the one try. words: the command's, after `python`. refused: whether it must end with
    an error; None: it may do either, such as leave the bad file out."""

    name: str
    words: list[str]
    refused: bool | None = None


Make = Callable[[Path], Iterator[Attack]]
KINDS: dict[str, Make] = {}


def kind(name: str) -> Callable[[Make], Make]:
    """Register a function that makes the attacks of a kind in a folder."""

    def register(make: Make) -> Make:
        KINDS[name] = make
        return make

    return register


def command(module: str, *words: object) -> list[str]:
    return ["-m", f"Utils.{module}", *map(str, words)]


def convert_set(source: Path, target: Path, *words: object) -> list[str]:
    return command("Datasets_Utils.convert_dataset", source, target, *words)


def convert_weights(source: Path, target: Path, *words: object) -> list[str]:
    return command("Pretrained_Utils.convert", source, target, *words)


def write_list(source: Path, target: Path, *words: object) -> list[str]:
    return command("Datasets_Utils.generate_dataset_list", source, target, *words)


def align(source: Path, target: Path, landmarks: Path, *words: object) -> list[str]:
    given = ("--landmarks", landmarks, "--num_workers", 0)
    return command("Datasets_Utils.align_faces", source, target, *given, *words)


def clean_list(report: Path, target: Path) -> list[str]:
    return command("Evaluation_Utils.clean_list", report, target, "--share", 0.5)


def program(text: str) -> list[str]:
    """A program in which `read` is called as a script's main."""
    run = "from pathlib import Path\nfrom Utils.errors import UserError, run_script\n"
    return ["-c", f"{run}{text}\nrun_script(read)\n"]


def tree_of_faces(folder: Path) -> Path:
    return write_files(folder / "in" / "tree", faces())


def written(folder: Path, name: str, content: str | bytes) -> Path:
    """A file in the folder, which is made."""
    content = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    return write_files(folder, {name: content}) / name


def points(folder: Path, names: list[str], number: int = 0) -> Path:
    """A list of landmarks in images of 12×12."""
    numbers = "3\t4\t8\t4\t6\t6\t4\t9\t8\t9"
    lines = "".join(f"{name}\t{numbers}\n" for name in names)
    return written(folder / "in", f"points{number}.txt", lines)
