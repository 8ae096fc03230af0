"""Verification sets of face.evoLVe: a bcolz array on disk, with `<name>_list.npy` beside it.

bcolz is no longer maintained. Its format (`carray_ext.pyx`): `meta/sizes` and `meta/storage` are
JSON, and `data/__N.blp` holds a chunk of `chunklen` rows, in a bloscpack frame of 16 bytes (`blpk`,
version 1) around one Blosc buffer. The array is 2P×3×H×W, values (x/255 - 0.5)/0.5; the published
sets have the channel order BGR. The list is P bools.
"""

from __future__ import annotations

import os
import struct
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from Utils.Datasets_Utils.folds import consecutive_folds
from Utils.Datasets_Utils.formats.storage import are_columns, cached_arrays
from Utils.Datasets_Utils.images import ImageError
from Utils.Datasets_Utils.training_set import ImageStore
from Utils.Datasets_Utils.verification_set import StoredImages, VerificationSet
from Utils.errors import DataError
from Utils.files import read_json, reading

CHANNEL_ORDERS = ("BGR", "RGB")

_FRAME = 16  # bytes of the bloscpack frame before the Blosc buffer
_BLOSC = struct.Struct("<BBBBIII")  # version, codec version, flags, type size, and three sizes
_LARGEST_SIZE = 1 << 31
_LARGEST = 1.01  # larger absolute values were not made from pixels


