"""Archives of a folder tree, read without unpacking: a .zip or a .tar; see `compressed` for others.

zip: PKWARE's APPNOTE, members stored or deflated. tar: POSIX ustar and pax, and GNU's.
"""

from __future__ import annotations

import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.formats.class_tree import group_images, litter_in
from Utils.Datasets_Utils.formats.compressed import is_compressed_tar, unpacked
from Utils.Datasets_Utils.formats.storage import MappedFile, PathTable
from Utils.Datasets_Utils.images import ImageError
from Utils.Datasets_Utils.text import first_few
from Utils.Datasets_Utils.training_set import ImageStore, Labelled
from Utils.errors import DataError, UserError, first_line
from Utils.file_kinds import ARCHIVE_ERRORS

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member; lengths of its name and extra field
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED, _UTF8 = 0x1, 0x800  # flags
_ZIP_MAGIC = b"PK\3\4"
_LARGEST = 1 << 28  # bytes of one file; deflated, they can be a thousandth of that
# A file in an archive. offset: of a zip member's local header, of a tar member's content. packed,
# size: bytes in the archive and unpacked. crc: the check sum of the content, which a tar lacks.
_MEMBER = np.dtype(
    [(name, np.int64) for name in ("offset", "packed", "size")]
    + [("deflated", bool), ("crc", np.uint32)]
)


class Archive(ImageStore):
    """The files in an archive, sorted in the order of a folder tree.

    names: N paths in the archive. members: N of _MEMBER. is_zip: whether it is a zip. litter:
    hidden and system files and folders, which are left out. top: the folder, with its slash, in
    which all files lie; empty if there is none. links: names of links, which are left out.
    """

    def __init__(self, path: Path, names: Sequence[str], members: np.ndarray, is_zip: bool) -> None:
        parts = [litter_in(name) for name in names]
        self.litter = sorted(set(filter(None, parts)))
        order = [i for i, litter in enumerate(parts) if not litter]
        order.sort(key=lambda i: _tree_order(names[i]))
        self.source = path
        self.file = MappedFile(path)
        self.names = PathTable(names[i] for i in order)
        self.members = members[order]
        self.is_zip = is_zip
        self.links: list[str] = []
        self.top = _common_folder(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        return self.names[row]

    def place(self, row: int) -> str:
        return f"{self.source}, byte {self.members[row]['offset']} ({self.names[row]})"

    def encoded(self, row: int) -> bytes | np.ndarray:
        """The bytes of a file. Raises ImageError, naming archive, byte and file, if damaged."""
        offset, packed, size, deflated, crc = self.members[row].tolist()
        if not self.is_zip:
            return self.file.read(offset, packed)
        if size > _LARGEST:
            raise ImageError(f"{self.place(row)}: unpacks to {size:,} bytes, which no photo has")
        magic, name, extra = _LOCAL_HEADER.unpack(self.file.read(offset, _LOCAL_HEADER.size))
        if magic != _ZIP_MAGIC:
            raise ImageError(f"{self.place(row)}: no zip member begins there; the file is damaged")
        content = self.file.read(offset + _LOCAL_HEADER.size + name + extra, packed)
        if deflated:
            try:
                # No more than the directory says: a small member may inflate to gigabytes.
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
            except zlib.error as error:
                raise ImageError(f"{self.place(row)}: can't be inflated ({error})") from None
        if zlib.crc32(content) != crc:
            raise ImageError(f"{self.place(row)}: its check sum is wrong; the file is damaged")
        return content

    def rows(
        self, names: Sequence[str], file_list: Path, encoding: str = "", skip_bad: bool = False
    ) -> np.ndarray:
        """As in `ImageStore`; names may leave out the folder `top`."""
        if self.top and len(names) and not names[0].startswith(self.top):
            names = [self.top + name for name in names]
        return super().rows(names, file_list, encoding, skip_bad)

    def read(self, name: Path) -> bytes:
        """The bytes of a file by its name, with or without the folder `top`.

        Raises DataError if there is no such file.
        """
        rows = {file: row for row, file in enumerate(self.names)}
        row = rows.get(name.as_posix(), rows.get(self.top + name.as_posix()))
        if row is None:
            raise DataError(f"{name} is no file, neither on disk nor in {self.source}.")
        return bytes(self.encoded(row))


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or a tar, compressed or not, by its contents."""
    return path.is_file() and (
        _is_tar(path)
        or is_compressed_tar(path)
        or zipfile.is_zipfile(path)
        or _head(path).startswith(_ZIP_MAGIC)  # truncated: its directory was at the end
    )


def open_archive(path: Path) -> Archive:
    """List the files of an archive. Nothing is unpacked but the tar in a compressed one.

    Raises DataError, naming archive, byte and member, for a path outside the archive's own folder,
    a member that is encrypted or compressed by another method, and a truncated archive.
    """
    if is_compressed_tar(path):
        path = unpacked(path)
    try:
        return _open_tar(path) if _is_tar(path) else _open_zip(path)
    except UserError:
        raise
    except ARCHIVE_ERRORS as error:
        raise DataError(f"{path} can't be read as an archive: {first_line(error)}.") from None


def open_archive_tree(path: Path, identity_folder: str = "top") -> Labelled:
    """The images of a tree with a folder for each person; see `class_tree`."""
    archive = open_archive(path)
    tree = group_images(list(archive.names), archive.litter, identity_folder)
    labels, rows = np.array(tree.labels, np.int64), np.array(tree.rows, np.int64)
    if archive.links:
        what = f"{len(archive.links):,} links, whose files are elsewhere"
        tree.notes.append(f"left out: {what}: {first_few(archive.links)}")
    archive.notes = tuple(tree.notes)
    return Labelled(archive, labels, rows)


def check_inside(archive: Path, offset: int, name: str) -> None:
    """Raise DataError for a member whose path is outside the archive's own folder."""
    if (
        name.startswith(("/", "\\"))
        or re.match("[A-Za-z]:", name)
        or ".." in re.split(r"[/\\]", name)
    ):
        raise DataError(
            f"{archive}, byte {offset}: member {name!r} lies outside the archive's own folder; "
            f"such an archive is refused."
        )


def _open_zip(path: Path) -> Archive:
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if not m.is_dir()]
    for member in members:
        check_inside(path, member.header_offset, member.filename)
        if member.flag_bits & _ENCRYPTED or member.compress_type not in _METHODS:
            raise DataError(
                f"{path}, byte {member.header_offset}: member {member.filename!r} is encrypted or "
                f"packed by method {member.compress_type}; expected stored or deflated ones; "
                f"unpack it and give the folder."
            )
    # Some Windows programs write a backslash between folders, for which the format has a slash.
    names = [_zip_name(m).replace("\\", "/").removeprefix("./") for m in members]
    files = [i for i, name in enumerate(names) if not name.endswith("/")]
    deflated = zipfile.ZIP_DEFLATED
    table = [
        (m.header_offset, m.compress_size, m.file_size, m.compress_type == deflated, m.CRC)
        for m in members
    ]
    return Archive(path, [names[i] for i in files], np.array(table, _MEMBER)[files], is_zip=True)


