"""Numbers that are none, too long, or of another script, in lists and in JSON."""

from collections.abc import Iterator
from pathlib import Path

from tests.soak.attacks.table import (
    Attack,
    align,
    clean_list,
    convert_set,
    kind,
    program,
    tree_of_faces,
    written,
)

NUMBERS = {
    "a million digits": "9" * 1_000_000,
    "5,000 digits": "9" * 5000,
    "20 digits": "9" * 20,
    "1e400": "1e400",
    "NaN": "nan",
    "infinity": "Infinity",
    "minus": "-1",
    "underscore": "1_0",
    "other digits": "\u0661\u0662",
    "wide digits": "\uff11",
    "superscript": "\u00b2",
    "hexadecimal": "0x10",
    "a fraction": "0.5",
    "minus zero": "-0",
}
# What Python alone takes for a number: it must not be one.
NO_NUMBERS = ("underscore", "other digits", "wide digits")
_COLUMNS = "file,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5"
_IJB = (
    ("ijbc_face_tid_mid.txt", "7.jpg 3 7", "7.jpg 3 {}"),
    ("ijbc_name_5pts_score.txt", "0.9\n", "{}\n"),
    ("ijbc_template_pair_label.txt", "0 1 1", "0 {} 1"),
    ("ijbc_1N_gallery_G1.csv", "0,10", "0,{}"),
    ("ijbc_1N_probe_mixed.csv", "10,2", "10,{}"),
)


@kind("numbers that are none")
def _numbers(folder: Path) -> Iterator[Attack]:
    tree = tree_of_faces(folder)
    for number, (label, value) in enumerate(NUMBERS.items()):
        out, box = folder / "out" / str(number), folder / "in" / str(number)
        refused = True if label in NO_NUMBERS else None
        listed = written(box, "a.txt", f"Ann/Ann_0001.png\t0\nBo/Bo_0001.png\t{value}\n")
        pairs = written(box, "p.txt", f"Ann\t1\t2\nAnn\t1\tBo\t{value}\n")
        plain = written(box, "l.txt", f"Ann/Ann_0001.png 3 4 8 4 6 6 4 9 8 {value}\n")
        headed = f"{_COLUMNS}\nAnn/Ann_0001.png,3,4,8,4,6,6,4,9,8,{value}\n"
        yield Attack(f"image list: {label}", convert_set(tree, out / "set", "--file_list", listed))
        yield Attack(
            f"pairs: {label}", convert_set(tree, out / "a.bin", "--file_list", pairs), refused
        )
        yield Attack(f"landmarks: {label}", align(tree, out / "crops", plain), refused)
        headed = align(tree, out / "crops2", written(box, "m.txt", headed))
        yield Attack(f"landmarks with a header: {label}", headed, refused)
        for column, usual in (("image", "1"), ("label", "1"), ("angle", "20")):
            cells = {"image": "1", "name": "b", "label": "1", "angle": "20"} | {column: value}
            rows = f"image,name,label,angle\n0,a,0,10\n{','.join(cells.values())}\n"
            written(box / column, "images.csv", rows)
            report = clean_list(box / column, out / "b.txt")
            yield Attack(f"label_noise's {column}, not {usual}: {label}", report, refused)
        yield from _ijb(box, label, value, refused)
        yield Attack(f".blp sizes: {label}", convert_set(_blp(box, value), out / "c.bin"), refused)


def _blp(box: Path, value: str) -> Path:
    from tests.soak.readers.datasets import make_blp

    make_blp(box, "lfw/meta/sizes")
    written(box, "lfw/meta/sizes", f'{{"shape": [{value}, 3, 4, 4]}}')
    return box / "lfw"


def _ijb(box: Path, label: str, value: str, refused: bool | None) -> Iterator[Attack]:
    from tests.soak.readers.lists import make_ijb

    for name, old, new in _IJB:
        meta = box / f"{name}_box"
        make_ijb(meta, name)
        text = (meta / name).read_text().replace(old, new.format(value), 1)
        written(meta, name, text)
        read = (
            "from Utils.Evaluation_Utils.ijb.lists import read_lists\n"
            f"read = lambda: print(read_lists(Path({str(meta)!r})).title)"
        )
        yield Attack(f"{name}: {label}", program(read), refused)
