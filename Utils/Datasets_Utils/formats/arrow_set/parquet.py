"""Parquet, rewritten once as arrow: it is compressed, and has no single rows to read.

The arrow file is beside it as a hidden file, or in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from Utils.Datasets_Utils.formats.arrow_set.tables import package, reading_table
from Utils.Datasets_Utils.formats.storage import cache_places, fingerprint, progress_bar
from Utils.errors import DataError, RunError
from Utils.files import atomic_path, make_folder

_ROWS = 256  # of a batch
# See `formats.compressed`.
_MOST_GROWTH = 20
_ALWAYS_ALLOWED = 1 << 26
_LEFT_FREE = 1 << 30


def as_arrow(file: Path) -> Path:
    """The arrow file of a parquet file, written with a progress bar unless it was before.

    Raises DataError for a damaged file, or one that grows beyond what images can; RunError where it
    can't be written.
    """
    digest = hashlib.sha256(repr(fingerprint(file)).encode()).hexdigest()[:16]
    places = cache_places(file.with_name(f".{file.name}.{digest}.arrow"))
    for place in places:
        if place.is_file():
            return place
    for last, place in enumerate(places, 1):
        try:
            make_folder(place.parent)
            _rewrite(file, place)
            return place
        except RunError:
            if last == len(places):
                raise
    raise RunError(f"{file} can't be rewritten: neither its folder nor a home can be written to.")


def _rewrite(file: Path, target: Path) -> None:
    arrow = package(file)
    import pyarrow.parquet

    limit = max(_MOST_GROWTH * file.stat().st_size, _ALWAYS_ALLOWED)
    room = shutil.disk_usage(target.parent).free - _LEFT_FREE
    with reading_table(file, arrow):
        table = pyarrow.parquet.ParquetFile(file)
        batches = table.iter_batches(batch_size=_ROWS, use_threads=False)
        rows = table.metadata.num_rows
    with (
        atomic_path(target) as temporary,
        open(temporary, "wb") as out,
        arrow.ipc.new_stream(out, table.schema_arrow) as writer,
        progress_bar(f"Rewriting {file.name} in {target.parent}", rows, "row") as bar,
    ):
        while True:
            with reading_table(file, arrow):
                batch = next(batches, None)
                if batch is None:
                    break
                batch.validate(full=True)
            writer.write_batch(batch)
            bar.update(len(batch))
            if out.tell() > limit:
                raise DataError(
                    f"{file} grows to more than {limit:,} bytes, {_MOST_GROWTH} times its size, "
                    f"which no set of images does; it is damaged."
                )
            if out.tell() > room:
                raise RunError(
                    f"{target.parent} has no room for the images of {file} ({room:,} bytes were "
                    f"tried); move the set to a larger disk."
                )
