"""The MegaFace devkit's feature files: one OpenCV matrix a photo, `<image name><suffix>`.

Four little-endian int32: rows, columns, bytes from one row to the next, and OpenCV's type, 5 for
float32; then the rows. A feature of D values has D rows of one column, so 4 bytes a row. The
official tool compares by distance, so features are written L2-normalised.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from Utils.Datasets_Utils.photos import PhotoList
from Utils.errors import DataError, RunError
from Utils.Evaluation_Utils.features import Producer
from Utils.Evaluation_Utils.identification.exact_scores import unit_rows
from Utils.files import make_folder

_HEADER = struct.Struct("<4i")
_FLOAT32 = 5  # CV_32F


def write_devkit_file(path: Path, feature: np.ndarray) -> None:
    """Write a feature of D values as float32."""
    values = np.ascontiguousarray(feature, "<f4").reshape(-1)
    # A million of them: renaming each would double the time; an export is simply run again.
    path.write_bytes(_HEADER.pack(len(values), 1, 4, _FLOAT32) + values.tobytes())


def read_devkit_file(path: Path) -> np.ndarray:
    """The float32 values of a matrix, row by row. Raises DataError for any other file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"the feature file {path} can't be read: {error.strerror}.") from None
    if len(content) < _HEADER.size:
        raise DataError(f"the feature file {path} has {len(content)} bytes; its header has 16.")
    rows, columns, stride, kind = _HEADER.unpack_from(content)
    if kind != _FLOAT32:
        raise DataError(f"the feature file {path} is of OpenCV type {kind}, not 5 (float32).")
    if rows < 1 or columns < 1 or stride < 4 * columns:
        raise DataError(
            f"the feature file {path} has a header of {rows} rows, {columns} columns and {stride} "
            f"bytes a row, which can't be."
        )
    data = content[_HEADER.size :]
    if len(data) != rows * stride:
        raise DataError(
            f"the feature file {path} has {len(data)} bytes after its header, which promises "
            f"{rows} × {stride}."
        )
    table = np.frombuffer(data, np.uint8).reshape(rows, stride)[:, : 4 * columns]
    return np.ascontiguousarray(table).view("<f4").reshape(-1).astype(np.float32)


def check_export(listed: PhotoList, suffix: str) -> None:
    """Raises DataError if a file would be written outside of the folder for the export."""
    if "/" in suffix or "\0" in suffix:
        raise DataError(f"devkit_suffix is {suffix!r}; expected the end of a file's name.")
    for name in listed.names:
        if name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise DataError(
                f"{listed.source} names {name!r}, which lies outside of its folder; the devkit's "
                f"feature files can only be written for names below a folder."
            )


def export_features(
    folder: Path, names: Sequence[str], features: np.ndarray, suffix: str, progress: str | None
) -> None:
    """Write a file of the normalised feature for each name below the folder. The names are those
    that `check_export` lets pass. Raises RunError if a file can't be written."""
    made: set[Path] = set()
    for name, feature in zip(
        tqdm(names, progress, disable=progress is None), features, strict=True
    ):
        path = folder / f"{name}{suffix}"
        if path.parent not in made:
            make_folder(path.parent)
            made.add(path.parent)
        try:
            write_devkit_file(path, unit_rows(feature[None])[0])
        except OSError as error:
            raise RunError(f"{path} can't be written: {error.strerror}.") from None


def from_devkit(folder: Path, listed: PhotoList, suffix: str, dtype: str) -> tuple[Producer, int]:
    """A producer of features from the devkit's files, and their dimension.

    dtype: of the table that they are written to. fp32 keeps every bit; fp16 has not the range for
    features of any length, so they are L2-normalised. Raises DataError for a file that can't be
    read, the producer also for one of another dimension.
    """
    dim = len(read_devkit_file(folder / f"{listed.names[0]}{suffix}"))

    def produce(lots: Sequence[range]) -> Iterator[np.ndarray]:
        for row in np.concatenate(lots):
            path = folder / f"{listed.names[row]}{suffix}"
            feature = read_devkit_file(path)[None]
            if feature.shape[1] != dim:
                raise DataError(
                    f"the feature file {path} has {feature.shape[1]} values, others have {dim}; "
                    f"extract all with one network."
                )
            yield unit_rows(feature) if dtype == "fp16" else feature

    return produce, dim


def files_digest(folder: Path, listed: PhotoList, suffix: str) -> str:
    """A fingerprint of the devkit's files: their sizes and times. Raises DataError for a missing
    one."""
    found = hashlib.sha256()
    for name in listed.names:
        path = folder / f"{name}{suffix}"
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"the feature file {path} can't be read: {error.strerror}.") from None
        found.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    return found.hexdigest()
