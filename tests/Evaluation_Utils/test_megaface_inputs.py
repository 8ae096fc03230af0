"""MegaFace from features and data of other kinds, and what is refused before any work is done."""

from __future__ import annotations

import json
import shutil
import struct

import numpy as np
import pytest
import torch

from Config import Config
from tests.tiny_megaface import (
    DISTRACTORS,
    PEOPLE,
    PHOTOS,
    features_of,
    megaface,
    results_of,
    table_of,
)
from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.convert_dataset import convert
from Utils.Datasets_Utils.photos import PhotoList
from Utils.errors import DataError, RunError
from Utils.Evaluation_Utils.embedding import embed
from Utils.Evaluation_Utils.features import FeatureFolder, packed_features
from Utils.Evaluation_Utils.identification import evaluate
from Utils.Evaluation_Utils.megaface import evaluation as megaface_module
from Utils.Evaluation_Utils.megaface.devkit import check_export
from Utils.Evaluation_Utils.megaface.pictures import short_labels
from Utils.Pretrained_Utils import load_backbone
from Utils.processes import ALONE
from Utils.Training_Utils.evaluation import MegaFaceTest


@pytest.fixture(scope="module")
def extracted(tiny, tmp_path_factory):
    """The output folder of a whole run."""
    folder = tmp_path_factory.mktemp("extracted")
    done = megaface(*tiny.flags("--output", folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def no_work(monkeypatch):
    """Extraction and scoring fail the test: what is wrong has to be found before them."""

    def work(*_, **__):
        raise AssertionError("found after work was done")

    monkeypatch.setattr(megaface_module, "packed_features", work)
    monkeypatch.setattr(megaface_module, "evaluate_trials", work)


def ready(folder, *more):
    """The flags that evaluate the tables of a run, without photos."""
    return (
        *("--probe_features", features_of(folder, "probes")),
        *("--distractor_features", features_of(folder, "distractors")),
        *("--fprs", "1e-2,1e-3", "--device", "cpu", *more),
    )


# --- ready features -----------------------------------------------------------------------------


def test_a_list_chooses_among_ready_probes_and_says_who_they_are(extracted, tmp_path, run_megaface):
    names = json.loads((features_of(extracted, "probes") / "list.json").read_text())["path"]
    order = [17, 3, 2, 9, 0, 11]
    ids = ["x", "y", "y", "x", "y", "z"]
    listed = {"path": [names[row] for row in order], "id": ids}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    run_megaface(
        *ready(extracted, "--output", tmp_path / "out"),
        *("--facescrub_file_list", tmp_path / "list.json"),
    )
    (found,) = results_of(tmp_path / "out")
    probes = table_of(extracted, "probes")[order]
    expected = evaluate(probes, ids, table_of(extracted, "distractors"), fprs=(1e-2, 1e-3))
    assert (found["probes"], found["searches"], found["rank1"]) == (6, 8, expected.rank1)
    point = expected.verification["all"].points[1]
    assert found["verification"]["all"]["points"][1]["tpr"] == point.tar

    listed["path"][4] = "Ada/unknown.png"
    (tmp_path / "list.json").write_text(json.dumps(listed))
    with pytest.raises(DataError, match=r"1 photos .* the first: Ada/unknown.png"):
        run_megaface(*ready(extracted, "--facescrub_file_list", tmp_path / "list.json"))


def test_pictures_beside_ready_features_need_not_be_all_there(
    tiny, extracted, tmp_path, run_megaface
):
    shutil.copytree(tiny.root / "distractors", tmp_path / "some")
    for number in range(0, DISTRACTORS, 2):
        name = f"{number // 100:03d}/{number // 10:05d}/{number}@N00_{number}_0.jpg"
        (tmp_path / "some" / name).unlink()
    with pytest.raises(DataError, match=r"0@N00_0_0\.jpg"):
        run_megaface(*ready(extracted, "--megaface_dataset_path", tmp_path / "some"))
    for path in (tmp_path / "some").rglob("1*.jpg"):
        path.unlink()
    listed = [str(p.relative_to(tmp_path / "some")) for p in (tmp_path / "some").rglob("*.jpg")]
    (tmp_path / "some.json").write_text(json.dumps({"path": sorted(listed)}))
    run_megaface(
        *ready(extracted, "--megaface_dataset_path", tmp_path / "some", "--output", tmp_path),
        *("--megaface_file_list", tmp_path / "some.json"),
        *("--facescrub_dataset_path", tiny.root / "probes"),
    )
    assert results_of(tmp_path)[0]["distractors"] == len(listed)
    assert (tmp_path / "megaface_worst.png").is_file()


@pytest.mark.parametrize("changed", ["network", "flip"])
def test_features_of_two_networks_are_not_mixed(
    tiny, extracted, tmp_path, run_megaface, no_work, changed
):
    more = ("--feature_flip", "none") if changed == "flip" else ()
    with pytest.raises(DataError, match=f"their {changed} differs"):
        run_megaface(
            *tiny.flags("--output", tmp_path, *more, checkpoint=int(changed == "network")),
            *("--distractor_features", features_of(extracted, "distractors")),
        )


def test_ready_features_are_not_judged_at_the_end_of_training(tiny, extracted):
    config = Config(
        facescrub_dataset_path=str(tiny.root / "probes"),
        distractor_features=str(features_of(extracted, "distractors")),
    )
    with pytest.raises(DataError, match="distractor_features can't be given"):
        MegaFaceTest(config, torch.device("cpu"), None, ALONE)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("done.bin", None),
        ("done.bin", b"\1"),
        ("list.json", b'{"path": ["a"'),
        ("list.json", b'{"path": 3}'),
        ("list.json", b"[" * 100_000),
        ("list.json", None),
        ("about.json", b"[1, 2]"),
        ("about.json", b"{"),
        ("features.npy", b""),
        ("features.npy", b"\x93NUMPY\1\0"),
        ("features.npy", None),
    ],
)
def test_damaged_feature_folders_are_named(tiny, extracted, tmp_path, run_megaface, name, content):
    shutil.copytree(extracted / "features", tmp_path / "features")
    damaged = features_of(tmp_path, "distractors") / name
    if content is None:
        damaged.unlink()
    else:
        damaged.write_bytes(content)
    with pytest.raises(DataError, match=name):
        run_megaface(*ready(tmp_path, "--output", tmp_path / "out"))
    if name == "list.json":
        return  # it is not read where the list of the photos is given
    with pytest.raises(DataError, match=name):
        run_megaface(*tiny.flags("--output", tmp_path))


