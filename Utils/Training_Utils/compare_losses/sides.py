"""What A and B stand for: the files to train with, and the flags."""

import shlex
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from Config import RECIPES, Config, ConfigError
from Config.command_line import flags_of
from Utils.errors import RunError
from Utils.files import read_json

ROOT = Path(__file__).resolve().parents[3]  # the files that run now


@dataclass(frozen=True)
class Side:
    """name: as it was given. tree: the folder of the files. flags: of Train.py."""

    name: str
    tree: Path
    flags: list[str]


def find_side(text: str, common: Sequence[str], folder: Path) -> Side:
    """What a text stands for: flags, a recipe, a settings.json, a clone's folder, or a commit.

    common: flags of both sides, which a side's own override. folder: an empty one, for the files of
    a commit. Raises ConfigError for a text that is none of them, and DataError or RunError for a
    file or a commit that can't be read.
    """
    path = Path(text)
    if not text or text.startswith("-"):
        return Side(text or "the defaults", ROOT, [*common, *shlex.split(text)])
    if text in RECIPES:
        return Side(text, ROOT, ["--recipe", text, *common])
    if path.is_file():
        return Side(text, ROOT, [*_flags_in(path), *common])
    if path.is_dir():
        if not (path / "Train.py").is_file():
            raise RunError(f"{path} is no clone of this repository: it has no Train.py.")
        return Side(text, path.resolve(), list(common))
    commit = _git("rev-parse", "--verify", "--quiet", f"{text}^{{commit}}")
    if commit is None:
        why = (
            f"it is none of: flags like '--margin_size 0.4', a recipe ({', '.join(RECIPES)}), a "
            f"settings.json, a folder of this repository, a commit of it such as HEAD."
        )
        raise ConfigError("compare_losses", text, why)
    _extract(commit.decode().strip(), folder)
    return Side(f"{text} ({commit[:7].decode()})", folder, list(common))


def _flags_in(path: Path) -> list[str]:
    values = read_json(path, "settings file")
    if not isinstance(values, dict) or not values.keys() & Config().to_dict().keys():
        raise RunError(f"{path} holds no settings; expected a run's settings.json.")
    # From the start, also where the run itself continued from a checkpoint.
    return flags_of(replace(Config.from_dict(values), resume=""))


def _git(*words: str) -> bytes | None:
    """What git prints of this repository; None where it fails or is missing."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


def _extract(commit: str, folder: Path) -> None:
    """Write the files of a commit; the working tree and the index are left alone."""
    archive = folder.with_suffix(".tar")
    if _git("archive", "--format=tar", f"--output={archive}", commit) is None:
        raise RunError(f"git can't write the files of the commit {commit}.")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    archive.unlink()
