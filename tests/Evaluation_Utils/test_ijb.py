"""IJB: the public evaluators' own figures, float64 brute force, and mistakes in the lists."""

import gzip
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from Backbone import build_backbone, describe_backbone
from Config import Config, ConfigError
from tests.conftest import assert_one_paragraph, run_script
from tests.processes import torchrun
from Utils.Datasets_Utils.alignment.transform import TEMPLATE
from Utils.Datasets_Utils.images import ImageError, noting_flaws
from Utils.errors import DataError
from Utils.Evaluation_Utils.analysis.quality import discard_curve
from Utils.Evaluation_Utils.analysis.thresholds import read_thresholds
from Utils.Evaluation_Utils.features import FLIPS
from Utils.Evaluation_Utils.ijb import identification, templates, verification
from Utils.Evaluation_Utils.ijb.alignment import AlignedCrops
from Utils.Evaluation_Utils.ijb.evaluation import (
    conventions_of,
    evaluate_features,
    evaluate_ijb,
)
from Utils.Evaluation_Utils.ijb.further import subjects_of
from Utils.Evaluation_Utils.ijb.lists import Gallery, Lists, read_lists
from Utils.Evaluation_Utils.ijb.templates import ALL, NAMED, Convention, make_templates
from Utils.Evaluation_Utils.ijb.verification import FARS, evaluate_pairs, pair_scores
from Utils.Pretrained_Utils import load_backbone
from Utils.Pretrained_Utils.load import weights_digest
from Utils.run_folder import FORMAT

# --- the fixtures, with the figures of the public evaluators' own functions ----------------------


@pytest.fixture(scope="module")
def protocols(shared_data):
    folder = shared_data / "protocols" / "ijbc"
    if not folder.is_dir():
        pytest.skip(f"no protocol fixtures: {folder} is not there")
    return folder


@pytest.fixture(scope="module")
def expected(protocols):
    return json.loads((protocols / "expected.json").read_text())


@pytest.fixture(scope="module")
def published(protocols):
    """(lists, N×2D features)."""
    found = np.load(protocols / "features.npz")
    lists = read_lists(protocols)
    assert np.allclose(lists.detector, found["scores"], atol=1e-3)
    return (
        replace(lists, detector=found["scores"].astype(np.float64)),
        FLIPS["concat"](found["features"], found["flipped"]),
    )


def near(value: float) -> object:
    return pytest.approx(value, abs=1e-6)


def test_fixture_counts(published, expected):
    lists, _ = published
    media = {*zip(lists.template.tolist(), lists.media.tolist(), strict=True)}
    found = {
        "images": len(lists.names),
        "templates": len(lists.template_ids),
        "media": len(media),
        "pairs": len(lists.same),
        "genuine": int(lists.same.sum()),
        "G1": len(lists.galleries[0].templates),
        "G2": len(lists.galleries[1].templates),
        "probes": len(lists.probes.templates),
    }
    assert found == expected["counts"]


@pytest.mark.parametrize("convention", ALL, ids=Convention.describe)
def test_fixture_pairs_under_each_convention(published, expected, convention):
    lists, features = published
    keep, det, flip = map(int, (convention.keep_norm, convention.detector, convention.flip))
    wanted = expected[f"1:1 keep_norm={keep} det={det} flip={flip}"]
    made = make_templates(features, lists, convention)
    scores = pair_scores(made, lists.first, lists.second)
    assert scores[:5].tolist() == near(wanted["first5"])
    assert scores.sum() == pytest.approx(wanted["score_sum"], abs=1e-3)
    figures = evaluate_pairs(scores, lists.same)
    assert figures.auc == near(wanted["auc"])
    for number, far in enumerate(map(str, FARS)):
        assert figures.exact[number].tar == near(wanted["exact"][far])
        for points, name in (
            (figures.nearest, "insightface"),
            (figures.nearest_no_drop, "insightface_no_drop"),
        ):
            assert [points[number].tar, points[number].far] == near(wanted[name][far])


def test_fixture_rows_of_cvlface(published, expected):
    lists, features = published
    for keep, det in ((True, True), (True, False), (False, True)):
        found = evaluate_features(features, lists, Convention(keep, det, True))
        for point in found.verification.nearest:
            name = f"Norm:{keep}_Det:{det}_tpr_at_fpr_{point.target}"
            assert 100 * point.tar == near(expected["CVLface"][name])


