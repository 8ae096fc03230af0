"""Folders of data sets and networks from Hugging Face, and MegaFace's devkit: what they name."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tests.soak.attacks.names import names
from tests.soak.attacks.table import Attack, convert_set, convert_weights, kind, written
from tests.soak.readers.table import image, write_files
from Utils.Training_Utils.checkpoints.table_files import write_safetensors


@kind("Hugging Face's data sets: names and links that lead out")
def _sets(folder: Path) -> Iterator[Attack]:
    import pyarrow
    import pyarrow.parquet

    outside = folder / "outside" / "kept.arrow"
    for number, (label, name) in enumerate(names(folder).items()):
        box, out = folder / "in" / str(number), folder / "out" / str(number)
        _save(box / "named", ["a.png", name], [0, 1], ["Ann", "Bo"])
        yield Attack(f"an image named {label}", convert_set(box / "named", out / "a"))
        if "\udcff" not in name:
            _save(box / "class", ["a.png", "b.png"], [0, 1], ["Ann", name])
            yield Attack(f"a class named {label}", convert_set(box / "class", out / "b"))
        _save(box / "file", ["a.png"], [0], ["Ann"])
        state = json.dumps({"_data_files": [{"filename": f"{name}.arrow"}]})
        written(box / "file", "state.json", state)
        yield Attack(f"state.json names {label}", convert_set(box / "file", out / "c"), True)
    box, out = folder / "in" / "others", folder / "out"
    for entry in ({"filename": str(outside)}, {"filename": "../data.arrow"}, {}, 3):
        _save(box, ["a.png"], [0], ["Ann"])
        written(box, "state.json", json.dumps({"_data_files": [entry]}))
        yield Attack(f"state.json with {entry}", convert_set(box, out / "a"), True)
    written(box, "state.json", json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (box / "data.arrow").unlink()
    (box / "data.arrow").symlink_to("/dev/zero")
    yield Attack("data.arrow is a link to a device", convert_set(box, out / "a"), True)
    parquet = folder / "in" / "parquet"
    parquet.mkdir()
    table = pyarrow.table({"image": [bytes(1 << 24)] * 64, "label": [0] * 64})
    options = {"compression": "zstd", "use_dictionary": ["image"]}
    pyarrow.parquet.write_table(
        table, parquet / "a.parquet", dictionary_pagesize_limit=1 << 30, **options
    )
    os.chmod(parquet, 0o555)  # else the arrow file is made beside it
    yield Attack("parquet of few bytes with a GB", convert_set(parquet, out / "a"), True)


def _save(folder: Path, paths: list[str], labels: list[int], classes: list[str]) -> None:
    """A set as `save_to_disk` writes it, with these names."""
    import pyarrow

    encoded = [path.encode("utf-8", "surrogateescape") for path in paths]
    arrays = [[image(seed=n) for n in range(len(paths))], encoded]
    kinds = pyarrow.binary(), pyarrow.binary() if "\udcff" in "".join(paths) else pyarrow.string()
    columns = [
        pyarrow.array(a, pyarrow.binary()).cast(k) for a, k in zip(arrays, kinds, strict=True)
    ]
    column = pyarrow.StructArray.from_arrays(columns, ["bytes", "path"])
    about = {"info": {"features": {"label": {"names": classes, "_type": "ClassLabel"}}}}
    table = pyarrow.table({"image": column, "label": labels})
    table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    state = {"_data_files": [{"filename": "data.arrow"}]}
    write_files(
        folder,
        {"dataset_info.json": b"{}", "state.json": json.dumps(state).encode(), "s.py": b"1/"},
    )
    with pyarrow.ipc.new_stream(folder / "data.arrow", table.schema) as writer:
        writer.write_table(table)


@kind("folders of the hub: other networks, arguments, links")
def _networks(folder: Path) -> Iterator[Attack]:
    given = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 32, 32]}
    timms = {"architecture": "test_resnet", "num_classes": 8, "pretrained_cfg": given}
    kept = str(folder / "outside" / "kept")
    configs = {
        "another hub": {**timms, "architecture": "hf-hub:a/b"},
        "a folder": {**timms, "architecture": f"local-dir:{folder / 'outside'}"},
        "pretrained": {**timms, "model_args": {"pretrained": True}},
        "a checkpoint": {**timms, "model_args": {"checkpoint_path": kept}},
        "a file": {**timms, "model_args": {"pretrained_cfg_overlay": {"file": kept}}},
        "a layer": {**timms, "model_args": {"act_layer": "os.system"}},
        "many blocks": {**timms, "model_args": {"layers": [10**9] * 4}},
        "a wide network": {**timms, "num_classes": 10**12},
        "large images": {**timms, "pretrained_cfg": {**given, "input_size": [3, 10**9, 10**9]}},
        "depth": "[" * 100_000,
        "code": {"auto_map": {"AutoModel": "modeling.Model"}, "architectures": ["Model"]},
    }
    for number, (label, config) in enumerate(configs.items()):
        box, out = folder / "in" / str(number), folder / "out"
        text = config if isinstance(config, str) else json.dumps(config)
        written(box, "config.json", text)
        written(box, "modeling.py", f"open({str(folder / 'executed')!r}, 'w')")
        write_safetensors(box / "model.safetensors", {"a.weight": torch.zeros(2)}, {})
        yield Attack(f"config.json: {label}", convert_weights(box, out / "a.pt"), True)
    from tests.soak.attacks.texts import _of_cvlface

    weights = folder / "in" / "a.pt"
    torch.save(_of_cvlface(), weights)
    results = {"benchmark": "LFW\n---\n\x1b[31m![x](y)|", "weights": "0", "results": {}}
    written(folder / "in", "lfw.json", json.dumps(results))
    to_hub = ("--lineage", "cvlface", "--to", "hub")
    for name in ("README.md", "config.json", "model.safetensors", "new"):
        target = folder / "out" / "net"
        target.mkdir()
        (target / name).symlink_to(folder / "outside" / "kept")
        (target / f".{name}").symlink_to(folder / "outside" / "kept")
        written_to_hub = convert_weights(weights, target, *to_hub)
        yield Attack(f"write a folder with a link {name}", written_to_hub, name != "new")
    named = convert_weights(weights, folder / "out/a", *to_hub, "--results", folder / "in/lfw.json")
    yield Attack("results with control codes", named, True)


@kind("MegaFace's devkit: names that lead out of the export")
def _devkit(folder: Path) -> Iterator[Attack]:
    for number, (label, name) in enumerate(names(folder).items()):
        box, out = folder / "in" / str(number), folder / "out"
        _features(box / "probes", ["Ann/1.png", "Ann/2.png"], ["Ann", "Ann"])
        _features(box / "distractors", [name, "b.png"], None)
        words = [
            *("MegaFace_Evaluation.py", "--probe_features", box / "probes"),
            *("--distractor_features", box / "distractors", "--output", out / "results"),
            *("--export_devkit", out / "export", "--device", "cpu"),
        ]
        yield Attack(f"export {label}", list(map(str, words)))


def _features(folder: Path, paths: list[str], ids: list[str] | None) -> None:
    """A folder of ready features of these photos."""
    folder.mkdir(parents=True)
    rows = np.random.default_rng(0).normal(size=(len(paths), 4)).astype(np.float32)
    np.save(folder / "features.npy", rows)
    listed = {"path": paths} | ({"id": ids} if ids else {})
    write_files(folder, {"list.json": json.dumps(listed).encode(), "done.bin": b"\1"})