def test_a_table_of_another_shape_is_not_used(tiny, extracted, tmp_path, run_megaface):
    shutil.copytree(extracted / "features", tmp_path / "features")
    np.save(features_of(tmp_path, "probes") / "features.npy", np.ones((20, 8), np.float32))
    with pytest.raises(DataError, match=r"\(20, 8\), not float32 \(20, 16\)"):
        run_megaface(*tiny.flags("--output", tmp_path))


def test_a_table_of_another_size_of_features_is_found_before_the_work(
    extracted, tmp_path, run_megaface, no_work
):
    shutil.copytree(extracted / "features", tmp_path / "features")
    np.save(features_of(tmp_path, "probes") / "features.npy", np.ones((20, 8), np.float32))
    with pytest.raises(DataError, match=r"their dim differs \(8 and 16\)"):
        run_megaface(*ready(tmp_path, "--output", tmp_path / "out"))


def test_no_room_for_features(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    about = {"dim": 4, "dtype": "fp32"}
    with pytest.raises(RunError, match=r"features\.npy needs 0\.00 GiB"):
        packed_features(tmp_path, PhotoList(["a"], None, "a list"), about, lambda _: [])


# --- the devkit's files -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../x.png", "/tmp/x.png", "a/../../x.png", "a/.."])
def test_nothing_is_exported_outside_of_the_folder(
    tiny, extracted, tmp_path, run_megaface, no_work, name
):
    shutil.copytree(extracted / "features", tmp_path / "features")
    listed = features_of(tmp_path, "probes") / "list.json"
    values = json.loads(listed.read_text())
    values["path"][7] = name
    listed.write_text(json.dumps(values))
    with pytest.raises(DataError, match="outside of its folder"):
        run_megaface(
            *ready(tmp_path, "--output", tmp_path / "out", "--export_devkit", tmp_path / "e")
        )
    assert not (tmp_path / "e").exists()
    with pytest.raises(DataError, match="devkit_suffix"):
        check_export(PhotoList(["a"], None, "list"), "/../../x.bin")
    check_export(PhotoList(["a..b/J.K._S.png", "c/.d"], None, "list"), "_x.bin")


def test_devkit_features_of_any_length_fit_into_half_precision(tmp_path, run_megaface):
    rng = np.random.default_rng(0)
    table, ids = rng.normal(size=(30, 8)).astype(np.float32), ["a", "b"] * 4
    table *= np.float32(10.0) ** rng.integers(-12, 12, (30, 1))
    for number, row in enumerate(table):
        (tmp_path / f"{number}_x.bin").write_bytes(struct.pack("<4i", 8, 1, 4, 5) + row.tobytes())
    (tmp_path / "p.json").write_text(json.dumps({"path": [*map(str, range(8))], "id": ids}))
    (tmp_path / "d.json").write_text(json.dumps({"path": [*map(str, range(8, 30))]}))
    flags = (
        *("--probe_features", tmp_path, "--distractor_features", tmp_path),
        *("--facescrub_file_list", tmp_path / "p.json", "--devkit_suffix", "_x.bin"),
        *("--megaface_file_list", tmp_path / "d.json", "--fprs", "0.1", "--device", "cpu"),
    )
    run_megaface(*flags, "--feature_dtype", "fp16", "--output", tmp_path / "half")
    run_megaface(*flags, "--output", tmp_path / "single")
    unit = table / np.linalg.norm(table.astype(np.float64), axis=1, keepdims=True)
    assert np.allclose(table_of(tmp_path / "half", "distractors"), unit[8:], atol=1e-3)
    assert np.array_equal(table_of(tmp_path / "single", "distractors"), table[8:])
    expected = evaluate(table[:8], ids, table[8:])
    assert results_of(tmp_path / "single")[0]["rank1"] == expected.rank1


def test_features_too_large_for_their_format_are_refused(tmp_path):
    about = {"dim": 2, "dtype": "fp16"}
    photos = PhotoList(["a", "b"], None, "a list")
    with pytest.raises(DataError, match="row 1"):
        packed_features(
            tmp_path, photos, about, lambda _: [np.array([[1, 1], [1e5, 0]], np.float32)]
        )


# --- other results ------------------------------------------------------------------------------


def test_labels_tell_results_apart(tmp_path):
    def labels(*names):
        return short_labels([tmp_path / name for name in names])

    assert labels("a/megaface/megaface.json", "b/megaface/megaface.json") == ["a", "b"]
    assert labels("x/a/megaface.json", "y/a/megaface.json") == ["x/a", "y/a"]
    assert labels("x/one.json", "x/two.json") == ["one.json", "two.json"]
    assert labels("x/a/megaface.json", "a/megaface/megaface.json") == ["x/a", f"{tmp_path.name}/a"]
    assert labels("r/megaface.json") == ["r"]


def test_compared_results_are_all_drawn(tiny, extracted, tmp_path, run_megaface, monkeypatch):
    drawn = {}
    from Utils.Evaluation_Utils.megaface import pictures

    monkeypatch.setattr(pictures, "plot_cmc", lambda curves, *_: drawn.update(curves))
    for run in ("a", "b"):
        (tmp_path / run / "megaface").mkdir(parents=True)
        shutil.copy(extracted / "megaface.json", tmp_path / run / "megaface")
    others = [tmp_path / run / "megaface" / "megaface.json" for run in ("a", "b")]
    run_megaface(*tiny.flags("--output", tmp_path / "out", "--compare", ",".join(map(str, others))))
    assert list(drawn) == ["as listed", "a, as listed", "b, as listed"]


def test_two_networks_are_compared_over_people(tiny, extracted, tmp_path, run_megaface):
    one = extracted / "megaface.json"
    other = tiny.flags("--output", tmp_path, "--compare", one, checkpoint=1)
    run_megaface(*other)
    values, before = (json.loads(path.read_text()) for path in (tmp_path / "megaface.json", one))
    sections = values["comparisons"][0]["results"].values()
    for here, there, found in zip(values["results"], before["results"], sections, strict=True):
        entry = found["figures"]["rank-1"]
        assert [entry["this"], entry["other"]] == [here["rank1"], there["rank1"]]
        assert found["subjects"] == len(PEOPLE)
        tpr = found["figures"]["TPR@0.001 devkit"]["this"]
        assert tpr == here["verification"]["devkit"]["points"][1]["tpr"]
        figures = here["intervals"]["figures"]
        assert figures["rank-1"][0] <= here["rank1"] <= figures["rank-1"][1]
        of_all = here["verification"]["all"]
        for point in of_all["points"]:
            ends = figures[f"TPR@{point['fpr_target']:g} all"]
            assert (ends is None) == (of_all["negatives"] * point["fpr_target"] < 1)
            assert ends is None or ends[0] <= point["tpr"] <= ends[1]
        assert figures["FNIR@0.01"] is None  # of fewer than 100 searches
    with pytest.raises(
        DataError, match=r"megaface\.json and .*, as they differ in the ties: mate there"
    ):
        run_megaface(*other, "--ties", "against")
    (tmp_path / "alone").mkdir()
    shutil.copy(one, tmp_path / "alone")
    table = run_megaface(*other, "--compare", tmp_path / "alone" / "megaface.json")
    assert "is drawn, but not compared" in table


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.pop("results"),
        lambda values: values.update(results=[]),
        lambda values: values["results"][0].pop("cmc"),
        lambda values: values["results"][0]["cmc"]["rates"].pop(),
        lambda values: values["results"][1]["verification"]["all"]["roc"].update(fpr="x"),
        lambda values: values["results"][1].update(rank1=None),
        lambda values: values["results"][1].update(photos=None),
        lambda values: values["results"].append(3),
    ],
)
def test_compared_files_are_looked_at_before_the_work(
    tiny, extracted, tmp_path, run_megaface, no_work, change
):
    values = json.loads((extracted / "megaface.json").read_text())
    change(values)
    (tmp_path / "other.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"other\.json"):
        run_megaface(*tiny.flags("--output", tmp_path, "--compare", tmp_path / "other.json"))


# --- probes without mates -----------------------------------------------------------------------


def test_people_with_one_probe_each_are_found_before_the_work(
    tiny, tmp_path, run_megaface, no_work
):
    listed = {"path": [f"{name}/{name}_24000.png" for name in PEOPLE], "id": [*PEOPLE]}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    with pytest.raises(DataError, match=r"list\.json has no identity with two probes"):
        run_megaface(
            *tiny.flags("--output", tmp_path, "--facescrub_file_list", tmp_path / "list.json")
        )


@pytest.mark.parametrize("how", ["drop", "insightface"])
def test_noise_that_leaves_nothing_spares_the_figures_as_listed(
    tiny, extracted, tmp_path, run_megaface, how
):
    names = json.loads((tiny.root / "facescrub.json").read_text())["path"]
    (tmp_path / "noise.txt").write_text("\n".join(name.split("/")[1] for name in names))
    printed = run_megaface(
        *ready(extracted, "--output", tmp_path, "--noise", how),
        *("--probe_noise", tmp_path / "noise.txt"),
    )
    assert "cleaned: not evaluated, no person has two clean probes" in " ".join(printed.split())
    assert [r["photos"] for r in results_of(tmp_path)] == ["as listed"]

    sets = [tiny.root / "megaface.json_10_1", tiny.root / "megaface.json_100_1"]
    noisy = json.loads(sets[0].read_text())["path"]
    (tmp_path / "noise.txt").write_text("\n".join(noisy))
    printed = run_megaface(
        *ready(extracted, "--output", tmp_path, "--noise", how),
        *("--distractor_noise", tmp_path / "noise.txt"),
        *("--megaface_file_list", f"{sets[0]},{sets[1]}"),
    )
    assert "10 distractors, cleaned: not evaluated, all of its distractors" in printed
    cleaned = [r["distractors"] for r in results_of(tmp_path) if r["photos"] == "cleaned"]
    assert cleaned == [90 if how == "drop" else 100]


def test_forty_set_sizes_with_and_without_noise(tiny, extracted, tmp_path, run_megaface):
    (tmp_path / "noise.txt").write_text("000/00000/3@N00_3_0.jpg\n")
    sizes = [10 * n for n in range(1, 41)]
    run_megaface(
        *ready(extracted, "--output", tmp_path, "--distractor_sizes", ",".join(map(str, sizes))),
        *("--distractor_noise", tmp_path / "noise.txt"),
    )
    found = results_of(tmp_path)
    assert len(found) == 2 * 41
    ids, probes = np.repeat(PEOPLE, PHOTOS), table_of(extracted, "probes")
    distractors = np.delete(table_of(extracted, "distractors")[:400], 3, axis=0)
    expected = evaluate(probes, ids, distractors, fprs=(1e-2, 1e-3))
    (largest,) = [r for r in found if r["distractors"] == 399]
    assert largest["rank1"] == expected.rank1


# --- record files and shards --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["record file", "shards"])
def test_probes_and_distractors_in_record_files_and_shards(
    shared_data, tmp_path, tiny, run_megaface, kind
):
    formats = shared_data / "formats"
    probes, distractors = formats / "rec_plain", formats / "rec_ms1m_layout"
    if kind == "shards":
        for name, source in (("probes", probes), ("distractors", distractors)):
            convert(source, tmp_path / name / "%06d.tar")
        probes, distractors = tmp_path / "probes", tmp_path / "distractors"
    run_megaface(
        *("--checkpoint", tiny.checkpoint(), "--device", "cpu", "--num_workers", 2),
        *("--facescrub_dataset_path", probes, "--megaface_dataset_path", distractors),
        *("--distractor_sizes", "100", "--fprs", "1e-2", "--output", tmp_path / "out"),
    )
    # The same from the records one by one.
    backbone, cpu, tables = load_backbone(tiny.checkpoint()), torch.device("cpu"), {}
    for name, source in (("probes", "rec_plain"), ("distractors", "rec_ms1m_layout")):
        data = open_training_set(formats / source)
        straight, mirrored = embed(backbone, [data[i][0] for i in range(len(data))], cpu)
        total = straight + mirrored
        tables[name] = table_of(tmp_path / "out", name)
        expected = total / np.linalg.norm(total, axis=1, keepdims=True)
        assert np.allclose(tables[name], expected, atol=1e-5)
    labels = open_training_set(formats / "rec_plain").labels
    found = results_of(tmp_path / "out")
    assert [r["distractors"] for r in found] == [100, len(tables["distractors"])]
    for result in found:
        part = tables["distractors"][: result["distractors"]]
        expected = evaluate(tables["probes"], labels, part, fprs=(1e-2,))
        assert result["rank1"] == expected.rank1
        assert result["searches"] == expected.searches
    assert FeatureFolder(features_of(tmp_path / "out", "probes")).open().photos.ids == [
        str(label) for label in labels
    ]


# --- several processes --------------------------------------------------------------------------


def test_an_error_is_told_once_under_torchrun(tiny, tmp_path):
    """The first process's, and one that another process has found alone."""
    missing = megaface(
        *tiny.flags("--output", tmp_path, "--facescrub_file_list", "README.md"), processes=2
    )
    damaged = tmp_path / "distractors"
    shutil.copytree(tiny.root / "distractors", damaged)
    # Rows 256 to 511 are the second process's.
    (damaged / "003" / "00030" / "300@N00_300_0.jpg").write_bytes(b"no image")
    flags = tiny.flags("--output", tmp_path / "out", "--megaface_dataset_path", damaged)
    broken = megaface(*flags, "--strict", processes=2)
    for done, said in ((missing, "README.md"), (broken, "300@N00_300_0.jpg")):
        assert done.returncode != 0
        told = [text for text in done.stderr.split("\n") if text.startswith("Error:")]
        assert len(told) == 1
        assert said in " ".join(done.stderr.partition(told[0])[2].splitlines()[:3] + told)
        for word in ("gloo", "Connection closed", "Evaluation_Utils/"):
            assert word not in done.stderr