def test_fixture_searches_by_both_rules(published, expected):
    lists, features = published
    made = make_templates(features, lists, NAMED["insightface"])
    rates = (0.001, 0.01, 0.1, 1.0)
    found = identification.evaluate_searches(made, lists.galleries, lists.probes, rates)
    for gallery in found.galleries:
        wanted = expected[f"1:N ijb_evals {gallery.name}"]
        assert list(gallery.found) == wanted["top"]
        assert [p.tpir for p in gallery.ijb_evals] == near([*wanted["tpir"].values()])
        assert [p.threshold for p in gallery.ijb_evals] == near([*wanted["threshold"].values()])
        (exact,) = (v for k, v in expected.items() if k.startswith(f"1:N exact {gallery.name}"))
        assert [p.tpir for p in gallery.exact[:3]] == near([*exact.values()])
        assert all(p.fpir <= p.target for p in gallery.exact)
    mean = expected["1:N ijb_evals mean"]
    assert list(found.ranks) == near(mean["top"])
    assert list(found.ijb_evals) == near([*mean["tpir"].values()])
    joint = expected["1:N ijb_1n (joint)"]
    assert list(found.joint_ranks) == near([float(line.split()[-1]) for line in joint[:3]])
    assert list(found.joint_rates[1:3]) == near([float(line.split()[5]) for line in joint[3:]])


# --- brute force, in float64 ---------------------------------------------------------------------


def random_problem(rng: np.random.Generator) -> tuple[Lists, np.ndarray]:
    """A set with single images, media of several, zero features, and probes without a mate.

    Features have one to four entries of ±1 or ±2, so that many templates and scores are equal.
    """
    people, count = int(rng.integers(4, 12)), int(rng.integers(20, 60))
    subject = np.concatenate([np.arange(people), rng.integers(0, people + 3, count)])
    template, media, features, detector = [], [], [], []
    for row in range(len(subject)):
        single = rng.random() < 0.5
        for image in range(1 if single else int(rng.integers(2, 6))):
            template.append(row)
            media.append(1000 * row + int(rng.integers(0, 3)) if image else 1000 * row)
            value = np.zeros(16)
            if rng.random() > 0.1:
                value[rng.integers(0, 8, 4)] = rng.choice([1.0, -1.0, 2.0], 4)
            features.append(value)
            detector.append(rng.choice([0.1, 0.5, 1.0]))
    order = rng.permutation(len(template))
    pairs = rng.integers(0, len(subject), (int(rng.integers(50, 400)), 2))
    pairs[0], pairs[1] = (0, 0), (0, 1)
    half = people // 2
    lists = Lists(
        prefix="ijbc",
        names=[f"{row}.jpg" for row in range(len(order))],
        template_ids=np.arange(len(subject)),
        template=np.array(template)[order],
        media=np.array(media)[order],
        points=np.zeros((len(order), 5, 2)),
        detector=np.array(detector)[order],
        lines=np.arange(len(order)),
        points_file=None,
        first=pairs[:, 0].astype(np.int32),
        second=pairs[:, 1].astype(np.int32),
        same=subject[pairs[:, 0]] == subject[pairs[:, 1]],
        galleries=(
            Gallery("G1", np.arange(half), np.arange(half)),
            Gallery("G2", np.arange(half, people), np.arange(half, people)),
        ),
        probes=Gallery("probes", np.arange(people, len(subject)), subject[people:]),
        notes=(),
    )
    return lists, np.array(features, np.float32)[order]


def brute_templates(features: np.ndarray, lists: Lists, convention: Convention) -> np.ndarray:
    rows = []
    for number in range(len(lists.template_ids)):
        total = np.zeros(8)
        of_template = np.flatnonzero(lists.template == number)
        for media in sorted(set(lists.media[of_template].tolist())):
            values = []
            for row in of_template[lists.media[of_template] == media]:
                value = features[row, :8].astype(np.float64)
                if convention.flip:
                    value = value + features[row, 8:]
                if not convention.keep_norm and value.any():
                    value = value / math.sqrt(sum(value**2))
                values.append(value * (lists.detector[row] if convention.detector else 1))
            total += sum(values) / len(values)
        rows.append(total / math.sqrt(sum(total**2)) if total.any() else total)
    return np.array(rows)


def brute_points(scores: np.ndarray, same: np.ndarray) -> list[tuple[float, float, float]]:
    """(exact TAR, nearest TAR, nearest FAR) of each target."""
    fpr, tpr, _ = sklearn_roc_curve(same, scores)
    fpr, tpr = fpr[::-1], tpr[::-1]
    found = []
    for far in FARS:
        tars = [0.0]
        for threshold in set(scores.tolist()):
            if (scores[~same] >= threshold).mean() <= far:
                tars.append((scores[same] >= threshold).mean())
        _, place = min(zip(abs(fpr - far), range(len(fpr)), strict=True))
        found.append((max(tars), tpr[place], fpr[place]))
    return found


