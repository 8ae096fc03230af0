"""Image lists as people have them: what they say is known, and must come back or be refused."""

import io
import re
import shutil
import unicodedata
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import run_script
from tests.Datasets_Utils.test_training_data import LIST_MAKER
from tests.processes import run_printed
from Utils.Datasets_Utils import open_training_set, open_verification_set
from Utils.Datasets_Utils.formats.list_lines import parse_list_file
from Utils.Datasets_Utils.generate_dataset_list import write_list
from Utils.errors import DataError

NAMES = ["0000045/001.jpg", "0000045/002.jpg", "Ann Lee/001.jpg", "Ann Lee/002.jpg"]
LABELS = [0, 0, 1, 1]


def listed(line, header="", names=NAMES, labels=LABELS):
    """The text of a list with a line for each image, written by a function of (name, label)."""
    return header + "".join(f"{line(n, c)}\n" for n, c in zip(names, labels, strict=True))


def parse(text, **options):
    content = text if isinstance(text, bytes) else text.encode()
    return parse_list_file(io.BytesIO(content), Path("list.txt"), **options)


@pytest.fixture
def faces(tmp_path):
    """A folder of grey images, each of a brightness of its own."""
    for number, name in enumerate(NAMES):
        path = tmp_path / "faces" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((8, 8, 3), 50 * number, np.uint8))
    return tmp_path / "faces"


def write(folder, text, name="my list.txt"):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


def assert_the_faces(dataset):
    """The images of `faces` in the order of NAMES, with LABELS."""
    assert dataset.labels.tolist() == LABELS
    brightness = [image.mean() for image, _ in (dataset[i] for i in range(len(dataset)))]
    assert brightness == pytest.approx([0, 50, 100, 150], abs=2)


LANDMARKS = "\t0\t0\t112\t112\t38.3\t73.5\t56.0\t41.5"


@pytest.mark.parametrize(
    ("line", "header"),
    [
        (lambda n, c: f"{n}  {c}", ""),
        (lambda n, c: f"{n}\t{c}.0", ""),
        (lambda n, c: f"{n} {c}", "# CASIA-WebFace\n#\n"),
        (lambda n, c: f"{n} {c}", "path label\n"),
        (lambda n, c: f"{c} {n}", ""),
        (lambda n, c: f"{c} {n}", "label path\n"),
        (lambda n, c: f"{n},{c}", ""),
        (lambda n, c: f'"{n}";"{c}"', ""),
        (lambda n, c: f"{n},{c}", "path,label\n"),
        (lambda n, c: f"{c},{n}", ""),
        (lambda n, c: f"7,{c},0.5,{n}", ",id,quality,filename\n"),
        (lambda n, c: f"7\t{c}.000000\t{n}", ""),
        (lambda n, c: f"7\t{c}\t0.25\t{n}", ""),
        (lambda n, c: f"1\t{n}\t{c}", ""),
        (lambda n, c: f"0\t{n}\t{c}{LANDMARKS}", ""),
    ],
)
def test_a_list_in_another_form_says_the_same(line, header):
    text = listed(line, header)
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        for end in ("\n", "\r\n", "\r"):
            found = parse(text.replace("\n", end).encode(encoding))
            assert list(found.names) == NAMES
            assert found.labels.tolist() == LABELS


@pytest.mark.parametrize(
    "written",
    [
        [1, 1, 2, 2],
        [0, 0, 70, 70],
        [45, 45, 7, 7],
        ["Zoe", "Zoe", "Ann Lee", "Ann Lee"],
        ["m.01", "m.01", "n02", "n02"],
    ],
)
def test_labels_are_renumbered_and_the_table_tells_the_old_ones(faces, tmp_path, written):
    path = write(tmp_path, listed(lambda n, c: f"{n}\t{c}", labels=written))
    dataset = open_training_set(faces, path)
    assert dataset.num_classes == 2
    old = [dataset.classes[label] for label in dataset.labels]
    assert old == list(map(str, written))
    if isinstance(written[0], int):
        assert "are renumbered" in dataset.notes[0]
    # Without a small identity, the table still tells the old labels.
    path = write(tmp_path, listed(lambda n, c: f"{n}\t{c}", names=NAMES[:3], labels=written[:3]))
    assert open_training_set(faces, path).without_small(2).classes == [str(written[0])]


