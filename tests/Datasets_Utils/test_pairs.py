"""Pairs files in text: on files written here by hand, and on the real one."""

from __future__ import annotations

import re
import subprocess

import numpy as np
import pytest

from tests.conftest import assert_one_paragraph, run_script
from Utils.Datasets_Utils import open_verification_set
from Utils.Datasets_Utils.folds import consecutive_folds, folds_of_both_kinds
from Utils.Datasets_Utils.make_pairs import draw_pairs, write_pairs
from Utils.Datasets_Utils.pairs import PairsError, read_pairs
from Utils.errors import DataError

LFW = """2\t2
Ann\t1\t2
Bob Ray\t3\t12
Ann\t1\tBob Ray\t3
Cy\t1\tAnn\t10
Cy\t1\t2
Dee\t1\t2
Ann\t2\tDee\t1
Cy\t2\tDee\t12345
"""


def write(tmp_path, text, name="pairs.txt"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def named(pairs):
    return [(pairs.names[a], pairs.names[b]) for a, b in zip(pairs.left, pairs.right, strict=True)]


def test_lfw_format(tmp_path):
    pairs = read_pairs(write(tmp_path, LFW))
    assert named(pairs)[:4] == [
        ("Ann/Ann_0001", "Ann/Ann_0002"),
        ("Bob Ray/Bob Ray_0003", "Bob Ray/Bob Ray_0012"),
        ("Ann/Ann_0001", "Bob Ray/Bob Ray_0003"),
        ("Cy/Cy_0001", "Ann/Ann_0010"),
    ]
    assert named(pairs)[-1] == ("Cy/Cy_0002", "Dee/Dee_12345")
    assert pairs.same.tolist() == [True, True, False, False] * 2
    assert pairs.same.dtype == bool
    assert pairs.folds.tolist() == [0] * 4 + [1] * 4
    assert pairs.source == tmp_path / "pairs.txt"


def test_names_are_unique_and_in_the_order_of_the_file(tmp_path):
    names = read_pairs(write(tmp_path, LFW)).names
    assert names[:5] == [
        "Ann/Ann_0001",
        "Ann/Ann_0002",
        "Bob Ray/Bob Ray_0003",
        "Bob Ray/Bob Ray_0012",
        "Cy/Cy_0001",
    ]
    assert len(names) == len(set(names)) == 10


@pytest.mark.parametrize(
    "text",
    [
        LFW.replace("\n", "\r\n"),
        LFW + "\n",
        LFW + "\r\n \t\r\n",
        "\ufeff" + LFW,
        LFW.rstrip("\n"),
        LFW.replace("\nCy\t1\t2", "\n\nCy\t1\t2"),
    ],
    ids=["crlf", "blank", "blanks", "bom", "no end", "blank inside"],
)
def test_line_ends_and_blank_lines_do_not_matter(tmp_path, text):
    plain, other = read_pairs(write(tmp_path, LFW)), read_pairs(write(tmp_path, text, "other.txt"))
    assert named(plain) == named(other)
    assert plain.same.tolist() == other.same.tolist()
    assert plain.folds.tolist() == other.folds.tolist()


def test_lfw_names_without_blanks_may_be_separated_by_them(tmp_path):
    spaced = LFW.replace("Bob Ray", "Bob").replace("\t", "  ")
    assert named(read_pairs(write(tmp_path, spaced)))[1] == ("Bob/Bob_0003", "Bob/Bob_0012")


@pytest.mark.parametrize(("header", "said"), [("10\t2", 40), ("1\t2", 4)])
def test_another_number_of_folds_than_the_header_says_is_refused(tmp_path, header, said):
    path = write(tmp_path, LFW.replace("2\t2\n", header + "\n", 1))
    folds = header.split("\t")[0]
    with pytest.raises(PairsError, match=rf"{folds} folds .* {said} lines, but 8 follow \(2 folds"):
        read_pairs(path)


def test_a_header_that_cuts_the_lines_into_other_folds_names_the_first_line_out_of_place(tmp_path):
    path = write(tmp_path, LFW.replace("2\t2\n", "4\t1\n", 1))
    with pytest.raises(PairsError, match=r"line 3: 'Bob Ray\\t3\\t12'.*mismatched"):
        read_pairs(path)


@pytest.mark.parametrize("header", ["10\t300", "10\t3", "2\t0"])
def test_lines_that_do_not_fill_folds_are_refused_with_the_numbers(tmp_path, header):
    folds, per_class = header.split("\t")
    with pytest.raises(PairsError) as caught:
        read_pairs(write(tmp_path, LFW.replace("2\t2\n", header + "\n", 1)))
    assert f"{folds} folds of {per_class} matched" in str(caught.value)
    assert f"{int(folds) * int(per_class) * 2} lines, but 8 follow" in str(caught.value)
    assert "pairs.txt" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "bad", "expected"),
    [
        (2, "Ann\t1", "a matched pair"),
        (2, "Ann\t1\tx", "a matched pair"),
        (2, "Ann\t1\t-2", "a matched pair"),
        (3, "Ann\t1\tBob\t2", "a matched pair"),
        (4, "Ann\t1\t2", "a mismatched pair"),
        (9, "Ann\tBob\t1\t2", "a mismatched pair"),
        (9, "Ann Lee 1 Bob 2", "a mismatched pair"),
        (9, "Ann/1.jpg Bob/2.jpg -1", "a mismatched pair"),
    ],
)
def test_a_malformed_lfw_line_is_named(tmp_path, line, bad, expected):
    lines = LFW.splitlines()
    lines[line - 1] = bad
    with pytest.raises(PairsError) as caught:
        read_pairs(write(tmp_path, "\n".join(lines)))
    message = str(caught.value)
    assert f"pairs.txt, line {line}: {bad!r}" in message
    assert expected in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/1.jpg b/2.jpg 1\n", ("a/1.jpg", "b/2.jpg", True)),
        ("a/1.jpg  b/2.jpg   -1\r\n", ("a/1.jpg", "b/2.jpg", False)),
        ("a b.jpg\tc d.jpg\t-1\n", ("a b.jpg", "c d.jpg", False)),
        ("a b.jpg\tc d.jpg 1\n", ("a b.jpg", "c d.jpg", True)),
        ("a.jpg b.jpg\t1\n", ("a.jpg", "b.jpg", True)),
        ("ä.jpg 名.jpg 1\n", ("ä.jpg", "名.jpg", True)),
    ],
)
def test_list_format(tmp_path, text, expected):
    pairs = read_pairs(write(tmp_path, text))
    assert (*named(pairs)[0], bool(pairs.same[0])) == expected


