"""A run: every photograph is opened, its faces are found, and their crops are written.

Several processes do so at once. What kept one photograph from being aligned is a line of the report
and stops nothing. A run that was interrupted continues where it stopped.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from Utils.Datasets_Utils.alignment.landmarks.lists import given_faces, read_landmarks
from Utils.Datasets_Utils.alignment.report import (
    REPORT,
    SETTINGS,
    UNFINISHED,
    Line,
    as_text,
    finished,
    write_report,
)
from Utils.Datasets_Utils.alignment.sheet import draw_sheet
from Utils.Datasets_Utils.alignment.sources import crop_names, looks_aligned, open_photographs
from Utils.Datasets_Utils.alignment.work import Settings, Work
from Utils.Datasets_Utils.appearance import ALIGNED
from Utils.Datasets_Utils.formats.storage import fingerprint
from Utils.Datasets_Utils.text import quoted
from Utils.Datasets_Utils.training_set import ImageStore
from Utils.errors import RunError
from Utils.files import make_folder, read_json, remove_temporaries, save_json
from Utils.processes import SteadyLoader

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
    _begin(output, settings)
    names = [store.name(row) for row in rows.tolist()]
    work = Work(store, rows, given, settings, output, crop_names(names, store_root(store)))
    with own_threads(num_workers):
        settings.open_detector()  # or an error before the first photograph
        done = finished(output)
        missing = [i for i, name in enumerate(names) if name not in done]
        lines = done | _align(work, missing, num_workers, output, total=len(names))
    ordered = [line for name in names for line in lines[name]]
    write_report(output, ordered)
    save_json(output / SETTINGS, {"settings": _fingerprint(settings), **counts(ordered)})
    sheet = draw_sheet(
        ordered, store, dict(zip(names, rows.tolist(), strict=True)), output, sheet_path(output)
    )
    return describe(ordered, output, settings, notes, sheet)


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


def sheet_path(output: Path) -> Path:
    """The contact sheet: beside the crops, where nobody takes it for one of them."""
    return output.with_name(f"{output.name}_doubtful.jpg")


def store_root(store: ImageStore) -> Path:
    """The folder that absolute names of photographs may begin with."""
    return getattr(store, "root", store.source)


def _begin(output: Path, settings: Settings) -> None:
    """Write down the settings. Raises RunError where other files, or other crops, are in the way;
    removes what a killed run was writing."""
    note, wanted = output / SETTINGS, _fingerprint(settings)
    make_folder(output)
    if note.exists():
        before = read_json(note, "settings of the crops", RunError)["settings"]
        other = [key for key in wanted if before.get(key) != wanted[key]]
        if other:
            pairs = ", ".join(f"{key} {before.get(key)}, not {wanted[key]}" for key in other)
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


def _fingerprint(settings: Settings) -> dict[str, Any]:
    """The settings, and check sums of their files, as values of JSON."""
    values = asdict(settings)
    for key in ("detector_file", "landmarks"):
        path = values[key]
        values[key] = path and [path.name, *fingerprint(path)[:3]]
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def _align(
    work: Work, missing: Sequence[int], num_workers: int, output: Path, total: int
) -> dict[str, list[Line]]:
    """The lines of the photographs that are missing; appends them to the unfinished report."""
    lines: dict[str, list[Line]] = {}
    work.indices = missing
    loader = SteadyLoader(work, batch_size=_BATCH, num_workers=num_workers, collate_fn=list)
    with (
        open(output / UNFINISHED, "ab") as file,
        tqdm(total=total, initial=total - len(missing), unit="photo", desc="Aligning") as bar,
    ):
        file.write(b"\n")  # ends a line that a killed run was writing
        for batch in loader if missing else ():
            for found in batch:
                if isinstance(found, str):
                    raise RunError(found)
                lines[found[0].file] = found
                file.write(as_text(found))
            file.flush()
            bar.update(len(batch))
    return lines


def counts(lines: Sequence[Line]) -> dict[str, Any]:
    """How many photographs and crops there are, why nothing was written, and what is doubtful."""
    # Without numbers and advice, many reasons are one.
    reasons = (re.sub(r"\d[\d,]*", "…", line.reason.partition(";")[0]) for line in lines)
    doubts = (word for line in lines for word in line.doubts.split())
    return {
        "photographs": len({line.file for line in lines}),
        "crops": sum(bool(line.crop) for line in lines),
        "nothing written": dict(Counter(filter(None, reasons)).most_common()),
        "doubtful": dict(Counter(doubts).most_common()),
    }


def describe(
    lines: Sequence[Line],
    output: Path,
    settings: Settings,
    notes: Sequence[str],
    sheet: Path | None,
) -> str:
    """The report for printing."""
    found = counts(lines)
    height, width = settings.size
    report = [
        f"{output}: {found['crops']:,} crops of {height}×{width} from {found['photographs']:,} "
        f"photographs; {output / REPORT} has a line for each"
    ]
    failed = [line for line in lines if line.reason]
    if failed:
        report.append(f"nothing was written for {len(failed):,}:")
        report += [f"  {reason} ({count:,})" for reason, count in found["nothing written"].items()]
    doubtful = sum(bool(line.doubts) for line in lines)
    if doubtful:
        kinds = ", ".join(f"{word} ({count:,})" for word, count in found["doubtful"].items())
        report.append(f"to look at: {doubtful:,} crops: {kinds}")
    if sheet:
        report.append(f"{sheet} shows the first of them")
    return "\n  ".join((*report, *notes))
