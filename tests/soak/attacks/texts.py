"""Hostile texts: YAML, JSON, lines on which a pattern may be slow, encodings."""

from collections.abc import Iterator
from pathlib import Path

import torch

from tests.soak.attacks.table import (
    CANARY,
    Attack,
    align,
    clean_list,
    convert_set,
    convert_weights,
    kind,
    points,
    program,
    tree_of_faces,
    write_list,
    written,
)
from tests.soak.readers.table import faces

LONG = 1_000_000  # characters of a line
_ENCODINGS = ("idna", "punycode", "unicode_escape", "rot13", "zlib", "undefined", "x" * 9999)


@kind("YAML with tags, anchors, depth")
def _yaml(folder: Path) -> Iterator[Attack]:
    canary = str(folder / CANARY)
    contents = {
        "apply": f"color_space: !!python/object/apply:os.system ['touch {canary}']",
        "new": f"!!python/object/new:os.system [touch {canary}]",
        "module": "color_space: !!python/module:antigravity",
        "name": "color_space: !!python/name:os.system",
        "billion laughs": _laughs("a{0}: &a{0} [{1}]", "*a{}", 9),
        "billion mappings": _laughs("a{0}: &a{0} {{{1}}}", "k{1}: *a{0}", 9),
        "itself": "a: &a [*a]\nb: &b {c: *b}\n? *a\n: 1",
        "merge": "a: &a {<<: *a}\nb: {<<: [1, 2]}",
        "depth": "[" * 100_000,
        "depth of blocks": "".join(f"{' ' * n}a:\n" for n in range(2000)),
        "a key twice": "color_space: RGB\ncolor_space: BGR",
        "NaN": "color_space: .nan",
        "UTF-16": "color_space: BGR".encode("utf-16"),
        "a long line": "color_space: " + "B" * LONG,
        "many documents": "---\n" * 100_000,
        "directives": "%YAML 9.9\n%TAG ! tag:x,2000:\n--- !a b",
    }
    network = _of_cvlface()
    for number, (label, text) in enumerate(contents.items()):
        path = folder / "in" / f"{number}.pt"
        torch.save(network, path)
        written(folder / "in", f"{number}.yaml", text)
        yield Attack(label, convert_weights(path, folder / "out" / "a.pt", "--lineage", "cvlface"))


def _laughs(line: str, alias: str, count: int) -> str:
    rows = [
        line.format(n, ", ".join(alias.format(n - 1, i) for i in range(count)))
        for n in range(1, 40)
    ]
    return "\n".join(["a0: &a0 x", *rows, "color_space: *a39"])


def _of_cvlface() -> dict[str, torch.Tensor]:
    """A network of CVLface's, so that the settings beside it are read."""
    from Backbone import build_backbone, describe_backbone
    from Utils.Pretrained_Utils.convert import rename_for
    from Utils.Pretrained_Utils.lineages import find_lineage

    network = build_backbone("ResNet18_IR", feature_dim=8, input_size=(112, 112))
    return rename_for(network.state_dict(), describe_backbone(network), find_lineage("cvlface"))


