"""The readers of lists: images, pairs, groups, landmarks, benchmarks' own."""

import io
from pathlib import Path

import numpy as np

from tests.soak import messages
from tests.soak.readers.table import (
    Subject,
    all_of,
    reader,
    texts,
    write_files,
)
from Utils.Datasets_Utils.alignment.landmarks.lists import read_landmarks
from Utils.Datasets_Utils.alignment.report import COLUMNS, finished
from Utils.Datasets_Utils.formats.list_lines import parse_list
from Utils.Datasets_Utils.formats.rfw import _read_points
from Utils.Datasets_Utils.pairs import read_pairs
from Utils.Datasets_Utils.pairs.groups import read_groups
from Utils.Datasets_Utils.photos import read_noise_list, read_photo_list
from Utils.errors import UserError
from Utils.Evaluation_Utils.ijb.lists import read_lists
from Utils.Evaluation_Utils.tinyface.data import read_list


@reader("image lists", messages.lines)
def _lists(box: Path) -> Subject:
    path = box / "a.txt"

    def read() -> None:
        for given in ({}, {"skip_bad": True}, {"by_folder": True}):
            try:
                all_of(parse_list(path, **given).names)
            except UserError:
                continue

    seeds = texts(
        "a b/1.png  0\na b/2.png  1\nc/3.jpg  1\n",
        "0 a/1.png\n1 b/2.png\n1 c/3.jpg\n",
        "path,label\na/1.png,ann\nb/2.png,bo\n",
        '"a/1.png",3.0\n"b, c/2.png",4.0\n',
        "0\t5.000000\ta/1.png\n1\t6.000000\ta/2.png\n",
        "1\ta/1.png\t0\t1 2 3 4 5 6 7 8 9 10\n1\tb/2.png\t1\t1 2 3\n".replace(" ", "\t"),
        "label image x\n1 a b.png 0\n2 c.png 4\n",
        "# comment\nann/1.png\nbo/2.png\n",
    )
    return Subject([*seeds, seeds[0].decode().encode("utf-16")], path, read)


@reader("pairs files", messages.lines, messages.mat, needs="scipy")
def _pairs(box: Path) -> Subject:
    import scipy.io

    split = np.empty((1, 1), object)
    images = np.empty((2, 2), object)
    for row in range(2):
        for column in range(2):
            images[row, column] = {"name": f"{row}_{column}"}
    split[0, 0] = {"cell": images, "labels": np.array([[1, -1]])}
    out = io.BytesIO()
    scipy.io.savemat(out, {"splits": split}, do_compression=True)
    calfw = "".join(f"a/{n}.jpg {n // 40}\n" for n in range(80))
    seeds = texts(
        "2\t2\nAnn\t1\t2\nBo\t1\t2\nAnn\t1\tBo\t2\nAnn\t2\tBo\t1\nCy\t1\t2\nCy\t1\t2\nA\t1\tB\t1\nA\t1\tB\t2\n",
        "a/1.png a/2.png 1\na/1.png b/2.png 0\n",
        "1,a.png,b.png\n0,a.png,c.png\n",
        "left,right,same,group\na.png,b.png,1,x\na.png,c.png,0,\n",
        "name,imagenum1,imagenum2\nAnn,1,2\nAnn,1,Bo,2\n",
        calfw,
    )
    path = box / "pairs.txt"
    return Subject([*seeds, out.getvalue()], path, lambda: read_pairs(path))


@reader("group files", messages.lines)
def _groups(box: Path) -> Subject:
    path, rows = box / "groups.txt", np.array([0, 1])
    seeds = texts("image group\na/1.png x\nb/2.png y\n", "a/1.png,x y\nb/2.png,x\n")
    return Subject(seeds, path, lambda: read_groups(path, ["a/1", "b/2"], rows, rows[::-1]))


@reader("CFP's lists", messages.lines)
def _cfp(box: Path) -> Subject:
    files = {
        "Pair_list_F.txt": b"1 a/1.jpg\n2 a/2.jpg\n",
        "Pair_list_P.txt": b"1 a/3.jpg\n2 b/4.jpg\n",
    }
    for kind in ("FF", "FP"):
        for split in range(1, 11):
            for name, text in (("same", b"1,2\n2,1\n"), ("diff", b"1,1\n2,2\n")):
                files[f"Split/{kind}/{split:02d}/{name}.txt"] = text
    path = write_files(box, files) / "Split/FP/03/same.txt"
    return Subject(texts("1,2\n2,1\n"), path, lambda: read_pairs(box / "Split/FP"))


