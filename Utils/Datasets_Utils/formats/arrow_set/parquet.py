"""Parquet, rewritten once as arrow: it is compressed, and has no single rows to read.

The arrow file is beside it as a hidden file, or in the user's cache folder.
"""

from __future__ import annotations

from pathlib import Path

from Utils.Datasets_Utils.formats.arrow_set.tables import package, reading_table
from Utils.Datasets_Utils.formats.compressed import MOST_GROWTH, made_once, room_for
from Utils.Datasets_Utils.formats.storage import progress_bar
from Utils.errors import DataError, RunError
from Utils.files import atomic_path

_ROWS = 256  # of a batch


def as_arrow(file: Path) -> Path:
    """The arrow file of a parquet file, written with a progress bar unless it was before.

    Raises DataError for a damaged file, or one that grows beyond what images can; RunError where it
    can't be written.
    """
    return made_once(file, ".arrow", "rewritten", _rewrite)


def _rewrite(file: Path, target: Path) -> None:
    arrow = package(file)
    import pyarrow.parquet

    limit, room = room_for(file, target)
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
                    f"{file} grows to more than {limit:,} bytes, {MOST_GROWTH} times its size, "
                    f"which no set of images does; it is damaged."
                )
            if out.tell() > room:
                raise RunError(
                    f"{target.parent} has no room for the images of {file} ({room:,} bytes were "
                    f"tried); move the set to a larger disk."
                )
