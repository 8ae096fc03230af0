"""Align faces: photographs of any size to crops, as networks are trained with and tested on.

    python -m Utils.Datasets_Utils.align_faces PHOTOS OUT --landmarks LIST
    python -m Utils.Datasets_Utils.align_faces PHOTOS OUT --detector yunet

PHOTOS is a folder, a list, a .zip or a .tar. OUT gets the crops in the same tree, and aligned.csv,
a line for each photograph: its box, five points and score, doubts, and the reason if nothing was
written. OUT_doubtful.jpg shows the doubtful ones. A run that was interrupted continues when the
same command is given again.
"""

import argparse
from pathlib import Path

from Utils.Datasets_Utils.alignment.detectors import DETECTORS
from Utils.Datasets_Utils.alignment.faces import WHICH
from Utils.Datasets_Utils.alignment.photograph import FRAMES
from Utils.Datasets_Utils.alignment.run import align
from Utils.Datasets_Utils.alignment.work import Settings
from Utils.errors import DataError, run_script

_MOST = 4096  # pixels of a crop's side


def _size(text: str) -> tuple[int, int]:
    """`112,96`, also `112x96` or `112`."""
    numbers = [int(field) for field in text.lower().replace("x", ",").replace("×", ",").split(",")]
    numbers = numbers * 2 if len(numbers) == 1 else numbers
    height, width = numbers
    if not (8 <= height <= _MOST and 8 <= width <= _MOST):
        raise ValueError
    return height, width


def _colour(text: str) -> tuple[int, int, int]:
    """`127,127,127`, or `127` for grey."""
    numbers = [int(field) for field in text.split(",")]
    red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError
    return red, green, blue


def main() -> None:
    """Read the command line, align, print the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, help="a folder, list, .zip or .tar of photographs")
    parser.add_argument("output", metavar="out", type=Path, help="the folder for the crops")
    parser.add_argument("--file_list", type=Path, help="the photographs to align")
    parser.add_argument("--list_encoding", default="", help="of the lists; found out if not given")
    where = parser.add_argument_group("where the faces are")
    where.add_argument("--landmarks", type=Path, help="a list of five or 68 points a face")
    where.add_argument(
        "--landmarks_frame",
        choices=FRAMES,
        default="upright",
        help="whose pixels they are, where EXIF data turn a photograph: of the upright one, or of "
        "the one that is stored",
    )
    where.add_argument(
        "--drop_folders",
        type=int,
        default=0,
        metavar="N",
        help="drop N leading folders from the names in the list of landmarks",
    )
    where.add_argument(
        "--detector", choices=list(DETECTORS), help="finds the faces that the list lacks, or all"
    )
    where.add_argument("--detector_file", type=Path, help="its weights; else those in Pretrained/")
    where.add_argument(
        "--which",
        choices=WHICH,
        default="largest",
        help="which face is taken where there are several",
    )
    crops = parser.add_argument_group("the crops")
    crops.add_argument(
        "--size", type=_size, default=(112, 112), metavar="H,W", help="height and width"
    )
    crops.add_argument(
        "--border",
        type=_colour,
        default=(0, 0, 0),
        metavar="R,G,B",
        help="colour of what is outside a photograph",
    )
    parser.add_argument("--num_workers", type=int, default=2, help="processes that align")
    given = parser.parse_args()
    if not (given.landmarks or given.detector):
        raise DataError(
            "nothing says where the faces are: name a list of landmarks with --landmarks, or a "
            f"detector with --detector ({', '.join(DETECTORS)}), which needs a file of weights "
            f"that Pretrained/README.md names."
        )
    settings = Settings(
        size=given.size,
        border=given.border,
        which=given.which,
        detector=given.detector or "",
        detector_file=given.detector_file,
        landmarks=given.landmarks,
        landmarks_frame=given.landmarks_frame,
    )
    print(
        align(
            given.photos,
            given.output,
            settings,
            file_list=given.file_list,
            encoding=given.list_encoding,
            drop_folders=given.drop_folders,
            num_workers=given.num_workers,
        )
    )


if __name__ == "__main__":
    run_script(main)
