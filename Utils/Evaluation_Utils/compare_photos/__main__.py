"""Compare photographs: is it the same person?

    python -m Utils.Evaluation_Utils.compare_photos A.jpg B.jpg --checkpoint PATH
    python -m Utils.Evaluation_Utils.compare_photos FOLDER --checkpoint PATH \\
        --threshold_from Results/a/lfw.json

Each path is a photograph, or a folder, list, .zip or .tar of photographs. One of 112×112 pixels is
taken as it is; in others a face is found and aligned first. With --threshold_from, the JSON file of
an evaluation of the same network, the score becomes an answer. --output gets compare_photos.json
and compare_photos.png, the crops and their scores.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from Utils.errors import DataError, run_script
from Utils.Evaluation_Utils.compare_photos.photos import (
    Photo,
    describe_photos,
    find_photos,
    read_photos,
)
from Utils.Evaluation_Utils.compare_photos.pictures import draw_matrix, draw_two
from Utils.Evaluation_Utils.compare_photos.scoring import Judge, open_judge, reading_photos
from Utils.files import save_json
from Utils.tables import format_table

_MOST = 500  # photographs; more are a matter for an evaluation, or for `identify`
_MATRIX = 12  # photographs whose matrix fits on a screen
_SHOWN = 10  # most alike pairs of more photographs


def main() -> None:
    """Read the command line, compare, print, write the files."""
    parser = reading_photos(__doc__, "compare_photos", "PHOTO PHOTO [...]")
    parser.add_argument("photos", nargs="+", type=Path, help="photographs, or folders of them")
    given = vars(parser.parse_args())
    found = find_photos(given["photos"])
    if not 2 <= len(found) <= _MOST:
        larger = "`python -m Utils.Evaluation_Utils.identify` searches in larger galleries."
        raise DataError(
            f"2 to {_MOST} photographs can be compared, not {len(found):,}: "
            + (larger if found[1:] else "name one more, or a folder of several.")
        )
    judge = open_judge(given)
    every = read_photos(found, judge.faces, judge.config.num_workers, "Reading")
    print(describe_photos(every), end="\n\n")
    photos = [photo for photo in every if photo.crop is not None]
    if len(photos) < 2:
        raise DataError(
            f"{len(photos)} of the {len(every)} photographs can be used, and two are needed: "
            + "; ".join(f"{p.name}: {p.how}" for p in every if p.crop is None)
            + "."
        )
    rows = judge.features(photos)
    scores = judge.scores(rows, rows)
    picture = judge.output / "compare_photos.png"
    if len(photos) == 2:
        answer = f"{judge.unit} {_answer(judge, scores[0, 1])}"
        draw_two(photos, answer, picture)
        print(answer)
    else:
        draw_matrix(photos, judge, scores, picture)
        print(_table(photos, judge, scores))
    save_json(
        judge.output / "compare_photos.json",
        {
            **judge.about(),
            "photos": [photo.to_dict() for photo in photos],
            "left_out": [photo.to_dict() for photo in every if photo.crop is None],
            "scores": judge.in_unit(scores),
            "same": judge.accepts(scores).tolist() if judge.threshold else None,
        },
    )
    print(f"\n{judge.rule}\n\nScores and picture: {judge.output}")


def _answer(judge: Judge, score: float) -> str:
    answer = ""
    if judge.threshold:
        answer = ": the same person" if judge.accepts(score) else ": two people"
    return f"{judge.shown(score)}{answer}"


def _table(photos: Sequence[Photo], judge: Judge, scores: np.ndarray) -> str:
    """The matrix, or the most alike pairs of many photographs."""

    def cell(left: int, right: int) -> str:
        star = " *" if judge.threshold and judge.accepts(scores[left, right]) else "  "
        return judge.shown(scores[left, right]) + star

    count = len(photos)
    notes = "\n* the same person" if judge.threshold else ""
    if count <= _MATRIX:
        rows = [[judge.unit, "", *(f"{number}  " for number in range(1, count + 1))]]
        for left, photo in enumerate(photos):
            cells = ("-  " if left == right else cell(left, right) for right in range(count))
            rows.append([photo.name, str(left + 1), *cells])
        return format_table(rows, "<>" + ">" * count) + notes
    left, right = np.triu_indices(count, 1)
    order = np.argsort(-scores[left, right], kind="stable")[:_SHOWN].tolist()
    rows = [[judge.unit, "most alike"]]
    rows += [[cell(left[i], right[i]), photos[left[i]].name, photos[right[i]].name] for i in order]
    text = format_table(rows, "<<<") + notes
    if judge.threshold:
        accepted = int(judge.accepts(scores[left, right]).sum())
        text += f"\n{accepted:,} of {len(left):,} pairs: the same person"
    return text


if __name__ == "__main__":
    run_script(main)
