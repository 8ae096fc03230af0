"""Archives of a folder tree, read without unpacking: a .zip, or a .tar that is not compressed.

zip: PKWARE's APPNOTE, members stored or deflated. tar: POSIX ustar and pax, and GNU's.
"""

from __future__ import annotations

import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from Utils.Datasets_Utils.formats.storage import MappedFile, PathTable
from Utils.Datasets_Utils.images import ImageError, is_image_name
from Utils.Datasets_Utils.training_set import ImageStore, Labelled
from Utils.errors import DataError

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member; lengths of its name and extra field
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1


class Archive(ImageStore):
    """The files in an archive, sorted in the order of a folder tree.

    names: N paths in the archive. offsets: int64 N, of a zip member's local header, of a tar
    member's content. packed, sizes: int64 N, bytes in the archive and unpacked. deflated: bools N.
    checksums: uint32 N, CRC-32; None for a tar, which has none. top: the folder, with its slash,
    in which all files lie; empty if there is none.
    """

    def __init__(
        self,
        file: MappedFile,
        names: Sequence[str],
        offsets: np.ndarray,
        packed: np.ndarray,
        sizes: np.ndarray,
        deflated: np.ndarray,
        checksums: np.ndarray | None,
    ) -> None:
        order = np.array(sorted(range(len(names)), key=lambda i: _tree_order(names[i])), np.int64)
        self.file = file
        self.source = file.path
        self.names = PathTable(names[i] for i in order.tolist())
        self.offsets, self.packed, self.sizes = offsets[order], packed[order], sizes[order]
        self.deflated = deflated[order]
        self.checksums = None if checksums is None else checksums[order]
        self.top = _common_folder(names)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        return self.names[row]

    def place(self, row: int) -> str:
        return f"{self.source}, byte {self.offsets[row]} ({self.names[row]})"

    def encoded(self, row: int) -> bytes | np.ndarray:
        """The bytes of a file. Raises ImageError, naming archive, byte and file, if damaged."""
        offset, packed = int(self.offsets[row]), int(self.packed[row])
        if self.checksums is None:
            return self.file.read(offset, packed)
        magic, name, extra = _LOCAL_HEADER.unpack(self.file.read(offset, _LOCAL_HEADER.size))
        if magic != b"PK\3\4":
            raise ImageError(f"{self.place(row)}: no zip member begins there; the file is damaged")
        content = self.file.read(offset + _LOCAL_HEADER.size + name + extra, packed)
        if self.deflated[row]:
            content = self._inflate(row, content)
        if zlib.crc32(content) != self.checksums[row]:
            raise ImageError(f"{self.place(row)}: its check sum is wrong; the file is damaged")
        return content

    def rows(self, names: Sequence[str], file_list: Path) -> np.ndarray:
        """As in `ImageStore`; names may leave out the folder `top`."""
        if self.top and len(names) and not names[0].startswith(self.top):
            names = [self.top + name for name in names]
        return super().rows(names, file_list)

    def read(self, name: Path) -> bytes:
        """The bytes of a file by its name, with or without the folder `top`.

        Raises DataError where there is no such file.
        """
        rows = {file: row for row, file in enumerate(self.names)}
        row = rows.get(name.as_posix(), rows.get(self.top + name.as_posix()))
        if row is None:
            raise DataError(f"{name} is no file, neither on disk nor in {self.source}.")
        return bytes(self.encoded(row))

    def _inflate(self, row: int, content: np.ndarray) -> bytes:
        size = int(self.sizes[row])
        try:
            # No more than the directory says: a small member may inflate to gigabytes.
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
        except zlib.error as error:
            raise ImageError(f"{self.place(row)}: can't be inflated ({error})") from None


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or an uncompressed tar, by its contents."""
    return path.is_file() and (_is_tar(path) or zipfile.is_zipfile(path) or _begins_as_zip(path))


def open_archive(path: Path) -> Archive:
    """List the files of an archive. Nothing is unpacked.

    Raises DataError, naming archive, byte and member, for a path outside the archive's own folder,
    a member that is encrypted or compressed by another method, and a truncated archive.
    """
    try:
        return _open_tar(path) if _is_tar(path) else _open_zip(path)
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} can't be read as an archive: {error}.") from None


def open_archive_tree(path: Path) -> Labelled:
    """The images of a class-per-folder tree, with the labels that `image_list.scan_tree` gives.

    A folder that holds images is a class, images under the root are in none. The root is the folder
    that holds everything, if there is one with folders of images in it.
    """
    archive = open_archive(path)
    rows, folders = _images_below(archive, archive.top)
    if not rows:
        rows, folders = _images_below(archive, "")
    changes = [folder != before for folder, before in zip(folders, [None, *folders], strict=False)]
    labels = np.cumsum(changes, dtype=np.int64) - 1
    return Labelled(archive, labels, np.array(rows, np.int64))


def _images_below(archive: Archive, root: str) -> tuple[list[int], list[str]]:
    """(rows, folders) of the images that lie in a folder below root."""
    rows, folders = [], []
    for row in range(len(archive)):
        folder, _, file = archive.name(row).removeprefix(root).rpartition("/")
        if folder and is_image_name(file):
            rows.append(row)
            folders.append(folder)
    return rows, folders


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
        members = [m for m in archive.infolist() if not m.is_dir() and not _is_litter(m.filename)]
    for member in members:
        check_inside(path, member.header_offset, member.filename)
        if member.flag_bits & _ENCRYPTED or member.compress_type not in _METHODS:
            raise DataError(
                f"{path}, byte {member.header_offset}: member {member.filename!r} is encrypted or "
                f"packed by method {member.compress_type}; expected stored or deflated ones."
            )
    return Archive(
        MappedFile(path),
        [m.filename.removeprefix("./") for m in members],
        np.array([m.header_offset for m in members], np.int64),
        np.array([m.compress_size for m in members], np.int64),
        np.array([m.file_size for m in members], np.int64),
        np.array([m.compress_type == zipfile.ZIP_DEFLATED for m in members], bool),
        np.array([m.CRC for m in members], np.uint32),
    )


def _open_tar(path: Path) -> Archive:
    members = [m for m in tar_members(path) if not _is_litter(m.name)]
    sizes = np.array([m.size for m in members], np.int64)
    return Archive(
        MappedFile(path),
        [m.name for m in members],
        np.array([m.offset_data for m in members], np.int64),
        sizes,
        sizes,
        np.zeros(len(members), bool),
        None,
    )


def tar_members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The regular files of an uncompressed tar, in its order, names without a leading ./ .

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
    except tarfile.TarError as error:
        raise DataError(f"{path} can't be read as a tar file: {error}.") from None


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
    with open(path, "rb") as f:
        return f.read(512)[257:262] == b"ustar"


def _begins_as_zip(path: Path) -> bool:
    """A truncated zip is recognised only by its beginning: its directory is at the end."""
    with open(path, "rb") as f:
        return f.read(4) == b"PK\3\4"


def _is_litter(name: str) -> bool:
    """Whether macOS added it to the archive: one for each file, with its suffix, but no image."""
    return name.startswith("__MACOSX/") or PurePosixPath(name).name.startswith("._")


def _tree_order(name: str) -> tuple[list[str], str]:
    folder, _, file = name.rpartition("/")
    return folder.split("/") if folder else [], file


def _common_folder(names: Sequence[str]) -> str:
    """The folder, with its slash, in which all files lie; empty if there is none."""
    tops = {name.partition("/")[0] if "/" in name else "" for name in names}
    top = tops.pop() if len(tops) == 1 else ""
    return f"{top}/" if top else ""
