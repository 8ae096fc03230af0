"""The meta folder of IJB-B and IJB-C as insightface distributes it; all of its lists are checked.

    meta/ijbc_face_tid_mid.txt         image template media
    meta/ijbc_name_5pts_score.txt      image x1 y1 x2 y2 x3 y3 x4 y4 x5 y5 score
    meta/ijbc_template_pair_label.txt  template template 1|0
    meta/ijbc_1N_gallery_G1.csv, ..._G2.csv, ijbc_1N_probe_mixed.csv   (IJB-B: S1, S2)
                                       TEMPLATE_ID,SUBJECT_ID,... below a header line

The points are left eye, right eye, nose, left and right corner of the mouth, in pixels of the crop;
the score is the face detector's. A template has as many lines in the CSV files as it has images.
"""

import itertools
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.text import as_number, as_whole_number, csv_fields, numbered_lines
from Utils.errors import DataError
from Utils.Evaluation_Utils.ijb.pair_list import read_pairs, rows_of
from Utils.files import reading

# By the beginning of its files: the benchmark, and what its two galleries are called.
KINDS = {"ijbc": ("IJB-C", ("G1", "G2")), "ijbb": ("IJB-B", ("S1", "S2"))}


@dataclass(frozen=True, eq=False)
class Gallery:
    """Templates of known people. name: G1, S2, ... templates: int64 rows of `Lists.template_ids`,
    in the order of the file; subjects: int64, of each."""

    name: str
    templates: np.ndarray
    subjects: np.ndarray


@dataclass(frozen=True, eq=False)
class Lists:
    """N images, T templates and P pairs.

    template_ids: int64 T, ascending; `template` (int64 N), `first` and `second` (int32 P) and the
    galleries' templates are rows of it. media: int64 N. points: float64 N×5×2, x and y.
    detector: float64 N, the detector's scores. same: bool P. galleries: two, or none where the set
    has no lists for 1:N; probes: the searched templates. lines: int64 N, of the list of points,
    which is `points_file`. notes: what a reader of the figures should know.
    """

    prefix: str
    names: list[str]
    template_ids: np.ndarray
    template: np.ndarray
    media: np.ndarray
    points: np.ndarray
    detector: np.ndarray
    lines: np.ndarray
    points_file: Path
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    galleries: tuple[Gallery, ...]
    probes: Gallery | None
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """IJB-B or IJB-C."""
        return KINDS[self.prefix][0]


def read_lists(folder: Path) -> Lists:
    """Read the lists in <folder>/meta, or in the folder itself.

    Raises DataError, naming file and line, for a list that is missing or damaged, for an image
    that is named twice or is in one list only, for a template without images, for galleries that
    are empty or share a subject, and if no probe is of a subject in them.
    """
    meta, prefix = _find(Path(folder))
    members = meta / f"{prefix}_face_tid_mid.txt"
    points_file = meta / f"{prefix}_name_5pts_score.txt"
    names, numbers, member_lines = _read_images(members, 2, int)
    pointed, values, point_lines = _read_images(points_file, 11, float)
    notes = []
    if pointed != names:
        order = _same_images(names, member_lines, members, pointed, point_lines, points_file)
        values, point_lines = values[order], point_lines[order]
        notes.append(f"{members.name} and {points_file.name} have other orders; joined by name")
    template_ids, template = np.unique(numbers[:, 0], return_inverse=True)
    first, second, same = read_pairs(meta / f"{prefix}_template_pair_label.txt", template_ids)
    galleries, probes = _read_searches(meta, prefix, template_ids)
    if not galleries:
        notes.append(f"{meta} has no lists for 1:N ({prefix}_1N_*.csv)")
    return Lists(
        prefix=prefix,
        names=names,
        template_ids=template_ids,
        template=template,
        media=numbers[:, 1],
        points=values[:, :10].reshape(-1, 5, 2),
        detector=values[:, 10],
        lines=point_lines,
        points_file=points_file,
        first=first,
        second=second,
        same=same,
        galleries=galleries,
        probes=probes,
        notes=tuple(notes),
    )


def _find(folder: Path) -> tuple[Path, str]:
    """(the folder of the lists, how their names begin)."""
    with reading(folder, "IJB folder"):
        list(itertools.islice(folder.iterdir(), 1))
    meta = folder / "meta" if (folder / "meta").is_dir() else folder
    found = [prefix for prefix in KINDS if (meta / f"{prefix}_face_tid_mid.txt").exists()]
    if len(found) != 1:
        what = "lists of both IJB-B and IJB-C" if found else "neither list of images"
        raise DataError(
            f"{meta} has {what}; expected insightface's meta folder, with either "
            f"ijbb_face_tid_mid.txt or ijbc_face_tid_mid.txt. Give the folder that holds it and "
            f"the crops as ijb_dataset_path."
        )
    return meta, found[0]


