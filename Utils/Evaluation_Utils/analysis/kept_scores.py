"""The scores of an evaluation in a file, <benchmark>_scores.npz beside <benchmark>.json.

Figures can be computed from it again, without network or photos, and compared pair by pair.

    names                      N texts: the images
    norms                      N float64: the length of each image's embedding
    left, right, same, folds   P: of the pairs, as in `VerificationSet`
    <protocol>_scores          P float64, higher = more alike; of all pairs, nothing subtracted
    <protocol>_fold_scores, <protocol>_wrong   P: what decided in each pair's fold, and was it wrong
    groups                     P texts: the group of each pair, where there are groups, and
    <protocol>_group_wrong     P: whether the pair was wrong in the fold of its own group
"""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from Utils.Datasets_Utils.images import without_suffix
from Utils.Datasets_Utils.verification_set import VerificationSet
from Utils.errors import DataError, first_line
from Utils.Evaluation_Utils.one_kind import OneKind
from Utils.Evaluation_Utils.verification import PROTOCOLS, VerificationResult
from Utils.files import atomic_path

_PAIRS = ("left", "right", "same", "folds")

# What the columns hold, by the end of their names: kinds of NumPy's dtypes.
_KINDS = {"names": "U", "norms": "f", "left": "iu", "right": "iu", "same": "b", "folds": "iu"} | {
    "scores": "f",
    "wrong": "b",
    "groups": "U",
}


@dataclass(frozen=True, eq=False)
class ProtocolScores:
    """P scores, and P bools: which pairs got the wrong answer in their fold (None for pairs of one
    kind, which have no accuracy), and in the fold of their group (None without groups)."""

    scores: np.ndarray
    wrong: np.ndarray | None
    group_wrong: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class KeptScores:
    """What the file holds; see the module. protocols: by name. source: to name in errors. groups:
    empty where there are none."""

    names: np.ndarray
    norms: np.ndarray
    left: np.ndarray
    right: np.ndarray
    same: np.ndarray
    folds: np.ndarray
    protocols: dict[str, ProtocolScores]
    source: str
    groups: np.ndarray = field(default_factory=lambda: np.empty(0, str))


def scores_path(results: Path | str) -> Path:
    """The file of scores that belongs to a results file <benchmark>.json."""
    results = Path(results)
    return results.with_name(f"{results.stem}_scores.npz")


def keep_scores(
    path: Path,
    data: VerificationSet,
    features: np.ndarray,
    results: Mapping[str, VerificationResult] | Mapping[str, OneKind],
    group_wrong: Mapping[str, np.ndarray] | None = None,
) -> KeptScores:
    """Write the file; returns what it holds. features: N×D embeddings of the images. group_wrong:
    by protocol, as in `ProtocolScores`; empty or None without groups."""
    columns = {name: np.asarray(getattr(data, name)) for name in _PAIRS}
    columns["names"] = np.array(data.names, dtype=np.str_)
    columns["norms"] = np.linalg.norm(np.asarray(features, np.float64), axis=1)
    for protocol, result in results.items():
        columns[f"{protocol}_scores"] = result.scores
        if isinstance(result, VerificationResult):
            columns[f"{protocol}_fold_scores"] = result.fold_scores
            columns[f"{protocol}_wrong"] = result.wrong
    if group_wrong:
        columns["groups"] = np.asarray(data.groups, np.str_)
        columns |= {f"{protocol}_group_wrong": wrong for protocol, wrong in group_wrong.items()}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **columns)
    return _from_columns(columns, str(path))


def read_columns(results: Path | str) -> dict[str, np.ndarray]:
    """What the file of scores beside a results file holds. Raises DataError, naming the file, if
    it can't be read."""
    path = scores_path(results)
    if not path.is_file():
        raise DataError(
            f"{path} is not there: the scores that belong to {results}, which evaluations write "
            f"beside it, except for --all_pairs. Evaluate that checkpoint again, or give the JSON "
            f"file of another one."
        )
    try:
        with zipfile.ZipFile(path) as file:
            columns = {
                name.removesuffix(".npy"): np.lib.format.read_array(file.open(name))
                for name in file.namelist()
            }
        for name, column in columns.items():
            if column.dtype.kind == "U" and _codes(column).max(initial=0) > sys.maxunicode:
                raise ValueError(f"{name} has numbers that are no characters")
        return columns
    except Exception as error:  # NumPy and zipfile raise many kinds for a damaged file
        raise DataError(f"the scores {path} can't be read: {first_line(error)}.") from None