@pytest.mark.parametrize("count", [1, 7, 10, 23, 60])
def test_a_list_has_ten_consecutive_folds_nearly_equal(tmp_path, count):
    lines = (f"a{i % 5}.jpg b{i}.jpg {1 - 2 * (i % 2)}" for i in range(count))
    pairs = read_pairs(write(tmp_path, "\n".join(lines)))
    parts = np.array_split(np.arange(count), 10)
    expected = [fold for fold, part in enumerate(parts) for _ in part]
    assert pairs.folds.tolist() == expected
    assert consecutive_folds(count).tolist() == expected
    assert len(pairs.names) == min(count, 5) + count


@pytest.mark.parametrize(
    "bad",
    [
        "a.jpg b.jpg 2",
        "a.jpg b.jpg +2",
        "a.jpg b.jpg",
        "a.jpg 1",
        "1",
        "a.jpg b.jpg c.jpg 1",
        "a b.jpg c.jpg -1",
    ],
)
def test_a_malformed_list_line_is_named(tmp_path, bad):
    with pytest.raises(PairsError) as caught:
        read_pairs(write(tmp_path, f"x.jpg y.jpg 1\n\n{bad}\n"))
    assert f"pairs.txt, line 3: {bad!r}" in str(caught.value)
    assert "`left right 1`" in str(caught.value)


def test_a_long_line_is_shortened_in_the_message(tmp_path):
    with pytest.raises(PairsError) as caught:
        read_pairs(write(tmp_path, "x.jpg y.jpg 1\n" + "long " * 1000))
    assert "long long" in str(caught.value)
    assert "long " * 20 not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\r\n \n", "is empty"),
        ("2\t2\n", "but 0 follow"),
        ("hello world\n", "line 1: 'hello world'.*LFW's header"),
        ("300\nAnn\t1\t2\n", "1 folds of 300 matched .* 600 lines, but 1 follow"),
        ("a.jpg b.jpg 1\na.jpg \0b.jpg 1\n", "line 2: there are NUL bytes"),
    ],
)
def test_another_kind_of_file_is_refused(tmp_path, text, message):
    with pytest.raises(PairsError, match=message) as caught:
        read_pairs(write(tmp_path, text))
    assert str(tmp_path / "pairs.txt") in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(("name", "why"), [("nope", "No such file"), ("nope/x", "No such file")])
