"""The readers of what programs keep: indexes of data, tables, runs of sweeps."""

import json
from pathlib import Path

import numpy as np

from Config import Config
from tests.soak import messages
from tests.soak import structures as change
from tests.soak.readers.datasets import write_records, write_shards
from tests.soak.readers.table import Subject, all_of, image, reader, texts, write_files
from Utils.Datasets_Utils.formats import open_training_set
from Utils.Datasets_Utils.formats.storage import _STAMP, _stamp
from Utils.Datasets_Utils.formats.writers import LmdbWriter
from Utils.Evaluation_Utils.features import FeatureFolder
from Utils.Evaluation_Utils.megaface.pictures import read_compared
from Utils.Training_Utils.distillation.table import EmbeddingTable
from Utils.Training_Utils.merge_checkpoint import find_shards, merge_shards
from Utils.Training_Utils.sweep import SweepRun, _runs_with


def _kept(data: Path, index: Path, sources: list[Path], arrays: dict[str, np.ndarray]) -> Subject:
    """An index that was kept beside a set; its stamp says that it is of this set."""
    np.savez(index, **{_STAMP: _stamp(sources)}, **arrays)

    def read() -> None:
        found = open_training_set(data)
        all_of(found)
        _ = found.num_classes, found.labels

    return Subject([index.read_bytes()], index, read)


@reader("kept indexes of record files (.npz)", change.zip_file)
def _offsets(box: Path) -> Subject:
    write_records(box)
    (box / "train.idx").unlink()
    path = box / "train.rec"
    from Utils.Datasets_Utils.formats.record_set import _scan_offsets
    from Utils.Datasets_Utils.formats.storage import MappedFile

    return _kept(path, box / "train.offsets.npz", [path], _scan_offsets(MappedFile(path)))


@reader("kept labels of record files (.npz)", change.zip_file)
def _labels(box: Path) -> Subject:
    write_records(box)
    path, index = box / "train.rec", box / "train.idx"
    lines = index.read_text().splitlines()[1:5]  # without the header record: each one is scanned
    index.write_text("".join(f"{line}\n" for line in lines))
    labels = {"labels": np.array([0, 0, 1, 1], np.int32)}
    return _kept(path, box / "train.labels.npz", [path, index], labels)


@reader("kept indexes of LMDB databases (.npz)", change.zip_file, needs="lmdb")
def _lmdb(box: Path) -> Subject:
    from Utils.Datasets_Utils.formats.lmdb_set.images import _index
    from Utils.Datasets_Utils.formats.storage import MappedFile

    path = box / "a.lmdb"
    writer = LmdbWriter(path, np.array([0, 1, 1]))
    for number in range(3):
        writer.write(number, image(seed=number))
    writer.finish(["a", "b", "c"])
    return _kept(path, box / "a.index.npz", [path], _index(MappedFile(path)))


@reader("kept indexes of tar shards (.npz)", change.zip_file)
def _shards(box: Path) -> Subject:
    from Utils.Datasets_Utils.formats.shards import INDEX, _index

    folder = box / "set"
    shards = write_shards(folder, [0, 1, 1])
    return _kept(folder, folder / INDEX, shards, _index(shards))


@reader("tables of a teacher's embeddings (.npy)", change.npy)
def _teacher(box: Path) -> Subject:
    path, about = box / "features.npy", {"dim": 4, "dtype": "fp16"}
    np.save(path, np.ones((3, 4), np.float16))
    write_files(box, {"about.json": json.dumps(about).encode(), "done.bin": b"\1"})

    def read() -> None:
        FeatureFolder(box).check(about, (3, 4))
        all_of(EmbeddingTable(path))

    return Subject([path.read_bytes()], path, read)


@reader("settings.json of a sweep's run", messages.json_text)
def _sweep(box: Path) -> Subject:
    start = {**Config().to_dict(), "sweep": "s"}
    path = write_files(box / "run", {"metrics.csv": b""}) / "settings.json"
    config = Config(save_dir=str(box))

    def read() -> None:
        _runs_with(config)
        _runs_with(config, "s")

    return Subject(texts(json.dumps(start), json.dumps({**start, "starts": [start]})), path, read)


@reader("results.json of a sweep's run", messages.json_text)
def _finished(box: Path) -> Subject:
    path = box / "results.json"
    best = {"LFW": {"accuracy": 0.5, "iteration": 3}, "x": {"accuracy": 1, "iteration": 3}}
    results = {"loss": 1.5, "last": {"LFW": 0.5, "x": 1}, "best": best, "data": {"images": 3}}
    return Subject(texts(json.dumps(results)), path, lambda: SweepRun({}).finish(box))


@reader("megaface.json to compare with", messages.json_text)
def _compared(box: Path) -> Subject:
    path = box / "megaface.json"
    roc = {"fpr": [0, 0.5], "tpr": [0.1, 1], "exact_up_to_fpr": 0.5}
    result = {
        "photos": "all",
        "distractors": 9,
        "rank1": 0.5,
        "cmc": {"ranks": [1, 2], "rates": [0.5, 1]},
        "verification": {"all": {"roc": roc}},
    }
    values = {"benchmark": "MegaFace", "results": [result, {**result, "distractors": 3}]}
    return Subject(texts(json.dumps(values)), path, lambda: read_compared(str(path)))


@reader("insightface's checkpoints of a GPU each", change.zip_file)
def _merged(box: Path) -> Subject:
    import io

    import torch

    seeds = []
    for rank in range(2):
        out = io.BytesIO()
        momentum = {0: {"momentum_buffer": torch.ones(2)}, 1: {"momentum_buffer": torch.ones(2, 3)}}
        state = {
            "epoch": 1,
            "global_step": 2,
            "state_dict_backbone": {"a": torch.ones(2)},
            "state_dict_softmax_fc": {"weight": torch.full((2, 3), float(rank))},
            "state_optimizer": {"state": momentum, "param_groups": [{"params": [0, 1]}]},
        }
        torch.save(state, out)
        seeds.append(out.getvalue())
        write_files(box, {f"checkpoint_gpu_{rank}.pt": seeds[-1]})
    return Subject(seeds, box / "checkpoint_gpu_1.pt", lambda: merge_shards(find_shards(box)))
