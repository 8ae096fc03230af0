"""The formats of data sets: a table with a row for each, and how a path's format is recognised.

The files of this package:

storage.py      files mapped into memory, tables of paths, kept scans: what the formats share
class_tree.py   whose the images in a tree of folders are, on disk or in an archive
list_lines.py   the lines of an image list, in the forms that people have
image_list.py   single image files: an image list, or a folder for each class
archive.py      a .zip or .tar of a folder tree
compressed.py   .tgz, .tar.gz, .tar.xz: the tar in it, unpacked once
shards.py       tar shards, as webdataset writes them
lmdb_set/       training sets in an LMDB database, as HSFace circulates
arrow_set/      sets of Hugging Face's `datasets`: arrow files of save_to_disk, parquet
record_set.py   training sets in a record file of MXNet, as insightface distributes them
bin_set.py      verification sets in a .bin file, as insightface distributes them
blp_set.py      verification sets in a bcolz array, as face.evoLVe distributes them
rfw.py          RFW's four races in one set
writers.py      writing a record file, tar shards, an LMDB database or a folder tree

A new format is a file here and a row in FORMATS, with the project that writes it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.formats.archive import (
    Archive,
    is_archive,
    open_archive,
    open_archive_tree,
)
from Utils.Datasets_Utils.formats.arrow_set import (
    is_arrow,
    is_arrow_pairs,
    open_arrow,
    open_arrow_pairs,
)
from Utils.Datasets_Utils.formats.bin_set import is_bin, open_bin
from Utils.Datasets_Utils.formats.blp_set import is_blp, open_blp
from Utils.Datasets_Utils.formats.image_list import (
    FileImages,
    read_class_folders,
)
from Utils.Datasets_Utils.formats.list_lines import ListLines, parse_list, parse_list_file
from Utils.Datasets_Utils.formats.lmdb_set import is_lmdb, open_lmdb
from Utils.Datasets_Utils.formats.record_set import is_records, open_records
from Utils.Datasets_Utils.formats.rfw import is_rfw, open_rfw
from Utils.Datasets_Utils.formats.shards import is_shards, open_shards
from Utils.Datasets_Utils.pairs import Pairs, parse_pairs, read_pairs
from Utils.Datasets_Utils.pairs.protocols import FilesBelow, cfp_splits, read_cfp
from Utils.Datasets_Utils.text import COMMAND, TEXT_SUFFIXES, is_text, mended, quoted
from Utils.Datasets_Utils.training_set import ImageStore, Labelled, TrainingSet
from Utils.Datasets_Utils.verification_set import (
    VerificationSet,
    load_pairs_set,
    load_stored_pairs,
)
from Utils.errors import DataError
from Utils.files import reading

PAIRS_NAME = "pairs.txt"  # looked for in a folder or an archive if no pairs file is named

# Opens a verification set: (path, its pairs file if one is named, channel order of .blp values; or
# the encoding of the pairs file).
OpenPairs = Callable[[Path, Path | None, str], VerificationSet]


@dataclass(frozen=True)
class Format:
    """One row of the table.

    name: for people. recognise: whether a path is of this format. training: opens the images at a
    path with their labels; None: the format has verification sets only. verification: opens a
    verification set that holds its pairs. is_tree: whether folders are the labels; `training` then
    takes identity_folder too. with_pairs: opens a verification set whose pairs are in a pairs file;
    None: its names are those of the images of `training`. source: who defines or distributes it.
    """

    name: str
    recognise: Callable[[Path], bool]
    training: Callable[..., Labelled] | None = None
    verification: OpenPairs | None = None
    is_tree: bool = False
    with_pairs: OpenPairs | None = None
    source: str = ""


def open_training_set(
    path: str | Path,
    file_list: str | Path | None = None,
    identity_folder: str = "top",
    list_encoding: str = "",
) -> TrainingSet:
    """Open training images with labels 0..C-1.

    path: a folder of images; a record file or its folder; a folder of tar shards; an LMDB database
    or its folder; a folder of Hugging Face's datasets; a .zip or .tar.
    file_list: an image list, lines `name  label`, to use those images with those labels. A name is
    a path in the folder or archive, a record's or database's key, or `<shard>/<member>`.
    identity_folder: which folder of a tree is the person, "top" or "deepest", see `class_tree`.
    list_encoding: of the list; "" finds it out.

    The set has `num_classes` and `len()`, and yields (uint8 H×W×3 RGB, label). Labels that are not
    0..C-1 are renumbered, and `classes` has the old ones. Raises DataError, before any image is
    read, for missing files, an empty set, and damaged files of an archive format.
    """
    path, file_list = Path(path).absolute(), Path(file_list) if file_list else None
    with reading(path, "training set"):
        chosen = _training_format(path)
        if file_list and not file_list.exists() and chosen.recognise is not is_archive:
            raise DataError(
                f"the image list {file_list} does not exist. `{COMMAND} {quoted(path)} "
                f"{quoted(file_list)}` writes one of the images there."
            )
        if chosen is FOLDER and file_list:
            lines = parse_list(file_list, list_encoding)
            images = FileImages(path, lines.names, file_list, list_encoding)
            return _listed(images, lines, path, file_list)
        images, labels, rows = _find(chosen, path, identity_folder)
        if not file_list:
            return TrainingSet(images, labels, path, rows, images.notes)
        # A list on disk, or one inside the archive itself.
        if isinstance(images, Archive) and not file_list.exists():
            content = io.BytesIO(images.read(file_list))
            lines = parse_list_file(content, file_list, list_encoding)
        else:
            lines = parse_list(file_list, list_encoding)
        rows = images.rows(lines.names, file_list, list_encoding)
        return _listed(images, lines, path, file_list, rows)


def _listed(
    images: ImageStore,
    lines: ListLines,
    path: Path,
    file_list: Path,
    rows: np.ndarray | None = None,
) -> TrainingSet:
    if not len(lines.labels):
        raise DataError(
            f"{file_list} names no images. `{COMMAND} {quoted(path)} {mended(file_list)}` writes a "
            f"list of those in {path}."
        )
    data = TrainingSet(images, lines.labels, file_list, rows, (*lines.notes, *images.notes))
    data.classes = lines.classes or data.classes
    return data


def open_verification_set(
    path: str | Path,
    file_list: str | Path | None = None,
    blp_channel_order: str = "BGR",
    list_encoding: str = "",
) -> VerificationSet:
    """Open the unique images and the pairs of a verification benchmark.

    path: a .bin file; a folder of .blp chunks; RFW's folder; a set of Hugging Face's datasets; a
    folder of images, an archive of one, a record file or shards, each with a pairs file.
    file_list: the pairs file, in any form that `pairs` knows (default: pairs.txt in the folder or
    archive), or the issame list of a .blp set (default: `<path>_list.npy`). blp_channel_order: of
    the values in a .blp set, BGR or RGB.
    list_encoding: of the pairs file; "" finds it out.

    The set has `images`, `left`, `right` (indices into images), `same` and `folds`, which hold
    pairs of both kinds where there are two of each. Raises DataError for a path or list that can't
    be read or does not fit, PairsError for a pairs file.
    """
    path, file_list = Path(path).absolute(), Path(file_list) if file_list else None
    with reading(path, "verification set"):
        chosen = _recognise(path, FORMATS, "verification set")
        if chosen.verification:
            data = chosen.verification(path, file_list, blp_channel_order)
        else:
            data = (chosen.with_pairs or _open_stored_pairs)(path, file_list, list_encoding)
        return data.with_usable_folds().with_note_of_self_pairs()


def find_images(path: str | Path, identity_folder: str = "top") -> Labelled:
    """The images at a path with their labels, which are not checked."""
    path = Path(path).absolute()
    with reading(path, "training set"):
        return _find(_training_format(path), path, identity_folder)


def _find(chosen: Format, path: Path, identity_folder: str) -> Labelled:
    return chosen.training(path, identity_folder) if chosen.is_tree else chosen.training(path)


def is_image_folder(path: str | Path) -> bool:
    """Whether a training set is a folder of images, and of no other format."""
    path = Path(path).absolute()
    with reading(path, "training set"):
        return path.is_dir() and _training_format(path) is FOLDER


def holds_pairs(path: str | Path) -> bool:
    """Whether a path is of a format of verification sets, which has its pairs in it."""
    path = Path(path).absolute()
    with reading(path, "data set"):
        return any(known.verification and known.recognise(path) for known in FORMATS)


def is_image_list(path: Path) -> bool:
    """Whether a path is a list, and a data set of no format."""
    with reading(path, "image list"):
        known = any(format.recognise(path.absolute()) for format in FORMATS)
        return path.is_file() and not known and is_text(path)


def _training_format(path: Path) -> Format:
    return _recognise(path, [known for known in FORMATS if known.training], "training set")


def _recognise(path: Path, formats: Sequence[Format], what: str) -> Format:
    for known in formats:
        if known.recognise(path):
            return known
    names = "; ".join(known.name for known in formats)
    problem = "is of no known format" if path.exists() else "does not exist"
    if path.is_file() and path.suffix.lower() in TEXT_SUFFIXES:
        raise DataError(
            f"the {what} {path} is a text file. If it is a list, name it as such, with "
            f"`--train_file_list {quoted(path)}` or `--pairs {quoted(path)}`, and the folder of "
            f"its images as the path."
        )
    raise DataError(f"the {what} {path} {problem}. Expected one of: {names}.")


def _open_stored_pairs(path: Path, file_list: Path | None, encoding: str) -> VerificationSet:
    images = _training_format(path).training(path).images
    pairs = read_pairs(_pairs_file(path, file_list), encoding)
    return load_stored_pairs(images, pairs, encoding=encoding)


def _open_archive_pairs(path: Path, file_list: Path | None, encoding: str) -> VerificationSet:
    """The pairs file, or CFP's folder, is on disk or inside the archive; without a name, it is the
    archive's pairs.txt, or CFP's folder in it."""
    archive = open_archive(path)
    if file_list and file_list.exists():
        pairs = read_pairs(file_list, encoding)
    else:
        pairs = _pairs_in(archive, path, file_list, encoding)
    return load_stored_pairs(archive, pairs, archive.top, encoding)


def _pairs_in(archive: Archive, path: Path, file_list: Path | None, encoding: str) -> Pairs:
    if file_list and file_list.is_relative_to(path):  # as messages name it
        file_list = file_list.relative_to(path)
    member = file_list or Path(PAIRS_NAME)
    if file_list or not {PAIRS_NAME, archive.top + PAIRS_NAME} & {*archive.names}:
        files = FilesBelow(path, archive.names, archive.read)
        for top in ("", archive.top):
            folder = path / top / (file_list or "")
            if cfp_splits(folder, files):
                return read_cfp(folder, files)
    return parse_pairs(path / member, archive.read(member), encoding)


def _open_folder_pairs(path: Path, file_list: Path | None, encoding: str) -> VerificationSet:
    return load_pairs_set(path, _pairs_file(path, file_list), encoding)


def _pairs_file(path: Path, file_list: Path | None) -> Path:
    """The pairs file that is named, or else the one beside the images; or a folder of CFP's."""
    if not file_list and path.is_dir() and not (path / PAIRS_NAME).exists() and cfp_splits(path):
        return path
    file_list = file_list or (path if path.is_dir() else path.parent) / PAIRS_NAME
    if not file_list.exists():
        raise DataError(
            f"the pairs file {file_list} does not exist; {path} holds images but no pairs. "
            f"`--pairs`, or a benchmark's own setting such as `--lfw_file_list`, names it. If the "
            f"images are labelled, `python -m Utils.Evaluation_Utils --all_pairs` evaluates every "
            f"pair of them."
        )
    return file_list