def test_labels_from_zero_need_no_table(faces, tmp_path):
    dataset = open_training_set(faces, write(tmp_path, listed(lambda n, c: f"{n} {c}")))
    assert (dataset.classes, dataset.notes) == (None, ())


def run_remedies(message, cwd):
    """Run the first command that a message prints; returns the list that it wrote."""
    run_printed(re.search(r"`([^`]*)`", message)[1])
    return cwd / "my list_mended.txt"


@pytest.mark.parametrize(
    ("text", "said", "kept"),
    [
        # What is read under no form.
        (listed(lambda n, c: f"{n} {c}") + "x.jpg\n", "line 5: 'x.jpg'", 4),
        (listed(lambda n, c: f"{n} {c}") + "0000045/003.jpg -1\n", "line 5", 4),
        (listed(lambda n, c: f"{n} {c}") + "0000045/003.jpg 0.5\n", "line 5", 4),
        (listed(lambda n, c: f"{n} {c}") + "0000045/003.jpg 1a\n", "line 5", 4),
        (listed(lambda n, c: f"{n} {c}", "foto klasse\n"), "line 1: 'foto klasse'", 4),
        (listed(lambda n, c: f"{n} {c}") + "0000045\0/001.jpg 0\n", "line 5: there are NUL", 5),
        ("# nothing\n", "names no images", 4),
        # Two readings: label 0 of '3 x.jpg', or index 0 and label 3.
        (listed(lambda n, c: f"{c} {c} {n}"), "in several ways", None),
        # No labels.
        (listed(lambda n, c: n), "paths without labels", 4),
        # Files that are not there: all below another folder, or one.
        (listed(lambda n, c: f"CASIA/{n} {c}"), "4 of 4 files are missing", 4),
        (listed(lambda n, c: f"/{n} {c}"), "4 of 4 files are missing", 4),
        (listed(lambda n, c: f"/home/ann/CASIA/{n} {c}"), "without their first 4 folders", 4),
        (listed(lambda n, c: f"D:\\CASIA\\{n} {c}".replace("/", "\\")), "first 2 folders", 4),
        (listed(lambda n, c: f"{n} {c}") + "Ann Lee/009.jpg 1\n", "1 of 5 files are missing", 4),
    ],
)
def test_a_refused_list_is_mended_by_the_command_of_the_message(faces, tmp_path, text, said, kept):
    path = write(tmp_path, text)
    with pytest.raises(DataError) as caught:
        open_training_set(faces, path)
    message = str(caught.value)
    assert said in message
    assert str(path) in message
    made = run_remedies(message, tmp_path)
    if kept is None:
        names = parse(made.read_bytes()).names
        assert [name.lstrip("01 ") for name in names] == [name.lstrip("01 ") for name in NAMES]
    else:
        dataset = open_training_set(faces, made)
        assert len(dataset) == kept
        assert dataset.labels[:4].tolist() == LABELS


def test_a_list_that_does_not_exist_is_written_by_the_command_of_the_message(faces, tmp_path):
    with pytest.raises(DataError, match="does not exist") as caught:
        open_training_set(faces, tmp_path / "my list_mended.txt")
    assert_the_faces(open_training_set(faces, run_remedies(str(caught.value), tmp_path)))


def test_a_list_in_place_of_the_images_is_told(faces, tmp_path):
    path = write(tmp_path, listed(lambda n, c: f"{n} {c}"))
    with pytest.raises(DataError, match=r"is a text file.*--train_file_list"):
        open_training_set(path)
    with pytest.raises(DataError, match=r"is a text file.*--pairs"):
        open_verification_set(path)


@pytest.mark.parametrize(
    ("text", "said", "pairs"),
    [
        ("lfw/{0} lfw/{1} 1\n", "without their first folder", 1),
        ("lfw/{0}\tlfw/{2}\t1\n", "without their first folder", 1),
        ("/home/ann/{0},/home/ann/{2},1\n", "without their first 3 folders", 1),
        ("{0} {1} 1\n{0} x.jpg 0\n", "leave out the pairs", 1),
        ("1\t1\n45\t1\t2\nAnn\t1\tBob\t2\n", "leave out the pairs", 1),
    ],
)
def test_pairs_of_missing_images_are_mended_by_the_command(faces, tmp_path, text, said, pairs):
    (faces / "45").mkdir()
    for number in (1, 2):
        shutil.copyfile(faces / NAMES[0], faces / f"45/45_000{number}.jpg")
    path = write(tmp_path, text.format(*NAMES))
    with pytest.raises(DataError) as caught:
        open_verification_set(faces, path)
    assert said in str(caught.value)
    found = open_verification_set(faces, run_remedies(str(caught.value), tmp_path))
    assert len(found.same) == pairs