@kind("lines of a million characters")
def _patterns(folder: Path) -> Iterator[Attack]:
    tree = tree_of_faces(folder)
    lines = {
        "digits": "1" * LONG + "x",
        "numbers, then a word": "a.png " + "12345678 " * 40 + "x",
        "many numbers, then a word": "a.png " + "1.5 " * (LONG // 4) + "x",
        "blanks": "a" + " " * LONG + "b c",
        "commas": "a" + "," * LONG + "b,c",
        "blanks and commas": "a" + " ,;" * (LONG // 3) + "b",
        "tabs": "a.png" + "\t" * LONG + "1",
        "quotes": '"' * LONG,
        "an open quote": 'a,"' + "b," * (LONG // 2),
        "minus signs": "a.png " + "-" * LONG,
        "dots": "a/" + "." * LONG + "png 1",
        "slashes": "a" + "/" * LONG + "b.png 1",
        "folders": "a/" * (LONG // 2) + "b.png 1",
        "exponents": "a.png " + "1e" * (LONG // 2),
        "combining marks": "a" + "\u0301" * LONG + ".png 1",
        "underscores": "Ann_" * (LONG // 4) + "1 2 3",
        "names": "a.png 0 " * (LONG // 8),
    }
    for number, (label, line) in enumerate(lines.items()):
        box, out = folder / "in" / str(number), folder / "out" / str(number)
        for name, before in (("first", ""), ("second", "Ann/Ann_0001.png\t0\n")):
            path, told = written(box, f"{name}.txt", before + line), f"{name} line: {label}"
            yield Attack(f"list, {told}", write_list(path, out / "a.txt", "--skip_bad"))
            by_folder = write_list(path, out / "b.txt", "--by_folder", "--images", tree)
            yield Attack(f"list by folder, {told}", by_folder)
            yield Attack(f"pairs, {told}", convert_set(tree, out / "a.bin", "--file_list", path))
            yield Attack(f"landmarks, {told}", align(tree, out / "crops", path))
            yield Attack(f"other lists, {told}", program(_OTHER_LISTS.format(str(path))), False)
        written(box, "images.csv", line)
        yield Attack(f"label_noise's report: {label}", clean_list(box, out / "c.txt"))


_OTHER_LISTS = """
import numpy as np
from Utils.Datasets_Utils.formats.rfw import _read_points
from Utils.Datasets_Utils.pairs.groups import read_groups
from Utils.Datasets_Utils.photos import read_noise_list, read_photo_list
from Utils.Evaluation_Utils.analysis.quality import read_quality

path, rows = Path({0!r}), np.array([0])
def read():
    for one in (
        lambda: read_quality(path, ["a"]), lambda: read_photo_list(path, None),
        lambda: read_noise_list(path), lambda: _read_points(path),
        lambda: read_groups(path, ["a"], rows, rows),
    ):
        try:
            one()
        except UserError as error:
            assert len(str(error)) < 20_000, len(str(error))
"""


@kind("encodings of lists")
def _encodings(folder: Path) -> Iterator[Attack]:
    tree, text = tree_of_faces(folder), "Ann/Ann_0001.png\t0\nBo/Bo_0001.png\t1\n"
    contents = {
        "UTF-8 mark": text.encode("utf-8-sig"),
        "two marks": b"\xef\xbb\xbf" + text.encode("utf-8-sig"),
        "UTF-16": text.encode("utf-16"),
        "UTF-16 without mark": text.encode("utf-16-be"),
        "UTF-16, odd length": text.encode("utf-16")[:-1],
        "UTF-16, a lone surrogate": text.encode("utf-16") + b"\x00\xd8",
        "UTF-32": text.encode("utf-32"),
        "UTF-7": text.encode("utf-7"),
        "a mark in the middle": text.encode() + text.encode("utf-16"),
        "overlong": text.encode() + b"Ann/\xc0\xae\xc0\xae/Ann_0002.png\t0\n",
        "line separators": text.replace("\n", "\u2028"),
        "form feeds": text.replace("\n", "\x0c"),
        "carriage returns": text.replace("\n", "\r"),
        "blanks of another width": text.replace("\t", "\u3000"),
        "zero width": text.replace("/", "\u200b/"),
    }
    for number, (label, content) in enumerate(contents.items()):
        listed = written(folder / "in", f"{number}.txt", content)
        out = folder / "out" / str(number)
        to_set = convert_set(tree, out / "set", "--file_list", listed)
        yield Attack(f"image list: {label}", to_set)
        yield Attack(f"photographs: {label}", align(tree, out / "c", listed, "--file_list", listed))
        for encoding in _ENCODINGS if number == 0 else ():
            named = [*to_set, "--list_encoding", encoding]
            yield Attack(f"list_encoding {encoding[:20]}", named)


@kind("JSON: keys twice, other types")
def _json(folder: Path) -> Iterator[Attack]:
    tree, known = tree_of_faces(folder), points(folder, list(faces()))
    contents = {
        "a key twice": '{"path": ["Ann/Ann_0001.png"], "path": ["Bo/Bo_0001.png"]}',
        "NaN": '{"path": NaN}',
        "numbers as names": '{"path": [1, 2]}',
        "null": "null",
        "a text": '"path"',
        "surrogates": '{"path": ["\\ud800.png"]}',
        "NUL": '{"path": ["Ann/\\u0000.png"]}',
        "out of it": '{"path": ["../../outside/kept"]}',
        "UTF-16": '{"path": ["Ann/Ann_0001.png"]}'.encode("utf-16"),
        "a long number": '{"path": ' + "9" * LONG + "}",
        "1e400": '{"path": 1e400}',
        "many keys": "{" + ",".join(f'"k{n}": 1' for n in range(200_000)) + "}",
        "comments": '{"path": [] /* x */}',
        "more after it": '{"path": ["Ann/Ann_0001.png"]} {"path": []}',
    }
    for number, (label, content) in enumerate(contents.items()):
        listed = written(folder / "in", f"{number}.json", content)
        attack = align(tree, folder / "out" / str(number), known, "--file_list", listed)
        yield Attack(label, attack, True if label == "a key twice" else None)
