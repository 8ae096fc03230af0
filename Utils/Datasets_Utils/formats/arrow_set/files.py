"""The files of a set: those of `save_to_disk`, of `datasets`' cache, or parquet of the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from Utils.Datasets_Utils.images import is_image_name
from Utils.Datasets_Utils.text import first_few, quoted
from Utils.errors import DataError
from Utils.files import read_json

ARROW, PARQUET = ".arrow", ".parquet"
_STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
_DATA = "data"  # the folder of a hub's repository with its parquet files
# `train-00000-of-00002.parquet`; in the cache also `name-train-00000-of-00002.arrow`.
_SHARD = re.compile(r"(?P<split>.*?)-?(?P<number>\d{5})-of-(?P<count>\d{5})(-\w+)?\.\w+")


def is_arrow(path: Path) -> bool:
    """Whether a path is such a set: by the names of files, without reading any."""
    if path.is_file():
        return path.suffix in (ARROW, PARQUET)
    if not path.is_dir():
        return bool(_of_split(path))
    if (path / _SPLITS).is_file() or ((path / _STATE).is_file() and (path / _INFO).is_file()):
        return True
    return any(_alone_in(folder) for folder in (path, path / _DATA))


def set_files(path: Path) -> list[Path]:
    """The arrow or parquet files of a set, in its order.

    Raises DataError if the path has several splits, or lacks a file that others name.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        return _whole(path, _of_split(path))
    if (path / _SPLITS).is_file():
        splits = sorted(file.parent.name for file in path.glob(f"*/{_STATE}"))
        if len(splits) == 1:
            return set_files(path / splits[0])
        raise _several(path, path, splits)
    if (path / _STATE).is_file():
        return _stated(path)
    folder = path if _alone_in(path) else path / _DATA
    files = _tables_in(folder)
    splits = sorted({split_of(file) for file in files})
    if len(splits) > 1:
        raise _several(path, folder, splits)
    return _whole(folder, files)


def split_of(file: Path) -> str:
    """The split of a file's name; its own name where that has none."""
    match = _SHARD.fullmatch(file.name)
    return match["split"] if match else file.stem


def _tables_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = (file for file in folder.iterdir() if not file.name.startswith("."))
    return sorted(file for file in files if file.suffix in (ARROW, PARQUET) and file.is_file())


def _alone_in(folder: Path) -> bool:
    """Whether a folder has tables, and neither images nor further folders, which would be a tree of
    images with a table about them."""
    if not _tables_in(folder):
        return False
    rest = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    return not any(entry.is_dir() or is_image_name(entry.name) for entry in rest)


def _of_split(path: Path) -> list[Path]:
    """The files `<path>-00000-of-00001.parquet`, ..., of a path that is no file itself."""
    return [file for file in _tables_in(path.parent) if split_of(file) == path.name != file.stem]


def _whole(folder: Path, files: list[Path]) -> list[Path]:
    """The files, if they are all that their names count."""
    matches = [_SHARD.fullmatch(file.name) for file in files]
    counts = {int(match["count"]) for match in matches if match}
    numbers = {int(match["number"]) for match in matches if match}
    if len(counts) == 1 and (missing := set(range(counts.pop())) - numbers):
        raise DataError(
            f"{folder} lacks {len(missing)} of its files, that of number {min(missing):05d} first; "
            f"fetch them."
        )
    return files


def _stated(path: Path) -> list[Path]:
    """The files that state.json names."""
    state: Any = read_json(path / _STATE, "state of a set")
    try:
        names = [entry["filename"] for entry in state["_data_files"]]
        rows = state.get("_indices_data_files") or state.get("_indices_files")
    except (TypeError, LookupError, AttributeError):
        names, rows = [None], None
    if not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path / _STATE} names no files of a set, under `_data_files`.")
    if bad := [name for name in names if Path(name).name != name or Path(name).suffix != ARROW]:
        raise DataError(
            f"{path / _STATE} names {bad[0][:80]!r}; expected files beside it, *.arrow."
        )
    if rows:
        raise DataError(
            f"{path / _STATE} says that another file chooses some of its rows, which is not read "
            f"here. Write it again with a newer `datasets`, whose save_to_disk writes them alone."
        )
    if missing := [name for name in names if not (path / name).is_file()]:
        raise DataError(f"{path} lacks {first_few(missing)}, which its {_STATE} names.")
    return [path / name for name in names]


def _several(path: Path, folder: Path, splits: list[str]) -> DataError:
    ways = " or ".join(f"`{quoted(folder / split)}`" for split in splits[:4])
    return DataError(f"{path} has {len(splits)} splits; give one of them as the path: {ways}.")