def test_the_folder_above_is_named_where_its_images_are_the_pairs(faces, tmp_path):
    path = write(tmp_path, f"faces/{NAMES[0]} faces/{NAMES[1]} 1\n")
    with pytest.raises(DataError, match=f"under {tmp_path} they are there"):
        open_verification_set(faces, path)
    assert len(open_verification_set(tmp_path, path).images) == 2
    training = write(tmp_path, f"faces/{NAMES[0]} 0\n", "training.txt")
    with pytest.raises(DataError, match=f"or give {tmp_path} as the data set's path"):
        open_training_set(faces, training)


@pytest.mark.parametrize(
    "text",
    [
        listed(lambda n, c: f"{n},a.jpg,{c}", "path,file,label\n"),  # two columns of paths
        listed(lambda n, c: f"{c},{c},{n}", "label,class,path\n"),  # two of labels
        listed(lambda n, c: f"Lee, Ann/{n},{c}"),  # a comma that separates nothing
        listed(lambda n, c: f"1\t{n}\tclass {c}\t5"),  # no number where insightface has the label
        listed(lambda n, c: f"{n}\t{c}\t38.3\t73.5"),  # landmarks, but no index
        listed(lambda n, c: f"{c} {n} {c}.jpg"),
        listed(lambda n, c: f"{n} {n}"),  # a pairs file without flags
        listed(lambda n, c: f"{n}\tpeople/{c}"),
        listed(lambda n, c: f"{n} {c}").encode() + bytes(4096),  # was not written to its end
    ],
)
def test_what_only_looks_like_a_list_is_refused(faces, tmp_path, text):
    with pytest.raises(DataError, match=r"my list\.txt"):
        open_training_set(faces, write(tmp_path, text))


def test_names_that_begin_with_a_hash_or_hold_a_backslash_are_names(faces, tmp_path):
    odd = ["#1/a.jpg", "#hash.jpg", "b\\c.jpg"]
    (faces / "#1").mkdir()
    (faces / "b").mkdir()
    for name, own in zip(odd, NAMES, strict=False):
        shutil.copyfile(faces / own, faces / name)
    shutil.copyfile(faces / NAMES[3], faces / "b/c.jpg")
    path = write(tmp_path, "".join(f"{name} {c}\n" for c, name in enumerate(odd)))
    dataset = open_training_set(faces, path)
    assert [dataset.name(i) for i in range(3)] == odd
    assert dataset[2][0].mean() == pytest.approx(100, abs=2)
    assert dataset.notes == ()


def test_running_numbers_are_not_taken_for_labels(faces, tmp_path):
    names = [f"Ann Lee/{number:03d}.jpg" for number in range(20)]
    for name in names:
        shutil.copyfile(faces / NAMES[0], faces / name)
    path = write(tmp_path, "".join(f"{number},{name}\n" for number, name in enumerate(names)))
    with pytest.raises(DataError, match="every image has a label of its own"):
        open_training_set(faces, path)
    write_list(path, tmp_path / "new.txt", by_folder=True)
    assert open_training_set(faces, tmp_path / "new.txt").labels.tolist() == [0] * 20


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda name: name.replace("/", "\\"), r"4 names were read with / for \\"),
        (lambda name: f"./{name}", None),
        (lambda name: name.replace(".jpg", ".JPG"), "4 names were read with another case"),
        (lambda name: ".\\" + name.replace("/", "\\").replace("jpg", "Jpg"), "and another case"),
    ],
)
def test_names_written_in_another_way_mean_the_same_images(faces, tmp_path, change, note):
    path = write(tmp_path, listed(lambda n, c: f"{change(n)}  {c}"))
    shutil.make_archive(str(tmp_path / "faces"), "zip", tmp_path, "faces")
    for source in (faces, tmp_path / "faces.zip"):
        dataset = open_training_set(source, path)
        assert_the_faces(dataset)
        if note:
            assert re.search(note, dataset.notes[0])
    # And as pairs.
    pairs = write(tmp_path, f"{change(NAMES[0])}\t{change(NAMES[2])}\t0\n", "pairs.txt")
    for source in (faces, tmp_path / "faces.zip"):
        data = open_verification_set(source, pairs)
        assert data.images[int(data.right[0])].mean() == pytest.approx(100, abs=2)


