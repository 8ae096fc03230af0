"""The entries of an LMDB database, read without the lmdb package and checked at every step.

The format is LMDB's of version 1 on 64-bit machines (`mdb.c`): pages of equal size, little-endian.
Pages 0 and 1 are meta pages, of which the one of the later transaction counts; it has the root of a
B+ tree, sorted by key. Branch pages have the numbers of their children, leaf pages the keys with
their values, or with the number of the first overflow page of a large value.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from Utils.Datasets_Utils.formats.storage import MappedFile
from Utils.errors import DataError
from Utils.file_kinds import other_kind

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4  # flags of a page
_LARGE = 1  # flag of a node: its value is on overflow pages
_PAGE = struct.Struct("<Q2xHH2x")  # number, flags, where its list of nodes ends
_NODE = struct.Struct("<HHHH")  # size or child, in two halves; flags; size of the key
# After the header: magic, version; page size; depth, entries and root of the tree; transaction.
_META = struct.Struct("<II16xI44x6xH24xQQ8xQ")
_DEEPEST = 32


def is_database(start: bytes) -> bool:
    """Whether a file of these first 20 bytes is a database."""
    return start[_PAGE.size :] == struct.pack("<I", _MAGIC)


class Tree(NamedTuple):
    page_size: int
    depth: int
    entries: int
    root: int


def read_tree(file: MappedFile) -> Tree:
    """The B+ tree by the meta page of the later transaction."""
    view, metas, start = memoryview(file.bytes), [], 0
    for _ in range(2):
        meta = bytes(view[start + _PAGE.size :][: _META.size]).ljust(_META.size, b"\0")
        magic, version, size, depth, entries, root, turn = _META.unpack(meta)
        if magic != _MAGIC or version != _VERSION or not 512 <= size <= 1 << 16 or depth > _DEEPEST:
            why = other_kind(file.path) or (
                "it does not begin as LMDB's files of version 1 do, as 64-bit machines write "
                "them; it is damaged or something else. Fetch or convert it again."
            )
            raise DataError(f"{file.path} is no LMDB database: {why}")
        metas.append((turn, Tree(size, depth, entries, root)))
        start += size
    return max(metas)[1]


def entries(
    file: MappedFile, tree: Tree, number: int, depth: int
) -> Iterator[tuple[bytes, int, int]]:
    """(key, offset of its value, size of that) of each entry below a page, sorted by key.

    depth: of the tree from this page on. Raises DataError, naming the byte, for what can't be.
    """
    if depth == 0:  # an empty tree
        return
    view, start = memoryview(file.bytes), number * tree.page_size
    end = start + tree.page_size
    nodes_end = _check_page(file, tree, number, _BRANCH if depth > 1 else _LEAF)
    count = (nodes_end - _PAGE.size) // 2
    if not 0 < count < tree.page_size // 2:
        raise damaged(file, start, "the page there has an impossible list of nodes")
    for pointer in struct.unpack_from(f"<{count}H", view, start + _PAGE.size):
        node = start + pointer
        low, high, flags, key_size = _NODE.unpack_from(view, min(node, end - _NODE.size))
        offset, size = node + _NODE.size + key_size, low | high << 16
        if pointer < nodes_end or offset > end:
            raise damaged(file, node, "a node lies outside its page")
        if depth > 1:
            yield from entries(file, tree, size | flags << 32, depth - 1)
            continue
        key = bytes(view[offset - key_size : offset])
        if flags not in (0, _LARGE):
            raise DataError(
                f"{file.path}: the key {key[:40]!r} holds a database of its own or several "
                f"values; expected the image and the label of a training set."
            )
        if flags == _LARGE and offset + 8 <= end:
            (large,) = struct.unpack_from("<Q", view, offset)
            _check_page(file, tree, large, _OVERFLOW)
            offset, end_of_value = large * tree.page_size + _PAGE.size, file.size
        else:
            end_of_value = end
        if offset + size > end_of_value:
            if end_of_value == file.size:
                raise _cut_short(file, offset)
            raise damaged(file, offset, f"the value of {key[:40]!r} runs past its page")
        yield key, offset, size


def _check_page(file: MappedFile, tree: Tree, number: int, kind: int) -> int:
    """Where the list of nodes of a page ends. Raises DataError if it is another page."""
    start = number * tree.page_size
    if start + tree.page_size > file.size:
        raise _cut_short(file, start)
    stored, flags, nodes_end = _PAGE.unpack_from(memoryview(file.bytes), start)
    if stored != number or not flags & kind:
        raise damaged(file, start, f"page {number} of the tree is not there")
    return nodes_end


def _cut_short(file: MappedFile, byte: int) -> DataError:
    return DataError(
        f"{file.path} ends at byte {file.size}, but its database goes on at byte {byte}: the file "
        f"is cut short or damaged. Fetch or convert it again."
    )


def damaged(file: MappedFile, byte: int, why: str) -> DataError:
    return DataError(
        f"{file.path}, byte {byte}: the database is damaged: {why}. Fetch or convert it again."
    )
