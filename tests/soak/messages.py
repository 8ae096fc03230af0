"""As `structures`, for records in each other, JSON, tables and lines of text."""

import json
import re
import struct
import zlib
from random import Random
from typing import Any

from tests.soak.structures import NUMBERS, Inner

# Fields of text that a careless reader misreads.
_FIELDS = [b"", b"nan", b"-1", b"-0", b"1e400", b"inf", b"9" * 20, b"9" * 5000, b"1_0", b"0x10"]
_FIELDS += ["١".encode(), "²".encode(), b"\xff", b"\xff\xfe", b"\0", b"..", b"/", b"\\", b'"', b"'"]
_FIELDS += ["\u2028".encode(), b"\r", b"#", b",", b"\t", b"true", b"1.0", b"1e3", b"a" * 300]
_VALUES = [
    None,
    [],
    {},
    "",
    "x",
    -1,
    0,
    1.5,
    True,
    10**30,
    float("nan"),
    float("inf"),
    [[]],
    {"": 0},
]


def safetensors(data: bytes, rng: Random, inner: Inner) -> bytes:
    """The JSON header changed, with its length."""
    size = int.from_bytes(data[:8], "little")
    head, values = data[8 : 8 + size], data[8 + size :]
    try:
        head = json_text(head, rng, inner) if rng.random() < 0.8 else inner(head)
    except ValueError:
        head = inner(head)
    return len(head).to_bytes(8, "little") + head + values


def json_text(data: bytes, rng: Random, inner: Inner) -> bytes:
    """A value of JSON replaced by one of another type, lost, or there twice."""
    tree = [json.loads(data)]
    holder, key = tree, 0
    while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.8:
        holder = holder[key]
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    kind = rng.randrange(4)
    if kind == 0 and isinstance(holder, dict):
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.append(holder[key])
    elif kind == 2 and isinstance(holder[key], int | float):
        holder[key] = rng.choice((-1, 0, 1, holder[key] + 1, 2**31, 2**63, 1e400, 0.5, True))
    else:
        holder[key] = rng.choice(_VALUES)
    return json.dumps(tree[0]).encode() if tree else b""


def mat(data: bytes, rng: Random, inner: Inner) -> bytes:
    """A variable of a .mat file changed, inside its compression, or its tags."""
    elements, at = [], 128
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, at)
        elements.append((kind, data[at + 8 : at + 8 + size]))
        at += 8 + size
    place = rng.randrange(len(elements))
    kind, content = elements[place]
    if kind == 15:
        content = zlib.decompress(content)
    tags = [at for at in range(0, len(content) - 3, 8)]
    if rng.random() < 0.5 and tags:
        at = rng.choice(tags) + rng.choice((0, 0, 4))
        value = struct.pack("<I", rng.choice((*range(20), 0x40005, 0x10001, 1 << 20, len(content))))
        content = content[:at] + value + content[at + 4 :]
    else:
        content = inner(content)
    elements[place] = kind, zlib.compress(content) if kind == 15 else content
    return data[:128] + b"".join(struct.pack("<II", k, len(c)) + c for k, c in elements)


def protobuf(data: bytes, rng: Random, inner: Inner) -> bytes:
    """A field of a message changed, lost, doubled or moved, however deep; lengths fit."""
    fields = _fields(data)
    place = rng.randrange(len(fields))
    tag, value = fields[place]
    kind = rng.randrange(8)
    if kind == 0:
        del fields[place]
    elif kind == 1:
        fields.insert(rng.randrange(len(fields)), fields[place])
    elif isinstance(value, int):
        fields[place] = tag, rng.choice((*NUMBERS, value + 1)) % (1 << 64)
    elif kind == 2:
        fields[place] = (rng.randrange(1, 40) << 3) | (tag & 7), value
    else:
        try:
            fields[place] = tag, protobuf(value, rng, inner) if kind < 7 else inner(value)
        except (ValueError, IndexError):
            fields[place] = tag, inner(value)
    return b"".join(_varint(tag) + _body(tag, value) for tag, value in fields)


def _fields(data: bytes) -> list[tuple[int, Any]]:
    found, at = [], 0
    while at < len(data):
        tag, at = _number(data, at)
        if tag & 7 == 0:
            value, at = _number(data, at)
        else:
            size, at = _number(data, at) if tag & 7 == 2 else ({1: 8, 5: 4}[tag & 7], at)
            value, at = data[at : at + size], at + size
        found.append((tag, value))
    if at != len(data):
        raise ValueError("no message")
    return found


def _body(tag: int, value: Any) -> bytes:
    if isinstance(value, int):
        return _varint(value)
    return _varint(len(value)) + value if tag & 7 == 2 else value


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def records(data: bytes, rng: Random, inner: Inner) -> bytes:
    """The payload of a record of MXNet changed, with its length."""
    found, at = [], 0
    while at + 8 <= len(data):
        magic, word = struct.unpack_from("<II", data, at)
        size = word & 0x1FFFFFFF
        found.append((magic, word >> 29, data[at + 8 : at + 8 + size]))
        at += 8 + size + -size % 4
    place = rng.randrange(len(found))
    magic, kind, content = found[place]
    action = rng.randrange(8)
    if action == 0:
        kind = rng.randrange(8)
    elif action == 1:
        found.insert(rng.randrange(len(found)), found[place])
    else:
        content = inner(content)
    found[place] = magic, kind, content
    return b"".join(
        struct.pack("<II", m, k << 29 | len(c)) + c + bytes(-len(c) % 4) for m, k, c in found
    )


def arrow(data: bytes, rng: Random, inner: Inner) -> bytes:
    """The metadata of a message of an arrow file changed, in as many bytes."""
    starts = [match.end() + 4 for match in re.finditer(rb"\xff{4}(?!\0{4})", data)]
    at = rng.choice(starts)
    old = data[at : at + int.from_bytes(data[at - 4 : at], "little")]
    return data[:at] + inner(old)[: len(old)].ljust(len(old), b"\0") + data[at + len(old) :]


def parquet(data: bytes, rng: Random, inner: Inner) -> bytes:
    """The description at the end of a parquet file changed, with its length."""
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    about = inner(data[start:-8])
    return data[:start] + about + struct.pack("<I", len(about)) + data[-4:]


def lines(data: bytes, rng: Random, inner: Inner) -> bytes:
    """A line lost, doubled or moved, a field of it replaced, another encoding."""
    rows = data.split(b"\n")
    at, kind = rng.randrange(len(rows)), rng.randrange(8)
    if kind == 0:
        del rows[at]
    elif kind == 1:
        rows.insert(rng.randrange(len(rows)), rows[at])
    elif kind == 2 and rng.random() < 0.2:
        return data.decode("utf-8", "replace").encode(
            rng.choice(("utf-16", "utf-32", "gbk", "utf-8-sig")), "replace"
        )
    elif kind == 3:
        rows[at] = inner(rows[at])
    else:
        separator = rng.choice([s for s in (b"\t", b",", b" ", b";") if s in rows[at]] or [b" "])
        fields = rows[at].split(separator)
        fields[rng.randrange(len(fields))] = rng.choice(_FIELDS)
        rows[at] = separator.join(fields)
    return b"\n".join(rows)