@reader("lists of landmarks", messages.lines)
def _landmarks(box: Path) -> Subject:
    path, numbers = box / "a.csv", " ".join(str(n + 0.5) for n in range(10))
    names = ",".join(
        f"{p}_{a}"
        for p in ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
        for a in "xy"
    )
    axes = ",".join(f"x{n},y{n}" for n in range(1, 6))
    seeds = texts(
        f"a/1.png {numbers}\na/2.png {numbers}\n",
        f"a/1.png {numbers} 0.9\n",
        f"a/1.png 3 {numbers}\n",
        f"file,{names},score\na.png,{numbers.replace(' ', ',')},0.5\n",
        "a.png " + " ".join(map(str, range(136))) + "\n",
        f'file,x,y,w,h,{axes}\n"a, b",0,0,9,9,{numbers.replace(" ", ",")}\n',
    )
    return Subject(seeds, path, lambda: read_landmarks(path))


@reader("RFW's points", messages.lines)
def _rfw(box: Path) -> Subject:
    path = box / "a_lmk.txt"
    return Subject(texts("a/1.jpg 0 1 2 3 4 5 6 7 8 9 10\n"), path, lambda: _read_points(path))


@reader("photo lists and noise lists", messages.lines, messages.json_text)
def _photos(box: Path) -> Subject:
    path = box / "a.json"

    def read() -> None:
        read_noise_list(path)
        read_photo_list(path, with_ids=None)

    seeds = texts(
        '{"path": ["a/1.png", "b/2.png"], "id": ["a", 3]}', "a/1.png\nb/2.png\n", "a/b/1.png\n# x\n"
    )
    return Subject(seeds, path, read)


@reader("TinyFace's lists (.mat)", messages.mat, needs="scipy")
def _tinyface(box: Path) -> Subject:
    import scipy.io

    path, seeds = box / "a.mat", []
    names = np.array([["1_a.jpg"], ["2_b.jpg"], ["3_é.jpg"]], object)
    for packed in (False, True):
        out = io.BytesIO()
        scipy.io.savemat(out, {"s": names, "i": np.array([[1], [2], [300]])}, do_compression=packed)
        seeds.append(out.getvalue())
    return Subject(seeds, path, lambda: read_list(path, "s", "i"))


def make_ijb(box: Path, name: str) -> Subject:
    points = " ".join(["1.5"] * 10)
    write_files(
        box,
        {
            "ijbc_face_tid_mid.txt": b"".join(b"%d.jpg %d %d\n" % (n, n // 2, n) for n in range(8)),
            "ijbc_name_5pts_score.txt": "".join(
                f"{n}.jpg {points} 0.9\n" for n in range(8)
            ).encode(),
            "ijbc_template_pair_label.txt": b"0 1 1\n0 2 0\n1 3 1\n",
            "ijbc_1N_gallery_G1.csv": b"TEMPLATE_ID,SUBJECT_ID,FILENAME\n0,10,x\n",
            "ijbc_1N_gallery_G2.csv": b"TEMPLATE_ID,SUBJECT_ID\n1,11\n",
            "ijbc_1N_probe_mixed.csv": b'SUBJECT_ID,TEMPLATE_ID\n10,2\n"11","3"\n12,3\n'.replace(
                b"12,3\n", b""
            ),
        },
    )
    path = box / name
    return Subject([path.read_bytes()], path, lambda: read_lists(box))


@reader("IJB's lists of images", messages.lines)
def _ijb_images(box: Path) -> Subject:
    return make_ijb(box, "ijbc_face_tid_mid.txt")


@reader("IJB's lists of points", messages.lines)
def _ijb_points(box: Path) -> Subject:
    return make_ijb(box, "ijbc_name_5pts_score.txt")


@reader("IJB's lists of pairs", messages.lines)
def _ijb_pairs(box: Path) -> Subject:
    return make_ijb(box, "ijbc_template_pair_label.txt")


@reader("IJB's lists of 1:N", messages.lines)
def _ijb_searches(box: Path) -> Subject:
    return make_ijb(box, "ijbc_1N_probe_mixed.csv")


@reader("reports of alignment", messages.lines)
def _report(box: Path) -> Subject:
    row = ",".join(["a.png", "1", "a.png", *["1.5"] * 14, "0.9", "", ""][: len(COLUMNS)])
    path = box / "aligned.csv"
    return Subject(
        texts(f"{','.join(COLUMNS)}\n{row}\n{row}\n"), path, lambda: finished(box, False)
    )