FOLDER = Format(
    "a folder of class folders, or of images with an image list or a pairs file",
    Path.is_dir,
    read_class_folders,
    is_tree=True,
    with_pairs=_open_folder_pairs,
    source="https://vis-www.cs.umass.edu/lfw",
)

# The first row that recognises a path opens it, so formats that are recognised by the contents of a
# folder come before the folder of images.
_INSIGHTFACE = "https://github.com/deepinsight/insightface"
_HUGGING_FACE = "https://github.com/huggingface/datasets"
FORMATS = (
    Format("a .bin file", is_bin, None, open_bin, source=_INSIGHTFACE),
    Format(
        "a folder of .blp chunks",
        is_blp,
        None,
        open_blp,
        source="https://github.com/ZhaoJ9014/face.evoLVe",
    ),
    Format(
        "RFW's folder, or its four .bin files",
        is_rfw,
        None,
        open_rfw,
        source="https://arxiv.org/abs/1812.00194",
    ),
    Format(
        "a record file (train.rec, or the folder with it)",
        is_records,
        open_records,
        source=_INSIGHTFACE,
    ),
    Format(
        "tar shards (a folder of .tar files with .jpg and .cls)",
        is_shards,
        open_shards,
        source="https://github.com/webdataset/webdataset",
    ),
    Format(
        "an LMDB database (x.lmdb, or a folder with data.mdb)",
        is_lmdb,
        open_lmdb,
        source="https://github.com/LMDB/lmdb",
    ),
    Format(
        "a folder of Hugging Face's datasets with pairs",
        is_arrow_pairs,
        None,
        open_arrow_pairs,
        source=_HUGGING_FACE,
    ),
    Format(
        "a folder of Hugging Face's datasets (arrow or parquet)",
        is_arrow,
        open_arrow,
        source=_HUGGING_FACE,
    ),
    Format(
        "a .zip, .tar, .tgz, .tar.gz or .tar.xz of a folder tree",
        is_archive,
        open_archive_tree,
        is_tree=True,
        with_pairs=_open_archive_pairs,
        source="POSIX ustar and pax; PKWARE's APPNOTE",
    ),
    FOLDER,
)
