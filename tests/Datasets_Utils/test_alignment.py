"""Photographs to aligned faces: the transform, the points, the files that a run leaves."""

import csv
import math
import os
import shutil
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT, assert_one_paragraph, run_script
from tests.processes import start_script
from Utils.Datasets_Utils.alignment.faces import Faces, choose
from Utils.Datasets_Utils.alignment.landmarks.lists import read_landmarks
from Utils.Datasets_Utils.alignment.run import align, sheet_path
from Utils.Datasets_Utils.alignment.transform import (
    TEMPLATE,
    move,
    problem,
    rotation,
    similarity,
    template,
    warp,
)
from Utils.Datasets_Utils.alignment.work import Settings
from Utils.Datasets_Utils.alignment.yunet import FILES, open_yunet
from Utils.Datasets_Utils.images import read_image
from Utils.errors import DataError, RunError
from Utils.Pretrained_Utils import load_backbone

# --- the transform -------------------------------------------------------------------------------


def test_points_that_a_similarity_moved_are_brought_back():
    angle, scale, shift = 0.4, 1.7, (12.0, -5.0)
    turn = scale * np.array(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    matrix = similarity(TEMPLATE @ turn.T + shift, TEMPLATE)
    moved = np.column_stack((TEMPLATE @ turn.T + shift, np.ones(5))) @ matrix.T
    assert np.abs(moved - TEMPLATE).max() < 1e-9


def test_no_similarity_is_nearer_and_none_is_a_reflection():
    rng = np.random.default_rng(0)
    for _ in range(20):
        source = rng.normal(size=(5, 2))
        target = source * (1, -1) + 0.1 * rng.normal(size=(5, 2))  # mirrored
        matrix = similarity(source, target)
        assert np.linalg.det(matrix[:, :2]) > 0
        # Least squares of (a, b, tx, ty) in x' = ax - by + tx, y' = bx + ay + ty.
        x, y = source.T
        one, none = np.ones(5), np.zeros(5)
        system = np.concatenate(
            [np.column_stack((x, -y, one, none)), np.column_stack((y, x, none, one))]
        )
        a, b, tx, ty = np.linalg.lstsq(system, target.T.ravel(), rcond=None)[0]
        assert matrix == pytest.approx(np.array([[a, -b, tx], [b, a, ty]]), abs=1e-9)


def test_the_transform_is_scikit_images_and_the_pixels_are_the_published_recipes():
    transform = pytest.importorskip("skimage.transform")
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    for _ in range(50):
        angle, scale = rng.uniform(-math.pi, math.pi), rng.uniform(0.3, 4)
        turn = scale * np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        points = TEMPLATE @ turn.T + rng.normal(0, 3 * scale, (5, 2)) + rng.uniform(0, 200, 2)
        theirs = transform.SimilarityTransform()
        theirs.estimate(points, TEMPLATE)
        matrix = similarity(points, TEMPLATE)
        assert matrix == pytest.approx(theirs.params[:2], abs=1e-6)
        published = cv2.warpAffine(image, theirs.params[:2], (112, 112), borderValue=0.0)
        np.testing.assert_array_equal(warp(image, matrix), published)


def test_templates_of_other_sizes_are_the_published_ones():
    sphereface = [(30.2946, 51.6963), (65.5318, 51.5014), (48.0252, 71.7366)]
    sphereface += [(33.5493, 92.3655), (62.7299, 92.2041)]
    assert template((112, 96)) == pytest.approx(np.array(sphereface), abs=1e-9)
    assert template((224, 224)) == pytest.approx(TEMPLATE * 2, abs=1e-9)


def test_the_border_has_the_colour_that_is_asked_for():
    matrix = np.array([[1.0, 0, 50], [0, 1, 0]])
    crop = warp(np.zeros((112, 112, 3), np.uint8), matrix, border=(10, 20, 30))
    assert crop[:, :49].reshape(-1, 3).tolist() == [[10, 20, 30]] * (112 * 49)
    assert not crop[:, 51:].any()


@pytest.mark.parametrize("angle", [-170, -90, 0, 45, 180])
def test_points_of_turned_and_of_side_faces_can_be_used_and_swapped_ones_not(angle):
    matrix = cv2.getRotationMatrix2D((56, 56), -angle, 2.0)  # its angles are anticlockwise
    points = move(TEMPLATE, matrix)
    assert problem(points) == ""
    difference = rotation(similarity(points, TEMPLATE)) - angle
    assert (difference + 180) % 360 - 180 == pytest.approx(0, abs=1e-6)
    assert "swapped" in problem(points[[1, 0, 2, 4, 3]])
    from_the_side = TEMPLATE * (0.1, 1) + np.array([[0, 0], [0, 0], [25, 0], [0, 0], [0, 0]])
    assert problem(move(from_the_side, matrix)) == ""


def test_points_that_say_nothing_are_named():
    assert "at one place" in problem(np.full((5, 2), 7.0))
    for value in (np.nan, np.inf, 1e300):
        assert "not pixels" in problem(np.where(np.eye(5, 2) > 0, value, TEMPLATE))


# --- which face ----------------------------------------------------------------------------------


def test_which_face_of_several_is_taken():
    boxes = np.array([[0, 0, 50, 50], [40, 40, 60, 60], [0, 60, 90, 100]], float)
    faces = Faces(boxes, np.zeros((3, 5, 2)), np.array([0.9, 0.8, np.nan]))
    size = (100, 100)
    assert [choose(faces, which, size)[0] for which in ("largest", "central", "best")] == [2, 1, 0]
    assert choose(faces, "all", size) == [2, 0, 1]


POINTS = np.array([(30.5, 40), (70, 41.25), (50, 60), (35, 80), (66, 81)])
FLAT = " ".join(f"{value:g}" for value in POINTS.ravel())
NAMES = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


# --- a run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """(folder, list of landmarks) of 12 photographs, six of which can't be aligned."""
    folder = tmp_path_factory.mktemp("my photos") / "photos"
    rng = np.random.default_rng(0)
    lines = []
    for number in range(12):
        name = f"person {number % 3}/{number}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), smooth(300, 400, number)[..., ::-1])
        matrix = cv2.getRotationMatrix2D((56, 56), rng.uniform(-30, 30), rng.uniform(1, 1.6))
        points = move(TEMPLATE, matrix) + (120, 80)
        if number == 7:
            points = points[[1, 0, 2, 4, 3]]
        if number == 8:
            points[:] = 5
        if number == 9:
            points += 5000
        lines.append(" ".join([name.replace(" ", "_"), *(f"{v:.3f}" for v in points.ravel())]))
    (folder / "person 0/0.png").rename(folder / "person 0/0.jpg")  # a PNG all the same
    lines[0] = lines[0].replace(".png", ".jpg")
    (folder / "person 1/empty.jpg").touch()
    (folder / "person 1/notes.jpg").write_text("no image\n")
    Image.new("1", (20_000, 20_000)).save(folder / "person 1/huge.png")
    lines += [f"person_1/{name} {FLAT}" for name in ("empty.jpg", "notes.jpg", "huge.png")]
    landmarks = folder.parent / "landmarks.csv"
    text = [line.replace(" ", "\t").replace("_", " ") for line in lines]
    landmarks.write_text("".join(f"{line}\n" for line in text))
    return folder, landmarks


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows_of(output):
    with open(output / "aligned.csv", encoding="utf-8", newline="") as file:
        return {(row["file"], row["face"]): row for row in csv.DictReader(file)}


def report_of(output):
    return (output / "aligned.csv").read_text(encoding="utf-8", errors="surrogateescape")


def run(photos, output, **how):
    folder, landmarks = photos
    settings = {"landmarks": landmarks} | how.pop("settings", {})
    return align(folder, output, Settings(**settings), **({"num_workers": 0} | how))


def test_crops_are_the_published_recipes_and_what_failed_is_a_line(photos, tmp_path):
    output = tmp_path / "out"
    said = run(photos, output, settings={"size": (112, 96), "border": (9, 99, 199)})
    rows = rows_of(output)
    assert len(rows) == 15
    reasons = {file: row["reason"] for (file, _), row in rows.items() if row["reason"]}
    assert sorted(reasons) == [
        *("person 0/9.png", "person 1/7.png", "person 1/empty.jpg", "person 1/huge.png"),
        *("person 1/notes.jpg", "person 2/8.png"),
    ]
    words = ("outside", "swapped", "empty", "20,000×20,000 pixels", "not an image", "one place")
    assert all(word in reasons[file] for word, file in zip(words, sorted(reasons), strict=True))
    assert "9 crops of 112×96 from 15 photographs" in said
    given = read_landmarks(photos[1])
    for (file, _), row in rows.items():
        if row["reason"]:
            assert not row["crop"]
            assert not (output / file).exists()
            continue
        points = given.points[given.names.index(file)]
        image = cv2.imread(str(photos[0] / file))
        matrix = similarity(points, TEMPLATE - (8, 0))
        expected = cv2.warpAffine(image, matrix, (96, 112), borderValue=(199, 99, 9))
        found = cv2.imread(str(output / row["crop"]))
        difference = np.abs(found.astype(int) - expected)
        assert row["crop"] == file
        assert difference.max() <= (0 if file.endswith(".png") else 6)
        written = [float(row[f"{name}_{axis}"]) for name in NAMES for axis in "xy"]
        assert written == pytest.approx(points.ravel().tolist(), abs=0.006)
    # The report can be read as landmarks, and gives the same crops.
    again = read_landmarks(output / "aligned.csv")
    assert len(again.names) == 12
    assert "person 1/empty.jpg" not in again.names
    assert sheet_path(output).exists()
    assert not sheet_path(output).is_relative_to(output)


def test_several_processes_and_an_interrupted_run_leave_the_same_files(photos, tmp_path):
    run(photos, tmp_path / "whole")
    whole = files_of(tmp_path / "whole")
    run(photos, tmp_path / "processes", num_workers=2)
    assert files_of(tmp_path / "processes") == whole
    # As a killed run leaves it: half a line, crops without a line, half a crop.
    output = tmp_path / "whole"
    lines = whole["aligned.csv"].split(b"\n")[1:]
    (output / ".aligned.part.csv").write_bytes(b"\n".join(lines[:6]) + b"\n" + lines[6][:30])
    (output / "aligned.csv").unlink()
    (output / "person 2/.5.png.abcdefgh.png").write_bytes(b"half")
    (output / "person 2/11.png").unlink()
    before = (output / "person 0/0.jpg").stat().st_mtime_ns
    run(photos, output)
    assert files_of(output) == whole
    assert (output / "person 0/0.jpg").stat().st_mtime_ns == before  # is not done again


def test_names_that_are_no_text_pipes_and_films_do_not_stop_a_run(tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9.png")
    cv2.imencode(".png", smooth(120, 120))[1].tofile(folder / name)
    os.mkfifo(folder / "pipe.jpg")
    with open(folder / "film.mp4", "wb") as film:
        film.truncate(1 << 31)  # with a hole that takes no room on the disk
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.png " + FLAT.encode() + b"\n")
    text = FLAT.replace(" ", "\t")
    with open(tmp_path / "list.txt", "a") as file:
        file.write(f"pipe.jpg\t{text}\nfilm.mp4\t{text}\n")
    print(run((folder, tmp_path / "list.txt"), tmp_path / "out"))
    reasons = [line.split(",")[-1] for line in report_of(tmp_path / "out").splitlines()[1:]]
    assert (tmp_path / "out" / name).exists()
    assert "1 crops of 112×112 from 3 photographs" in capsys.readouterr().out
    assert sorted(map(bool, reasons)) == [False, True, True]


def test_a_photograph_that_was_mended_is_aligned_by_the_next_run(photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos[0], folder)
    whole = (folder / "person 0/3.png").read_bytes()
    (folder / "person 0/3.png").write_bytes(whole[: len(whole) // 2])
    run((folder, photos[1]), tmp_path / "out")
    assert rows_of(tmp_path / "out")["person 0/3.png", "0"]["reason"]
    (folder / "person 0/3.png").write_bytes(whole)
    run((folder, photos[1]), tmp_path / "out")
    run((folder, photos[1]), tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    (folder / "person 0/3.png").unlink()
    said = run((folder, photos[1]), tmp_path / "out")
    assert "1 photographs have gone since the last run, but their crops are still there" in said
    assert ("person 0/3.png", "1") not in rows_of(tmp_path / "out")


def test_a_run_that_was_killed_goes_on(photos, tmp_path):
    folder = tmp_path / "many"
    for copy in range(60):
        shutil.copytree(photos[0] / "person 2", folder / f"{copy:02d}/person 2")
    text = [line for line in photos[1].read_text().splitlines() if line.startswith("person 2")]
    lines = [f"{copy:02d}/{line}\n" for copy in range(60) for line in text]
    (tmp_path / "list.txt").write_text("".join(lines))
    output = tmp_path / "out"
    command = ["-m", "Utils.Datasets_Utils.align_faces", folder, output]
    command += ["--landmarks", tmp_path / "list.txt"]
    process = start_script(*command, own_group=True)
    part = output / ".aligned.part.csv"
    while process.poll() is None and not (part.exists() and part.stat().st_size > 100):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (output / "aligned.csv").exists()
    for folder_of_crops in (output, tmp_path / "whole"):
        align(folder, folder_of_crops, Settings(landmarks=tmp_path / "list.txt"), num_workers=0)
    assert files_of(output) == files_of(tmp_path / "whole")


def test_an_archive_and_a_list_give_the_same_crops(photos, tmp_path):
    folder, landmarks = photos
    run(photos, tmp_path / "tree")
    tree = files_of(tmp_path / "tree")
    crops = {name: content for name, content in tree.items() if name.startswith("person")}
    for kind in ("zip", "tar"):
        shutil.make_archive(str(tmp_path / "photos"), kind, folder)
        run((tmp_path / f"photos.{kind}", landmarks), tmp_path / kind)
        settings = (tmp_path / kind / "aligned.json").read_bytes()  # has the name of the archive
        assert files_of(tmp_path / kind) == tree | {"aligned.json": settings}
    listed = [f"{folder}/{name}" for name in crops]
    (tmp_path / "list.txt").write_text("\n".join(listed))
    absolute = landmarks.read_text().replace("person", f"{folder}/person")
    (tmp_path / "absolute.txt").write_text(absolute)
    run((tmp_path / "list.txt", tmp_path / "absolute.txt"), tmp_path / "listed")
    made = files_of(tmp_path / "listed")
    assert sorted(c for n, c in made.items() if n.endswith("g")) == sorted(crops.values())
    assert all(not name.startswith("..") for name in made)


def test_lists_in_another_encoding_name_the_photographs(tmp_path):
    name = "张三/一.png"
    (tmp_path / "photos/张三").mkdir(parents=True)
    cv2.imencode(".png", smooth(120, 120))[1].tofile(tmp_path / "photos" / name)
    (tmp_path / "list.txt").write_bytes(f"{name}  0\n".encode("gbk"))
    (tmp_path / "points.txt").write_bytes(f"{name} {FLAT}\n".encode("gbk"))
    output = tmp_path / "out"
    settings = Settings(landmarks=tmp_path / "points.txt")
    photos = tmp_path / "photos"
    align(photos, output, settings, file_list=tmp_path / "list.txt", num_workers=0)
    assert (output / name).exists()
    assert (name, "1") in rows_of(output)


def test_all_faces_or_one_and_what_is_doubtful(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.fromarray(smooth(400, 600)).save(tmp_path / "photos/a.gif")
    faces = [TEMPLATE * 1.5 + (20, 60), TEMPLATE * 0.4 + (300, 10)]
    turn = cv2.getRotationMatrix2D((56, 56), 90, 1.4)
    faces.append(move(TEMPLATE, turn) + (400, 200))
    texts = (" ".join(f"{v:.2f}" for v in points.ravel()) for points in faces)
    scores = (0.9, 0.3, 0.8)
    lines = [f"a.gif {text} {score}\n" for text, score in zip(texts, scores, strict=True)]
    (tmp_path / "list.txt").write_text("".join(lines))
    photos = tmp_path / "photos", tmp_path / "list.txt"
    run(photos, tmp_path / "all", settings={"which": "all"})
    rows = rows_of(tmp_path / "all")
    assert [rows["a.gif", n]["doubts"] for n in "123"] == ["", "turned", "score small"]
    crops = [rows["a.gif", n]["crop"] for n in "123"]
    assert crops == ["a.gif.png", "a.gif.face2.png", "a.gif.face3.png"]
    assert all((tmp_path / "all" / crop).exists() for crop in crops)
    run(photos, tmp_path / "one", settings={"which": "best"})
    ((_, row),) = rows_of(tmp_path / "one").items()
    assert row["score"] == "0.9000"
    assert row["doubts"] == "several"


def test_the_second_face_of_one_photograph_is_not_written_over_another_photograph(tmp_path):
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(("a.face2.png", "a.png")):
        Image.fromarray(smooth(300, 300, number)).save(tmp_path / "photos" / name)
    text = " ".join(f"{value:.2f}" for value in (POINTS + 90).ravel())
    (tmp_path / "list.txt").write_text(f"a.png {FLAT}\na.png {text}\na.face2.png {FLAT}\n")
    run((tmp_path / "photos", tmp_path / "list.txt"), tmp_path / "all", settings={"which": "all"})
    crops = {row["crop"] for row in rows_of(tmp_path / "all").values()}
    assert crops == {"a.png", "a.face2.png", "a.face2_2.png"}
    assert crops < set(files_of(tmp_path / "all"))
    run((tmp_path / "photos", tmp_path / "list.txt"), tmp_path / "one")
    assert {row["crop"] for row in rows_of(tmp_path / "one").values()} == {"a.png", "a.face2.png"}


def test_odd_boxes_points_and_names_do_not_stop_a_run(tmp_path):
    (tmp_path / "photos").mkdir()
    names = ("a" * 251 + ".png", "b" * 251 + ".gif", "c.png", "d.png")
    for name in names:
        Image.fromarray(smooth(120, 120)).save(tmp_path / "photos" / name)
    (tmp_path / "photos/e.png").symlink_to("nowhere")
    points = FLAT.replace(" ", ",")
    boxes = ("90,80,20,10", "inf,1,2,1e300", "30,20,50,60", "30,20,50,60", "1,2,3,4")
    header = ",".join(("file,left,top,right,bottom", *(f"{n}_x,{n}_y" for n in NAMES)))
    lines = [f"{n},{b},{points}" for n, b in zip((*names, "e.png"), boxes, strict=True)]
    lines[2] = lines[2].replace(",30.5,", ",1e300,")
    lines[3] = lines[3].replace(",30.5,", ",-60,")
    (tmp_path / "list.csv").write_text("\n".join((header, *lines)))
    said = run((tmp_path / "photos", tmp_path / "list.csv"), tmp_path / "out")
    reasons = {row["file"]: row["reason"] for row in rows_of(tmp_path / "out").values()}
    assert [reasons[name] for name in names] == [
        "",
        "the name of its crop is too long",
        "the points are not pixels of a photograph",
        "",
    ]
    assert reasons["e.png"].startswith("cannot be opened")
    assert str(tmp_path / "photos") not in said  # reasons of many photographs are counted as one
    with Image.open(sheet_path(tmp_path / "out")) as sheet:
        assert sheet.height > 100


def test_the_sheet_has_names_beyond_ascii(tmp_path):
    sheets = []
    for name in ("ä", "ж"):
        (tmp_path / name).mkdir()
        Image.fromarray(smooth(120, 120)).save(tmp_path / name / f"{name}.png")
        turned = " ".join(f"{value:.2f}" for value in (119 - POINTS).ravel())
        (tmp_path / "list.txt").write_text(f"{name}.png {turned}\n")
        run((tmp_path / name, tmp_path / "list.txt"), tmp_path / f"{name}_out")
        sheets.append(sheet_path(tmp_path / f"{name}_out").read_bytes())
    assert sheets[0] != sheets[1]  # one box stands for all letters that a font lacks


def test_photographs_and_other_crops_are_never_overwritten(photos, tmp_path):
    folder = photos[0]
    for output in (folder, folder.parent):
        with pytest.raises(RunError, match="holds the photographs themselves"):
            run(photos, output)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/x.txt").touch()
    with pytest.raises(RunError, match="has other files in it"):
        run(photos, tmp_path / "other")
    run(photos, tmp_path / "out")
    with pytest.raises(RunError, match=r"size \[112, 112\], not \[112, 96\]"):
        run(photos, tmp_path / "out", settings={"size": (112, 96)})
    shutil.copytree(folder, tmp_path / "others")  # whose names are the same
    with pytest.raises(RunError, match=r"photographs .*, not .*others"):
        run((tmp_path / "others", photos[1]), tmp_path / "out")
    (tmp_path / "list.txt").write_text(photos[1].read_text().replace("1", "2"))
    with pytest.raises(RunError, match="another landmarks"):
        run((folder, tmp_path / "list.txt"), tmp_path / "out")


def test_crops_inside_the_tree_of_photographs_are_not_photographs(photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos[0], folder)
    (tmp_path / "link").symlink_to(folder)
    for root in (folder, tmp_path / "link"):
        for _ in range(2):
            run((root, photos[1]), folder / "out")
            assert len(rows_of(folder / "out")) == 15
        shutil.rmtree(folder / "out")
        sheet_path(folder / "out").unlink()


def test_landmarks_with_other_folders_say_how_many_to_drop(photos, tmp_path):
    text = photos[1].read_text().replace("person", "/test/data/person")
    (tmp_path / "list.txt").write_text(text)
    other = photos[0], tmp_path / "list.txt"
    with pytest.raises(DataError, match="--drop_folders 3"):
        run(other, tmp_path / "out")
    run(other, tmp_path / "out", drop_folders=3)
    assert len(files_of(tmp_path / "out")) == 9 + 2


def test_names_without_their_extension_are_found(photos, tmp_path):
    text = photos[1].read_text()
    (tmp_path / "list.txt").write_text(text.replace(".png", "").replace(".jpg", ""))
    said = run((photos[0], tmp_path / "list.txt"), tmp_path / "out")
    assert "9 crops" in said
    assert "lack the extension" in said


def test_points_of_a_photograph_that_is_stored_turned(tmp_path):
    """Given in the pixels of either frame, the same crop."""
    image = smooth(300, 400)
    upright = TEMPLATE * 1.5 + (100, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # is to be turned clockwise
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.rot90(image)).save(tmp_path / "photos/a.png", exif=exif)
    stored = np.column_stack((upright[:, 1], 399 - upright[:, 0]))
    crops = []
    for frame, points in (("upright", upright), ("stored", stored)):
        text = " ".join(f"{value:.4f}" for value in points.ravel())
        (tmp_path / f"{frame}.txt").write_text(f"a.png {text}\n")
        settings = {"landmarks_frame": frame}
        run((tmp_path / "photos", tmp_path / f"{frame}.txt"), tmp_path / frame, settings=settings)
        crops.append(cv2.imread(str(tmp_path / frame / "a.png"))[..., ::-1])
    expected = warp(image, similarity(upright, TEMPLATE))
    for crop in crops:  # the points were written with four decimals
        assert np.abs(crop.astype(int) - expected).max() <= 1


def test_a_person_without_points_or_with_aligned_faces_is_told_what_to_do(photos, tmp_path):
    missing = run_script("-m", "Utils.Datasets_Utils.align_faces", str(photos[0]), "out")
    assert_one_paragraph(missing, "--landmarks", "--detector", "Pretrained/README.md")
    (tmp_path / "faces").mkdir()
    Image.fromarray(smooth(112, 112)).save(tmp_path / "faces/a.jpg")
    (tmp_path / "list.txt").write_text(f"a.jpg {FLAT}\n")
    said = run((tmp_path / "faces", tmp_path / "list.txt"), tmp_path / "out")
    assert "look as if they were aligned already" in said
    assert "1 crops" in said


def test_a_network_sees_the_same_face_in_crops_that_are_aligned_again(shared_data, tmp_path):
    backbone = load_backbone(shared_data / "checkpoints/mobilefacenet_xiaoccer_068.ckpt")
    files = sorted((shared_data / "lfw_half/images").glob("*/*.jpg"))[:2000:100]
    rng = np.random.default_rng(0)
    lines = []
    (tmp_path / "photos").mkdir()
    for file in files:
        matrix = cv2.getRotationMatrix2D((56, 56), rng.uniform(-30, 30), rng.uniform(1.2, 3))
        matrix[:, 2] += rng.uniform(150, 250, 2)
        photograph = cv2.warpAffine(
            cv2.imread(str(file)), matrix, (600, 500), flags=cv2.INTER_CUBIC
        )
        cv2.imwrite(str(tmp_path / "photos" / file.name), photograph)
        points = " ".join(f"{value:.2f}" for value in move(TEMPLATE, matrix).ravel())
        lines.append(f"{file.name} {points}\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    photos = tmp_path / "photos", tmp_path / "list.txt"
    run(photos, tmp_path / "out", settings={"size": (112, 96)})
    ready = [read_image(file)[:, 8:104] for file in files]
    again = [read_image(tmp_path / "out" / file.name) for file in files]
    pixels = torch.from_numpy(np.stack(ready + again)).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        features = torch.nn.functional.normalize(backbone((pixels - 127.5) / 128))
    cosines = features[: len(files)] @ features[len(files) :].T
    assert cosines.diagonal().min() > 0.9
    assert cosines.argmax(1).tolist() == list(range(len(files)))


# --- YuNet ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def yunet_file() -> Path:
    """YuNet's weights, in Pretrained/ or in the folder that FACE_TEST_WEIGHTS names."""
    folders = [
        Path(os.environ.get("FACE_TEST_WEIGHTS") or ROOT / "Pretrained"),
        ROOT / "Pretrained",
    ]
    found = [folder / name for folder in folders for name in FILES if (folder / name).is_file()]
    if not found:
        pytest.skip(f"no {FILES[0]} in Pretrained/ (or name its folder: FACE_TEST_WEIGHTS)")
    return found[0]


def test_yunet_finds_the_points_of_faces_of_any_size_and_several(yunet_file, shared_data):
    detector = open_yunet(yunet_file)
    files = sorted((shared_data / "lfw_half/images").glob("*/*.jpg"))[:600:60]
    faces = [read_image(file) for file in files]
    for scale in (0.5, 1, 4, 12):
        errors = []
        for face in faces:
            side = round(112 * scale)
            canvas = np.full((side * 3 // 2, side * 2, 3), 90, np.uint8)
            canvas[side // 4 :, side // 2 :][:side, :side] = cv2.resize(face, (side, side))
            found = detector.detect(canvas)
            row = choose(found, "best", canvas.shape[:2])[0]
            points = (found.points[row] - (side // 2, side // 4)) / scale
            errors.append(np.abs(points - TEMPLATE).mean())
        assert np.mean(errors) < 4, scale
    group = np.full((400, 900, 3), 90, np.uint8)
    for number, face in enumerate(faces[:3]):
        group[150:262, 100 + 300 * number :][:, :112] = face
    assert len(detector.detect(group)) == 3
    assert not len(detector.detect(np.zeros((1, 1, 3), np.uint8)))


def test_without_yunets_file_the_error_says_where_it_is_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"Pretrained/README.md says where it is published"):
        open_yunet()
    (tmp_path / "x.onnx").write_bytes(b"no network")
    with pytest.raises(DataError, match=r"x.onnx can't be read as YuNet"):
        open_yunet(tmp_path / "x.onnx")