def _zip_name(member: zipfile.ZipInfo) -> str:
    """A member's name, which macOS and Linux write as UTF-8, but without the flag for it."""
    if not member.flag_bits & _UTF8:
        with suppress(UnicodeError):
            return member.filename.encode("cp437").decode("utf-8")
    return member.filename


def _open_tar(path: Path) -> Archive:
    links: list[str] = []
    members = list(tar_members(path, links))
    table = np.array([(m.offset_data, m.size, m.size, False, 0) for m in members], _MEMBER)
    archive = Archive(path, [m.name for m in members], table, is_zip=False)
    archive.links = [name for name in links if not litter_in(name)]
    return archive


def tar_members(path: Path, links: list[str] | None = None) -> Iterator[tarfile.TarInfo]:
    """The regular files of an uncompressed tar, in its order, names without a leading ./ .

    links: takes the names of symbolic links, which are left out.
    Raises DataError, naming the byte, for a tar that is truncated or damaged, a path outside its
    own folder, or a hard link.
    """
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # tarfile would keep every member in memory
                if member.islnk():
                    raise DataError(
                        f"{path}, byte {member.offset}: {member.name!r} is a hard link, whose "
                        f"content is elsewhere; pack the files with tar --hard-dereference."
                    )
                if member.issym() and links is not None:
                    links.append(member.name.removeprefix("./"))
                if not member.isreg():
                    continue
                check_inside(path, member.offset, member.name)
                if member.offset_data + member.size > size:
                    raise DataError(
                        f"{path}, byte {member.offset}: member {member.name!r} should end at byte "
                        f"{member.offset_data + member.size}, but the file is cut short at {size}."
                    )
                member.name = member.name.removeprefix("./")
                yield member
            _check_end(path, archive)
    except UserError:
        raise
    except ARCHIVE_ERRORS as error:
        raise DataError(f"{path} can't be read as a tar file: {first_line(error)}.") from None


def _check_end(path: Path, archive: tarfile.TarFile) -> None:
    """Raise DataError unless the archive's end is where tarfile stopped: it also stops, without an
    error, at a damaged header."""
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if block and block != bytes(tarfile.BLOCKSIZE):
        raise DataError(
            f"{path}, byte {archive.offset}: neither a member nor the archive's end is there; the "
            f"file is damaged or cut short."
        )


def _is_tar(path: Path) -> bool:
    return _head(path)[257:262] == b"ustar"


def _head(path: Path) -> bytes:
    with open(path, "rb") as f:
        return f.read(512)


def _tree_order(name: str) -> tuple[list[str], str]:
    folder, _, file = name.rpartition("/")
    return folder.split("/") if folder else [], file


def _common_folder(names: Iterable[str]) -> str:
    """The folder, with its slash, in which all files lie; empty if there is none."""
    tops = {name.partition("/")[0] if "/" in name else "" for name in names}
    top = tops.pop() if len(tops) == 1 else ""
    return f"{top}/" if top else ""
