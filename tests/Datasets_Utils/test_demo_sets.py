"""The built-in demo data: determinism, the real sets' layouts, caching and recovery."""

import hashlib
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from Config import Config
from Utils.Datasets_Utils import open_verification_set
from Utils.Datasets_Utils.alignment.transform import TEMPLATE, similarity, warp
from Utils.Datasets_Utils.demo import ijb, rfw
from Utils.Datasets_Utils.demo import sets as demo_sets
from Utils.Datasets_Utils.demo.faces import draw_face
from Utils.Datasets_Utils.demo.ijb import ensure_ijb
from Utils.Datasets_Utils.demo.loose import still
from Utils.Datasets_Utils.demo.people import random_identity, random_photo
from Utils.Datasets_Utils.demo.rfw import ensure_rfw
from Utils.Datasets_Utils.demo.sets import DemoSizes, ensure_demo_sets
from Utils.Datasets_Utils.demo.tinyface import ensure_tinyface
from Utils.Datasets_Utils.formats.rfw import RACES
from Utils.errors import RunError
from Utils.Evaluation_Utils.ijb.lists import read_lists
from Utils.Evaluation_Utils.tinyface.data import open_tinyface

TINY = DemoSizes(
    train_people=3,
    train_photos=4,
    folds=2,
    lfw_pairs=6,
    agedb_pairs=4,
    cfp_pairs=8,
    people_per_fold=3,
    probe_people=2,
    probe_photos=3,
    distractors=12,
)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "sets"
    return ensure_demo_sets(root, seed=1, sizes=TINY, workers=1)


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_two_workers_draw_the_same_bytes_as_one(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_sets, "CHUNK", 8)
    again = ensure_demo_sets(tmp_path / "again", seed=1, sizes=TINY, workers=2)
    assert digests(again.root) == digests(sets.root)


def test_another_seed_draws_other_faces(sets, tmp_path):
    other = ensure_demo_sets(tmp_path / "other", seed=2, sizes=TINY, workers=1)
    first, second = digests(sets.train_images), digests(other.train_images)
    assert first.keys() == second.keys()
    assert not set(first.values()) & set(second.values())


def test_every_image_is_a_different_112_colour_picture(sets):
    images = [p for p in sets.root.rglob("*") if p.suffix in (".jpg", ".png")]
    assert len(images) == 3 * 4 + 3 * (2 * 3 * 4) + 2 * 3 + 12
    assert all(cv2.imread(str(path)).shape == (112, 112, 3) for path in images)
    assert len({path.read_bytes() for path in images}) == len(images)


def test_training_list_has_two_spaces_and_contiguous_labels(sets):
    rows = [line.split("  ") for line in lines(sets.train_list)]
    assert {path for path, _ in rows} == files_below(sets.train_images)
    assert sorted({int(label) for _, label in rows}) == [0, 1, 2]
    assert all(int(Path(path).parent.name) == int(label) for path, label in rows)


def test_lfw_pairs_have_the_format_of_the_original(sets):
    header, *rows = lines(sets.lfw_pairs)
    assert header == "2\t3"
    assert [len(row.split("\t")) for row in rows] == [3, 3, 3, 4, 4, 4] * 2
    used = set()
    for row in rows:
        fields = row.split("\t")
        if len(fields) == 3:
            name, i, j = fields
            assert i != j
            sides = [(name, i), (name, j)]
        else:
            sides = [(fields[0], fields[1]), (fields[2], fields[3])]
            assert fields[0] != fields[2]
        used |= {f"{name}/{name}_{int(number):04d}.jpg" for name, number in sides}
    assert used <= files_below(sets.lfw_images)


@pytest.mark.parametrize(
    ("name", "kinds", "pairs"), [("agedb", ("young", "old"), 4), ("cfp", ("frontal", "profile"), 8)]
)
def test_crossed_pairs_are_balanced_and_folds_share_no_people(sets, name, kinds, pairs):
    rows = [line.split(" ") for line in lines(getattr(sets, f"{name}_pairs"))]
    half = pairs // 2
    assert [label for _, _, label in rows] == (["1"] * half + ["-1"] * half) * 2
    assert len({(left, right) for left, right, _ in rows}) == len(rows)
    people = []
    for start in (0, pairs):
        fold = rows[start : start + pairs]
        for left, right, label in fold:
            (one, first, _), (two, second, _) = left.split("_"), right.split("_")
            assert (first, second) == kinds
            assert (one == two) == (label == "1")
        people.append({side.split("_")[0] for row in fold for side in row[:2]})
    assert not people[0] & people[1]
    assert {side for row in rows for side in row[:2]} <= files_below(
        getattr(sets, f"{name}_images")
    )


def test_megaface_lists_are_contiguous_and_nested(sets):
    probes = json.loads(sets.facescrub_list.read_text())
    assert set(probes["path"]) == files_below(sets.facescrub_images)
    assert [path.split("/")[0] for path in probes["path"]] == probes["id"]
    assert len(list(itertools.groupby(probes["id"]))) == len(set(probes["id"])) == 2
    assert [path.name for path in sets.distractor_lists] == ["megaface_features_list.json_10_1"]
    listed = json.loads(sets.distractor_lists[0].read_text())["path"]
    assert len(listed) == 10
    assert set(listed) <= files_below(sets.distractor_images)


