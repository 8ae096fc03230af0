"""The readers of features, scores, results and settings."""

import json
from pathlib import Path

import numpy as np

from Config import Config
from tests.soak import messages
from tests.soak import structures as change
from tests.soak.readers.table import Subject, reader, texts, write_files
from Utils.Evaluation_Utils.analysis.drawn import load_drawn
from Utils.Evaluation_Utils.analysis.kept_scores import load_scores, subjects_of
from Utils.Evaluation_Utils.analysis.quality import read_quality
from Utils.Evaluation_Utils.analysis.thresholds import read_thresholds
from Utils.Evaluation_Utils.clean_list import read_images
from Utils.Evaluation_Utils.features import FeatureFolder
from Utils.Evaluation_Utils.megaface.devkit import read_devkit_file
from Utils.run_folder import RunFolder
from Utils.Training_Utils.reports.figures import read_results, read_rows


@reader("files of scores (.npz)", change.zip_file)
def _scores(box: Path) -> Subject:
    path = box / "lfw_scores.npz"
    columns = {
        "names": np.array(["a/1", "a/2", "b/1"]),
        "norms": np.ones(3),
        "left": np.array([0, 0]),
        "right": np.array([1, 2]),
        "same": np.array([True, False]),
        "folds": np.array([0, 1]),
        "cosine_scores": np.array([0.5, 0.1]),
        "cosine_wrong": np.array([False, True]),
    }
    seeds = []
    for save in (np.savez, np.savez_compressed):
        save(path, **columns)
        seeds.append(path.read_bytes())
    return Subject(seeds, path, lambda: subjects_of(load_scores(box / "lfw.json")))


@reader("files of draws (.npz)", change.zip_file)
def _drawn(box: Path) -> Subject:
    path = box / "ijbc_scores.npz"
    about = {"same": {"a": "b"}, "sections": {"s": {"subjects": 3, "figures": {"f": 0.5}}}}
    np.savez(path, **{"about": np.array(json.dumps(about)), "s/f": np.ones((2, 9))})
    write_files(box, {"ijbc.json": b'{"scores": "x"}'})
    return Subject([path.read_bytes()], path, lambda: load_drawn(box / "ijbc.json", box / "b.json"))


@reader("results files (JSON)", messages.json_text)
def _results(box: Path) -> Subject:
    path = box / "lfw.json"
    points = [{"far_target": 0.001, "threshold": 0.5, "tar": 0.5}]
    verification = {"results": {"cosine": {"operating_points": points}}, "benchmark": "lfw"}
    ijb = {"results": [{"verification": {"exact": {"1e-4": {"threshold": 0.3}}}}]}
    return Subject(
        texts(json.dumps(verification), json.dumps(ijb)),
        path,
        lambda: read_thresholds(path, ["cosine", "euclidean"]),
    )


@reader("metrics.csv of a run", messages.lines)
def _metrics(box: Path) -> Subject:
    path = box / "metrics.csv"
    seeds = texts(
        "iteration,epoch,loss,accuracy,learning_rate,images_per_second,LFW\n1,0,2.5,0.1,0.1,90,\n2,0,,,,,0.5\n"
    )
    return Subject(seeds, path, lambda: read_rows(path))


@reader("results.json and settings.json of a run", messages.json_text)
def _run_files(box: Path) -> Subject:
    path = box / "results.json"
    write_files(box, {"metrics.csv": b"iteration\n1\n"})

    def read() -> None:
        (box / "settings.json").write_bytes(path.read_bytes())
        for start in RunFolder(box).starts():
            isinstance(start, dict) and start.get("sweep")
        read_results(RunFolder(box))

    results = {
        "loss": 1.5,
        "last": {"LFW": 0.5},
        "best": {"LFW": {"accuracy": 0.5, "iteration": 3}},
    }
    return Subject(
        texts(json.dumps(results), json.dumps({"starts": [Config().to_dict()]})), path, read
    )


@reader("tables of features (.npy)", change.npy)
def _features(box: Path) -> Subject:
    table = box / "features.npy"
    np.save(table, np.ones((2, 3), np.float32))
    write_files(box, {"list.json": b'{"path": ["a", "b"]}', "done.bin": b"\1"})
    return Subject([table.read_bytes()], table, lambda: FeatureFolder(box).open())


@reader("descriptions of features (JSON)", messages.json_text)
def _about(box: Path) -> Subject:
    np.save(box / "features.npy", np.ones((2, 3), np.float32))
    write_files(box, {"list.json": b'{"path": ["a", "b"]}', "done.bin": b"\1"})
    return Subject(
        texts('{"a": 1, "b": [2]}'), box / "about.json", lambda: FeatureFolder(box).open()
    )


@reader("MegaFace's feature files")
def _devkit(box: Path) -> Subject:
    path = box / "a.bin"
    content = np.array([3, 1, 4, 5], "<i4").tobytes() + np.ones(3, "<f4").tobytes()
    return Subject([content], path, lambda: read_devkit_file(path))


@reader("label_noise's images.csv", messages.lines)
def _noise(box: Path) -> Subject:
    path = box / "images.csv"
    seeds = texts(
        "image,name,label,angle\n0,a/1.png,0,10.5\n1,b/2.png,1,20\n",
        'image,label,angle,name\n1,0,1,"a, b"\n0,1,2,c\n',
    )
    return Subject(seeds, path, lambda: read_images(path))


@reader("files of qualities", messages.lines)
def _qualities(box: Path) -> Subject:
    path = box / "q.txt"
    seeds = texts("image score\na/1.png 0.5\nb/2.png 1e-3\n", "a/1,0.5\nb/2;3\n")
    return Subject(seeds, path, lambda: read_quality(path, ["a/1", "b/2"]))
