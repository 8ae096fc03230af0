"""IJB-C at its true size, synthetic: seconds of each step beside the plain way, and the memory.

    python -m benchmarks.ijb_scale [--share 1.0] [--plain]

Lists and features have IJB-C's counts: 469,375 images, 23,124 templates, 15,658,489 pairs,
galleries of 1,772 and 1,759 people, 19,593 probes, features of 512 numbers.
`--plain` also times the public evaluators' way: a loop over templates, dot products of pairs in
batches of 100,000, and scikit-learn's curve. `--share 0.01` makes everything smaller. Memory is the
largest resident size of the process, features included.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO, TypeVar

import numpy as np

from Utils.cpu import keep_freed_memory
from Utils.Evaluation_Utils.analysis.intervals import show_range
from Utils.Evaluation_Utils.ijb.further import Asked, Further, FurtherFigures
from Utils.Evaluation_Utils.ijb.identification import IdentificationFigures, evaluate_searches
from Utils.Evaluation_Utils.ijb.lists import Lists, read_lists
from Utils.Evaluation_Utils.ijb.templates import NAMED, make_templates
from Utils.Evaluation_Utils.ijb.verification import (
    VerificationFigures,
    evaluate_pairs,
    pair_scores,
)
from Utils.Evaluation_Utils.plots import plot_roc
from Utils.tables import format_table

IMAGES, GENUINE, IMPOSTOR = 469_375, 19_557, 15_638_932
GALLERIES, PROBES, DIM = (1772, 1759), 19_593, 512

T = TypeVar("T")


def write_lists(meta: Path, share: float) -> np.ndarray:
    """Write the six lists; returns the subject of each image."""
    rng = np.random.default_rng(0)
    sizes = [max(2, int(share * size)) for size in GALLERIES]
    people, probes = sum(sizes), max(8, int(share * PROBES))
    subjects = np.concatenate([np.arange(people), rng.integers(0, people, probes)])
    count = len(subjects)  # templates
    images = max(count, int(share * IMAGES))
    template = np.concatenate([np.arange(count), rng.integers(0, count, images - count)])
    media = rng.integers(0, 8, images) + 8 * template
    rng.shuffle(order := np.arange(images))
    points = "46.060 62.026 87.785 60.323 68.851 77.656 52.162 99.875 86.450 98.648"
    with (
        open(meta / "ijbc_face_tid_mid.txt", "w") as members,
        open(meta / "ijbc_name_5pts_score.txt", "w") as listed,
    ):
        for number, row in enumerate(order.tolist(), 1):
            members.write(f"{number}.jpg {template[row]} {media[row]}\n")
            listed.write(f"{number}.jpg {points} {rng.random():.3f}\n")
    wanted = max(10, int(share * GENUINE)), max(10, int(share * IMPOSTOR))
    genuine = np.arange(people, count)[: wanted[0]]
    code = rng.choice(people * probes, min(people * probes, wanted[1] + probes), replace=False)
    first, second = code // probes, people + code % probes
    impostor = np.flatnonzero(first != subjects[second])[: wanted[1]]
    with open(meta / "ijbc_template_pair_label.txt", "w") as pairs:
        _write_pairs(pairs, subjects[genuine], genuine, 1)
        for start in range(0, len(impostor), 1_000_000):
            part = impostor[start : start + 1_000_000]
            _write_pairs(pairs, first[part], second[part], 0)
    ends = {"gallery_G1": (0, sizes[0]), "gallery_G2": (sizes[0], people)}
    ends["probe_mixed"] = (people, count)
    for name, (start, end) in ends.items():
        with open(meta / f"ijbc_1N_{name}.csv", "w") as file:
            file.write("TEMPLATE_ID,SUBJECT_ID,FILENAME\n")
            for image in order[(template[order] >= start) & (template[order] < end)].tolist():
                file.write(f"{template[image]},{subjects[template[image]]},img/{image}.jpg\n")
    return subjects[template[order]]


def _write_pairs(file: TextIO, first: np.ndarray, second: np.ndarray, label: int) -> None:
    lines = zip(first.tolist(), second.tolist(), strict=True)
    file.write("".join(f"{a} {b} {label}\n" for a, b in lines))


def make_features(subject: np.ndarray) -> np.ndarray:
    """float32 N×2D: of images and of their mirror images."""
    rng = np.random.default_rng(1)
    people = rng.standard_normal((subject.max() + 1, DIM), np.float32)
    features = np.empty((len(subject), 2 * DIM), np.float32)
    for start in range(0, len(subject), 10_000):
        part = features[start : start + 10_000]
        part[:] = 12 * rng.standard_normal(part.shape, np.float32)
        part[:, :DIM] += people[subject[start : start + 10_000]]
        part[:, DIM:] += people[subject[start : start + 10_000]]
    return features


def plain_templates(features: np.ndarray, lists: Lists) -> np.ndarray:
    """As eval_ijbc.py does: a loop over templates, and over the media of each."""
    values = features[:, :DIM] + features[:, DIM:]
    values = values * lists.detector[:, None].astype(np.float32)
    found = np.zeros((len(lists.template_ids), DIM))
    for number in range(len(found)):
        rows = np.where(lists.template == number)[0]
        media = lists.media[rows]
        means = [values[rows[media == m]].mean(0) for m in np.unique(media)]
        found[number] = np.sum(means, 0)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def plain_scores(templates: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """As eval_ijbc.py does: rows are gathered for 100,000 pairs at a time and multiplied."""
    scores = np.empty(len(first))
    for start in range(0, len(first), 100_000):
        part = slice(start, start + 100_000)
        scores[part] = np.sum(templates[first[part]] * templates[second[part]], -1)
    return scores


def further_of(
    lists: Lists,
    scores: np.ndarray,
    figures: VerificationFigures,
    searches: IdentificationFigures,
) -> Further:
    """The figures in draws over subjects."""
    nothing = np.empty(0)  # no quality is asked for, so the features are not needed
    convention = NAMED["insightface"]
    return FurtherFigures(lists, Asked()).of(nothing, convention, scores, figures, searches)


def timed(rows: list[list[str]], name: str, work: Callable[[], T]) -> T:
    """The result of work; its seconds and the memory so far are a row of the table."""
    start = time.perf_counter()
    result = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows.append([name, f"{time.perf_counter() - start:.1f} s", f"{peak:.2f} GiB"])
    print(*rows[-1], flush=True)
    return result


def main() -> None:
    """Write the lists, time each step, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="share of IJB-C's size")
    parser.add_argument("--plain", action="store_true", help="also time the public way")
    given = parser.parse_args()
    keep_freed_memory()
    rows = [["step", "took", "peak so far"]]
    with tempfile.TemporaryDirectory() as folder:
        subject = write_lists(Path(folder), given.share)
        lists = timed(rows, "reading the lists", lambda: read_lists(Path(folder)))
    features = make_features(subject)
    made = timed(rows, "templates", lambda: make_templates(features, lists, NAMED["insightface"]))
    plain = None
    if given.plain:
        plain = timed(rows, "plain templates", lambda: plain_templates(features, lists))
    features = None  # their memory is for the scores
    scores = timed(rows, "pair scores", lambda: pair_scores(made, lists.first, lists.second))
    figures = timed(rows, "1:1 figures", lambda: evaluate_pairs(scores, lists.same))
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "roc.png"
        timed(rows, "1:1 picture", lambda: plot_roc({"": figures.corners}, picture, "IJB-C 1:1"))
    searches = timed(rows, "1:N", lambda: evaluate_searches(made, lists.galleries, lists.probes))
    more = timed(rows, "intervals", lambda: further_of(lists, scores, figures, searches))
    if plain is not None:
        from sklearn.metrics import roc_curve

        other = timed(rows, "plain scores", lambda: plain_scores(plain, lists.first, lists.second))
        timed(rows, "plain curve", lambda: roc_curve(lists.same, other))
        print(f"largest difference of scores: {np.abs(other - scores).max():.1e}")
    print(f"\n{format_table(rows, '<>>')}")
    ends = show_range(more.drawn.intervals()["figures"]["TAR@FAR=0.0001"])
    print(f"TAR at FAR 1e-4: {100 * figures.exact[2].tar:.2f} % {ends}")


if __name__ == "__main__":
    main()
