"""compare_photos and identify, as a user runs them."""

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from Backbone import build_backbone, describe_backbone
from tests.conftest import assert_one_paragraph, run_script
from Utils.Datasets_Utils.alignment.detectors import DETECTORS
from Utils.Datasets_Utils.images import read_image
from Utils.errors import UserError
from Utils.Evaluation_Utils.analysis.kept_scores import load_scores
from Utils.Evaluation_Utils.compare_photos.photos import find_photos
from Utils.Pretrained_Utils.files import Description, write_backbone

PEOPLE = ("Abdullah", "Abdullah_Gul", "Abel_Pacheco", "Adam_Sandler", "Abdoulaye_Wade")


@pytest.fixture(scope="module")
def lfw(shared_data) -> Path:
    return shared_data / "lfw_half/images"


@pytest.fixture(scope="module")
def xiaoccer(shared_data) -> Path:
    return shared_data / "checkpoints/mobilefacenet_xiaoccer_068.ckpt"


@pytest.fixture(scope="module")
def judged(lfw, xiaoccer, tmp_path_factory) -> Path:
    """The results file of LFW_Evaluation.py on 20 pairs of five people in two folds."""
    root = tmp_path_factory.mktemp("judged")
    lines = ["2\t5\n"]
    for fold in (0, 1):
        lines += [f"{name}\t{1 + fold}\t{3 + fold}\n" for name in PEOPLE]
        lines += [
            f"{name}\t1\t{PEOPLE[(i + 1 + fold) % 5]}\t{2 + fold}\n"
            for i, name in enumerate(PEOPLE)
        ]
    (root / "pairs.txt").write_text("".join(lines))
    run_script(
        *("LFW_Evaluation.py", "--checkpoint", xiaoccer, "--output", root, "--num_workers", 0),
        *("--lfw_dataset_path", lfw, "--lfw_file_list", root / "pairs.txt"),
        check=True,
    )
    return root / "lfw.json"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A checkpoint of a small untrained network."""
    path = tmp_path_factory.mktemp("net") / "small.pt"
    backbone = build_backbone("SmallNet", 16, (32, 32))
    description = Description(describe_backbone(backbone), "this project")
    write_backbone(path, backbone.state_dict(), description)
    return path


@pytest.fixture(scope="module")
def detector() -> str:
    for name, kind in DETECTORS.items():
        try:
            kind.open(None)
        except UserError:
            continue
        return name
    pytest.skip("no detector's weights are there (`make extras` installs those of MTCNN)")


def command(name: str, *arguments: object, check: bool = True, painted: bool | None = None):
    arguments += ("--device", "cpu", "--num_workers", 0)
    return run_script(
        "-m", f"Utils.Evaluation_Utils.{name}", *arguments, check=check, painted=painted
    )


def photo(lfw: Path, person: str, number: int) -> Path:
    return lfw / person / f"{person}_{number:04d}.jpg"


def on_canvas(path: Path, *crops: Path) -> Path:
    """A photograph of 500×1000 with the crops in it, each half as large as the one before."""
    canvas = np.full((500, 1000, 3), 90, np.uint8)
    for number, crop in enumerate(crops):
        side = 224 >> number
        face = cv2.resize(cv2.imread(str(crop)), (side, side))
        canvas[100 : 100 + side, 150 + 500 * number :][:, :side] = face
    cv2.imwrite(str(path), canvas)
    return path


@pytest.mark.parametrize("protocol", ["cosine", "insightface"])
def test_scores_and_answers_are_those_of_the_evaluation(protocol, lfw, xiaoccer, judged, tmp_path):
    kept, results = load_scores(judged), json.loads(judged.read_text())["results"][protocol]
    photos = [photo(lfw, person, number) for person in PEOPLE for number in (1, 2, 3, 4)]
    flags = ("--checkpoint", xiaoccer, "--output", tmp_path, "--protocol", protocol)
    run = command(
        *("compare_photos", *photos, *flags, "--threshold_from", judged, "--far", 0.1),
        painted=True,
    )
    values = json.loads((tmp_path / "compare_photos.json").read_text())
    place = {Path(entry["photo"]).stem: row for row, entry in enumerate(values["photos"])}
    left, right = (
        [place[Path(kept.names[i]).stem] for i in side] for side in (kept.left, kept.right)
    )
    scores = np.array(values["scores"])[left, right] * (1 if protocol == "cosine" else -1)
    assert scores == pytest.approx(kept.protocols[protocol].scores, abs=1e-5)
    threshold = next(p for p in results["operating_points"] if p["far_target"] == 0.1)["threshold"]
    clear = abs(scores - threshold) > 1e-5  # the pair that it was found at may be on either side
    assert clear.sum() >= 19
    same = np.array(values["same"])[left, right]
    assert np.array_equal(same[clear], scores[clear] >= threshold)
    assert scores[kept.same].mean() > scores[~kept.same].mean() + 0.4
    assert "20 photographs: 0 aligned, 20 taken as they are" in run.stdout
    assert "of 190 pairs: the same person" in run.stdout
    assert (tmp_path / "compare_photos.png").read_bytes()[:4] == b"\x89PNG"


def test_two_photographs_have_one_answer(lfw, xiaoccer, judged, tmp_path):
    first, same, other = (
        photo(lfw, "Abdullah", 1),
        photo(lfw, "Abdullah", 2),
        photo(lfw, "Adam_Sandler", 1),
    )
    flags = ("--checkpoint", xiaoccer, "--output", tmp_path)
    run = command("compare_photos", first, same, *flags, "--threshold_from", judged)
    assert ": the same person\n" in run.stdout
    assert "too few for that FAR" in run.stdout  # 0.001 of 10 pairs
    run = command("compare_photos", first, other, *flags, "--threshold_from", judged)
    assert ": two people\n" in run.stdout
    run = command("compare_photos", first, other, *flags)
    assert "people" not in run.stdout
    assert "--threshold_from names" in run.stdout
    values = json.loads((tmp_path / "compare_photos.json").read_text())
    assert values["threshold"] is values["same"] is None
    listed = tmp_path / "photos" / "list.txt"
    listed.parent.mkdir()
    (listed.parent / "a.jpg").write_bytes(first.read_bytes())
    listed.write_text(f"a.jpg\n{other}\n")
    command("compare_photos", listed, *flags)
    again = json.loads((tmp_path / "compare_photos.json").read_text())
    assert again["scores"] == values["scores"]
    names = [photo["photo"] for photo in again["photos"]]
    assert names == [str(listed.parent / "a.jpg"), str(other)]


def test_faces_are_found_in_photographs_and_several_or_none_are_told(
    detector, lfw, xiaoccer, judged, tmp_path
):
    first, other = photo(lfw, "Abdullah_Gul", 4), photo(lfw, "Adam_Sandler", 1)
    folder = tmp_path / "photos"
    folder.mkdir()
    on_canvas(folder / "a.png", first)
    on_canvas(folder / "b.png", first, other)
    cv2.imwrite(str(folder / "c.png"), np.full((300, 300, 3), 90, np.uint8))
    (folder / "d.jpg").write_bytes(b"no image")
    flags = ("--checkpoint", xiaoccer, "--output", tmp_path, "--threshold_from", judged)
    run = command("compare_photos", folder, first, other, *flags)
    values = json.loads((tmp_path / "compare_photos.json").read_text())
    assert [Path(entry["photo"]).name for entry in values["photos"]] == [
        *("a.png", "b.png", first.name, other.name)
    ]
    assert [entry["faces"] for entry in values["photos"]] == [1, 2, None, None]
    left, top, right, bottom = values["photos"][0]["box"]
    assert 150 - 20 <= left < right <= 374 + 20
    assert 100 - 20 <= top < bottom <= 324 + 20
    assert np.min(np.array(values["scores"])[:3, :3]) > 0.9
    assert np.max(np.array(values["scores"])[:3, 3]) < 0.4
    assert [Path(entry["photo"]).name for entry in values["left_out"]] == ["c.png", "d.jpg"]
    assert f"{detector} found no face" in run.stdout
    assert "the largest of 2 faces" in run.stdout
    assert "not an image" in run.stdout


def test_a_file_named_like_an_image_is_a_photograph_and_no_list(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.png").write_text("not found\n")
    (tmp_path / "list.txt").write_text("page.png\n")
    sources = [tmp_path / name for name in ("empty.jpg", "page.png", "list.txt")]
    names = [Path(found.name).name for found in find_photos(sources)]
    assert names == ["empty.jpg", "page.png", "page.png"]


def test_every_pair_of_a_labelled_set_gives_thresholds_too(lfw, xiaoccer, tmp_path):
    faces = tmp_path / "faces"
    for person in PEOPLE:
        (faces / person).mkdir(parents=True)
        for number in (1, 2, 3, 4):
            shot = photo(lfw, person, number)
            (faces / person / shot.name).write_bytes(shot.read_bytes())
    flags = ("--checkpoint", xiaoccer, "--output", tmp_path, "--num_workers", 0)
    run_script("-m", "Utils.Evaluation_Utils", "--all_pairs", "--data", faces, *flags, check=True)
    two = (photo(lfw, "Abdullah", 1), photo(lfw, "Abdullah", 2))
    there = ("--threshold_from", tmp_path / "faces.json", "--far", 0.01)
    run = command("compare_photos", *two, *flags[:4], *there)
    assert ": the same person\n" in run.stdout
    assert "the threshold at FAR 0.01 on faces" in run.stdout


def test_a_person_is_found_by_the_best_photograph_and_a_stranger_is_nobody(
    lfw, xiaoccer, judged, tmp_path
):
    gallery, probes = tmp_path / "gallery", tmp_path / "probes"
    probes.mkdir()
    for person in PEOPLE[1:]:
        (gallery / person).mkdir(parents=True)
        for number in (1, 2, 3):
            name = f"{person}_{number:04d}.jpg"
            (gallery / person / name).write_bytes((lfw / person / name).read_bytes())
    (gallery / "alone.jpg").write_bytes(photo(lfw, "Adrien_Brody", 1).read_bytes())
    (gallery / "damaged.jpg").write_bytes(b"no image")
    for number, (person, shot) in enumerate(
        [("Abdullah_Gul", 4), ("Adrien_Brody", 2), ("Abdullah", 1)]
    ):
        (probes / f"{number}.jpg").write_bytes(photo(lfw, person, shot).read_bytes())
    flags = ("--gallery", gallery, "--checkpoint", xiaoccer, "--output", tmp_path)
    run = command("identify", probes, *flags, "--threshold_from", judged, "--far", 0.01)
    values = json.loads((tmp_path / "identify.json").read_text())
    assert [probe["answer"] for probe in values["probes"]] == ["Abdullah_Gul", "alone", "nobody"]
    assert (values["gallery"]["people"], values["gallery"]["photos"]) == (5, 13)
    assert "5 people, 13 photographs" in run.stdout
    assert "damaged.jpg" in run.stdout
    best = values["probes"][0]["matches"][0]

    # The score of each of the person's photographs, from the other command.
    shots = sorted((gallery / "Abdullah_Gul").iterdir())
    command("compare_photos", probes / "0.jpg", *shots, *flags[2:])
    row = json.loads((tmp_path / "compare_photos.json").read_text())["scores"][0][1:]
    assert best["score"] == pytest.approx(max(row), abs=1e-5)
    assert best["photo"] == f"Abdullah_Gul/{shots[int(np.argmax(row))].name}"

    # A photograph of the gallery is not its own match.
    run = command("identify", gallery / "alone.jpg", *flags)
    probe = json.loads((tmp_path / "identify.json").read_text())["probes"][0]
    assert probe["answer"] is None
    assert "alone" not in [match["person"] for match in probe["matches"]]
    assert f"in the gallery too: {gallery / 'alone.jpg'}" in " ".join(run.stdout.split())

    # Nor is anybody else, if the gallery has no other photograph; the table has a line for it.
    only = gallery / "alone.jpg"
    run = command("identify", only, "--gallery", only, *flags[2:], "--threshold_from", judged)
    assert f"{only} nobody - - -" in " ".join(run.stdout.split())

    # A zip of the gallery's folder, and a list beside it, name the same people.
    names = sorted(path.relative_to(tmp_path).as_posix() for path in gallery.glob("*/*"))
    listed = [*names[:5], *(tmp_path / name for name in names[5:])]
    (tmp_path / "list.txt").write_text("".join(f"{name} 0\n" for name in listed))
    with zipfile.ZipFile(tmp_path / "people.zip", "w") as archive:
        for name in names:
            archive.write(tmp_path / name, name)
    for source in ("list.txt", "people.zip"):
        command("identify", probes / "0.jpg", "--gallery", tmp_path / source, *flags[2:])
        values = json.loads((tmp_path / "identify.json").read_text())
        assert values["gallery"]["people"] == 4
        assert values["probes"][0]["matches"][0]["person"] == "Abdullah_Gul"


def test_mistakes_end_in_one_paragraph(lfw, xiaoccer, judged, small, tmp_path, monkeypatch):
    first, same = photo(lfw, "Abdullah", 1), photo(lfw, "Abdullah", 2)
    out = ("--output", tmp_path)

    def fails(*arguments: object, said: tuple[str, ...]) -> None:
        assert_one_paragraph(command(*arguments, *out, check=False), *said)

    two = ("compare_photos", first, same, "--checkpoint")
    there = ("--threshold_from", judged)
    fails(*two, small, *there, said=(str(small), str(xiaoccer), "128-d", "16-d", "another network"))
    swapped = (*two, xiaoccer, *there, "--channel_order", "BGR")
    fails(*swapped, said=("another input", "112×96 RGB", "112×96 BGR"))
    fails(*two, xiaoccer, *there, "--far", 1e-5, said=("--far is one of 0.1, 0.01, 0.001",))
    fails(*two, small, "--far", 0.1, said=("far", "--threshold_from"))
    fails("compare_photos", first, "--checkpoint", small, said=("not 1: name one more",))
    fails("compare_photos", first, tmp_path / "no.jpg", "--checkpoint", small, said=("no.jpg",))
    fails(*two, small, "--detector_file", small, said=("--detector",))
    for path in (tmp_path / "a.jpg", tmp_path / "b.jpg"):
        path.write_bytes(b"no image")
    named = (tmp_path / "a.jpg", tmp_path / "b.jpg")
    fails("compare_photos", *named, "--checkpoint", small, said=("0 of the 2", "not an image"))
    fails("compare_photos", tmp_path, "--checkpoint", small, said=("0 of the",))
    fails("identify", first, "--gallery", tmp_path, "--checkpoint", small, said=("0 of 2",))


def test_without_a_detector_a_photograph_says_where_to_get_one(lfw, small, tmp_path, monkeypatch):
    from Utils.Datasets_Utils.alignment import mtcnn, yunet
    from Utils.Datasets_Utils.alignment.work import Settings
    from Utils.Evaluation_Utils.compare_photos.photos import find_photos, read_photos

    monkeypatch.setattr(yunet, "FOLDER", tmp_path)
    monkeypatch.setattr(mtcnn, "FOLDER", tmp_path)
    monkeypatch.setattr(mtcnn, "_PACKAGE", "no_such_package")
    crop = photo(lfw, "Abdullah", 1)
    large = on_canvas(tmp_path / "large.png", crop)
    found = read_photos(find_photos([crop]), Settings(), 0, "")
    assert np.array_equal(found[0].crop, read_image(crop))
    with pytest.raises(UserError, match=r"large.png .*size of an aligned face.*Pretrained.*pip"):
        read_photos(find_photos([crop, large]), Settings(), 0, "")


def test_an_older_results_file_is_known_by_its_checkpoint(lfw, xiaoccer, judged, small, tmp_path):
    values = json.loads(judged.read_text())
    del values["weights"]
    older = tmp_path / "older.json"
    older.write_text(json.dumps(values))
    two = ("compare_photos", photo(lfw, "Abdullah", 1), photo(lfw, "Abdullah", 2), "--output")
    flags = (tmp_path, "--threshold_from", older, "--checkpoint")
    assert "the same person" in command(*two, *flags, xiaoccer).stdout
    assert_one_paragraph(command(*two, *flags, small, check=False), "another network")