@pytest.mark.parametrize("source", ["folder", "zip"])
def test_what_two_images_fit_is_refused(faces, tmp_path, source):
    """Another case of the extension: two files have one. Two names of a list: one file has both."""
    shutil.copyfile(faces / NAMES[1], faces / "Ann Lee/001.JPG")
    path = write(tmp_path, "Ann Lee/001.Jpg  0\n")
    both = write(tmp_path, "Ann Lee/002.jpg  0\nAnn Lee/002.JPG  1\n", "both.txt")
    place = faces
    if source == "zip":
        place = shutil.make_archive(str(tmp_path / "faces"), "zip", faces)
    for file_list in (path, both):
        with pytest.raises(DataError, match="missing"):
            open_training_set(place, file_list)
    # The name as it stands comes first.
    exact = open_training_set(place, write(tmp_path, "Ann Lee/001.JPG  0\n"))
    assert exact[0][0].mean() == pytest.approx(50, abs=2)


PEOPLE = {
    "gbk": ["王/1.jpg", "李 娜/1.jpg"],
    "big5": ["陳/1.jpg", "許/1.jpg"],
    "cp932": ["そば/1.jpg", "ラーメン/1.jpg"],
    "cp1252": ["José/1.jpg", "Zoë/1.jpg"],
    "cp1251": ["Анна/1.jpg", "Борис/1.jpg"],
}


@pytest.fixture
def people(tmp_path):
    """A function that makes a folder of two images with these names."""

    def make(names):
        for number, name in enumerate(names):
            (tmp_path / "people" / name).parent.mkdir(parents=True)
            image = cv2.imencode(".jpg", np.full((8, 8, 3), 50 * number, np.uint8))[1]
            (tmp_path / "people" / name).write_bytes(image.tobytes())
        return tmp_path / "people"

    return make


@pytest.mark.parametrize("encoding", PEOPLE)
@pytest.mark.parametrize("slash", ["/", "\\"])
def test_the_encoding_of_a_list_is_that_in_which_its_images_exist(
    people, tmp_path, encoding, slash
):
    names = PEOPLE[encoding]
    folder = people(names)
    text = listed(lambda n, c: f"{n.replace('/', slash)}\t{c}", names=names, labels=[0, 1])
    path = write(tmp_path, text.encode(encoding))
    pairs = write(tmp_path, "{}\t{}\t0\n".format(*names).encode(encoding), "pairs.txt")
    for given in ("", encoding):
        dataset = open_training_set(folder, path, list_encoding=given)
        assert [image.mean() for image, _ in (dataset[0], dataset[1])] == pytest.approx([0, 50])
        data = open_verification_set(folder, pairs, list_encoding=given)
        assert data.images[int(data.right[0])].mean() == pytest.approx(50)
    write_list(path, tmp_path / "new.txt", images=folder)
    assert (tmp_path / "new.txt").read_text() == "".join(
        f"{name}  {label}\n" for label, name in enumerate(names)
    )


def test_an_encoding_that_fits_no_image_is_asked_for(people, tmp_path):
    folder = people(PEOPLE["gbk"])
    path = write(tmp_path, "Jürgen/1.jpg 0\n".encode("cp1252"))
    with pytest.raises(DataError, match="`--list_encoding NAME`"):
        open_training_set(folder, path)
    pairs = write(tmp_path, "Jürgen/1.jpg Jürgen/2.jpg 1\n".encode("cp1252"), "pairs.txt")
    with pytest.raises(DataError, match="`--list_encoding NAME`"):
        open_verification_set(folder, pairs)
    for given, said in (("utf-8", "not utf-8 text"), ("klingon", "no encoding that Python knows")):
        with pytest.raises(DataError, match=said):
            open_training_set(folder, path, list_encoding=given)


