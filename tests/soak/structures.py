"""Changes to a file that keep what its reader checks first: check sums, lengths, nesting.

Each function takes the bytes of a file, a random generator and `inner`, which changes bytes without
knowing what they are, and returns other bytes. It may raise anything for a file that is damaged
already: the caller then uses `inner` on all of it.
"""

import bz2
import gzip
import io
import lzma
import pickletools
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from random import Random

Inner = Callable[[bytes], bytes]
Change = Callable[[bytes, Random, Inner], bytes]

# Sizes, counts and offsets at the edges of what integers hold.
NUMBERS = [0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, 65535, 1 << 16, (1 << 31) - 1, 1 << 31]
NUMBERS += [(1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
_OPCODES = [code for code in pickletools.opcodes if code.arg is None]


def raw(data: bytes, rng: Random, others: list[bytes]) -> bytes:
    """Numbers, lengths and order of any bytes changed; others: files to splice with."""
    data, kind = bytearray(data), rng.randrange(6)
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    if kind < 2:
        size = rng.choice((1, 2, 4, 8))
        at = rng.randrange(len(data) + 1)
        if rng.random() < 0.7:
            at -= at % size
        number = rng.choice(NUMBERS) + rng.randrange(-1, 2)
        if rng.random() < 0.3:  # a little more or less than it was
            number = int.from_bytes(data[at : at + size], "little") + rng.randrange(-9, 10)
        order = rng.choice(("little", "big"))
        data[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, order)
    elif kind == 2:
        other = rng.choice(others)
        cut = rng.randrange(len(other) + 1)
        data = data[:a] + other[cut : cut + rng.choice((b - a, len(other)))] + data[b:]
    elif kind == 3:
        data = data[:a] + data[a:b] * rng.choice((0, 2, 3)) + data[b:]
    elif kind == 4:
        data = data[:a] + data[b:] + data[a:b]
    else:
        data = data[:a] if rng.random() < 0.5 else data + bytes(rng.randrange(1, 600))
    return bytes(data)


def zip_file(data: bytes, rng: Random, inner: Inner) -> bytes:
    """A member's name or content changed, with its CRC; members lost, doubled, in another order."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [[info.filename, archive.read(info)] for info in archive.infolist()]
    member = rng.choice(members)
    kind = rng.randrange(10)
    if kind == 0:
        members.remove(member)
    elif kind == 1:
        members.append([rng.choice(members)[0], member[1]])
    elif kind == 2:
        member[0] = rng.choice(("../a.png", "/a.png", "a/" * 200, "", "a\\b.png", member[0] + "/"))
    else:
        member[1] = inside(member[0], member[1], rng, inner)
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content in members:
            archive.writestr(name or "x", content)
    return out.getvalue()


def inside(name: str, content: bytes, rng: Random, inner: Inner) -> bytes:
    """The content of a member of an archive changed as its name says that it is."""
    change = {"pkl": pickled, "png": png, "npy": npy}.get(name.rpartition(".")[2])
    if change and rng.random() < 0.8:
        try:
            return change(content, rng, inner)
        except Exception:
            pass
    return inner(content)


def npy(data: bytes, rng: Random, inner: Inner) -> bytes:
    """The header or the values changed; the header's length fits."""
    start = 10 if data[6] == 1 else 12
    size = int.from_bytes(data[8:start], "little")
    head, values = data[start : start + size], data[start + size :]
    if rng.random() < 0.3:
        return data[: start + size] + inner(values)
    if rng.random() < 0.6:
        old = rng.choice((b"<f8", b"|b1", b"<i8", b"<f4", b"False", b"(", b",", b")", b"shape"))
        new = rng.choice(
            (
                b"|O",
                b"<U9",
                b"|V9",
                b"M8[s]",
                b"True",
                b"(0,",
                b"(-1,",
                b"(1,)*9",
                b"<f2",
                b"",
                b"3",
            )
        )
        head = head.replace(old, new, 1)
    else:
        head = inner(head)
    return data[:8] + (len(head) % 65536).to_bytes(start - 8, "little") + head + values


def png(data: bytes, rng: Random, inner: Inner) -> bytes:
    """A chunk of a PNG file changed, with its CRC; pixels are changed before they are packed."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    place = rng.randrange(len(chunks))
    kind, content = chunks[place]
    action = rng.randrange(8)
    if action == 0:
        chunks.insert(rng.randrange(len(chunks)), chunks[place])
    elif action == 1:
        del chunks[place]
    elif kind == b"IDAT" and action < 6:
        chunks[place] = kind, zlib.compress(inner(zlib.decompress(content)))
    else:
        chunks[place] = kind, inner(content)
    packed = (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return data[:8] + b"".join(packed)


def tar(data: bytes, rng: Random, inner: Inner) -> bytes:
    """A field of a member's header changed, with the header's check sum."""
    heads = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    at = rng.choice(heads)
    head = bytearray(data[at : at + 512])
    start, size = rng.choice(
        ((0, 100), (100, 8), (108, 8), (124, 12), (136, 12), (156, 1), (157, 100), (345, 155))
    )
    kinds = (b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"L", b"K", b"S", b"x", b"g", b"X", b"\0")
    if start == 156:
        field = rng.choice(kinds)
    elif start == 124 and rng.random() < 0.5:
        field = rng.choice(
            (b"77777777777\0", b"0" * 11 + b"\0", b"\x80" + b"\xff" * 11, b"\xff" * 12)
        )
    else:
        field = inner(bytes(head[start : start + size]))
    head[start : start + size] = field[:size].ljust(size, b"\0")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return data[:at] + bytes(head) + data[at + 512 :]


def packed(data: bytes, rng: Random, inner: Inner) -> bytes:
    """A compressed tar: the tar in it changed."""
    module = {b"\x1f\x8b": gzip, b"\xfd7": lzma, b"BZ": bz2}[data[:2]]
    content = module.decompress(data)
    return module.compress(tar(content, rng, inner) if rng.random() < 0.7 else inner(content))


def pickled(data: bytes, rng: Random, inner: Inner) -> bytes:
    """Opcodes lost, doubled, exchanged, or with another argument."""
    places = [at for _, _, at in pickletools.genops(data)]
    codes = [data[a:b] for a, b in zip(places, [*places[1:], len(data)], strict=True)]
    for _ in range(rng.randrange(1, 4)):
        at, kind = rng.randrange(len(codes)), rng.randrange(6)
        if kind == 0:
            del codes[at]
            codes = codes or [b"."]
        elif kind == 1:
            codes.insert(rng.randrange(len(codes)), codes[at] * rng.choice((1, 1, 1, 50)))
        elif kind == 2:
            other = rng.randrange(len(codes))
            codes[at], codes[other] = codes[other], codes[at]
        elif kind == 3:
            codes.insert(at, rng.choice(_OPCODES).code.encode("latin1"))
        elif kind == 4:
            codes[at] = codes[at][:1] + inner(codes[at][1:])
        else:
            codes[at] = rng.choice(_OPCODES).code.encode("latin1") + codes[at][1:]
    return b"".join(codes)
