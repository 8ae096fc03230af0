"""A run: every photograph is opened, its faces are found, and their crops are written.

Several processes do so at once. What kept one photograph from being aligned is a line of the report
and stops nothing. A run that was interrupted continues where it stopped.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from Utils.Datasets_Utils.alignment.landmarks.lists import (
    GivenFaces,
    given_faces,
    read_landmarks,
)
from Utils.Datasets_Utils.alignment.report import (
    REPORT,
    SETTINGS,
    UNFINISHED,
    Summary,
    finished,
    write_report,
)
from Utils.Datasets_Utils.alignment.sheet import draw_sheet
from Utils.Datasets_Utils.alignment.sources import crop_names, looks_aligned, open_photographs
from Utils.Datasets_Utils.alignment.work import Settings, Work
from Utils.Datasets_Utils.appearance import ALIGNED
from Utils.Datasets_Utils.formats.storage import PathTable
from Utils.Datasets_Utils.text import first_few, quoted
from Utils.Datasets_Utils.training_set import ImageStore
from Utils.errors import RunError
from Utils.files import (
    atomic_path,
    make_folder,
    not_written,
    read_json,
    reading,
    remove_temporaries,
    save_json,
)
from Utils.workers import SteadyLoader, WorkerError

_FILES = ("detector_file", "landmarks")  # of the settings
_BATCH = 8  # photographs that a process aligns before it hands over their lines


def align(
    source: Path,
    output: Path,
    settings: Settings,
    file_list: Path | None = None,
    encoding: str = "",
    drop_folders: int = 0,
    num_workers: int = 2,
) -> str:
    """Align photographs, and return a report for printing.

    source, file_list, encoding: see `open_photographs`. output: the folder of the crops, in the
    tree of the photographs, with aligned.csv and aligned.json; the contact sheet is beside it.
    drop_folders: leading folders to drop from the names of the landmarks. num_workers: processes;
    0: this one alone.

    Raises RunError if output holds other files or crops of other settings, or can't be written;
    DataError for photographs, lists or weights that are not there.
    """
    source, output = source.absolute(), output.absolute()
    if source == output or output in source.parents:
        raise RunError(f"{output} holds the photographs themselves; give another folder for crops.")
    apart = [output, sheet_path(output), *filter(None, (file_list, settings.landmarks))]
    store, rows, notes = open_photographs(source, file_list, encoding, apart)
    given = None
    if settings.landmarks:
        landmarks = read_landmarks(settings.landmarks, encoding)
        given, more = given_faces(landmarks, store, encoding, drop_folders)
        notes += more
    if looks_aligned(store, rows, (*ALIGNED, settings.size)):
        notes += (
            f"warning: the photographs look as if they were aligned already, by their size. Then "
            f"use {quoted(source)} as it is: aligning faces again only blurs them",
        )
    beside = {"photographs": str(source), "drop_folders": drop_folders}
    summary = align_store(store, rows, given, settings, output, num_workers, beside=beside)
    names = (store.name(row) for row in rows.tolist())
    shown = {line.file for line in summary.to_show}
    row_of = {name: row for name, row in zip(names, rows.tolist(), strict=True) if name in shown}
    sheet = draw_sheet(summary.to_show, store, row_of, output, sheet_path(output))
    height, width = settings.size
    report = [
        f"{output}: {summary.crops:,} crops of {height}×{width} from {summary.photographs:,} "
        f"photographs; {output / REPORT} has a line for each",
        *summary.text(),
    ]
    if sheet:
        report.append(f"{sheet} shows the first of them")
    return "\n  ".join((*report, *summary.notes, *notes))


def align_store(
    store: ImageStore,
    rows: np.ndarray,
    given: GivenFaces | None,
    settings: Settings,
    output: Path,
    num_workers: int,
    again: bool = True,
    beside: Mapping[str, Any] | None = None,
) -> Summary:
    """Align the photographs in some rows of a store, whose names differ; the report is in output.

    given: their landmarks. again: whether photographs without a crop are tried again. beside: what
    must be as in an earlier run, beside the settings. See `align` for the rest.
    """
    names = PathTable(store.name(row) for row in rows.tolist())
    root, every_face = getattr(store, "root", store.source), settings.which == "all"
    crops = PathTable(crop_names(names, root, every_face))
    with own_threads(num_workers):
        # Opens the detector: without its weights, nothing is written.
        values = settings_values(settings) | dict(beside or {})
    make_folder(output)
    with own_threads(num_workers), _alone_in(output):
        _begin(output, values)
        lines = finished(output, again)
        gone = _left_behind(lines, names)
        missing = np.array([i for i, name in enumerate(names) if name not in lines], np.int64)
        crops_missing = PathTable(crops[i] for i in missing.tolist())
        work = Work(store, rows[missing], crops_missing, given, settings, output)
        lines |= _align(work, lines, num_workers, output)
        summary = write_report(output, (lines[name] for name in names))
        summary.notes = gone
        save_json(output / SETTINGS, {"settings": values, **summary.values()})
    return summary


@contextmanager
def own_threads(num_workers: int) -> Iterator[None]:
    """One thread of OpenCV in each process, where there are several: they share the cores, and a
    process that is forked would wait for ever for threads that OpenCV has started in this one."""
    before = cv2.getNumThreads()
    if num_workers:
        cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other program makes crops in the folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a network's file system may have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sheet_path(output: Path) -> Path:
    """The contact sheet: beside the crops, where nobody takes it for one of them."""
    return output.with_name(f"{output.name}_doubtful.jpg")


def _begin(output: Path, wanted: Mapping[str, Any]) -> None:
    """Write down the settings. Raises RunError where other files, or other crops, are in the way;
    removes what a killed run was writing."""
    note = output / SETTINGS
    if note.exists():
        before = read_json(note, "settings of the crops", RunError)
        before = before.get("settings", {}) if isinstance(before, dict) else {}
        other = [key for key in wanted if before.get(key) != wanted[key]]
        if other:
            pairs = ", ".join(
                f"another {key}" if key in _FILES else f"{key} {before.get(key)}, not {wanted[key]}"
                for key in other
            )
            raise RunError(
                f"{output} has crops that were made with other settings ({pairs}). Write "
                f"elsewhere, or remove that folder."
            )
    elif any(output.iterdir()):
        raise RunError(f"{output} has other files in it; give a new folder for the crops.")
    for folder, _, _ in os.walk(output):
        remove_temporaries(Path(folder))
    if not note.exists():
        save_json(note, {"settings": wanted})


def _sha256(path: Path) -> str:
    with reading(path, "file"), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settings_values(settings: Settings) -> dict[str, Any]:
    """The settings, and check sums of their files, as values of JSON."""
    values, detector = asdict(settings), settings.open_detector()
    files = {"detector_file": detector and detector.files}
    files["landmarks"] = settings.landmarks and [settings.landmarks]
    for key in _FILES:
        values[key] = files[key] and [[file.name, _sha256(file)] for file in files[key]]
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def _left_behind(lines: Mapping[str, bytes], names: Iterable[str]) -> tuple[str, ...]:
    """A warning about crops of an earlier run whose photographs are no longer there."""
    left = sorted(lines.keys() - set(names))
    what = (
        f"{len(left):,} photographs have gone since the last run, but their crops are still there"
    )
    return (f"warning: {what}: {first_few(left)}",) if left else ()


def _align(
    work: Work, done: Mapping[str, bytes], num_workers: int, output: Path
) -> dict[str, bytes]:
    """The texts of the photographs that are missing. The unfinished report gets those that are done
    and then, as they come, theirs."""
    found: dict[str, bytes] = {}
    with atomic_path(output / UNFINISHED) as temporary, open(temporary, "wb") as file:
        file.writelines(done.values())
    loader = SteadyLoader(work, batch_size=_BATCH, num_workers=num_workers, collate_fn=list)
    with (
        open(output / UNFINISHED, "ab") as file,
        tqdm(total=len(done) + len(work), initial=len(done), unit="photo", desc="Aligning") as bar,
    ):
        for batch in _answers(loader) if len(work) else ():
            for item in batch:
                if isinstance(item, str):
                    raise RunError(item)
                found |= [item]
            try:
                file.writelines(text for _, text in batch)
                file.flush()
            except OSError as error:
                raise RunError(not_written(output / UNFINISHED, error)) from None
            bar.update(len(batch))
    return found


def _answers(loader: SteadyLoader) -> Iterator[list[tuple[str, bytes] | str]]:
    """The batches of a loader. Raises RunError if the system has ended one of its processes."""
    try:
        yield from loader
    except WorkerError as error:
        raise RunError(
            f"{error} Give the same command again; it continues where it stopped."
        ) from None