def _read_images(path: Path, count: int, kind: type) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(names, N×count finite numbers, line numbers) of a list with an image on each line."""
    names, lines, values = [], [], array("q" if kind is int else "d")
    row_of: dict[str, int] = {}
    with reading(path, "IJB list"), open(path, "rb") as file:
        for number, text in numbered_lines(file, path):
            name, *fields = text.split()
            if len(fields) != count:
                raise DataError(
                    f"{path}, line {number}: an image and {len(fields)} numbers; expected "
                    f"{count} numbers: {_WANTED[count]}."
                )
            try:
                values.extend(map(as_whole_number if kind is int else as_number, fields))
            except ValueError:
                raise DataError(
                    f"{path}, line {number}: {text[:80]!r} has a field that is not a "
                    f"{'whole ' if kind is int else ''}number; expected {_WANTED[count]}."
                ) from None
            if row_of.setdefault(name, len(names)) != len(names):
                raise DataError(
                    f"{path}, line {number}: the image {name} was named before, on line "
                    f"{lines[row_of[name]]}; take one of them off the list."
                )
            names.append(name)
            lines.append(number)
    if not names:
        raise DataError(f"{path} names no images; expected {_WANTED[count]} on each line.")
    table = np.array(values).reshape(-1, count)
    if (bad := np.flatnonzero(~np.isfinite(table).all(axis=1))).size:
        raise DataError(
            f"{path}, line {lines[bad[0]]}: NaN or infinity; expected {_WANTED[count]}."
        )
    return names, table, np.array(lines)


_WANTED = {
    2: "`image template media`",
    11: "`image x1 y1 x2 y2 x3 y3 x4 y4 x5 y5 score`",
}


def _same_images(
    names: list[str],
    lines: np.ndarray,
    path: Path,
    others: list[str],
    other_lines: np.ndarray,
    other_path: Path,
) -> np.ndarray:
    """The row of each name among others. Raises DataError for an image that one of them lacks."""
    row_of = {name: row for row, name in enumerate(others)}
    for one, one_lines, one_path, known, known_path in (
        (names, lines, path, row_of, other_path),
        (others, other_lines, other_path, set(names), path),
    ):
        missing = [row for row, name in enumerate(one) if name not in known]
        if missing:
            raise DataError(
                f"{one_path}, line {one_lines[missing[0]]}: {known_path} lacks the image "
                f"{one[missing[0]]} ({len(missing):,} such images); both lists must name the same."
            )
    return np.array([row_of[name] for name in names])


# --- 1:N ---------------------------------------------------------------------------------------


def _read_searches(
    meta: Path, prefix: str, template_ids: np.ndarray
) -> tuple[tuple[Gallery, ...], Gallery | None]:
    """(the two galleries, the probes); nothing if none of the three files is there."""
    names = KINDS[prefix][1]
    paths = [meta / f"{prefix}_1N_gallery_{name}.csv" for name in names]
    probe_path = meta / f"{prefix}_1N_probe_mixed.csv"
    if not any(path.exists() for path in (*paths, probe_path)):
        return (), None
    galleries, subject_lines = [], []
    for name, path in zip(names, paths, strict=True):
        gallery, lines = _read_csv(path, name, template_ids)
        subject_of: dict[int, int] = {}
        for subject, line in zip(gallery.subjects.tolist(), lines, strict=True):
            if subject_of.setdefault(subject, line) != line:
                raise DataError(
                    f"{path}, line {line}: the subject {subject} has another template on line "
                    f"{subject_of[subject]}; a gallery has one of each subject."
                )
        galleries.append(gallery)
        subject_lines.append(subject_of)
    shared = subject_lines[0].keys() & subject_lines[1].keys()
    if shared:
        subject = min(shared, key=subject_lines[1].__getitem__)
        raise DataError(
            f"{paths[1]}, line {subject_lines[1][subject]}: the subject {subject} is in the other "
            f"gallery too ({paths[0]}, line {subject_lines[0][subject]}), so that it has no "
            f"search without a mate; each subject belongs to one gallery."
        )
    probes, _ = _read_csv(probe_path, "probes", template_ids)
    if not (subject_lines[0].keys() | subject_lines[1].keys()) & {*probes.subjects.tolist()}:
        raise DataError(
            f"{probe_path}: no probe is of a subject in {paths[0].name} or {paths[1].name}, so no "
            f"search has a mate; are these files of one benchmark?"
        )
    return tuple(galleries), probes


def _read_csv(path: Path, name: str, template_ids: np.ndarray) -> tuple[Gallery, list[int]]:
    """(the file's templates, each once; the line where each occurs first)."""
    subject_of: dict[int, tuple[int, int]] = {}
    with reading(path, "IJB list"), open(path, "rb") as file:
        lines = numbered_lines(file, path)
        _, heading = next(lines, (1, ""))
        columns = [field.strip().upper() for field in heading.split(",")]
        missing = [field for field in ("TEMPLATE_ID", "SUBJECT_ID") if field not in columns]
        if missing:
            raise DataError(
                f"{path}, line 1: there is no column {missing[0]}; expected a header line "
                f"`TEMPLATE_ID,SUBJECT_ID,...`."
            )
        places = [columns.index(field) for field in ("TEMPLATE_ID", "SUBJECT_ID")]
        for number, text in lines:
            fields = csv_fields(text) if '"' in text else text.split(",")
            try:
                template, subject = (as_whole_number(fields[place].strip()) for place in places)
            except (ValueError, IndexError):
                raise DataError(
                    f"{path}, line {number}: {text[:80]!r} has no whole numbers as TEMPLATE_ID "
                    f"and SUBJECT_ID."
                ) from None
            before = subject_of.setdefault(template, (subject, number))
            if before[0] != subject:
                raise DataError(
                    f"{path}, line {number}: the template {template} is of subject {subject}, but "
                    f"of {before[0]} on line {before[1]}."
                )
    if not subject_of:
        raise DataError(f"{path} has no templates below its header line.")
    ids = np.array(list(subject_of))
    rows = rows_of(ids, template_ids).astype(np.int64)
    firsts = [line for _, line in subject_of.values()]
    if (unknown := np.flatnonzero(rows < 0)).size:
        raise DataError(
            f"{path}, line {firsts[unknown[0]]}: no image belongs to the template "
            f"{ids[unknown[0]]}; it is not in the list of images and templates."
        )
    return Gallery(name, rows, np.array([subject for subject, _ in subject_of.values()])), firsts
