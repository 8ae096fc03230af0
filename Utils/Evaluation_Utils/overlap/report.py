"""What was found of a test set's people in a training set: lists, pictures and the clean list."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.generate_dataset_list import write_lines
from Utils.Datasets_Utils.images import ImageError
from Utils.Datasets_Utils.training_set import TrainingSet, renumber
from Utils.Evaluation_Utils.overlap.nearest import Scale
from Utils.Evaluation_Utils.overlap.people import Tested
from Utils.Evaluation_Utils.plots import SheetPair, contact_sheet, plot_scores
from Utils.files import save_json
from Utils.tables import format_table, write_csv

COLUMNS = ("label", "class", "images", "cosine", "why", "test_person", "test_images", "test_image")
NEAREST = ("test_image", "test_person", "cosine", "label", "class")
PERCENTILES = (1, 25, 50, 75, 95, 99, 99.9)
REASONS = ("face", "picture", "name")
SHOWN, PRINTED = 30, 10
_MANY = 0.5  # share of the training images that a threshold misses


@dataclass(frozen=True, eq=False)
class Nearest:
    """Of N test images the K nearest classes, int64 and float32 N×K, the nearest first, and what
    their cosines mean. unreadable: bool N, images that have none."""

    classes: np.ndarray
    cosines: np.ndarray
    scale: Scale
    unreadable: np.ndarray


@dataclass(frozen=True)
class Suspect:
    """A class that seems to be a person of the test set.

    image: the most alike test image. cosine: its cosine with the class's centre; NaN without a
    network. count: how many of the person's images are beyond the threshold. why: words of REASONS.
    """

    label: int
    image: int
    cosine: float
    count: int
    why: tuple[str, ...]


def find_suspects(
    tested: Tested, nearest: Nearest | None, others: dict[str, dict[int, int]]
) -> list[Suspect]:
    """The classes with a test image beyond the threshold, and those of others, the most alike
    first. others: reason -> class -> a test image, as `people` and `pictures` find them."""
    best: dict[int, tuple[float, int]] = {}
    beyond: dict[tuple[int, int], int] = {}
    if nearest:
        images, places = np.nonzero(nearest.cosines >= nearest.scale.threshold)
        for image, place in zip(images.tolist(), places.tolist(), strict=True):
            label = int(nearest.classes[image, place])
            cosine = float(nearest.cosines[image, place])
            best[label] = max(best.get(label, (-1.0, 0)), (cosine, image))
            of_person = label, int(tested.people[image])
            beyond[of_person] = beyond.get(of_person, 0) + 1
    reasons = {"face": best, **others}
    found = []
    for label in set().union(*reasons.values()):
        why = tuple(word for word in REASONS if label in reasons.get(word, {}))
        cosine, image = best.get(label) or (float("nan"), reasons[why[0]][label])
        count = beyond.get((label, int(tested.people[image])), 0)
        found.append(Suspect(label, image, cosine, count, why))
    return sorted(found, key=lambda s: (-np.nan_to_num(s.cosine, nan=-1.0), s.label))


def write_report(
    data: TrainingSet,
    tested: Tested,
    nearest: Nearest | None,
    suspects: list[Suspect],
    reasons: Sequence[str],
    folder: Path,
    about: dict,
) -> str:
    """Write all files; returns a table for printing. reasons: words of REASONS that were looked
    for. about: further values for report.json."""
    labels = np.asarray(data.labels)
    counts = np.bincount(labels, minlength=data.num_classes)
    first = np.zeros(data.num_classes, np.int64)
    first[labels[::-1]] = np.arange(len(labels))[::-1]
    titles = [_title(data, label, int(first[label])) for label in (s.label for s in suspects)]
    write_csv(
        folder / "overlap.csv",
        COLUMNS,
        (
            (
                *(s.label, title, counts[s.label], "" if np.isnan(s.cosine) else f"{s.cosine:.4f}"),
                " ".join(s.why),
                *(tested.people[s.image], s.count, tested.names[s.image]),
            )
            for s, title in zip(suspects, titles, strict=True)
        ),
    )
    out = np.zeros(data.num_classes, bool)
    out[[s.label for s in suspects]] = True
    kept = np.flatnonzero(~out[labels])
    clean = folder / "clean_list.txt"
    if len(kept):
        write_lines(clean, (data.name(row) for row in kept.tolist()), renumber(labels[kept], 1)[1])
    else:
        clean.unlink(missing_ok=True)
    if nearest:
        _write_nearest(data, tested, nearest, first, folder)
    pairs = [_pair(data, tested, s, int(first[s.label])) for s in suspects[:SHOWN]]
    heading = "A test image, and the first image of the class that seems to be the same person"
    contact_sheet(
        {heading: [pair for pair in pairs if pair]}, folder / "overlap.png", "In both sets"
    )
    by = {word: sum(word in s.why for s in suspects) for word in reasons}
    values = {
        **about,
        "training images": len(data),
        "identities": data.num_classes,
        "test images": len(tested),
        "test people": len(np.unique(tested.people)),
        "identities in both": len(suspects),
        **{f"by {word}": count for word, count in by.items()},
        "training images of them": int(out[labels].sum()),
    }
    blocks = [
        f"{len(data):,} training images of {data.num_classes:,} identities, {len(tested):,} test "
        f"images of {values['test people']:,} people"
    ]
    if nearest:
        text, figures = _scale(nearest, len(tested))
        values |= figures
        blocks.append(text)
    save_json(folder / "report.json", values)
    shown = [["cosine", "images", "identities that seem to be in both", "test image"]]
    shown += [
        ["" if np.isnan(s.cosine) else f"{s.cosine:.3f}", str(counts[s.label]), title,
         tested.names[s.image]]
        for s, title in zip(suspects[:PRINTED], titles, strict=False)
    ]  # fmt: skip
    how = ", ".join(f"by {word} {count:,}" for word, count in by.items())
    found = f"in both sets: {len(suspects):,} of {data.num_classes:,} identities ({how})"
    blocks += [found + (f"\n\n{format_table(shown, '>><<')}" if suspects else "")]
    left = f"{len(kept):,} images of {int((~out).sum()):,} identities"
    blocks.append(f"Clean list: {left}" if len(kept) else "No clean list: no image would be left")
    return "\n\n".join(blocks)


def _title(data: TrainingSet, label: int, image: int) -> str:
    """What a class is called: its name or old label, and its first image."""
    old = f"{data.classes[label]}: " if data.classes else ""
    return f"{old}{data.name(image)}"


def _write_nearest(
    data: TrainingSet, tested: Tested, nearest: Nearest, first: np.ndarray, folder: Path
) -> None:
    order = np.argsort(-nearest.cosines[:, 0], kind="stable")
    write_csv(folder / "nearest.csv", NEAREST, (
        (
            *(tested.names[i], tested.people[i], f"{nearest.cosines[i, 0]:.4f}"),
            nearest.classes[i, 0],
            _title(data, int(nearest.classes[i, 0]), int(first[nearest.classes[i, 0]])),
        )
        for i in order.tolist()
        if not nearest.unreadable[i]
    ))  # fmt: skip


def _scale(nearest: Nearest, images: int) -> tuple[str, dict]:
    """(a table of the cosines and the sentence of the threshold; values for report.json)."""
    scale = nearest.scale
    kinds = {
        "training images, own identity": scale.same[~np.isnan(scale.same)],
        "training images, nearest other": scale.other,
        "test images, nearest": nearest.cosines[~nearest.unreadable, 0],
    }
    rows = [["cosine to the centre of", *(f"{p:g} %" for p in PERCENTILES)]]
    levels = {name: np.percentile(v, PERCENTILES) for name, v in kinds.items() if v.size}
    rows += [[name, *(f"{value:.3f}" for value in found)] for name, found in levels.items()]
    text = (
        f"threshold {scale.threshold:.3f}: of test people who are not in the training set, "
        f"{scale.far:.2g} of the images are expected beyond it\n({scale.far * images:.1f} of "
        f"{images:,})"
    )
    if scale.missed is not None:
        near = f"{1 - scale.missed:.1%} are that near to their own identity"
        text += f"; of the training images, {near}"
        if scale.missed > _MANY:
            text += "\nwarning: this network can't tell these people apart; take a better one"
    figures = {
        "threshold": scale.threshold,
        "far": scale.far,
        "training images beyond the threshold from their own identity": scale.missed,
        "test images that can't be read": int(nearest.unreadable.sum()),
        "cosine percentiles": {
            name: {f"{p:g} %": round(float(v), 4) for p, v in zip(PERCENTILES, found, strict=True)}
            for name, found in levels.items()
        },
    }
    return f"{format_table(rows, '<' + '>' * len(PERCENTILES))}\n\n{text}", figures


def draw_scale(nearest: Nearest, path: Path) -> None:
    """A histogram of the cosines of training images to their own and to other identities."""
    same = nearest.scale.same[~np.isnan(nearest.scale.same)]
    scores = np.concatenate((same, nearest.scale.other))
    is_same = np.arange(len(scores)) < len(same)
    title = "Training images and the centres of identities"
    kinds = ("nearest other identity", "own identity")
    plot_scores(scores, is_same, nearest.scale.threshold, path, title, kinds)


def _pair(data: TrainingSet, tested: Tested, suspect: Suspect, image: int) -> SheetPair | None:
    try:
        left, right = tested.photos.images[suspect.image], data[image][0]
    except ImageError:
        return None
    cosine = "" if np.isnan(suspect.cosine) else f"{suspect.cosine:.2f}, "
    caption = f"{cosine}label {suspect.label}\n{tested.names[suspect.image]}\n{data.name(image)}"
    return left, right, caption
