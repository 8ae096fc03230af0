"""Which column of a set is what: by the type of each, by its name, and by the names of classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from Utils.errors import DataError

# Names of columns, in lower case without _ and -, in the order in which they are looked for.
_SAME = ("issame", "same", "ismatch", "match", "matched", "label", "labels", "target")
_DIFFERENT = ("different", "isdifferent")
_LABELS = (
    "label",
    "labels",
    "identity",
    "identityid",
    "person",
    "personid",
    "class",
    "id",
    "target",
)
_INDEX = ("index",)
_FOLDS = ("fold", "folds")
_NAMES = ("name", "filename", "filepath", "path", "key")
# Names of the two classes of pairs.
_CLASSES_SAME = ("same", "match", "matched", "genuine", "positive", "true", "1")
_CLASSES_DIFFERENT = ("different", "mismatch", "mismatched", "impostor", "negative", "false", "0")


class Columns(NamedTuple):
    """The columns of a set by their use; "" where there is none.

    images: (column, its field with the bytes or "") of image files. same: whether a pair is of one
    person; different: the opposite. label: of an image. classes: the names of label's values.
    """

    images: tuple[tuple[str, str], ...]
    same: str = ""
    different: str = ""
    label: str = ""
    index: str = ""
    fold: str = ""
    name: str = ""
    classes: tuple[str, ...] = ()

    @property
    def holds_pairs(self) -> bool:
        """Two images with a flag in each row; or one, with a flag that only pairs have."""
        if len(self.images) == 2:
            return bool(self.same or self.different)
        return len(self.images) == 1 and _plain(self.same) in _SAME[:5]


def find_columns(path: Path, schema: Any, arrow: Any) -> Columns:
    """The columns of an arrow schema. Raises DataError if none has image files."""
    images = tuple(
        (column.name, field)
        for column in schema
        if (field := _image_field(column, arrow)) is not None
    )
    if not images:
        raise DataError(
            f"{path} has no column of image files; its columns are "
            f"{', '.join(f'{column.name[:40]} ({str(column.type)[:40]})' for column in schema)}."
        )
    if len(images) > 2:
        raise DataError(
            f"{path} has {len(images)} columns of image files "
            f"({', '.join(name for name, _ in images[:5])}); expected one, or the two of a pair."
        )
    rest = {
        _plain(column.name): column.name for column in schema if column.name not in dict(images)
    }

    def first(names: tuple[str, ...]) -> str:
        return next((rest[name] for name in names if name in rest), "")

    label = first(_LABELS)
    same, different = first(_SAME), first(_DIFFERENT)
    if different and _plain(same) not in _SAME[:5]:
        same = ""
    return Columns(
        images,
        same,
        "" if same else different,
        label,
        first(_INDEX),
        first(_FOLDS),
        first(_NAMES),
        _class_names(schema, same if len(images) == 2 else label),
    )


def flags(path: Path, values: list[Any], columns: Columns) -> list[bool]:
    """Whether each pair is of one person. Raises DataError for values that do not say it."""
    name = columns.same or columns.different
    if columns.classes:
        meaning = [_meaning(word) for word in columns.classes]
        if sorted(meaning, key=str) != [False, True]:
            raise DataError(
                f"{path}: the column {name} has the classes {', '.join(columns.classes[:5])}; "
                f"expected two, such as different and same."
            )
        values = [meaning[v] if v in (0, 1) else v for v in values]
    found = set(values)
    if not (found <= {0, 1} or found <= {-1, 1}):
        shown = ", ".join(str(value)[:20] for value in list(found)[:5])
        raise DataError(
            f"{path}: the column {name} has values such as {shown}; expected true and false, 0 and "
            f"1, or -1 and 1, one for each pair."
        )
    turned = bool(columns.different)
    return [(value == 1) != turned for value in values]


def _meaning(word: str) -> bool | None:
    plain = _plain(word).split(" ")[0]
    if plain in _CLASSES_SAME:
        return True
    return False if plain in _CLASSES_DIFFERENT else None


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _image_field(column: Any, arrow: Any) -> str | None:
    """Where a column has image files: "" for a column of bytes, "bytes" for one of structures with
    that field, as `datasets` has images; None for any other column."""
    types = arrow.types
    if types.is_binary(column.type) or types.is_large_binary(column.type):
        return ""
    if types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        inner = column.type.field("bytes").type
        return "bytes" if types.is_binary(inner) or types.is_large_binary(inner) else None
    return None


def _class_names(schema: Any, column: str) -> tuple[str, ...]:
    """The names of a column's classes, which `datasets` keeps in the schema's metadata."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        feature = about["info"]["features"][column]
        names = feature["names"]
        if isinstance(names, dict):
            names = [names[str(number)] for number in range(len(names))]
        return tuple(map(str, names))
    except (ValueError, LookupError, TypeError, RecursionError):  # there are none
        return ()