class BlpImages(ImageStore):
    """The 2P images of a bcolz array; the chunk of an image is decompressed when it is read.

    folder: of the array. It can be pickled; each process decompresses for itself, and keeps one
    chunk.

    The constructor raises DataError, naming the file, for metadata that can't be read, and for a
    chunk that is missing or whose frame contradicts the metadata.
    """

    def __init__(self, folder: Path, channel_order: str = "BGR") -> None:
        self.source = self.folder = folder
        self.reverse = channel_order == "BGR"
        sizes, storage = (
            read_json(folder / "meta" / name, "metadata") for name in ("sizes", "storage")
        )
        try:
            self.shape = tuple(map(_count, sizes["shape"]))
            self.dtype = np.dtype(storage["dtype"])
            self.rows_per_chunk = _count(storage["chunklen"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{folder / 'meta'} does not describe an array ({error!r}).") from None
        if len(self.shape) != 4 or self.shape[1] != 3 or self.dtype.kind != "f":
            raise DataError(
                f"{folder / 'meta/sizes'} says shape {list(self.shape)} of {self.dtype}; expected "
                f"floats of shape [images, 3, height, width]."
            )
        if self.rows_per_chunk < 1 or min(self.shape) < 1:
            raise DataError(f"{folder / 'meta'}: no rows, or chunks of {self.rows_per_chunk} rows.")
        self._kept: tuple[int, np.ndarray] | None = None
        for number in range(-(-len(self) // self.rows_per_chunk)):
            self._check_chunk(number)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": None}

    def __len__(self) -> int:
        return self.shape[0]

    def name(self, row: int) -> str:
        return f"{self.folder.name} {row}"

    def encoded(self, row: int) -> bytes:
        raise DataError(f"{self.folder} holds pixels, no image files whose bytes could be copied.")

    def decode(self, row: int) -> np.ndarray:
        """uint8 H×W×3 RGB. Raises ImageError, naming the chunk, if it is damaged."""
        values = self.values(row)
        if not np.all(np.abs(values) <= _LARGEST):  # NaN too
            raise ImageError(
                f"{self._chunk_path(row // self.rows_per_chunk)}, row {row}: values outside "
                f"-1..1, which are no pixels"
            )
        pixels = np.rint((values.astype(np.float64) * 0.5 + 0.5) * 255).clip(0, 255)
        pixels = pixels.astype(np.uint8).transpose(1, 2, 0)  # 3×H×W -> H×W×3
        return np.ascontiguousarray(pixels[..., ::-1] if self.reverse else pixels)

    def values(self, row: int) -> np.ndarray:
        """The stored 3×H×W."""
        number, within = divmod(row, self.rows_per_chunk)
        if self._kept is None or self._kept[0] != number:
            self._kept = number, self._decompress(number)
        return self._kept[1][within]

    def _decompress(self, number: int) -> np.ndarray:
        import blosc2  # here, because it is large and no other format needs it

        path = self._chunk_path(number)
        try:
            # One thread: worker processes are the parallelism, and threads do not survive a fork.
            content = blosc2.decompress2(path.read_bytes()[_FRAME:], nthreads=1)
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise ImageError(f"{path}, byte {_FRAME}: can't be decompressed ({error})") from None
        return np.frombuffer(content, self.dtype).reshape(-1, *self.shape[1:])

    def _check_chunk(self, number: int) -> None:
        """Compare the frame of a chunk with the metadata and the file's size."""
        path = self._chunk_path(number)
        if not path.is_file():
            raise DataError(
                f"{path} is missing: chunk {number} of the {len(self)} images that "
                f"{self.folder / 'meta/sizes'} promises."
            )
        with reading(path, "chunk"), open(path, "rb") as f:
            head = f.read(_FRAME + _BLOSC.size)
            size = os.fstat(f.fileno()).st_size
        if head[:4] != b"blpk" or len(head) < _FRAME + _BLOSC.size:
            raise DataError(f"{path}, byte 0: a chunk must begin with 'blpk', not {head[:4]!r}.")
        *_, unpacked, _, packed = _BLOSC.unpack_from(head, _FRAME)
        rows = min(self.rows_per_chunk, len(self) - number * self.rows_per_chunk)
        row_bytes = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        if unpacked not in (rows * row_bytes, self.rows_per_chunk * row_bytes):
            raise DataError(
                f"{path}, byte {_FRAME + 4}: it holds {unpacked} bytes unpacked; expected "
                f"{rows * row_bytes}, for {rows} images."
            )
        if packed != size - _FRAME:
            raise DataError(
                f"{path}, byte {_FRAME + 12}: it should be {packed + _FRAME} bytes long, but has "
                f"{size}; the chunk is cut short or damaged."
            )

    def _chunk_path(self, number: int) -> Path:
        return self.folder / "data" / f"__{number}.blp"


def _count(value: Any) -> int:
    """A size in the metadata. Raises ValueError for another value."""
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= _LARGEST_SIZE:
        raise ValueError("a size that is no whole number")
    return value


def is_blp(path: Path) -> bool:
    """Whether a folder holds an array of bcolz."""
    return (path / "meta" / "storage").is_file() and (path / "data").is_dir()


def open_blp(
    path: Path, file_list: Path | None = None, channel_order: str = "BGR"
) -> VerificationSet:
    """Open the .blp set in a folder. Images of the same values become one.

    file_list: its issame list; None: `<folder>_list.npy` beside it. channel_order: of the values,
    BGR or RGB. There are ten consecutive folds. Raises DataError, naming the file, for a list that
    is missing or does not fit, and as `BlpImages` does.
    """
    if channel_order not in CHANNEL_ORDERS:
        raise ValueError(f"channel_order is {channel_order!r}; expected BGR or RGB")
    array = BlpImages(path, channel_order)
    same = _read_issame(file_list or path.with_name(f"{path.name}_list.npy"), len(array))
    first = _first_occurrences(array)
    rows, indices = np.unique(first, return_inverse=True)
    return VerificationSet(
        images=StoredImages(array, rows),
        names=[array.name(row) for row in rows.tolist()],
        left=indices[::2],
        right=indices[1::2],
        same=same,
        folds=consecutive_folds(len(same)),
        sizes={array.shape[2:]: len(rows)},
    )


def _first_occurrences(array: BlpImages) -> np.ndarray:
    """For each row, the first row of the same values (int64), by one scan of the array."""

    def digest(row: int) -> bytes:
        return blake2b(array.values(row).tobytes(), digest_size=16).digest()

    def build() -> dict[str, np.ndarray]:
        seen: dict[bytes, int] = {}
        rows = tqdm(range(len(array)), desc=f"Indexing {array.folder.name}", delay=1, unit="image")
        try:
            first = [seen.setdefault(digest(row), row) for row in rows]
        except ImageError as error:
            raise DataError(str(error)) from None
        return {"first": np.array(first, np.int64)}

    sources = [array.folder / "meta/sizes", *sorted((array.folder / "data").glob("*.blp"))]
    name = f"{array.folder.name}_unique.npz"

    def fits(kept: dict[str, np.ndarray]) -> bool:
        first, rows = kept["first"], np.arange(len(array))
        return are_columns(len(rows), first) and bool(((first >= 0) & (first <= rows)).all())

    return cached_arrays(array.folder.with_name(name), sources, build, fits)["first"]


def _read_issame(path: Path, images: int) -> np.ndarray:
    try:
        same = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}, which says which pairs are the same, is missing.") from None
    except Exception as error:  # numpy raises many kinds for a damaged file
        raise DataError(f"{path} can't be read as an array: {error}") from None
    if same.ndim != 1 or 2 * len(same) != images or same.dtype.kind not in "biu":
        raise DataError(
            f"{path} holds {same.dtype} of shape {list(same.shape)}, but the array beside it "
            f"{images} images; expected bools, one for two images, so {images / 2:g}."
        )
    return same.astype(bool)
