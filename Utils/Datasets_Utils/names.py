"""The images that a list means, where its names are written in another way than the images' own.

Other ways are Windows separators, the other case of the extension, another Unicode normal form
(macOS writes ä as two characters), and the code page of another system. They are tried where a name
is not found as it stands, and count only if exactly one image fits; the notes say how many did.
Leading folders are never dropped: `shorter` only finds out that it would help.
"""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path

from Utils.Datasets_Utils.images import is_image_name

# Code pages of lists, the most frequent first. Only one under which the images exist is taken.
CODE_PAGES = (
    "gb18030",
    "big5",
    "cp932",
    "cp949",
    "cp1252",
    "cp1251",
    "cp1250",
    "koi8-r",
    "mac-roman",
)

_TRIED = 100  # names by which a code page or a shorter path is chosen

Look = Callable[[str], list[str]]  # the images that a name with / between folders may mean


def folder_look(root: str | os.PathLike[str], suffixes: Sequence[str] = ("",)) -> Look:
    """Looks for files under a folder. suffixes: that may be added to a name."""
    listing = lru_cache(64)(_listing)

    def look(name: str) -> list[str]:
        found = ["/" if name.startswith("/") else ""]
        *folders, last = (part for part in name.split("/") if part not in ("", "."))
        for folder in folders:
            found = [
                os.path.join(above, entry)
                for above in found
                for entry in listing(os.path.join(root, above)).get(_key(folder), ())
                if entry == folder or not os.path.exists(os.path.join(root, above, folder))
            ]
        fits = [
            path
            for above in found
            for suffix in suffixes
            for entry in listing(os.path.join(root, above)).get(_key(last + suffix), ())
            if os.path.isfile(os.path.join(root, path := os.path.join(above, entry)))
        ]
        return [path for path in fits if path.endswith(f"/{last}") or path == last] or fits

    return look


def names_look(names: Iterable[str]) -> Look:
    """Looks among known names, such as those in an archive."""
    known: dict[str, list[str]] = {}
    for name in names:
        known.setdefault(_key(name), []).append(name)

    def look(name: str) -> list[str]:
        name = posixpath.normpath(name)
        fits = known.get(_key(name), [])
        return [name] if name in fits else fits

    return look


class Finder:
    """Finds the images that names mean.

    missing: the names that are not there as they stand. encoding: of a list whose names are no
    UTF-8; "" finds it out by the first of them. notes: how names were read, after `find`.
    """

    def __init__(self, look: Look, missing: Iterable[str], encoding: str = "") -> None:
        self.look = look
        self.ways: Counter[str] = Counter()
        foreign = list(islice(filter(is_foreign, missing), _TRIED))
        fitting = (page for page in CODE_PAGES if all(self._found(n, page) for n in foreign))
        self.encoding = encoding or (next(fitting, "") if foreign else "")

    def find(self, name: str) -> str | None:
        """The one image that a name means, which is counted; None for none or several."""
        found = self._found(name, self.encoding)
        if found is not None:
            self.ways[_way(name, found, self.encoding)] += 1
        return found

    def _found(self, name: str, encoding: str) -> str | None:
        try:
            text = _bytes(name).decode(encoding) if is_foreign(name) and encoding else name
        except UnicodeError:
            return None
        fits = self.look(text) or self.look(text.replace("\\", "/"))
        return fits[0] if len(fits) == 1 else None

    @property
    def notes(self) -> list[str]:
        """A sentence for each way in which names were read."""
        return [f"{count} names were read with {way}" for way, count in self.ways.items()]


def shorter(look: Look, names: Sequence[str]) -> int:
    """How many leading folders to drop from names so that all of them are found; 0: none helps."""
    texts = [name.replace("\\", "/").strip("/").split("/") for name in names[:_TRIED]]
    depth = min((len(parts) for parts in texts), default=0)
    for count in range(depth):
        if all(len(look("/".join(parts[count:]))) == 1 for parts in texts):
            return count + 1 if names[0].startswith("/") else count
    return 0


def folder_above(root: Path, names: Sequence[str], suffixes: Sequence[str] = ("",)) -> Path | None:
    """The folder, up to three above root, under which all names are found; None without one."""
    for folder in root.absolute().parents[:3]:
        look = folder_look(folder, suffixes)
        if all(len(look(name.replace("\\", "/"))) == 1 for name in names[:_TRIED]):
            return folder
    return None


def folders(count: int) -> str:
    """`folder`, or `2 folders`."""
    return "folder" if count == 1 else f"{count} folders"


def without_folders(name: str, count: int) -> str:
    """A name without its first folders; the root counts as one."""
    return "/".join(name.replace("\\", "/").split("/")[count:])


def _key(name: str) -> str:
    """What two ways to write one image's name have in common."""
    name = unicodedata.normalize("NFC", name)
    stem, extension = os.path.splitext(name)
    return stem + extension.lower() if is_image_name(name) else name


def _listing(folder: str) -> dict[str, list[str]]:
    """The entries of a folder by their keys; none for a folder that can't be read."""
    found: dict[str, list[str]] = {}
    with suppress(OSError):
        for entry in os.listdir(folder):
            found.setdefault(_key(entry), []).append(entry)
    return found


def is_foreign(name: str) -> bool:
    """Whether a name is from bytes that are not UTF-8."""
    return any("\udc80" <= letter <= "\udcff" for letter in name)


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _way(name: str, found: str, encoding: str) -> str:
    """How a name differs from the image that it means, in words."""
    ways = []
    if is_foreign(name):
        name = _bytes(name).decode(encoding)
        ways.append(f"the encoding {encoding}")
    if "\\" in name and "\\" not in found:
        name = name.replace("\\", "/")
        ways.append("/ for \\")
    plain, other = (unicodedata.normalize("NFC", text) for text in (name, found))
    if os.path.splitext(plain)[1] != os.path.splitext(other)[1]:
        ways.append("another case of the extension")
    if plain != name or other != found:
        ways.append("another Unicode normal form")
    return " and ".join(ways) or "a leading ./ left out"