def brute_searches(made: np.ndarray, lists: Lists, rate: float) -> dict:
    """By one sort a search, as ijb_evals.py and ijb_1n.py do."""
    probes, found = lists.probes, {}
    for gallery in lists.galleries:
        top, first, alone, mated = [0, 0, 0], [], [], 0
        for template, subject in zip(probes.templates, probes.subjects, strict=True):
            scores = identification_scores(made, template, gallery.templates)
            if subject not in gallery.subjects:
                alone.append(max(scores))
                continue
            mated += 1
            own = gallery.subjects.tolist().index(subject)
            order = np.argsort(scores, kind="stable")[::-1].tolist()
            top = [n + (order.index(own) < rank) for n, rank in zip(top, (1, 5, 10), strict=True)]
            if all(scores[own] > s for i, s in enumerate(scores) if i != own):
                first.append(scores[own])
        alone.sort(reverse=True)
        allowed = max(k for k in range(len(alone) + 1) if k / len(alone) <= rate)
        exact = alone[allowed] if allowed < len(alone) else -np.inf
        older = alone[max(int(len(alone) * rate) - 1, 0)]
        tpirs = [sum(score > t for score in first) / mated for t in (exact, older)]
        found[gallery.name] = (tuple(top), *tpirs, len(alone))
    joint = np.concatenate([g.templates for g in lists.galleries])
    subjects = np.concatenate([g.subjects for g in lists.galleries]).tolist()
    others, mates, ranks = [], [], []
    for template, subject in zip(probes.templates, probes.subjects, strict=True):
        scores = identification_scores(made, template, joint)
        own = subjects.index(subject) if subject in subjects else -1
        others += [score for i, score in enumerate(scores) if i != own]
        if own >= 0:
            mates.append(scores[own])
            ranks.append(np.argsort(scores, kind="stable")[::-1].tolist().index(own))
    level = sorted(others, reverse=True)[math.ceil(len(probes.templates) * rate) - 1]
    found["joint"] = (
        tuple(sum(r < rank for r in ranks) / len(ranks) for rank in (1, 5, 10)),
        sum(mate > level for mate in mates) / len(mates),
    )
    return found


def identification_scores(made: np.ndarray, probe: int, gallery: np.ndarray) -> np.ndarray:
    return np.array([round(float(made[probe] @ made[row]), 12) for row in gallery])


