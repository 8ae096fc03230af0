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


def _numbers(text: str, counts: tuple[int, ...], low: int, high: int, form: str) -> tuple[int, ...]:
    """Numbers between commas, as many as one of counts. Raises argparse's error for others."""
    fields = text.lower().replace("x", ",").replace("×", ",").split(",")
    numbers = tuple(int(field) if field.strip().isdecimal() else -1 for field in fields)
    if len(numbers) not in counts or not all(low <= number <= high for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not {form}, from {low} to {high}")
    return numbers


def _size(text: str) -> tuple[int, ...]:
    """`112,96`, also `112x96`; or `112`, the side of a square."""
    numbers = _numbers(text, (1, 2), 8, _MOST, "height,width or one side")
    return numbers if len(numbers) == 2 else numbers * 2


def _colour(text: str) -> tuple[int, ...]:
    """`127,127,127`, or `127` for grey."""
    numbers = _numbers(text, (1, 3), 0, 255, "red,green,blue or one grey")
    return numbers if len(numbers) == 3 else numbers * 3


def _count(text: str) -> int:
    return _numbers(text, (1,), 0, 10_000, "a number")[0]


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
        type=_count,
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
    parser.add_argument("--num_workers", type=_count, default=2, help="processes that align")
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
    report = align(
        given.photos,
        given.output,
        settings,
        file_list=given.file_list,
        encoding=given.list_encoding,
        drop_folders=given.drop_folders,
        num_workers=given.num_workers,
    )
    print(report.encode("utf-8", "replace").decode())  # names may be no text


if __name__ == "__main__":
    run_script(main)
