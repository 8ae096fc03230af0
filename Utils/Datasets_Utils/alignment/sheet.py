"""The contact sheet: photographs to look at, with the points that were found, and their crops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from Utils.Datasets_Utils.alignment.photograph import open_photograph
from Utils.Datasets_Utils.alignment.report import Line
from Utils.Datasets_Utils.images import ImageError, read_image
from Utils.Datasets_Utils.training_set import ImageStore
from Utils.files import atomic_path

_COLUMNS = 5  # faces beside each other
_PICTURE, _CROP, _TEXT, _GAP = 160, 112, 44, 8  # pixels
_LETTERS = 44
_INK, _POINT = (20, 20, 20), (0, 255, 0)


def draw_sheet(
    lines: Sequence[Line],
    store: ImageStore,
    rows: Mapping[str, int],
    folder: Path,
    path: Path,
) -> Path | None:
    """Write the faces of lines as one JPEG; returns its path, or None if there is nothing to look
    at. rows: of their photographs in the store. folder: of the crops."""
    tiles = [tile for line in lines if (tile := _tile(line, store, rows[line.file], folder))]
    path.unlink(missing_ok=True)
    if not tiles:
        return None
    width, height = tiles[0].size
    across = min(_COLUMNS, len(tiles))
    sheet = Image.new("RGB", (across * width, -(-len(tiles) // across) * height), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % across * width, number // across * height))
    with atomic_path(path) as temporary:
        sheet.save(temporary, "JPEG", quality=85)
    return path


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Matplotlib's, which unlike Pillow's has more letters than ASCII."""
    from matplotlib import get_data_path  # it takes time, and is seldom needed

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", 10)


def _tile(line: Line, store: ImageStore, row: int, folder: Path) -> Image.Image | None:
    """A photograph, its crop if there is one, and their names; None for one that can't be read."""
    try:
        photograph = open_photograph(store.encoded(row), "")
    except ImageError:
        return None
    tile = Image.new("RGB", (_PICTURE + _CROP + 3 * _GAP, _PICTURE + _TEXT + _GAP), "white")
    picture = Image.fromarray(photograph.image)
    picture.thumbnail((_PICTURE, _PICTURE))
    draw = ImageDraw.Draw(picture)
    scale = picture.width / photograph.size[1]
    if all(line.points):
        for x, y in (np.array(line.points, float).reshape(5, 2) * scale).clip(-9, _PICTURE + 9):
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), outline=_POINT)
    if all(line.box):
        corners = (np.array(line.box, float).reshape(2, 2) * scale).clip(-1, _PICTURE)
        draw.rectangle(tuple(np.sort(corners, axis=0).ravel()), outline=_POINT)
    tile.paste(picture, (_GAP, _GAP))
    if line.crop:
        crop = Image.fromarray(read_image(folder / line.crop))
        crop.thumbnail((_CROP, _PICTURE))
        tile.paste(crop, (_PICTURE + 2 * _GAP, _GAP))
    text = f"{line.file[-_LETTERS:]}\n{(line.doubts or line.reason)[:_LETTERS]}"
    text += f"   score {line.score}" if line.score else ""
    text = text.encode("utf-8", "replace").decode()
    draw = ImageDraw.Draw(tile)
    draw.text((_GAP, _PICTURE + _GAP + 2), text, _INK, _font())
    return tile