@pytest.mark.parametrize(("disk", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_another_normal_form_are_found(people, tmp_path, disk, written):
    names = ["Zoë/é.jpg", "José/é.jpg"]
    folder = people([unicodedata.normalize(disk, name) for name in names])
    path = write(
        tmp_path,
        listed(
            lambda n, c: f"{n} {c}", "", [unicodedata.normalize(written, n) for n in names], [0, 1]
        ),
    )
    dataset = open_training_set(folder, path)
    assert dataset[1][0].mean() == pytest.approx(50)
    assert "another Unicode normal form" in dataset.notes[0]


def test_normal_forms_and_encodings_of_which_two_fit_are_refused(people, tmp_path):
    """Three ways to write one letter with two accents; a list of which no encoding fits all."""
    ways = [unicodedata.normalize("NFC", "ệ"), "e\u0302\u0323", unicodedata.normalize("NFD", "ệ")]
    folder = people([*(f"{way}/1.jpg" for way in ways[::2]), "王/1.jpg", "José/1.jpg"])
    mixed = "王/1.jpg 0\n".encode("gbk") + b"Jos\xe9/1.jpg 1\n"
    for text in (f"{ways[1]}/1.jpg 0\n".encode(), mixed):
        with pytest.raises(DataError, match="missing"):
            open_training_set(folder, write(tmp_path, text))


def test_a_list_of_another_program_trains_and_the_run_keeps_the_table(tiny_faces, tmp_path):
    lines = (line.rsplit(None, 1) for line in tiny_faces.train_list.read_text().splitlines())
    text = "".join(f"1\t{tiny_faces.train}/{name}\t{10 * int(c) + 1}\n" for name, c in lines)
    path = write(tmp_path, text, "train.lst")
    flags = [*tiny_faces.flags, "--train_file_list", path, "--total_epoch", "1", "--milestones="]
    run = run_script("Train.py", *flags, "--save_dir", tmp_path / "runs", check=True)
    folder = next((tmp_path / "runs").iterdir())
    log = (folder / "train.log").read_text()
    assert "its lines are read as '1 path label'" in log
    assert "the labels 1 to 51, without 0, 2, 3, ..., are renumbered: 0 to 5" in log
    rows = [line.split(",") for line in (folder / "classes.csv").read_text().splitlines()]
    assert rows[1:] == [[str(label), str(10 * label + 1)] for label in range(6)]
    assert run.returncode == 0


def test_the_command_renumbers_a_list(tmp_path):
    path = write(tmp_path, "a,9\nb,4\nc,9\n", "list.csv")
    run = run_script("-m", LIST_MAKER, path, tmp_path / "new.txt", check=True)
    assert (tmp_path / "new.txt").read_text() == "a  1\nb  0\nc  1\n"
    assert "the labels 4 to 9, without 0, 1, 2, ..., are renumbered: 0 to 1" in run.stdout


@pytest.mark.parametrize("line", ["{} 0 0.97", "{} 0.5", "{} nan", "a" * 200_000 + ",{},1"])
def test_a_list_of_no_known_form_is_not_told_to_leave_every_line_out(people, tmp_path, line):
    folder = people(["a/1.jpg", "b/1.jpg"])
    path = write(tmp_path, "".join(f"{line.format(name)}\n" for name in ("a/1.jpg", "b/1.jpg")))
    with pytest.raises(DataError, match="of no known form") as error:
        open_training_set(folder, path)
    assert "--skip_bad" not in str(error.value)


def test_the_columns_that_a_header_names_may_be_of_any_number(people, tmp_path):
    folder = people(["a/1.jpg", "b/1.jpg"])
    path = write(tmp_path, "path label x\na/1.jpg 0 0.97\nb/1.jpg 1 0.5\n")
    assert open_training_set(folder, path).labels.tolist() == [0, 1]


def test_a_list_of_other_images_is_not_told_to_leave_all_of_them_out(people, tmp_path):
    path = write(tmp_path, "c/1.jpg 0\nd/1.jpg 1\n")
    with pytest.raises(DataError, match=r"2 of 2 files are missing .*check the data set's path"):
        open_training_set(people(["a/1.jpg"]), path)


def test_a_list_of_other_images_than_an_archives_is_told_which_are_missing(people, tmp_path):
    """Also where two of its names are one image, which none of them has as it stands."""
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        archive.write(people(["a/1.jpg"]) / "a/1.jpg", "a/1.jpg")
    for names, said in (
        (("c/1.jpg", "d/1.jpg"), "2 of 2 images are missing .* check the data set's path"),
        (("a/1.jpg", "a/1.JPG"), r"1 of 2 images are missing .* a/1\.JPG; "),
    ):
        path = write(tmp_path, "".join(f"{name} {row}\n" for row, name in enumerate(names)))
        with pytest.raises(DataError, match=said):
            open_training_set(tmp_path / "faces.zip", path)
