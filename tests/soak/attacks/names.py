"""Names, links and devices that lead out of an archive, a list or a folder."""

import io
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tests.soak.attacks.table import (
    Attack,
    align,
    clean_list,
    convert_set,
    kind,
    points,
    tree_of_faces,
    write_list,
    written,
)
from tests.soak.readers.table import faces, image

_PAIRS = "Ann/Ann_0001.png Ann/Ann_0002.png 1\nAnn/Ann_0001.png Bo/Bo_0001.png 0\n"


def names(folder: Path) -> dict[str, str]:
    """Names that lead out of a folder, or are trouble for a file system or a terminal."""
    out = str(folder / "outside" / "new.png")
    return {
        "..": "../../outside/new.png",
        ".. below": "Ann/../../../outside/new.png",
        "absolute": out,
        "two slashes": f"//{out}",
        "backslashes": "..\\..\\outside\\new.png",
        "drive": "C:\\outside\\new.png",
        "NUL": "Ann/a\0.png",
        "newline": "Ann/a\nAnn/Ann_0002.png",
        "newline and ..": "Ann/a\n../../outside/new.png",
        "300 characters": f"Ann/{'n' * 300}.png",
        "300 folders": "n/" * 300 + "a.png",
        "escape": "Ann/\x1b]0;owned\x07\x1b[31ma.png",
        "escape, hidden": "Ann/.\x1b[31ma.png",
        "escape, in no folder": "\x1b[31ma.png",
        "right to left": "Ann/\u202egnp.a.png",
        "blank and dots": " /. ./.../a.png",
        "other case": "ANN/ANN_0001.PNG",
        "surrogate": "Ann/\udcff.png",
    }


def archives(folder: Path) -> Iterator[tuple[str, Path]]:
    """A zip and a tar for each name, and tars with links and devices in them."""
    for number, (label, name) in enumerate(names(folder).items()):
        path = folder / "in" / f"{number}.zip"
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
            warnings.simplefilter("ignore")
            for known, content in faces().items():
                archive.writestr(known, content)
            info = zipfile.ZipInfo("x")
            info.filename = name if label != "surrogate" else "Ann/\u00ff.png"
            archive.writestr(info, image())
        yield f"zip, {label}", path
        if "\0" not in name:
            yield f"tar, {label}", _tar(path.with_suffix(".tar"), name, tarfile.REGTYPE)
    links = {
        "symbolic link out": ("Ann/link.png", tarfile.SYMTYPE, "../../outside"),
        "symbolic link to itself": ("Ann/link.png", tarfile.SYMTYPE, "Ann/link.png"),
        "symbolic link, escape": ("Ann/\x1b[31ml.png", tarfile.SYMTYPE, "x"),
        "hard link out": ("Ann/link.png", tarfile.LNKTYPE, "../../outside/kept"),
        "device": ("Ann/link.png", tarfile.BLKTYPE, ""),
        "terminal": ("Ann/link.png", tarfile.CHRTYPE, ""),
        "pipe": ("Ann/link.png", tarfile.FIFOTYPE, ""),
        "link, then a file through it": ("link", tarfile.SYMTYPE, "../outside"),
    }
    for number, (label, (name, kind_, target)) in enumerate(links.items()):
        after = "link/new.png" if name == "link" else ""
        yield f"tar, {label}", _tar(folder / f"in/l{number}.tar", name, kind_, target, after)


def _tar(path: Path, name: str, kind_: bytes, target: str = "", after: str = "") -> Path:
    with tarfile.open(path, "w") as archive:
        for known, content in faces().items():
            _add(archive, known, content)
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind_, target
        info.size = len(image()) if kind_ == tarfile.REGTYPE else 0
        archive.addfile(info, io.BytesIO(image()))
        if after:
            _add(archive, after, image())
    return path


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


@kind("archives: names, links and devices that lead out")
def _archives(folder: Path) -> Iterator[Attack]:
    pairs, known = written(folder / "in", "pairs.txt", _PAIRS), points(folder, list(faces()))
    for number, (label, path) in enumerate(archives(folder)):
        out = folder / "out" / str(number)
        to_bin = convert_set(path, out / "a.bin", "--file_list", pairs)
        yield Attack(f"convert to a folder: {label}", convert_set(path, out / "set"))
        yield Attack(f"convert to .bin: {label}", to_bin)
        yield Attack(f"align: {label}", align(path, out / "crops", known))
        yield Attack(f"list: {label}", write_list(path, out / "a.txt"))


@kind("lists, reports and links in folders: names that lead out")
def _lists(folder: Path) -> Iterator[Attack]:
    tree, out = tree_of_faces(folder), folder / "out"
    (tree / "Ann" / "out").symlink_to(folder / "outside")
    (tree / "Bo" / "file.png").symlink_to(folder / "outside" / "kept")
    (tree / "Cy" / "loop").symlink_to(tree)
    (tree / "Cy" / "gone.png").symlink_to(folder / "nowhere.png")
    known = points(folder, list(faces()))
    yield Attack("align a tree with links", align(tree, out / "0/crops", known))
    yield Attack("convert a tree with links", convert_set(tree, out / "1/set"))
    yield Attack("list a tree with links", write_list(tree, out / "1/a.txt"))
    for number, (label, name) in enumerate(names(folder).items(), 2):
        to, own = folder / "out" / str(number), folder / "in" / str(number)
        listed = written(own, "a.txt", f"{name}\t0\nAnn/Ann_0001.png\t0\nBo/Bo_0001.png\t1\n")
        alone = written(own, "b.txt", f"{name}\nAnn/Ann_0001.png\nBo/Bo_0001.png\nCy/Cy_0001.png\n")
        written(own, "images.csv", f'image,name,label,angle\n0,"{name}",0,10\n1,b,1,20\n')
        here = points(folder, [name, *faces()], number)
        by_list = convert_set(tree, to / "set", "--file_list", listed)
        mend = write_list(listed, to / "a.txt", "--images", tree, "--skip_bad")
        yield Attack(f"convert by a list: {label}", by_list)
        yield Attack(f"mend a list: {label}", mend)
        yield Attack(f"align by: {label}", align(tree, to / "crops", here, "--file_list", alone))
        yield Attack(f"clean a list: {label}", clean_list(own, to / "b.txt"))