def _codes(text: np.ndarray) -> np.ndarray:
    """The characters of an array of text as numbers."""
    return np.frombuffer(text.tobytes(), np.dtype("u4").newbyteorder(text.dtype.byteorder))


def load_scores(results: Path | str) -> KeptScores:
    """The scores beside the results file of pairs. Raises DataError, naming the file, if they can't
    be read or do not fit together."""
    path, columns = scores_path(results), read_columns(results)
    missing = [name for name in ("names", "norms", *_PAIRS) if name not in columns]
    if "groups" not in columns:
        missing += ["groups"] if any(name.endswith("_group_wrong") for name in columns) else []
    if missing or not any(f"{protocol}_scores" in columns for protocol in PROTOCOLS):
        lacking = ", ".join(missing) or "scores"
        raise DataError(f"the scores {path} have no {lacking}: not of an evaluation of pairs.")
    for name, column in columns.items():
        kind = _KINDS.get(name) or _KINDS.get(name.rpartition("_")[2], column.dtype.kind)
        length = len(np.atleast_1d(columns["names" if name in ("names", "norms") else "same"]))
        if column.shape != (length,) or column.dtype.kind not in kind:
            raise DataError(
                f"the scores {path} are damaged: {name} is {column.shape} of {column.dtype}, where "
                f"{length:,} values are expected, as an evaluation writes them."
            )
        if column.dtype.kind == "f" and not np.isfinite(column).all():
            row = int(np.flatnonzero(~np.isfinite(column))[0])
            raise DataError(f"the scores {path} are damaged: value {row + 1} of {name} is NaN.")
    rows = np.concatenate((columns["left"], columns["right"]))
    if rows.size == 0 or not 0 <= rows.min() <= rows.max() < len(columns["names"]):
        raise DataError(f"the scores {path} are damaged: pairs of images that have no names.")
    return _from_columns(columns, str(path))


def _from_columns(columns: dict[str, np.ndarray], source: str) -> KeptScores:
    protocols = {
        protocol: ProtocolScores(
            columns[f"{protocol}_scores"],
            columns.get(f"{protocol}_wrong"),
            columns.get(f"{protocol}_group_wrong"),
        )
        for protocol in PROTOCOLS
        if f"{protocol}_scores" in columns
    }
    own = {name: columns[name] for name in ("names", "norms", *_PAIRS)}
    groups = columns.get("groups", np.empty(0, str))
    return KeptScores(**own, protocols=protocols, source=source, groups=groups)


def subjects_of(kept: KeptScores) -> tuple[np.ndarray, np.ndarray] | None:
    """(P ints, P ints): the subject of each pair's two images; None if the names do not tell it.

    A subject is a folder (the one of the image, or the one above it), what stands before the last
    number of the name (Name_0001), or the name in AgeDB's form (123_Name_45_f). It counts only
    where it agrees with every pair: matched ones have one subject, mismatched ones two.
    """
    same = np.asarray(kept.same, bool)
    for subject_in in (_folder, _folder_above, _before_number, _between_numbers):
        words = [subject_in(str(name)) for name in kept.names]
        if not all(words):
            continue
        subjects = np.unique(words, return_inverse=True)[1]
        left, right = subjects[kept.left], subjects[kept.right]
        if np.array_equal(left == right, same):
            return left, right
    return None


def _folder(name: str) -> str:
    parent = PurePosixPath(name).parent
    return str(parent) if parent.name else ""


def _folder_above(name: str) -> str:
    return _folder(str(PurePosixPath(name).parent))


def _before_number(name: str) -> str:
    found = re.fullmatch(r"(.*[^\d])_?\d+(\.\w+)?", name)
    return found[1] if found else ""


def _between_numbers(name: str) -> str:
    found = re.fullmatch(r"\d+_(.+)_\d+_[mf]", PurePosixPath(without_suffix(name)).name, re.I)
    return found[1] if found else ""