def test_tinyface_has_the_probes_again_as_poor_photos_among_the_distractors(sets, tmp_path):
    shutil.copytree(sets.root, tmp_path / "sets")
    sets = ensure_demo_sets(tmp_path / "sets", seed=1, sizes=TINY)
    folder = ensure_tinyface(sets)
    first = digests(folder)
    (folder / "Probe" / "mark").touch()
    assert digests(ensure_tinyface(sets)).keys() - first.keys() == {"Probe/mark"}  # made once
    shutil.rmtree(folder.parent)
    again = digests(ensure_tinyface(sets))
    assert {k: v for k, v in again.items() if k.endswith("png")}.items() <= first.items()
    assert not [path for path in sets.root.iterdir() if "building" in path.name]

    data = open_tinyface(Config(tinyface_dataset_path=str(folder)))
    assert [len(part.images) for part in data.parts.values()] == [2, 4, 12]
    assert set(data.probes.listed.ids) == set(data.gallery.listed.ids) == {"1", "2"}
    name = json.loads(sets.facescrub_list.read_text())["path"][0]
    good, poor = cv2.imread(str(sets.facescrub_images / name)), data.probes.images[0][..., ::-1]
    assert poor.shape == good.shape
    sharpness = [cv2.Laplacian(image, cv2.CV_64F).std() for image in (poor, good)]
    assert sharpness[0] < sharpness[1] / 2
    blurred = (cv2.GaussianBlur(image, (0, 0), 6).astype(float) for image in (poor, good))
    assert np.abs(np.subtract(*blurred)).mean() < 5  # the same photo


def test_ijb_has_loose_crops_in_templates_of_stills_and_clips(sets, tmp_path, monkeypatch):
    """As in the set: each clip is one media, and nobody is in both galleries."""
    monkeypatch.setattr(ijb, "_PEOPLE", 8)
    shutil.copytree(sets.root, tmp_path / "sets")
    sets = ensure_demo_sets(tmp_path / "sets", seed=1, sizes=TINY)
    folder = ensure_ijb(sets)
    lists = read_lists(folder)
    assert (lists.title, lists.notes) == ("IJB-C", ())
    assert set(lists.names) == files_below(folder / "loose_crop")
    images = np.bincount(lists.template)
    media = [len(set(lists.media[lists.template == row])) for row in range(len(images))]
    assert {*zip(images.tolist(), media, strict=True)} == {(4, 3), (1, 1), (4, 1), (4, 2)}
    known = [set(gallery.subjects.tolist()) for gallery in lists.galleries]
    assert not known[0] & known[1]
    assert set(lists.probes.subjects.tolist()) == known[0] | known[1]
    owner = {}
    for part in (*lists.galleries, lists.probes):
        owner |= dict(zip(part.templates.tolist(), part.subjects.tolist(), strict=True))
    same = [owner[a] == owner[b] for a, b in zip(lists.first, lists.second, strict=True)]
    assert np.array_equal(lists.same, same)
    # Clips are smaller and worse, and the detector says so.
    sizes = np.array([len(cv2.imread(str(folder / "loose_crop" / n))) for n in lists.names])
    of_clip = np.bincount(lists.media)[lists.media] > 1
    assert sizes[of_clip].max() <= sizes[~of_clip].min()
    assert np.median(lists.detector[of_clip]) < np.median(lists.detector[~of_clip]) - 0.1
    assert ((lists.detector >= 0.1) & (lists.detector < 1)).all()

    (folder / "mark").touch()
    assert (ensure_ijb(sets) / "mark").exists()  # made once
    again = cv2.imencode(
        ".jpg", ijb._photos()[99][2].draw()[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 93]
    )
    assert (folder / "loose_crop/100.jpg").read_bytes() == again[1].tobytes()
    assert not [path for path in sets.root.iterdir() if "building" in path.name]


def test_the_five_points_of_a_loose_photo_bring_the_face_to_where_aligned_faces_have_it():
    rng = np.random.default_rng(2)
    upright = {"roll": 0.0, "zoom": 1.0, "shift_x": 0.0, "shift_y": 0.0}
    calm = {"ambient": 1.0, "noise": 0.0, "cover": "", "blur": 0.0}
    loose_errors, errors = [], []
    for _ in range(12):
        shot = still(rng, random_identity(rng), 40)
        shot = shot._replace(photo=replace(shot.photo, **calm), size=180)
        wanted = draw_face(shot.person, replace(shot.photo, **upright)).astype(float)
        image = shot.draw()
        # Aligned faces are drawn at twice the size, so that they lie a quarter of a pixel higher.
        aligned = warp(image, similarity(shot.points(), TEMPLATE - 0.25))
        face = slice(45, 95), slice(35, 78)
        for found, into in ((aligned, errors), (cv2.resize(image, (112, 112)), loose_errors)):
            into.append(np.abs(found - wanted)[face].mean())
    assert np.mean(errors) < 4  # grey levels; of points that are one pixel off it is 7
    assert np.mean(loose_errors) > 20