@pytest.mark.parametrize("seed", range(40))
def test_random_problems_equal_brute_force(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    lists, features = random_problem(rng)
    # Several blocks, with templates and searches across their ends.
    monkeypatch.setattr(templates, "_ROWS", 7)
    monkeypatch.setattr(verification, "_ROWS", 3)
    monkeypatch.setattr(identification, "_ROWS", 4)
    convention = ALL[seed % len(ALL)]
    made = make_templates(features, lists, convention)
    assert np.abs(made - brute_templates(features, lists, convention)).max() < 1e-12
    scores = pair_scores(made, lists.first, lists.second)
    plain = (made[lists.first] * made[lists.second]).sum(axis=1)
    assert np.abs(scores - plain).max() < 1e-12

    # From here on equal numbers have to be equal to the last bit: vectors of whole numbers are.
    made = np.rint(3 * made)
    scores = pair_scores(made, lists.first, lists.second)
    assert len(np.unique(scores)) < len(scores) / 2
    figures = evaluate_pairs(scores, lists.same)
    for exact, nearest, point in zip(
        figures.exact, figures.nearest, brute_points(scores, lists.same), strict=True
    ):
        assert (exact.tar, nearest.tar, nearest.far) == pytest.approx(point, abs=1e-12)
    assert figures.auc == pytest.approx(roc_auc_score(lists.same, scores))
    for number, rate in enumerate(identification.FPIRS):
        found = identification.evaluate_searches(made, lists.galleries, lists.probes)
        wanted = brute_searches(made, lists, rate)
        for gallery in found.galleries:
            own = (gallery.found, gallery.exact[number].tpir, gallery.ijb_evals[number].tpir)
            assert (*own, gallery.unmated) == wanted[gallery.name]
        assert (found.joint_ranks, found.joint_rates[number]) == wanted["joint"]


# --- alignment -----------------------------------------------------------------------------------


def test_a_turned_and_larger_crop_comes_back_as_the_aligned_face(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    face = cv2.resize(noise, (112, 112), interpolation=cv2.INTER_CUBIC)
    move = cv2.getRotationMatrix2D((56, 56), 25, 1.5) + [[0, 0, 70], [0, 0, 70]]
    cv2.imwrite(str(tmp_path / "1.png"), cv2.warpAffine(face, move, (250, 250))[..., ::-1])
    lists, _ = random_problem(np.random.default_rng(0))
    points = np.column_stack((TEMPLATE, np.ones(5))) @ move.T
    lists = replace(lists, names=["1.png"], points=points[None])
    aligned = AlignedCrops(tmp_path, lists, aligned=False)[0].astype(int)
    assert np.abs(aligned - face)[4:-4, 4:-4].mean() < 2
    nudged = replace(lists, points=lists.points + move[:, :2] @ (0, 2) * [[0], [0], [1], [0], [0]])
    found = AlignedCrops(tmp_path, nudged, aligned=False).keypoints(0) - TEMPLATE
    assert found[2, 1] - found[:2, 1].mean() == pytest.approx(2, abs=0.3)  # the nose is lower
    assert AlignedCrops(tmp_path, nudged, aligned=True).keypoints(0) is None
    assert AlignedCrops(tmp_path, lists, aligned=True)[0].shape == (250, 250, 3)
    with noting_flaws() as flaws:
        AlignedCrops(tmp_path, lists, aligned=False)[0]
    assert flaws == []
    other = replace(
        lists, points=lists.points + 250, points_file="points.txt"
    )  # of the whole photo
    with noting_flaws() as flaws:
        assert not AlignedCrops(tmp_path, other, aligned=False)[0].any()
    assert flaws == ["points.txt, line 0: none of the five points is inside of the crop"]
    same = replace(lists, points=np.ones((1, 5, 2)), points_file=tmp_path / "points.txt")
    with pytest.raises(ImageError, match=r"points.txt, line 0: all points are the same"):
        AlignedCrops(tmp_path, same, aligned=False)[0]


# --- settings ------------------------------------------------------------------------------------


def test_conventions_by_name_by_settings_and_all():
    assert conventions_of(Config()) == (NAMED["insightface"],)
    assert conventions_of(Config(ijb_conventions="adaface")) == (Convention(True, False, True),)
    own = Config(ijb_norm="divide", ijb_flip="none")
    assert conventions_of(own) == (NAMED["facexzoo"],)
    assert len(set(conventions_of(Config(ijb_conventions="all")))) == 8
    with pytest.raises(ConfigError, match=r"ijb_norm.*adaface"):
        conventions_of(Config(ijb_conventions="adaface", ijb_norm="divide"))


# --- lists and mistakes in them ------------------------------------------------------------------

POINTS = " ".join(f"{x:.3f} {y:.3f}" for x, y in TEMPLATE)


def write_set(folder, prefix="ijbc", people=4, photos=True):
    """Two templates a person: the first is enrolled, the second a probe; loose crops of 120×120."""
    rng = np.random.default_rng(0)
    meta, crops = folder / "meta", folder / "loose_crop"
    meta.mkdir(parents=True)
    crops.mkdir()
    members, points, csvs = [], [], {"A": [], "B": [], "probe": []}
    image = 0
    for person in range(1, people + 1):
        pattern = rng.integers(0, 256, (4, 4, 3))
        for template, count in ((10 * person, 2), (10 * person + 1, 3)):
            for number in range(count):
                image += 1
                name = f"{image}.jpg"
                if photos:
                    face = (pattern + rng.normal(0, 25, pattern.shape)).clip(0, 255)
                    face = cv2.resize(face.astype(np.uint8), (120, 120))
                    cv2.imwrite(str(crops / name), face)
                members.append(f"{name} {template} {100 * template + number // 2}")
                points.append(f"{name} {POINTS} {0.5 + 0.1 * number:.3f}")
                kind = "probe" if template % 10 else "AB"[person % 2]
                csvs[kind].append(f"{template},{person},img/{name}")
    pairs = [
        f"{10 * a} {10 * b + 1} {int(a == b)}"
        for a in range(1, people + 1)
        for b in range(1, people + 1)
    ]
    first, second = {"ijbc": ("G1", "G2"), "ijbb": ("S1", "S2")}[prefix]
    for name, lines in (
        ("face_tid_mid.txt", members),
        ("name_5pts_score.txt", points),
        ("template_pair_label.txt", pairs),
    ):
        (meta / f"{prefix}_{name}").write_text("\n".join(lines) + "\n")
    heading = "TEMPLATE_ID,SUBJECT_ID,FILENAME"
    for name, kind in (
        (f"gallery_{first}", "A"),
        (f"gallery_{second}", "B"),
        ("probe_mixed", "probe"),
    ):
        (meta / f"{prefix}_1N_{name}.csv").write_text("\n".join([heading, *csvs[kind]]) + "\n")
    return folder


@pytest.mark.parametrize("prefix", ["ijbc", "ijbb"])
def test_the_benchmark_is_recognised_and_read(prefix, tmp_path):
    lists = read_lists(write_set(tmp_path / "set", prefix, photos=False))
    assert lists.title == {"ijbc": "IJB-C", "ijbb": "IJB-B"}[prefix]
    assert lists.template_ids.tolist() == [10, 11, 20, 21, 30, 31, 40, 41]
    assert lists.template[:6].tolist() == [0, 0, 1, 1, 1, 2]
    assert lists.media[:5].tolist() == [1000, 1000, 1100, 1100, 1101]
    assert lists.points[3] == pytest.approx(TEMPLATE, abs=1e-3)
    assert lists.detector[2:5].tolist() == [0.5, 0.6, 0.7]
    assert (lists.first[:5].tolist(), lists.second[:5].tolist()) == ([0] * 4 + [2], [1, 3, 5, 7, 1])
    assert np.flatnonzero(lists.same).tolist() == [0, 5, 10, 15]
    assert [g.subjects.tolist() for g in lists.galleries] == [[2, 4], [1, 3]]
    assert lists.probes.templates.tolist() == [1, 3, 5, 7]


def test_other_blanks_and_line_ends_and_orders_are_read_the_same(tmp_path):
    folder = write_set(tmp_path / "set", photos=False)
    plain = read_lists(folder)
    meta = folder / "meta"
    pairs = meta / "ijbc_template_pair_label.txt"
    pairs.write_text(pairs.read_text().replace(" ", "\t", 7).replace("\n", "\r\n"))
    points = meta / "ijbc_name_5pts_score.txt"
    points.write_text("\n".join(points.read_text().splitlines()[::-1]))
    other = read_lists(folder)
    for name in ("first", "second", "same", "detector", "points", "template"):
        assert np.array_equal(getattr(other, name), getattr(plain, name))
    assert "other orders; joined by name" in other.notes[0]


def test_a_template_may_have_any_whole_number(tmp_path):
    folder = write_set(tmp_path / "set", photos=False)
    plain = read_lists(folder)
    for path in {*folder.glob("meta/*")} - {*folder.glob("meta/*5pts*")}:
        path.write_text(re.sub(r"\b41\b", "3000000041", path.read_text()))  # beyond int32
    other = read_lists(folder)
    assert other.template_ids[-1] == 3000000041
    assert np.array_equal(other.second, plain.second)
    assert np.array_equal(other.probes.templates, plain.probes.templates)


def edited(name, change):
    def edit(meta):
        path = meta / f"ijbc_{name}"
        path.write_text(change(path.read_text()))

    return edit


def line_after(name, line):
    return edited(name, lambda text: text + line + "\n")


MISTAKES = {
    "image twice": (
        line_after("face_tid_mid.txt", "3.jpg 10 1"),
        "face_tid_mid.txt, line 21: the image 3.jpg was named before, on line 3",
    ),
    "missing column": (
        edited("face_tid_mid.txt", lambda t: t.replace("4.jpg 11 1100", "4.jpg 11")),
        "face_tid_mid.txt, line 4: an image and 1 numbers; expected 2",
    ),
    "no whole number": (
        edited("face_tid_mid.txt", lambda t: t.replace("4.jpg 11 1100", "4.jpg 11 x")),
        "face_tid_mid.txt, line 4: '4.jpg 11 x' has a field that is not a whole number",
    ),
    "image without points": (
        line_after("face_tid_mid.txt", "99.jpg 10 1"),
        "face_tid_mid.txt, line 21: .*name_5pts_score.txt lacks the image 99.jpg",
    ),
    "image without template": (
        line_after("name_5pts_score.txt", f"99.jpg {POINTS} 0.5"),
        "name_5pts_score.txt, line 21: .*face_tid_mid.txt lacks the image 99.jpg",
    ),
    "points missing": (
        line_after("name_5pts_score.txt", f"99.jpg {POINTS}"),
        "name_5pts_score.txt, line 21: an image and 10 numbers; expected 11",
    ),
    "NaN score": (
        edited("name_5pts_score.txt", lambda t: t.replace("0.700", "nan", 1)),
        "name_5pts_score.txt, line 5: NaN or infinity",
    ),
    "unknown template": (
        line_after("template_pair_label.txt", "10 77 0"),
        "template_pair_label.txt, line 17: no image belongs to the template 77",
    ),
    "pair without label": (
        line_after("template_pair_label.txt", "10 11"),
        "template_pair_label.txt, line 17: '10 11' is not a pair",
    ),
    "blank in place of a number": (
        line_after("template_pair_label.txt", "10  11"),
        "template_pair_label.txt, line 17: '10  11' is not a pair",
    ),
    "label": (
        edited("template_pair_label.txt", lambda t: "\n" + t + "10 11 2\n"),
        "template_pair_label.txt, line 18: the label is 2; expected 1",
    ),
    "one kind": (
        edited("template_pair_label.txt", lambda t: t.replace(" 1\n", " 0\n")),
        "template_pair_label.txt has impostor pairs only",
    ),
    "no pairs": (
        edited("template_pair_label.txt", lambda t: ""),
        "template_pair_label.txt has no pairs",
    ),
    "both galleries": (
        line_after("1N_gallery_G2.csv", "21,2,img/8.jpg"),
        "gallery_G2.csv, line 6: the subject 2 is in the other gallery too .*G1.csv, line 2",
    ),
    "two templates": (
        line_after("1N_gallery_G1.csv", "21,2,img/8.jpg"),
        "gallery_G1.csv, line 6: the subject 2 has another template on line 2",
    ),
    "two subjects": (
        line_after("1N_probe_mixed.csv", "11,2,img/8.jpg"),
        "probe_mixed.csv, line 14: the template 11 is of subject 2, but of 1 on line 2",
    ),
    "empty gallery": (
        edited("1N_gallery_G1.csv", lambda t: t.splitlines()[0] + "\n"),
        "gallery_G1.csv has no templates",
    ),
    "CSV column": (
        edited("1N_gallery_G1.csv", lambda t: t.replace("SUBJECT_ID", "PERSON")),
        "gallery_G1.csv, line 1: there is no column SUBJECT_ID",
    ),
    "unknown probe": (
        line_after("1N_probe_mixed.csv", "77,2,img/8.jpg"),
        "probe_mixed.csv, line 14: no image belongs to the template 77",
    ),
    "no mates": (
        edited(
            "1N_probe_mixed.csv",
            lambda t: (
                t.replace(",1,", ",7,")
                .replace(",2,", ",8,")
                .replace(",3,", ",9,")
                .replace(",4,", ",6,")
            ),
        ),
        "probe_mixed.csv: no probe is of a subject in ijbc_1N_gallery_G1.csv or ijbc_1N",
    ),
    "compressed": (
        lambda meta: (meta / "ijbc_face_tid_mid.txt").write_bytes(gzip.compress(b"1.jpg 10 1")),
        "face_tid_mid.txt is a compressed file or an archive: unpack it",
    ),
    "gallery missing": (
        lambda meta: (meta / "ijbc_1N_gallery_G2.csv").unlink(),
        "gallery_G2.csv can't be read",
    ),
    "list missing": (
        lambda meta: (meta / "ijbc_face_tid_mid.txt").unlink(),
        "neither list of images",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_list_is_named_with_its_file_and_line(mistake, tmp_path):
    folder = write_set(tmp_path / "set", photos=False)
    edit, said = MISTAKES[mistake]
    edit(folder / "meta")
    with pytest.raises(DataError, match=said):
        read_lists(folder)


# --- the script ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    torch.manual_seed(0)
    backbone = build_backbone("SmallNet", 16, (32, 32))
    path = tmp_path_factory.mktemp("network") / "network.pt"
    state = {"format": FORMAT, "architecture": describe_backbone(backbone)}
    torch.save({**state, "backbone": backbone.state_dict()}, path)
    return path


def test_the_script_from_crops_to_figures_and_again_from_its_features(network, tmp_path):
    folder = write_set(tmp_path / "IJBC")
    flawed = folder / "loose_crop" / "3.jpg"
    flawed.write_bytes(flawed.read_bytes()[:-2])  # read in spite of it
    flags = ("--checkpoint", network, "--ijb_dataset_path", folder, "--output", tmp_path / "out")
    two = (*torchrun(2, "IJB_Evaluation.py"), *flags, "--device", "cpu", "--num_workers", 0)
    flags = ("IJB_Evaluation.py", *flags, "--device", "cpu", "--num_workers", 0)
    run = run_script(*flags, check=True, painted=True)
    values = json.loads((tmp_path / "out/ijbc.json").read_text())
    assert values["counts"] == {"images": 20, "templates": 8, "pairs": 16, "genuine": 4}
    assert values["weights"] == weights_digest(load_backbone(network))
    (found,) = values["results"]
    assert found["convention"]["names"] == ["insightface"]
    assert "20 images, 8 templates, 16 pairs" in run.stdout
    assert f"{100 * found['verification']['exact']['0.1']['tar']:.2f} %" in run.stdout
    assert cv2.imread(str(tmp_path / "out/ijbc_roc.png")).size > 0

    # The figures are those of the features on disk, of crops that lie where the template does.
    lists = read_lists(folder)
    (table,) = (tmp_path / "out/features").glob("ijbc-*/features.npy")
    features = np.load(table)
    own = evaluate_features(features, lists, NAMED["insightface"])
    assert found["verification"]["auc"] == own.verification.auc
    assert found["identification"]["rank"]["1"] == own.identification.ranks[0]
    assert features.shape == (20, 32)
    assert np.abs(np.linalg.norm(features[:, :16], axis=1) - 1).max() > 0.01  # lengths are kept

    other = run_script(*two, "--output", tmp_path / "two", check=True)
    assert other.stdout.count("1:1,") == 1
    assert json.loads((tmp_path / "two/ijbc.json").read_text())["results"] == values["results"]

    before = table.read_bytes()
    again = run_script(*flags, "--ijb_conventions", "all", check=True)
    assert "all there" in again.stdout
    assert table.read_bytes() == before
    assert "1 images were read in spite of a flaw" in again.stdout
    (flaw,) = json.loads((tmp_path / "out/ijbc.json").read_text())["flaws"]
    assert (flaw,) == (*values["flaws"],) == (f"{flawed}: a JPEG without its end marker",)
    for name in ("insightface", "adaface", "cvlface", "facexzoo"):
        assert f"({name})" in again.stdout
    assert len(json.loads((tmp_path / "out/ijbc.json").read_text())["results"]) == 8

    (folder / "loose_crop/7.jpg").unlink()
    missing = run_script(*flags)
    assert_one_paragraph(missing, "name_5pts_score.txt, line 7: there is no image", "7.jpg")
    shutil.copy(network, folder / "loose_crop/7.jpg")
    shutil.rmtree(tmp_path / "out/features")
    assert_one_paragraph(run_script(*flags), "loose_crop/7.jpg", "not an image")


# --- beside the figures --------------------------------------------------------------------------


def test_subjects_are_those_of_the_galleries_and_of_genuine_pairs(tmp_path):
    lists = read_lists(write_set(tmp_path, photos=False))
    assert subjects_of(lists).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    impostors = replace(lists, same=np.zeros(16, bool))
    assert subjects_of(impostors).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    pairs_alone = replace(lists, galleries=(), probes=None)
    assert subjects_of(pairs_alone).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    apart = replace(impostors, galleries=(), probes=None)
    assert subjects_of(apart).tolist() == [*range(8)]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """(folder of the set, evaluates network 0 or 1 with more settings into a folder)."""
    root = tmp_path_factory.mktemp("compared")
    folder = write_set(root / "IJBC", people=12)
    for number in (0, 1):
        torch.manual_seed(number)
        backbone = build_backbone("SmallNet", 16, (32, 32))
        state = {"format": FORMAT, "architecture": describe_backbone(backbone)}
        torch.save({**state, "backbone": backbone.state_dict()}, root / f"{number}.pt")

    def evaluate(number, output, **settings):
        settings = {"ijb_dataset_path": str(folder), "device": "cpu", "num_workers": 0} | settings
        config = Config(checkpoint=str(root / f"{number}.pt"), output=str(root / output))
        report = evaluate_ijb(replace(config, **settings))
        (results,) = (root / output).glob("ijb?.json")
        return report.table, json.loads(results.read_text()), str(results)

    return folder, evaluate


def test_two_results_are_compared_and_a_network_with_itself_is_the_same(evaluated):
    _, evaluate = evaluated
    table, first, path = evaluate(0, "first")
    (found,) = first["results"]
    low, high = found["intervals"]["figures"]["TAR@FAR=0.1"]
    assert low <= found["verification"]["exact"]["0.1"]["tar"] <= high
    assert f"{100 * low:.2f} to {100 * high:.2f}" in table
    assert found["intervals"]["figures"]["TAR@FAR=0.0001"] is None  # of 132 impostor pairs
    assert found["intervals"]["subjects"] == 12
    mean = found["identification"]["rank"]["1"]
    assert found["intervals"]["figures"]["rank-1"][0] <= mean

    table, values, _ = evaluate(0, "again", compare=path)
    ((name, same),) = values["comparisons"][0]["results"].items()
    assert name == "insightface"
    for entry in same["figures"].values():
        assert entry["difference"] == 0
        assert entry["chance_of_other_order"] in (0.5, None)
    assert "The two are the same in all of these figures" in table

    table, values, _ = evaluate(1, "other", compare=path)
    (other,) = values["results"]
    entry = values["comparisons"][0]["results"]["insightface"]["figures"]["TAR@FAR=0.1"]
    tars = [side["verification"]["exact"]["0.1"]["tar"] for side in (other, found)]
    assert [entry["this"], entry["other"]] == tars
    assert entry["interval"][0] <= tars[0] - tars[1] <= entry["interval"][1]
    assert f"Compared with {path}" in table
    assert "The two are the same" not in table


def test_a_result_of_something_else_is_not_compared(evaluated, tmp_path):
    folder, evaluate = evaluated
    _, _, path = evaluate(0, "first")
    here = "once.*ijbc.json can't be compared"
    with pytest.raises(DataError, match=f"first.*{here}: insightface there, adaface here"):
        evaluate(0, "once", compare=path, ijb_conventions="adaface")
    shutil.copytree(folder, tmp_path / "IJBC")
    pairs = tmp_path / "IJBC/meta/ijbc_template_pair_label.txt"
    pairs.write_text("".join(pairs.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match=f"first.*{here}, as they differ in the lists"):
        evaluate(0, "once", compare=path, ijb_dataset_path=str(tmp_path / "IJBC"))
    _, _, other = evaluate(1, "second")
    mixed = tmp_path / "ijbc.json"
    shutil.copy(path, mixed)
    shutil.copy(other.replace(".json", "_scores.npz"), tmp_path)
    with pytest.raises(DataError, match=rf"{mixed} and .*ijbc_scores\.npz are not of one eval"):
        evaluate(0, "once", compare=str(mixed))
    (tmp_path / "lfw.json").write_text('{"results": {}}')
    np.savez(tmp_path / "lfw_scores.npz", names=["a"])
    with pytest.raises(DataError, match=rf"lfw\.json and .*{here}: .*lfw_scores.npz holds no fig"):
        evaluate(0, "once", compare=str(tmp_path / "lfw.json"))
    (tmp_path / "lfw_scores.npz").unlink()
    with pytest.raises(DataError, match=r"lfw_scores\.npz is not there"):
        evaluate(0, "once", compare=str(tmp_path / "lfw.json"))


def test_thresholds_of_another_set_and_by_ijb_for_another(evaluated, tmp_path):
    folder, evaluate = evaluated
    _, first, path = evaluate(0, "first")
    point = {"far_target": 0.1, "threshold": 0.5}
    lfw = tmp_path / "lfw.json"
    text = {"benchmark": "LFW", "results": {"cosine": {"operating_points": [point]}}}
    lfw.write_text(json.dumps(text))
    table, values, _ = evaluate(0, "at", threshold_from=str(lfw))
    (row,) = values["at_thresholds"]["results"]["insightface"]
    lists = read_lists(folder)
    (features,) = Path(path).parent.glob("features/ijbc-*/features.npy")
    made = make_templates(np.load(features), lists, NAMED["insightface"])
    accepted = pair_scores(made, lists.first, lists.second) >= 0.5
    assert row["far"] == np.mean(accepted[~lists.same])
    assert row["tar"] == np.mean(accepted[lists.same])
    assert "At the thresholds found on LFW" in table
    assert " 0.5000 " in table
    exact = first["results"][0]["verification"]["exact"]
    found = read_thresholds(path, ["cosine", "insightface"]).points
    assert found == {"cosine": [(far, exact[f"{far:g}"]["threshold"]) for far in FARS]}
    _, _, path = evaluate(0, "all", ijb_conventions="all")
    with pytest.raises(DataError, match="thresholds under 8 conventions"):
        read_thresholds(path, ["cosine"])


@pytest.mark.parametrize("by", ["norm", "detector", "file"])
def test_error_versus_discard_by_templates(evaluated, tmp_path, by):
    folder, evaluate = evaluated
    lists = read_lists(folder)
    images = np.random.default_rng(0).random(len(lists.names))
    lines = [f"{name} {value}\n" for name, value in zip(lists.names, images, strict=True)]
    (tmp_path / "quality.txt").write_text("".join(lines))
    _, values, path = evaluate(1, by, quality=str(tmp_path / "quality.txt") if by == "file" else by)
    found = values["quality"]["results"]["insightface"]["0.01"]
    assert cv2.imread(path.replace(".json", "_discard_insightface.png")).size > 0
    (features,) = Path(path).parent.glob("features/ijbc-*/features.npy")
    features = np.load(features)
    of_images = images if by == "file" else lists.detector
    rows = [lists.template == template for template in range(len(lists.template_ids))]
    quality = np.array([of_images[own].mean() for own in rows])
    if by == "norm":  # by hand: the mean of each media, added
        faces = (features[:, :16] + features[:, 16:]).astype(np.float64) * lists.detector[:, None]
        quality = np.array([
            np.linalg.norm(
                sum(faces[own & (lists.media == m)].mean(axis=0) for m in set(lists.media[own]))
            )
            for own in rows
        ])  # fmt: skip
    made = make_templates(features, lists, NAMED["insightface"])
    scores = pair_scores(made, lists.first, lists.second)
    of_pairs = np.minimum(quality[lists.first], quality[lists.second])
    assert found["fixed"] == discard_curve(scores, lists.same, of_pairs, 0.01).fixed