def test_a_file_that_cannot_be_read_is_called_the_pairs_file(tmp_path, name, why):
    with pytest.raises(PairsError, match=f"the pairs file .*can't be read: {why}") as caught:
        read_pairs(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_the_real_lfw_file(shared_data):
    pairs = read_pairs(shared_data / "lfw_half" / "pairs.txt")
    assert len(pairs.names) == 1227
    assert np.array_equal(pairs.folds, np.arange(1000) // 100)
    assert np.array_equal(pairs.same, np.arange(1000) % 100 < 50)
    assert named(pairs)[0] == ("Abel_Pacheco/Abel_Pacheco_0001", "Abel_Pacheco/Abel_Pacheco_0004")
    people = [(a.split("/")[0], b.split("/")[0]) for a, b in named(pairs)]
    assert [a == b for a, b in people] == pairs.same.tolist()


LIST = [("ann/1.jpg", "ann/2.jpg", True), ("ann/1.jpg", "bob/1.jpg", False)]


@pytest.mark.parametrize(
    "text",
    [
        "ann/1.jpg ann/2.jpg 1\nann/1.jpg bob/1.jpg 0\n",
        "ann/1.jpg ann/2.jpg 1\nann/1.jpg bob/1.jpg -1\n",
        "1 ann/1.jpg ann/2.jpg\n0 ann/1.jpg bob/1.jpg\n",
        "# from a paper\nann/1.jpg\tann/2.jpg\t1.0\nann/1.jpg\tbob/1.jpg\t0.0\n",
        "ann/1.jpg,ann/2.jpg,True\nann/1.jpg,bob/1.jpg,False\n",
        "ann/1.jpg ann/2.jpg +1\nann/1.jpg bob/1.jpg -1\n",
        'left,right,same\n"ann/1.jpg","ann/2.jpg",1\n"ann/1.jpg","bob/1.jpg",0\n',
        "label,img1,img2\n1,ann/1.jpg,ann/2.jpg\n0,ann/1.jpg,bob/1.jpg\n",
        "different left right\n0 ann/1.jpg ann/2.jpg\n1 ann/1.jpg bob/1.jpg\n",
        ",path1,path2,score,label\n0,ann/1.jpg,ann/2.jpg,.9,1\n1,ann/1.jpg,bob/1.jpg,.1,0\n",
    ],
)
def test_lists_of_pairs_as_people_have_them(tmp_path, text):
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"):
        pairs = read_pairs(write(tmp_path, text.replace("\n", "\r\n").encode(encoding)))
        assert [(*n, s) for n, s in zip(named(pairs), pairs.same, strict=True)] == LIST


@pytest.mark.parametrize(
    ("header", "lines"),
    [
        ("name,imagenum1,imagenum2\n", "Ann,1,2\nAnn,1,Bob Ray,3\n"),
        ("name,imagenum1,imagenum2,\n", "Ann,1,2,\nAnn,1,Bob Ray,3\n"),
        ("", "Ann\t1\t2\nAnn\t1\tBob Ray\t3\n"),
        ("1\n", "Ann\t1\t2\nAnn\t1\tBob Ray\t3\n"),
        ("1\t1\n", "Ann\t1\t2\nAnn\t1\tBob Ray\t3\n"),
    ],
)
def test_lfw_pairs_under_other_headers(tmp_path, header, lines):
    pairs = read_pairs(write(tmp_path, header + lines))
    assert named(pairs) == [
        ("Ann/Ann_0001", "Ann/Ann_0002"),
        ("Ann/Ann_0001", "Bob Ray/Bob Ray_0003"),
    ]
    assert pairs.same.tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "said", "same"),
    [
        # Two readings: person 1 with photos 5 and 7, or images 5 and 7 of one person.
        ("1 5 7\n1 6 8\n", "as flag left right and as LFW's", [[True, True], [True, True]]),
        # 1 may mean "different" here; and 0 and -1 may be two things.
        (
            "ann/1.jpg ann/2.jpg 0\nann/1.jpg bob/1.jpg 1\n",
            "does 1 mean 'different' here",
            [[True, False], [False, True]],
        ),
        (
            "left,right,label\nann/1.jpg,ann/2.jpg,0\nann/1.jpg,bob/1.jpg,1\n",
            "does 1 mean 'different' here",
            [[True, False], [False, True]],
        ),
        ("a.jpg b.jpg 1\na.jpg c.jpg 0\nb.jpg d.jpg -1\n", "0 and others -1", [[1, 0, 0]]),
        ("a.jpg b.jpg 1\nb.jpg 0\na.jpg c.jpg 0\nx\n", "line 2", [[True, False]]),
        ("2\t1\nAnn\t1\t2\nAnn\t1\tBob\t1\n", "but 2 follow", [[True, False]]),
        ("1\t1\nAnn\t1\t2\nAnn\t1\tBob\n", "line 3", [[True]]),
        ("a.jpg b.jpg 1\n\0a.jpg c.jpg 0\n", "line 2: there are NUL", [[True, False]]),
    ],
)
def test_a_refused_file_is_mended_by_the_commands_of_the_message(tmp_path, text, said, same):
    path = write(tmp_path, text, "my pairs.txt")
    with pytest.raises(PairsError) as caught:
        read_pairs(path)
    assert said in str(caught.value)
    for command, flags in zip(
        re.findall(r"`([^`]* > [^`]*)`", str(caught.value)), same, strict=True
    ):
        subprocess.run(command, shell=True, check=True)
        assert read_pairs(tmp_path / "my pairs_mended.txt").same.tolist() == flags