def test_the_groups_have_rfws_files_and_photos_that_need_their_points(sets, tmp_path, monkeypatch):
    for name, few in {"_PEOPLE": 20, "_PAIRS": 4}.items():
        monkeypatch.setattr(rfw, name, few)
    shutil.copytree(sets.root, tmp_path / "sets")
    folder = ensure_rfw(ensure_demo_sets(tmp_path / "sets", seed=1, sizes=TINY))
    data = open_verification_set(folder)
    assert data.notes == ("photos aligned by their five points",)
    assert {*zip(*np.unique(data.groups, return_counts=True), strict=True)} == {
        (group, 40) for group in RACES
    }
    assert np.bincount(data.folds[data.same]).tolist() == [4 * 2] * 10
    person = [name.rsplit("/", 1)[0] for name in data.names]
    same = [person[a] == person[b] for a, b in zip(data.left, data.right, strict=True)]
    assert np.array_equal(data.same, same)
    for row in range(0, len(data.images), 99):
        name = data.names[row].split("/", 1)
        photo = cv2.imread(str(folder / "test/data" / name[0] / f"{name[1]}.jpg"))
        assert photo.shape == (144, 144, 3)
        assert data.images[row].shape == (112, 112, 3)

    def sharpness(group):
        photos = [i for i, name in enumerate(data.names) if name.startswith(group)][:40]
        return np.median([cv2.Laplacian(data.images[i], cv2.CV_64F).std() for i in photos])

    assert sharpness("Indian") < 0.7 * sharpness("African")


def test_default_distractor_lists_are_the_three_nested_sizes(tmp_path):
    sets = demo_sets._paths(tmp_path, DemoSizes())
    assert [path.name.split("_")[-2] for path in sets.distractor_lists] == ["10", "100", "1000"]


def test_no_person_is_in_two_sets():
    jobs = demo_sets.plan_jobs(TINY, seed=1)
    numbers = {(job.set_name, job.person) for job in jobs}
    people = {demo_sets.demo_person(1, *number) for number in numbers}
    assert {job.set_name for job in jobs} == set(demo_sets.SETS)
    assert len(people) == len(numbers)


def test_lfw_and_facescrub_names_differ():
    jobs = demo_sets.plan_jobs(DemoSizes(), seed=1)
    names = {
        wanted: {Path(job.path).parent.name for job in jobs if job.set_name == wanted}
        for wanted in ("lfw", "facescrub")
    }
    assert len(names["lfw"]) == 120
    assert len(names["facescrub"]) == 20
    assert not names["lfw"] & names["facescrub"]


def test_a_second_call_draws_nothing(sets, monkeypatch):
    monkeypatch.setattr(demo_sets, "_draw_all", lambda *_: pytest.fail("drawn again"))
    assert ensure_demo_sets(sets.root, seed=1, sizes=TINY) == sets


def test_an_interrupted_build_is_done_again(tmp_path, monkeypatch):
    root = tmp_path / "sets"

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(demo_sets, "_write_lists", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ensure_demo_sets(root, sizes=TINY, workers=1)
    assert list(tmp_path.iterdir()) == []
    assert ensure_demo_sets(root, sizes=TINY, workers=1).train_list.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["sets"]


def test_another_stamp_draws_again(tmp_path, monkeypatch):
    root = tmp_path / "sets"
    sets = ensure_demo_sets(root, sizes=TINY, workers=1)
    sets.train_list.write_text("spoilt")
    ensure_demo_sets(root, sizes=TINY, workers=1)
    assert sets.train_list.read_text() == "spoilt"
    monkeypatch.setattr(demo_sets, "GENERATOR_VERSION", demo_sets.GENERATOR_VERSION + 1)
    ensure_demo_sets(root, sizes=TINY, workers=1)
    assert len(lines(sets.train_list)) == 12


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(RunError, match="other than demo faces"):
        ensure_demo_sets(tmp_path, sizes=TINY, workers=1)
    assert (tmp_path / "holiday.jpg").read_bytes() == b"mine"


def test_too_few_people_for_the_pairs_is_an_error():
    sizes = DemoSizes(folds=1, people_per_fold=2, lfw_pairs=60)
    with pytest.raises(ValueError, match="2 people per fold"):
        list(demo_sets._lfw_lines(sizes, 0))


def test_a_photo_is_a_function_of_identity_and_conditions():
    rng = np.random.default_rng(3)
    person, photo = random_identity(rng), random_photo(rng, yaw=(-70, -60))
    first = draw_face(person, photo)
    assert first.dtype == np.uint8
    assert first.shape == (112, 112, 3)
    assert np.array_equal(first, draw_face(person, photo))
    assert -70 <= photo.yaw <= -60


def test_an_unknown_range_is_refused():
    with pytest.raises(ValueError, match="yawn"):
        random_photo(np.random.default_rng(0), yawn=(0, 1))
