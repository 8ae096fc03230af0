"""Pairs in the forms in which benchmarks distribute them, on small files made here by hand."""

import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from tests.Datasets_Utils.test_pairs import named, write
from Utils.Datasets_Utils import open_verification_set
from Utils.Datasets_Utils.alignment.transform import TEMPLATE
from Utils.Datasets_Utils.formats.bin_set import write_bin
from Utils.Datasets_Utils.formats.rfw import RACES
from Utils.Datasets_Utils.images import ImageError, decode_image
from Utils.Datasets_Utils.pairs import PairsError, read_pairs
from Utils.Datasets_Utils.pairs.groups import read_groups
from Utils.errors import DataError

# --- CALFW and CPLFW: two lines a pair, all matched pairs first -------------------------------


def two_lines(matched, mismatched, label="1"):
    """label: of matched pairs; "fold": CALFW's, the fold from 1."""
    lines = []
    for pair in range(matched):
        mark = str(10 * pair // matched + 1) if label == "fold" else label
        lines += [f"Ann_Lee{pair}_0001.jpg {mark}", f"Ann_Lee{pair}_0002.jpg {mark}"]
    for pair in range(mismatched):
        lines += [f"Bob_{pair}.jpg 0", f"Al_Sharpton_{pair}.jpg 0"]
    return lines


@pytest.mark.parametrize("label", ["1", "fold"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_two_lines_a_pair_as_calfw_and_cplfw_have_them(tmp_path, label, end):
    pairs = read_pairs(write(tmp_path, end.join(two_lines(30, 30, label))))
    assert named(pairs)[1] == ("Ann_Lee1_0001.jpg", "Ann_Lee1_0002.jpg")
    assert named(pairs)[30] == ("Bob_0.jpg", "Al_Sharpton_0.jpg")
    assert pairs.same.tolist() == [True] * 30 + [False] * 30
    # Fold k: the k-th tenth of the matched pairs, and of the mismatched ones.
    assert pairs.folds.tolist() == [*(np.arange(30) // 3), *(np.arange(30) // 3)]
    assert pairs.numbers[31].tolist() == [63, 64]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        # Lists of images with their classes, of two images each: none of them is pairs.
        ([f"{c}/{i}.jpg {c}" for c in range(4) for i in range(2)], "list of images with their"),
        ([f"p{c}/{i}.jpg {c}" for c in (1, 0) for i in range(4)], "list of images with their"),
        ([f"p{c}/{i}.jpg {c}" for c in range(1, 5) for i in range(2)], "list of images with their"),
        ([f"{c}/{i}.jpg {c}" for c in range(4) for i in range(3)], "lines 3 and 4: the labels 0"),
        # Pairs, but damaged.
        (two_lines(3, 3)[:-1], "there are 11, the last of them line 11"),
        ([*two_lines(3, 3)[:2], *two_lines(3, 3)[3:], "x.jpg 0"], "lines 5 and 6: .* 1 and 0"),
        ([*two_lines(3, 3)[:4], "x.jpg one", *two_lines(3, 3)[5:]], "line 5: 'x.jpg one'"),
        ([*two_lines(3, 3)[:4], "x.jpg", *two_lines(3, 3)[5:]], "line 5: 'x.jpg' is not a pair"),
        ([*two_lines(3, 3)[6:], *two_lines(3, 3)[:6]], "list of images with their"),
    ],
)
def test_what_only_looks_like_two_lines_a_pair_is_refused(tmp_path, lines, said):
    with pytest.raises(PairsError, match=said) as caught:
        read_pairs(write(tmp_path, "\n".join(lines)))
    assert str(tmp_path / "pairs.txt") in str(caught.value)


def test_a_header_of_two_lines_a_pair_may_name_the_label_only(tmp_path):
    """The rules by which pairs are told from classes stay."""
    path = tmp_path / "pairs.txt"
    lines = "Ann_1.jpg 1\nAnn_2.jpg 1\nAnn_1.jpg 0\nBob_1.jpg 0\n"
    path.write_text("image label\n" + lines)
    assert read_pairs(path).same.tolist() == [True, False]
    path.write_text("image label\n" + lines.replace("Bob_1.jpg 0", "Bob_1.jpg 1"))
    with pytest.raises(PairsError, match="lines 4 and 5: the labels 0 and 1 differ"):
        read_pairs(path)
    path.write_text("left,right,same\n")
    with pytest.raises(PairsError, match="no pairs below its header"):
        read_pairs(path)


def test_the_command_of_the_message_says_that_two_lines_are_a_pair(tmp_path):
    path = write(tmp_path, "\n".join([*two_lines(3, 3)[6:], *two_lines(3, 3)[:6]]))
    with pytest.raises(PairsError) as caught:
        read_pairs(path)
    (command,) = re.findall(r"`([^`]* > [^`]*)`", str(caught.value))
    subprocess.run(command, shell=True, check=True)
    assert read_pairs(tmp_path / "pairs_mended.txt").same.tolist() == [False] * 3 + [True] * 3


def test_a_missing_image_of_two_lines_a_pair_is_left_out_by_the_command_of_the_message(tmp_path):
    lines = two_lines(3, 3)
    for line in lines:
        (tmp_path / line.split()[0]).touch()
    (tmp_path / "Ann_Lee1_0002.jpg").unlink()
    path = write(tmp_path, "\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"1 of the 12 images.*Ann_Lee1_0002\.jpg") as caught:
        open_verification_set(tmp_path, path)
    subprocess.run(re.findall(r"`([^`]* > [^`]*)`", str(caught.value))[0], shell=True, check=True)
    assert read_pairs(tmp_path / "pairs_mended.txt").same.tolist() == [True] * 2 + [False] * 3


# --- AgeDB-30: a .mat file ------------------------------------------------------------------------


def cells(rows):
    made = np.empty(np.shape(rows), object)
    for place in np.ndindex(made.shape):
        made[place] = rows[place[0]][place[1]]
    return made


def agedb(folds=2, pairs=4):
    """What the official file holds: a cell of structs, each with 2×n structs and n labels."""
    splits = np.empty((folds, 1), object)
    for fold in range(folds):
        images = [
            [{"name": f"{n}_{side}{fold}_Ann_35_f", "age": np.uint8(35)} for n in range(pairs)]
            for side in "ab"
        ]
        labels = np.array([[1, -1] * (pairs // 2)], np.float64)
        splits[fold, 0] = {"images": cells(images), "labels": labels}
    return splits


def test_agedb_as_it_is_distributed(tmp_path):
    path = tmp_path / "04_FINAL_protocol_30_years.mat"
    for compressed in (False, True):
        savemat(path, {"splits": agedb()}, do_compression=compressed)
        pairs = read_pairs(path)
        assert named(pairs)[5] == ("1_a1_Ann_35_f", "1_b1_Ann_35_f")
        assert pairs.same.tolist() == [True, False] * 4
        assert pairs.folds.tolist() == [0] * 4 + [1] * 4
    for name in pairs.names:
        cv2.imwrite(str(tmp_path / f"{name}.jpg"), np.full((4, 4, 3), 90, np.uint8))
    assert open_verification_set(tmp_path, path).images[3].shape == (4, 4, 3)
    (tmp_path / "1_b1_Ann_35_f.jpg").unlink()
    with pytest.raises(DataError, match=r"1_b1_Ann_35_f; check the data set's path\.$"):
        open_verification_set(tmp_path, path)


def other_label(splits):
    splits[1, 0]["labels"][0, 2] = 0


def other_count(splits):
    splits[1, 0]["labels"] = np.ones((1, 3))


def no_name(splits):
    splits[1, 0]["images"][1, 2] = {"name": 7.0}


def no_struct(splits):
    splits[1, 0] = np.ones((2, 2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_label, "split 2, pair 3: the label is 0"),
        (other_count, "split 2: holds .* 3 labels"),
        (no_name, "split 2, pair 3: .* not its name"),
        (no_struct, "split 2: expected a struct"),
    ],
)
def test_a_mat_file_of_another_shape_is_refused_with_the_place(tmp_path, change, said):
    splits = agedb()
    change(splits)
    savemat(tmp_path / "x.mat", {"splits": splits})
    with pytest.raises(PairsError, match=rf"x\.mat, {said}"):
        read_pairs(tmp_path / "x.mat")


def test_other_mat_files_are_not_taken_for_agedbs(shared_data, tmp_path):
    with pytest.raises(PairsError, match=r"probe_img_ID_pairs\.mat has no variable splits"):
        read_pairs(shared_data / "protocols/tinyface/probe_img_ID_pairs.mat")
    savemat(tmp_path / "numbers.mat", {"splits": np.ones((10, 600))})
    with pytest.raises(PairsError, match="splits is no cell array"):
        read_pairs(tmp_path / "numbers.mat")
    with pytest.raises(PairsError, match=r"text\.mat is no MATLAB file"):
        read_pairs(write(tmp_path, "a.jpg b.jpg 1\n", "text.mat"))
    savemat(tmp_path / "whole.mat", {"splits": agedb()}, do_compression=True)
    content = (tmp_path / "whole.mat").read_bytes()
    for size in range(0, len(content), 97):
        with pytest.raises(PairsError, match=r"cut\.mat"):
            read_pairs(write(tmp_path, content[:size], "cut.mat"))


# --- CFP: folders ---------------------------------------------------------------------------------


@pytest.fixture
def cfp(tmp_path):
    """Two people with two frontal and two profile photos each, two folds."""
    root = tmp_path / "cfp-dataset"
    for letter, kind in (("F", "frontal"), ("P", "profile")):
        lines = [
            f"{2 * person + photo - 2} ../Data/Images/00{person}/{kind}/0{photo}.jpg\n"
            for person in (1, 2)
            for photo in (1, 2)
        ]
        (root / "Protocol").mkdir(parents=True, exist_ok=True)
        (root / f"Protocol/Pair_list_{letter}.txt").write_text("".join(lines))
        for line in lines:
            image = root / "Protocol" / line.split()[1]
            (root / "Data/Images" / image.parts[-3] / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(image.resolve()), np.full((4, 4, 3), 90, np.uint8))
    for kind in ("FP", "FF"):
        for fold in ("01", "02"):
            folder = root / "Protocol/Split" / kind / fold
            folder.mkdir(parents=True)
            (folder / "same.txt").write_text("1,2\n3,4\n")
            (folder / "diff.txt").write_text("1,4\n2,3\n")
    return root


def test_cfp_as_it_is_distributed(cfp):
    frontal = "Data/Images/001/frontal/01.jpg"
    for named_list in (cfp / "Protocol/Split/FP", cfp / "Protocol/Split/FF"):
        data = open_verification_set(cfp, named_list)
        assert data.same.tolist() == [True, True, False, False] * 2
        assert data.folds.tolist() == [0] * 4 + [1] * 4
        kind = "profile" if named_list.name == "FP" else "frontal"
        first = [(data.names[a], data.names[b]) for a, b in zip(data.left, data.right, strict=True)]
        assert first[0] == (frontal, f"Data/Images/001/{kind}/02.jpg")
        assert first[2] == (frontal, f"Data/Images/002/{kind}/02.jpg")
        assert data.images[0].shape == (4, 4, 3)
        assert not data.notes


def test_of_two_protocols_of_cfp_none_is_guessed(cfp):
    for place in (None, cfp, cfp / "Protocol", cfp / "Protocol/Split"):
        with pytest.raises(PairsError, match=r"Split/FP and .*Split/FF; name the one"):
            open_verification_set(cfp, place)
    # With one of them there, it is the one.
    for file in (cfp / "Protocol/Split/FF").glob("*/*.txt"):
        file.unlink()
    assert len(open_verification_set(cfp).same) == 8


@pytest.mark.parametrize("inside", [True, False], ids=["one folder in it", "files at the top"])
@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
def test_cfp_in_an_archive(cfp, tmp_path, kind, inside):
    expected = open_verification_set(cfp, cfp / "Protocol/Split/FP")
    where = (cfp.parent, cfp.name) if inside else (cfp, None)
    path = Path(shutil.make_archive(str(tmp_path / "made"), kind, *where))
    with pytest.raises(PairsError, match="name the one that you mean") as caught:
        open_verification_set(path)
    named_in_message = re.findall(r"\S+Split/FP", str(caught.value))[0]
    for pairs in ("Protocol/Split/FP", named_in_message, cfp / "Protocol/Split/FP"):
        data = open_verification_set(path, pairs)
        assert data.names == expected.names
        for column in ("left", "right", "same", "folds"):
            assert np.array_equal(getattr(data, column), getattr(expected, column))
        assert data.images[3].shape == (4, 4, 3)
    shutil.rmtree(cfp / "Protocol/Split/FF")
    (cfp / "Protocol/Split/FP/02/diff.txt").write_text("2,9\n")
    path = Path(shutil.make_archive(str(tmp_path / "made"), kind, *where))
    with pytest.raises(PairsError, match=r"made\..*/FP/02/diff\.txt, line 1: '2,9' has image 9"):
        open_verification_set(path)
    # As in a folder, pairs.txt comes first.
    photo = "Data/Images/001/frontal/01.jpg"
    (cfp / "pairs.txt").write_text(f"{photo} {photo} 1\n")
    path = Path(shutil.make_archive(str(tmp_path / "made"), kind, *where))
    assert len(open_verification_set(path).same) == 1


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("Split/FP/02/same.txt", "3,4", "3,5", r"same\.txt, line 2: '3,5' has image 5, but .*P\.t"),
        ("Split/FP/02/diff.txt", "2,3", "0,3", r"diff\.txt, line 2: '0,3' has image 0, but .*F\.t"),
        ("Split/FP/02/diff.txt", "2,3", "2 3", r"diff\.txt, line 2: '2 3' is not a pair"),
        ("Pair_list_P.txt", "2 ..", "1 ..", r"P\.txt, line 2: image 1 is there a second time"),
        ("Pair_list_F.txt", "4 ../", "../", r"F\.txt, line 4: .*expected `number path`"),
        ("Pair_list_P.txt", "", None, r"P\.txt can't be read: No such file"),
        ("Split/FP/01/diff.txt", "", None, r"01/diff\.txt can't be read: No such file"),
    ],
)
def test_a_flaw_in_cfps_files_is_named_with_its_line(cfp, file, old, new, said):
    path = cfp / "Protocol" / file
    if new is None:
        path.unlink()
    else:
        path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(PairsError, match=said):
        read_pairs(cfp / "Protocol/Split/FP")


def test_a_missing_split_of_cfps_is_named(cfp):
    shutil.rmtree(cfp / "Protocol/Split/FP/01")
    with pytest.raises(PairsError, match="FP: the folder 01 is missing, before 02"):
        read_pairs(cfp / "Protocol/Split/FP")


def test_other_folders_are_not_taken_for_cfps(cfp, tmp_path):
    with pytest.raises(PairsError, match=r"Data: is a folder; expected a pairs file, or"):
        read_pairs(cfp / "Data")
    (cfp / "Protocol/Split/FP").rename(cfp / "Protocol/Split/profile")
    with pytest.raises(PairsError, match="expected a folder named FP"):
        read_pairs(cfp / "Protocol/Split/profile")
    # An aligned copy of the photos without the folders above them.
    (cfp / "Data/Images").rename(tmp_path / "aligned")
    with pytest.raises(DataError, match="put them into a folder Data/Images and give the folder"):
        open_verification_set(tmp_path / "aligned", cfp / "Protocol/Split/FF")


# --- RFW: LFW's lines without a header, four races ---------------------------------------------


def rfw_lines(race, folds=10):
    """In each fold two matched and two mismatched pairs, as RFW's files have 300 and 300."""
    lines = []
    for fold in range(folds):
        a, b = f"m.0{race[:2]}{fold}", f"m.0{race[:2]}{(fold + 1) % folds}"
        lines += [f"{a}\t1\t2", f"{a}\t2\t3", f"{a}\t2\t{b}\t1", f"{a}\t3\t{b}\t2"]
    return lines


@pytest.fixture
def rfw(tmp_path):
    root = tmp_path / "RFW"
    for race in RACES:
        lines = rfw_lines(race)
        (root / "test/txts" / race).mkdir(parents=True)
        (root / "test/txts" / race / f"{race}_pairs.txt").write_text("\n".join(lines) + "\n")
        for name in read_pairs(root / f"test/txts/{race}/{race}_pairs.txt").names:
            path = root / "test/data" / race / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def test_rfws_file_of_a_race(tmp_path):
    pairs = read_pairs(write(tmp_path, "\n".join(rfw_lines("Asian"))))
    assert named(pairs)[0] == ("m.0As0/m.0As0_0001", "m.0As0/m.0As0_0002")
    assert named(pairs)[2] == ("m.0As0/m.0As0_0002", "m.0As1/m.0As1_0001")
    assert pairs.same.tolist() == [True, True, False, False] * 10
    assert pairs.folds.tolist() == (np.arange(40) // 4).tolist()


def test_rfws_folder_has_its_races_as_groups(rfw):
    for path in (rfw, rfw / "test"):
        data = open_verification_set(path)
        assert data.groups.tolist() == [race for race in RACES for _ in range(40)]
        assert data.folds.tolist() == 4 * (np.arange(40) // 4).tolist()
        assert data.names[data.left[40]] == "Asian/m.0As0/m.0As0_0001"
        assert data.images.parts[1].paths[0].endswith("Asian/m.0As0/m.0As0_0001.jpg")
    assert data.notes == ("photos as they are, there are no points to align them by",)


@pytest.fixture
def rfw_with_points(rfw):
    """Black photos with a red mark where the left eye is, and faces of twice the template's size;
    the photos of one race are aligned already."""
    for race in RACES:
        size = 112 if race == "Indian" else 240
        lines = []
        for photo in sorted((rfw / "test/data" / race).rglob("*.jpg")):
            image = np.zeros((size, size, 3), np.uint8)
            image[120:123, 80:83] = (0, 0, 255)
            cv2.imwrite(str(photo.with_suffix(".png")), image)
            photo.unlink()
            points = " ".join(f"{x:.2f}" for x in (2 * TEMPLATE + EYE - 2 * TEMPLATE[0]).ravel())
            place = f"/test/data/{race}/{photo.parent.name}/{photo.name}"
            lines.append(f"{place} 7 {points}".replace(" ", "\t"))
        (rfw / f"test/txts/{race}/{race}_lmk.txt").write_text("\n".join(lines) + "\n")
    return rfw


EYE = (81, 121)


def test_rfws_photos_are_aligned_by_their_points(rfw_with_points):
    data = open_verification_set(rfw_with_points)
    *others, indian = data.notes
    assert others == [f"{race}: photos aligned by their five points" for race in RACES[:3]]
    assert indian == "Indian: photos as they are, 112×112, aligned already"
    image = data.images[0]
    assert image.shape == (112, 112, 3)
    where = np.argwhere(image[..., 0] > 60)
    np.testing.assert_allclose(where.mean(axis=0)[::-1], TEMPLATE[0], atol=0.5)
    # What `convert_dataset` writes is the aligned photo.
    assert np.array_equal(decode_image(data.images.encoded(0), ""), image)
    assert not data.images[len(data.images) - 1].any()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("m.0Af3_0001", "m.0Af3_0009", r"_lmk\.txt: has no points of 1 of the 30.*m\.0Af3_0001"),
        ("81.00", "left", r"African_lmk\.txt, line 1: .* is not a photo with its points"),
        ("81.00\t", "", r"African_lmk\.txt, line 1: .* is not a photo with its points"),
    ],
)
def test_a_flaw_in_rfws_points_is_named(rfw_with_points, old, new, said):
    path = rfw_with_points / "test/txts/African/African_lmk.txt"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=said):
        open_verification_set(rfw_with_points)


def test_points_that_cannot_be_a_face_are_named_when_the_photo_is_read(rfw_with_points):
    path = rfw_with_points / "test/txts/African/African_lmk.txt"
    first, *others = path.read_text().splitlines()
    place, number, *values = first.split("\t")
    path.write_text("\n".join(["\t".join((place, number, *values[:2] * 5)), *others]))
    data = open_verification_set(rfw_with_points)
    row = data.names.index("African/m.0Af0/m.0Af0_0001")
    with pytest.raises(ImageError, match=r"_lmk\.txt, line 1: the five points are at one place"):
        data.images[row]


def test_people_of_two_races_are_named(rfw):
    path = rfw / "test/txts/Asian/Asian_pairs.txt"
    path.write_text(path.read_text().replace("m.0As0", "m.0Af0"))
    (rfw / "test/data/Asian/m.0As0").rename(rfw / "test/data/Asian/m.0Af0")
    for photo in (rfw / "test/data/Asian/m.0Af0").iterdir():
        photo.rename(photo.with_name(photo.name.replace("As", "Af")))
    _, note = open_verification_set(rfw).notes
    assert "1 people are in two races" in note
    assert "m.0Af0" in note


def test_a_missing_race_or_a_flaw_in_one_is_named(rfw):
    path = rfw / "test/txts/Indian/Indian_pairs.txt"
    whole = path.read_text()
    path.write_text(whole.replace("m.0In3\t1\t2", "m.0In3\t1"))
    with pytest.raises(PairsError, match=r"Indian_pairs\.txt, line 13"):
        open_verification_set(rfw)
    path.unlink()
    with pytest.raises(DataError, match=r"Indian_pairs\.txt missing, so it is not all of RFW"):
        open_verification_set(rfw)
    path.write_text(whole)
    with pytest.raises(DataError, match="leave out the pairs file"):
        open_verification_set(rfw, path)


def test_rfws_four_bin_files(tmp_path):
    image = [
        cv2.imencode(".png", np.full((8, 8, 3), level, np.uint8))[1].tobytes()
        for level in range(40)
    ]
    for number, race in enumerate(RACES):
        images = [image[10 * number + i % 10] for i in range(80)]
        write_bin(tmp_path / f"{race}_test.bin", images, [True, False] * 20)
    data = open_verification_set(tmp_path)
    assert len(data.images) == 40
    assert data.sizes == {(8, 8): 40}
    assert data.groups.tolist() == [race for race in RACES for _ in range(40)]
    for row in (0, 45, 159):
        assert data.images[data.left[row]][0, 0, 0] == 10 * (row // 40) + 2 * row % 10
        assert data.images.encoded(data.left[row]) == image[10 * (row // 40) + 2 * row % 10]
    # A folder of other .bin files is not RFW's.
    for race in RACES:
        (tmp_path / f"{race}_test.bin").rename(tmp_path / f"{race}.bin")
    with pytest.raises(DataError, match=r"pairs\.txt does not exist"):
        open_verification_set(tmp_path)


# --- groups -----------------------------------------------------------------------------------


def test_a_column_of_groups(tmp_path):
    lines = "left,right,same,race\na.jpg,b.jpg,1,x y\na.jpg,c.jpg,0,z\n"
    assert read_pairs(write(tmp_path, lines)).groups.tolist() == ["x y", "z"]
    assert read_pairs(write(tmp_path, lines.replace("race", "pose"))).groups.tolist() == []


@pytest.mark.parametrize(
    "text",
    [
        "left,right,same,race\na,b,1,North\na,c,0,\n",
        "race;left;right;same\nNorth;a;b;1\n;a;c;0\n",
        "left\tright\tsame\tgroup\na\tb\t1\tNorth\na\tc\t0\t\n",
    ],
)
def test_a_pair_without_a_group_in_a_column_of_groups_is_of_none(tmp_path, text):
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    assert read_pairs(path).groups.tolist() == ["North", ""]
    path.write_text("left,right,same,race\na,b,1,North\na,c,0\n")  # a column is missing
    with pytest.raises(PairsError, match="line 3"):
        read_pairs(path)


def test_pairs_of_an_image_with_itself_are_told(tmp_path):
    for name in "abc":
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((4, 4, 3), np.uint8))
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("a b 1\na c 0\na a 0\nb b 1\n" + "a b 1\nb c 0\n" * 8)
    notes = open_verification_set(tmp_path, pairs).notes
    assert "pairs of an image with itself: 2, 1 of them mismatched: a, b" in notes
    pairs.write_text("a b 1\na c 0\n" * 10)
    assert open_verification_set(tmp_path, pairs).notes == ()


def test_groups_of_images(tmp_path):
    names, left, right = ["a/1", "a/2", "b b/1"], np.array([0, 0]), np.array([1, 2])
    for text in (
        "a/1.jpg x\na/2.jpg x\nb b/1.jpg\ty\nelse.jpg x\n",
        "# comment\nimage,group\na/1.jpg,x\na/2.jpg,x\nb b/1.jpg,y\na/1.jpg,x\n",
    ):
        groups = read_groups(write(tmp_path, text), names, left, right)
        assert groups.tolist() == ["x", ""]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.jpg x\na.jpg y\n", "line 2: a.jpg is of group y here and of x in line 1"),
        ("a.jpg x\nb.jpg\n", "line 2: 'b.jpg' is not an image with its group"),
        ("a.jpg x\nb.jpg x y\n", "line 2: "),
        ("a.jpg x\nc.jpg x\n", "gives no group for 1 of the 2 images: b"),
    ],
)
def test_a_flaw_in_a_file_of_groups_is_named(tmp_path, text, said):
    with pytest.raises(PairsError, match=said):
        read_groups(write(tmp_path, text), ["a", "b"], np.array([0]), np.array([1]))