@pytest.mark.parametrize(
    "text",
    [
        "ann/1.jpg,ann/2.jpg\n",  # no flag
        "left,right,score\na.jpg,b.jpg,1\n",  # a column that is no flag
        "a.jpg b.jpg yes\n",
        "Ann,1,2,x\n",
        "Ann Lee 1 2\n",
        ",\na.jpg b.jpg 1\n",  # separators alone
        "1" * 5000 + "\n",  # numbers that Python won't convert
        "Ann 1 " + "2" * 5000 + "\n",
        "a" * 200_000 + ",b.jpg,1,2\n",  # a field longer than Python's csv reads
    ],
)
def test_what_only_looks_like_pairs_is_refused(tmp_path, text):
    with pytest.raises(PairsError, match="line 1"):
        read_pairs(write(tmp_path, text))


def test_folds_of_one_kind_are_made_anew():
    """Sorted pairs of LFW get its own folds back; folds of both kinds stay as they are."""
    same = np.arange(100) < 50
    made, note = folds_of_both_kinds(same, consecutive_folds(100))
    assert made.tolist() == [*(np.arange(50) // 5), *(np.arange(50) // 5)]
    assert "10 of 10 folds" in note
    lfw = np.arange(100) % 10 < 5
    assert folds_of_both_kinds(lfw, consecutive_folds(100))[1] == ""
    np.testing.assert_array_equal(
        folds_of_both_kinds(lfw, consecutive_folds(100))[0], consecutive_folds(100)
    )
    # One odd fold is enough; a single fold is none; fewer pairs make fewer folds.
    assert folds_of_both_kinds(np.arange(100) >= 10, consecutive_folds(100))[1]
    assert "one fold" in folds_of_both_kinds(lfw, np.zeros(100, int))[1]
    few, _ = folds_of_both_kinds(np.array([1, 1, 1, 1, 1, 0, 0, 0], bool), consecutive_folds(8))
    assert few.tolist() == [0, 0, 1, 1, 2, 0, 1, 2]
    # With one pair of a kind there are no such folds.
    assert folds_of_both_kinds(np.array([True, True, False]), np.arange(3))[1] == ""


# --- make_pairs ---------------------------------------------------------------------------------


def people_folder(root, counts, name="{person}/{person}_{number:04d}.jpg"):
    for person, count in enumerate(counts):
        for number in range(1, count + 1):
            path = root / name.format(person=f"Ann {person}", number=number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def assert_good_pairs(found, folds, pairs):
    """Equally many of each kind in each fold, none twice, people of one fold only."""
    people = np.array([name.split("/")[0] for name in found.names])
    both = np.stack([people[found.left], people[found.right]])
    assert (found.same == (both[0] == both[1])).all()
    assert (found.left != found.right).all()
    assert len({frozenset(pair) for pair in named(found)}) == 2 * folds * pairs
    seen = set()
    for fold in range(folds):
        chosen = found.folds == fold
        assert (chosen & found.same).sum() == (chosen & ~found.same).sum() == pairs
        own = set(both[:, chosen].ravel())
        assert not own & seen
        seen |= own


@pytest.mark.parametrize(("folds", "pairs"), [(10, 3), (3, 20)])
def test_pairs_of_a_folder_are_written_in_lfws_form(tmp_path, folds, pairs):
    rng = np.random.default_rng(0)
    folder = people_folder(tmp_path / "faces", [40, *rng.integers(1, 7, 59)])
    report = write_pairs(folder, tmp_path / "a" / "pairs.txt", folds, pairs)
    text = (tmp_path / "a" / "pairs.txt").read_text()
    assert text.startswith(f"{folds}\t{pairs}\n")
    assert f"{folds} folds of {pairs} matched" in report
    found = open_verification_set(folder, tmp_path / "a" / "pairs.txt")
    assert_good_pairs(found, folds, pairs)
    write_pairs(folder, tmp_path / "pairs.txt", folds, pairs)
    assert (tmp_path / "pairs.txt").read_text() == text
    write_pairs(folder, tmp_path / "pairs.txt", folds, pairs, seed=1)
    assert (tmp_path / "pairs.txt").read_text() != text


def test_images_of_other_names_become_a_list_in_ten_folds(tmp_path):
    folder = people_folder(tmp_path / "faces", [4] * 30, "all/{person}/photo {number}.png")
    assert "a list" in write_pairs(folder, tmp_path / "pairs.txt", pairs=6)
    found = open_verification_set(folder, tmp_path / "pairs.txt")
    found.names[:] = [name.removeprefix("all/") for name in found.names]
    assert_good_pairs(found, 10, 6)
    with pytest.raises(DataError, match="leave --folds at that"):
        write_pairs(folder, tmp_path / "pairs.txt", folds=5, pairs=6)
    people_folder(tmp_path / "tabs", [4] * 30, "{person}/photo\t{number}.png")
    with pytest.raises(DataError, match="rename"):
        write_pairs(tmp_path / "tabs", tmp_path / "tabs.txt", pairs=6)
    assert not (tmp_path / "tabs.txt").exists()


def test_every_pair_that_there_is_can_be_asked_for(tmp_path):
    people = [[f"{person}/{photo}" for photo in range(3)] for person in range(4)]
    drawn = draw_pairs(people, folds=2, pairs=6, seed=3, source="")
    matched = {frozenset(pair[:2]) for pair in drawn if pair.same}
    assert len(matched) == 4 * 3
    with pytest.raises(DataError, match=r"only 6 matched pairs .* 7 are wanted: give --pairs 6 or"):
        draw_pairs(people, folds=2, pairs=7, seed=3, source="")


def test_nobody_with_many_photos_fills_a_fold():
    people = [
        [f"{person}/{photo}" for photo in range(100 if person < 2 else 2)] for person in range(42)
    ]
    drawn = draw_pairs(people, folds=2, pairs=20, seed=0, source="")
    assert sum(pair.left.split("/")[0] in "01" for pair in drawn if pair.same) <= 4


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([2] * 5, "has 5 people, 5 of them with two photos"),
        ([1] * 40, "only 0 matched pairs to choose from, but 300 are wanted: give fewer --folds"),
        ([], "has no images in folders"),
    ],
)
def test_folders_with_too_few_people_or_photos_are_one_paragraph(tmp_path, counts, said):
    (tmp_path / "faces").mkdir()
    folder = people_folder(tmp_path / "faces", counts)
    command = ("-m", "Utils.Datasets_Utils.make_pairs", folder, tmp_path / "pairs.txt")
    assert_one_paragraph(run_script(*command), said)
    with pytest.raises(DataError, match="seed is -1"):
        write_pairs(folder, tmp_path / "pairs.txt", seed=-1)
    assert not (tmp_path / "pairs.txt").exists()
