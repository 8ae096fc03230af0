"""The readers of Hugging Face's folders: data sets in arrow and parquet, networks, figures."""

import io
import json
from contextlib import suppress
from pathlib import Path

import torch

from tests.soak import messages
from tests.soak.readers.table import Subject, all_of, image, reader, texts, write_files
from tests.soak.readers.weights import SMALL, build_other
from Utils.Datasets_Utils import open_training_set, open_verification_set
from Utils.errors import UserError
from Utils.Pretrained_Utils.files import BACKBONE_FORMAT, read_file
from Utils.Pretrained_Utils.hub.card import model_card
from Utils.Pretrained_Utils.hub.config import with_config
from Utils.Pretrained_Utils.hub.results import Network, figures_of
from Utils.Pretrained_Utils.load import own_weights
from Utils.Training_Utils.checkpoints.table_files import write_safetensors

with suppress(ImportError):  # once, not in each process; it takes seconds
    import timm  # noqa: F401


def _tables() -> list:
    """Small tables of images: pairs by rows, pairs in two columns, and images with labels."""
    import pyarrow

    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    photos = [{"bytes": image(seed=n), "path": f"{n}.png"} for n in range(4)]
    column = pyarrow.array(photos, kind)
    classes = {"info": {"features": {"label": {"names": ["Ann", "Bo"], "_type": "ClassLabel"}}}}
    labelled = pyarrow.table({"image": column, "label": [0, 0, 1, 1]})
    return [
        pyarrow.table(
            {"image": column, "index": [1, 0, 2, 3], "is_same": [True, True, False, False]}
        ),
        pyarrow.table(
            {
                "a": [photo["bytes"] for photo in photos],
                "b": [image(seed=9)] * 4,
                "same": [1, 0, 1, 0],
                "fold": [0, 0, 1, 1],
            }
        ),
        labelled.replace_schema_metadata({"huggingface": json.dumps(classes)}),
    ]


def _read_set(path: Path) -> None:
    for open_set in (open_training_set, open_verification_set):
        try:
            data = open_set(path)
            all_of(data if open_set is open_training_set else data.images)
        except UserError:
            continue


@reader("arrow files of datasets", messages.arrow, needs="pyarrow")
def _arrow(box: Path) -> Subject:
    import pyarrow

    seeds = []
    for number, table in enumerate(_tables()):
        for write in (pyarrow.ipc.new_stream, pyarrow.ipc.new_file):
            packed = pyarrow.ipc.IpcWriteOptions(compression="zstd" if number == 2 else None)
            out = io.BytesIO()
            with write(out, table.schema, options=packed) as writer:
                writer.write_table(table, max_chunksize=3)
            seeds.append(out.getvalue())
    path = box / "a.arrow"
    return Subject(seeds, path, lambda: _read_set(path))


@reader("parquet files of datasets", messages.parquet, needs="pyarrow")
def _parquet(box: Path) -> Subject:
    import pyarrow.parquet

    seeds = []
    for table, packed in zip(_tables(), ("none", "snappy", "zstd"), strict=True):
        out = io.BytesIO()
        pyarrow.parquet.write_table(table, out, compression=packed, row_group_size=3)
        seeds.append(out.getvalue())
    path = box / "a.parquet"
    return Subject(seeds, path, lambda: _read_set(path))


@reader("state.json of datasets", messages.json_text, needs="pyarrow")
def _state(box: Path) -> Subject:
    import pyarrow

    table, folder = _tables()[2], box / "set"
    write_files(folder, {"dataset_info.json": b"{}"})
    with pyarrow.ipc.new_stream(folder / "data.arrow", table.schema) as writer:
        writer.write_table(table)
    state = {"_data_files": [{"filename": "data.arrow"}], "_split": "train", "_format_type": None}
    old = {**state, "_indices_data_files": None}
    path = folder / "state.json"
    return Subject(texts(json.dumps(state), json.dumps(old)), path, lambda: _read_set(folder))


@reader("config.json of a hub's folder", messages.json_text, needs="timm")
def _config(box: Path) -> Subject:
    about = {
        "format": BACKBONE_FORMAT,
        "architecture": SMALL,
        "lineage": "this project",
    }
    timms = {
        "architecture": "test_resnet",
        "num_classes": 8,
        "model_args": {"act_layer": "silu"},
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 32, 32]},
    }
    weights, path = box / "model.safetensors", box / "config.json"
    write_safetensors(weights, {"a.weight": torch.zeros(2), "b.bias": torch.ones(1)}, {})

    def read() -> None:
        contents = with_config(weights, read_file(weights))
        if contents.get("format") == BACKBONE_FORMAT:
            build_other(own_weights(weights, contents))

    return Subject(texts(json.dumps(about), json.dumps(timms)), path, read)


@reader("results for a model card", messages.json_text)
def _card(box: Path) -> Subject:
    path, network = box / "lfw.json", Network("0", "a line", "a.pt")
    pairs = {
        "accuracy": 0.5,
        "std": 0.1,
        "tar_at_far": {"0.001": 0.5, "0.0001": None},
        "intervals": {"accuracy": [0.4, 0.6]},
        "auc": 0.5,
    }
    ijb = {"convention": {"names": ["x"]}, "verification": {"exact": {"1e-05": {"tar": 0.5}}}}
    megaface = {"distractor_set": "a", "distractors": 9, "photos": "all", "rank1": 0.5}
    seeds = [
        json.dumps({"benchmark": "LFW", "weights": "0", "pairs": 6, "data": "/a", "results": found})
        for found in ({"cosine": pairs}, [ijb], [megaface], {"mAP": 0.5, "rank_rates": {"1": 0.5}})
    ]
    seeds.append(json.dumps({"benchmark": "LFW", "judged": "a.pt", "results": {"cosine": pairs}}))

    def read() -> None:
        figures, _ = figures_of([path], network, asked=True)
        model_card("a", "a line", SMALL, {"values": "1"}, figures, "mit")

    return Subject(texts(*seeds), path, read)
