"""The values of an LMDB training set: (image file, label) in msgpack or a plain pickle.

Pickles are not unpickled: the two constants in one are found by its opcodes.
"""

from __future__ import annotations

import pickletools
import struct

from Utils.Datasets_Utils.images import image_suffix

LENGTH, KEYS, CLASSES = b"__len__", b"__keys__", b"__classnum__"

# What may be in the pickle of (bytes, int): opcodes of bytes with the length of their header, of
# whole numbers, and of what holds the two.
_PICKLED_BYTES = {"SHORT_BINBYTES": 2, "BINBYTES": 5, "BINBYTES8": 9}
_PICKLED_INTS = {"BININT", "BININT1", "BININT2", "LONG1"}
_PICKLED_REST = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "MARK", "TUPLE", "TUPLE2"}
_PICKLED_REST |= {"EMPTY_LIST", "APPENDS", "STOP"}

# msgpack, by the first byte: the struct of the size of bytes (or text, as old releases write
# bytes), and of a whole number.
_PACKED_BYTES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_PACKED_INTS = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
_PACKED_INTS |= {0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_PAIR = 0x92


def read_sample(value: memoryview) -> tuple[int, int, int] | None:
    """(offset of the image in a value, its size, its label or -1); None for another form."""
    head = bytes(value[:12])
    if head.startswith(b"\xff\xd8") or image_suffix(head) != ".jpg":
        return 0, len(value), -1
    try:
        if head[:1] == b"\x80":
            offset, size, label = _unpickled_pair(value)
        else:
            size_format = _PACKED_BYTES[head[1]] if head[0] == _PAIR else ""
            offset = 2 + struct.calcsize(size_format)
            (size,) = struct.unpack_from(size_format, value, 2)
            label = read_number(value[offset + size :])
    except (ValueError, LookupError, struct.error):
        return None
    return (offset, size, label) if size and 0 <= label < 1 << 31 else None


def _unpickled_pair(value: memoryview) -> tuple[int, int, int]:
    """As `read_sample`, of a pickle; nothing of it is run. Raises ValueError for another form."""
    image, labels = [], []
    for opcode, argument, position in pickletools.genops(bytes(value)):
        if opcode.name in _PICKLED_BYTES and not image and not labels:
            image = [position + _PICKLED_BYTES[opcode.name], len(argument)]
        elif opcode.name in _PICKLED_INTS and image and not labels:
            labels = [argument]
        elif opcode.name not in _PICKLED_REST:
            raise ValueError(opcode.name)
    offset, size, label = (*image, *labels)
    return offset, size, label


def read_number(value: memoryview) -> int:
    """A whole number in msgpack, or in a pickle; -1 for anything else."""
    if len(value) == 1 and value[0] < 0x80:
        return value[0]
    kind = _PACKED_INTS.get(value[0]) if len(value) else None
    if kind and len(value) == 1 + struct.calcsize(kind):
        return struct.unpack_from(kind, value, 1)[0]
    try:
        found = [arg for op, arg, _ in pickletools.genops(bytes(value)) if op.name in _PICKLED_INTS]
    except ValueError:
        return -1
    return found[0] if len(found) == 1 else -1


def pack_number(number: int) -> bytes:
    """A number below 2^32 in msgpack."""
    return struct.pack(">BI", 0xCE, number)


def pack_bytes(content: bytes) -> bytes:
    """Bytes in msgpack."""
    return struct.pack(">BI", 0xC6, len(content)) + content


def pack_sample(encoded: bytes, label: int) -> bytes:
    """The value of an image: the inverse of `read_sample`."""
    return bytes([_PAIR]) + pack_bytes(encoded) + pack_number(label)


def pack_keys(keys: list[bytes]) -> bytes:
    """The value of `__keys__`."""
    return struct.pack(">BI", 0xDD, len(keys)) + b"".join(map(pack_bytes, keys))
