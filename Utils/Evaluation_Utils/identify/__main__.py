"""Identify the person on a photograph: who of a gallery is it, or nobody?

    python -m Utils.Evaluation_Utils.identify PROBE --gallery FOLDER --checkpoint PATH \\
        --threshold_from Results/a/lfw.json

PROBE is a photograph, or a folder of them. The gallery has a folder for each person, or one
photograph of each, named after the person. A person's score is the best of their photographs'.
Below the threshold of --threshold_from, the JSON file of an evaluation of the same network, it is
nobody. --output gets identify.json and identify.png, the crops of the best matches.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from Utils.Datasets_Utils.formats.class_tree import first_folder, people_root
from Utils.Datasets_Utils.images import without_suffix
from Utils.Datasets_Utils.text import first_few
from Utils.errors import DataError, run_script
from Utils.Evaluation_Utils.compare_photos.photos import (
    Photo,
    describe_photos,
    find_photos,
    read_photos,
)
from Utils.Evaluation_Utils.compare_photos.pictures import draw_matches, short
from Utils.Evaluation_Utils.compare_photos.scoring import Judge, open_judge, reading_photos
from Utils.files import save_json
from Utils.tables import format_table, format_warnings

_MATCHES = 5  # people that are shown; in the table, only of so many probes
_DRAWN = 20  # probes


class Match(NamedTuple):
    """A person, the best score of their photographs, and the photograph that has it."""

    person: str
    score: float
    photo: Photo
    accepted: bool


def main() -> None:
    """Read the command line, search, print, write the files."""
    parser = reading_photos(__doc__, "identify", "PROBE [...] --gallery FOLDER")
    parser.add_argument("probes", nargs="+", type=Path, help="photographs, or folders of them")
    parser.add_argument(
        "--gallery", type=Path, required=True, help="a folder for each person, or photographs"
    )
    given = vars(parser.parse_args())
    probes, gallery = (
        find_photos(given["probes"]),
        find_photos([given["gallery"]], given["gallery"]),
    )
    judge = open_judge(given)
    workers = judge.config.num_workers
    gallery = read_photos(gallery, judge.faces, workers, "Reading the gallery")
    probes = read_photos(probes, judge.faces, workers, "Reading the probes")
    print(describe_photos(probes), end="\n\n")
    unusable = [photo for photo in (*probes, *gallery) if photo.crop is None]
    used, gallery_used = ([p for p in photos if p.crop is not None] for photos in (probes, gallery))
    if not (used and gallery_used):
        raise DataError(
            f"{len(used)} of {len(probes)} probes and {len(gallery_used)} of {len(gallery)} "
            f"photographs of the gallery can be used: "
            + first_few([f"{photo.name}: {photo.how}" for photo in unusable])
            + "."
        )
    usable = [photo.crop is not None for photo in gallery]
    listed = any(Path(photo.name).is_absolute() for photo in gallery)
    people = people_of([p.place if listed else p.name for p in gallery])[usable]
    found = _search(judge, used, gallery_used, people)
    print(_notes(judge, gallery, gallery_used, people, used), end="")
    print(_table(judge, used, found))
    save_json(
        judge.output / "identify.json",
        {
            **judge.about(),
            "gallery": {"path": str(given["gallery"]), "people": len(np.unique(people))}
            | {"photos": len(gallery_used)},
            "probes": [
                {**probe.to_dict(), "answer": answer(judge, matches), "matches": []}
                | {"matches": [_plain(judge, match) for match in matches]}
                for probe, matches in zip(used, found, strict=True)
            ],
            "left_out": [photo.to_dict() for photo in unusable],
        },
    )
    drawn = [
        (
            probe,
            answer(judge, matches) or "",
            [
                (m.photo, f"{short(m.person, 18)}\n{judge.shown(m.score)}", m.accepted)
                for m in matches
            ],
        )
        for probe, matches in zip(used[:_DRAWN], found, strict=False)
    ]
    draw_matches(drawn, judge.legend, judge.output / "identify.png")
    print(f"\n{judge.rule}\n\nMatches and picture: {judge.output}")


def people_of(names: Sequence[str]) -> np.ndarray:
    """Who is on each photograph of a gallery: its folder directly below the one that holds all, as
    in a training set; of a photograph in no such folder, its own name."""
    folders = [name.rpartition("/")[0] for name in names]
    root = people_root(set(folders)) if all(folders) else ""
    return np.array(
        [
            first_folder(folder, len(root)).removeprefix(root)
            if len(folder) > len(root)
            else without_suffix(name.removeprefix(root))
            for name, folder in zip(names, folders, strict=True)
        ]
    )


def answer(judge: Judge, matches: Sequence[Match]) -> str | None:
    """The person, "nobody", or None without a threshold."""
    if judge.threshold is None:
        return None
    return matches[0].person if matches and matches[0].accepted else "nobody"


def _search(
    judge: Judge, probes: Sequence[Photo], gallery: Sequence[Photo], people: np.ndarray
) -> list[list[Match]]:
    """Of each probe, the best people of the gallery; a photograph does not match itself."""
    scores = judge.scores(judge.features(probes), judge.features(gallery))  # probes × photographs
    places = np.array([photo.place for photo in gallery])
    found = []
    for probe, row in zip(probes, scores, strict=True):
        row = np.where(places == probe.place, -np.inf, row)
        order = np.argsort(-row, kind="stable")
        _, first = np.unique(
            people[order], return_index=True
        )  # of each person, the best photograph
        best = order[np.sort(first)[:_MATCHES]]
        found.append(
            [
                Match(
                    str(people[i]),
                    float(row[i]),
                    gallery[i],
                    judge.threshold is not None and bool(judge.accepts(row[i])),
                )
                for i in best.tolist()
                if np.isfinite(row[i])
            ]
        )
    return found


def _plain(judge: Judge, match: Match) -> dict:
    values = {"person": match.person, "score": judge.in_unit(match.score)}
    return values | {
        "photo": match.photo.name,
        "accepted": match.accepted if judge.threshold else None,
    }


def _notes(
    judge: Judge,
    gallery: Sequence[Photo],
    used: Sequence[Photo],
    people: np.ndarray,
    probes: Sequence[Photo],
) -> str:
    """About the gallery: its size, what can't be used, and how often a stranger is named."""
    count = len(np.unique(people))
    left_out = [f"{photo.name} ({photo.how})" for photo in gallery if photo.crop is None]
    warnings = []
    if left_out:
        warnings.append(
            f"{len(left_out):,} of the gallery's {len(gallery):,} photographs can't be used: "
            f"{first_few(left_out)}"
        )
    places = {photo.place for photo in used}
    if inside := [probe.name for probe in probes if probe.place in places]:
        warnings.append(
            f"not compared with themselves, as they are in the gallery too: {first_few(inside)}"
        )
    if count == 1 < len(used):
        warnings.append(f"all photographs of the gallery are taken for those of one, {people[0]}")
    text = f"Gallery: {count:,} people, {len(used):,} photographs\n"
    aligned = sum(bool(photo.detector) for photo in used)
    text += f"  {aligned:,} aligned, {len(used) - aligned:,} taken as they are\n"
    if judge.threshold:
        chance = min(1.0, judge.threshold.far * len(used))
        text += f"  a stranger is taken for one of them in up to {100 * chance:.3g} % of searches\n"
    return f"{format_warnings(warnings)}{text}\n"


def _table(judge: Judge, probes: Sequence[Photo], found: Sequence[Sequence[Match]]) -> str:
    rows = [["probe", "answer", "best matches", judge.unit, "photograph"]]
    for probe, matches in zip(probes, found, strict=True):
        first = [probe.name, answer(judge, matches) or ""]
        if not matches:  # the gallery has no other photograph
            rows.append([*first, "-", "-", "-"])
        for match in matches if len(probes) <= _MATCHES else matches[:1]:
            rows.append([*first, match.person, judge.shown(match.score), match.photo.name])
            first = ["", ""]
    return format_table(rows, "<<<><")


if __name__ == "__main__":
    run_script(main)
