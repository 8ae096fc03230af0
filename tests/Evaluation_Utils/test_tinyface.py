"""TinyFace: the official rule against the official figures and brute force, lists, the script."""

import io
import json
import shutil
from contextlib import nullcontext

import cv2
import numpy as np
import pytest
import scipy.io
import torch

from Config import Config
from tests.conftest import assert_one_paragraph, run_script
from tests.processes import torchrun
from Utils.Datasets_Utils.images import fit_image, read_image
from Utils.errors import DataError
from Utils.Evaluation_Utils.tinyface import evaluation
from Utils.Evaluation_Utils.tinyface.data import open_tinyface, read_list
from Utils.Evaluation_Utils.tinyface.figures import RANKS, evaluate
from Utils.Pretrained_Utils import load_backbone
from Utils.Pretrained_Utils.load import weights_digest
from Utils.processes import Processes

PROBE_LIST, GALLERY_LIST = "probe_img_ID_pairs.mat", "gallery_match_img_ID_pairs.mat"


# --- the rule -----------------------------------------------------------------------------------


@pytest.fixture
def fixture(shared_data):
    folder = shared_data / "protocols" / "tinyface"
    if not folder.is_dir():
        pytest.skip(f"no fixture of the official figures: {folder} is not there")
    return folder


@pytest.mark.parametrize(
    ("title", "metric"),
    [
        ("official rule on raw features (euclidean)", "euclidean"),
        ("official rule on normalised features", "cosine"),
        ("AdaFace DIR_FAR, cosine", "cosine"),
    ],
)
def test_the_figures_are_those_of_the_public_evaluators(fixture, title, metric):
    expected = json.loads((fixture / "expected.json").read_text())
    features = np.load(fixture / "features.npz")
    probes = read_list(fixture / PROBE_LIST, "probe_set", "probe_ids")
    gallery = read_list(fixture / GALLERY_LIST, "gallery_set", "gallery_ids")
    counts = {"probe": probes, "gallery": gallery}
    assert {name: len(part.names) for name, part in counts.items()} == {
        name: expected["counts"][name] for name in counts
    }
    result = evaluate(
        *(features["probe"], probes.ids, features["gallery"], gallery.ids),
        features["distractor"],
        metric=metric,
    )
    figures = {"mAP": result.mean_average_precision}
    figures |= {f"r{rank}": rate for rank, rate in result.rank_rates.items()}
    for name, value in expected[title].items():
        assert figures[name] == pytest.approx(value, abs=1e-6), name


def brute_force(probes, probe_ids, rows, ids, metric):
    """(best rank, AP) of each probe, float64, image by image; the gallery sorted as MATLAB does.

    AP as the official compute_AP has it, rank by rank. ids: None for distractors.
    """
    unit = [[x / (np.linalg.norm(x) or 1) for x in np.float64(part)] for part in (probes, rows)]
    found = []
    for row, (probe, person) in enumerate(zip(probes, probe_ids, strict=True)):
        if metric == "cosine":
            score = [float(np.sum(unit[0][row] * other)) for other in unit[1]]
        else:
            score = [-float(np.sum((np.float64(x) - np.float64(probe)) ** 2)) for x in rows]
        good = [ids[i] == person for i in sorted(range(len(rows)), key=lambda i: (-score[i], i))]
        hits, area, recall, precision = 0, 0.0, 0.0, 1.0
        for place in range(1, len(good) + 1):
            hits += good[place - 1]
            if hits <= sum(good) and sum(good):
                now = hits / sum(good)
                area += (now - recall) * (precision + hits / place) / 2
                recall, precision = now, hits / place
        found.append((good.index(True) + 1, area) if any(good) else (0, np.nan))
    return zip(*found, strict=True)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("seed", range(20))
def test_ranks_and_precisions_are_those_of_brute_force(seed, metric):
    rng = np.random.default_rng(seed)
    people, dim = int(rng.integers(3, 8)), int(rng.integers(2, 40))
    gallery_ids = rng.integers(0, people, int(rng.integers(people, 30)))
    probe_ids = [int(gallery_ids[0]), *rng.integers(0, people, 11).tolist(), 99]  # 99: no mate
    gallery = rng.normal(size=(len(gallery_ids), dim)).astype(np.float32)
    distractors = rng.normal(size=(int(rng.integers(0, 60)), dim)).astype(np.float32)
    probes = rng.normal(size=(len(probe_ids), dim)).astype(np.float32)
    # Ties: distractors equal to mates and to each other, two mates alike, zeros, a probe that is
    # its mate; in another half of the problems all features are small whole numbers.
    gallery[1], gallery[-1] = gallery[0], 0
    distractors[: len(distractors) // 3] = gallery[rng.integers(0, len(gallery))]
    distractors[len(distractors) // 2 :: 5] = 0
    probes[0], probes[1] = gallery[0], 0
    if seed % 2:
        probes, gallery, distractors = (x.round() for x in (probes, gallery, distractors))
    result = evaluate(probes, probe_ids, gallery, gallery_ids, distractors, metric=metric)
    rows, ids = np.concatenate([gallery, distractors]), [*gallery_ids, *[None] * len(distractors)]
    best, areas = (np.array(x) for x in brute_force(probes, probe_ids, rows, ids, metric))
    assert result.best_rank.tolist() == best.tolist()
    np.testing.assert_allclose(result.average_precision, areas, atol=1e-12)
    assert result.without_mate == (best == 0).sum() >= 1
    assert result.mean_average_precision == pytest.approx(np.nanmean(areas))
    for rank in RANKS:
        assert result.rank_rates[rank] == (best[best > 0] <= rank).mean()


def test_copies_of_a_mate_come_after_it_in_a_wide_gallery():
    # In a matrix product, equal rows at different places differ in the last digit.
    rng = np.random.default_rng(0)
    mate, probes = rng.normal(size=(1, 301)), rng.normal(size=(7, 301))
    result = evaluate(probes, [1] * 7, mate, [1], np.repeat(mate, 999, axis=0))
    assert result.best_rank.tolist() == [1] * 7


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gallery": np.ones((2, 3)), "gallery_ids": [1, 1]}, "N×D of one D"),
        ({"gallery": np.ones((0, 2)), "gallery_ids": []}, "at least one"),
        ({"probe_ids": [1, 2, 3]}, "2 probe features have 3 identities"),
        ({"probe_ids": [3, 4]}, "no probe has a mate"),
        ({"distractors": np.array([[1, 2], [np.nan, 0]])}, "distractor features: row 1 holds NaN"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, said):
    arrays = {
        "probes": np.eye(2),
        "probe_ids": [1, 2],
        "gallery": np.eye(2),
        "gallery_ids": [1, 2],
        "distractors": np.ones((3, 2)),
    }
    with pytest.raises(DataError, match=said):
        evaluate(**arrays | changes)


# --- the files ----------------------------------------------------------------------------------

PROBES, MATES = ["1_3.jpg", "2_2.jpg", "3_1.jpg"], ["1_1.jpg", "1_2.jpg", "2_1.jpg"]


def cells(names):
    found = np.empty((len(names), 1), object)
    found[:, 0] = names
    return found


def write_lists(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    for file, prefix, names in ((PROBE_LIST, "probe", PROBES), (GALLERY_LIST, "gallery", MATES)):
        ids = np.array([[int(name.split("_")[0])] for name in names], np.uint16)
        values = {f"{prefix}_set": cells(names), f"{prefix}_ids": ids}
        values |= {name: value for name, value in changes.items() if name.startswith(prefix)}
        scipy.io.savemat(folder / file, {k: v for k, v in values.items() if v is not None})


@pytest.fixture
def testing_set(tmp_path):
    """TinyFace's layout with an aligned copy's suffixes; the third probe has no mate."""
    rng, root = np.random.default_rng(0), tmp_path / "tiny face" / "Testing_Set"
    parts = {"Probe": PROBES, "Gallery_Match": MATES}
    parts["Gallery_Distractor"] = [f"d{number}.jpg" for number in range(9)]
    for folder, names in parts.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            image = cv2.resize(rng.integers(0, 256, (4, 4, 3)).astype(np.uint8), (32, 32))
            cv2.imwrite(str(root / folder / name.replace(".jpg", ".png")), image)
    write_lists(root)
    return root


def test_the_script_prints_what_brute_force_says_of_the_network(tiny, testing_set, tmp_path):
    mate = str(testing_set / "Gallery_Match" / "2_1.png")
    cv2.imwrite(mate, cv2.imread(mate)[:20])
    flags = ["--checkpoint", tiny.checkpoint(), "--output", tmp_path / "out", "--device", "cpu"]
    flags += ["--num_workers", 0, "--tinyface_dataset_path", testing_set.parent]
    run = run_script("TinyFace_Evaluation.py", *flags, check=True)
    values = json.loads((tmp_path / "out" / "tinyface.json").read_text())
    # By hand: one image at a time, in float64.
    backbone = load_backbone(tiny.checkpoint())
    assert values["weights"] == weights_digest(backbone)
    backbone.double()
    rows = {}
    for folder in ("Probe", "Gallery_Match", "Gallery_Distractor"):
        features = []
        for path in sorted((testing_set / folder).iterdir()):
            image = fit_image(read_image(path), (32, 32))
            pixels = backbone.preprocessing(torch.from_numpy(np.stack([image, image[:, ::-1]])))
            features.append(backbone(pixels.double()).sum(0).detach().numpy())
        rows[folder] = np.array(features)
    gallery = np.concatenate([rows["Gallery_Match"], rows["Gallery_Distractor"]])
    best, areas = brute_force(rows["Probe"], [1, 2, 3], gallery, [1, 1, 2, *[None] * 9], "cosine")
    assert values["results"]["best_rank"] == list(best)
    assert values["results"]["mAP"] == pytest.approx(np.nanmean(list(areas)))
    assert f"{100 * values['results']['mAP']:.2f} %" in run.stdout
    assert "3 probes, gallery of 3 mates and 9 distractors" in run.stdout
    assert "none is made here; probes 32×32, gallery 20..32×32, distractors 32×32" in run.stdout
    assert "1 probes have no mate in the gallery and do not count: 3_1.png" in run.stdout
    # Compared with itself, nothing differs; with other lists, it is refused.
    compared = [*flags, "--compare", tmp_path / "out" / "tinyface.json"]
    same = run_script("TinyFace_Evaluation.py", *compared, check=True)
    assert "The two are the same in all of these figures" in same.stdout
    found = json.loads((tmp_path / "out" / "tinyface.json").read_text())["comparisons"][0]
    entry = found["results"]["TinyFace"]["figures"]["mAP"]
    assert (entry["this"], entry["difference"]) == (values["results"]["mAP"], 0)
    other = shutil.copytree(testing_set, tmp_path / "other" / "Testing_Set")
    (other / "Gallery_Distractor" / "d1.png").unlink()
    compared[compared.index(testing_set.parent)] = other.parent
    refused = run_script("TinyFace_Evaluation.py", *compared, "--output", tmp_path / "third")
    assert_one_paragraph(refused, "out/tinyface.json and", "third/tinyface.json", "in the lists")
    # Features that are there are used again, and under torchrun the figures are the same.
    two = torchrun(2, "TinyFace_Evaluation.py")
    again = run_script(*two, *flags, check=True)
    assert again.stdout.count("all there") == 3
    # A photo that was replaced is embedded again.
    shutil.copy(testing_set / "Gallery_Match" / "2_1.png", testing_set / "Probe" / "1_3.png")
    again = run_script("TinyFace_Evaluation.py", *flags, check=True)
    assert (again.stdout.count("all there"), again.stdout.count("3 to come")) == (2, 1)
    values = json.loads((tmp_path / "out" / "tinyface.json").read_text())
    shutil.rmtree(tmp_path / "out")
    run_script(*two, *flags, check=True)
    assert json.loads((tmp_path / "out" / "tinyface.json").read_text()) == values


def test_processes_may_be_more_than_the_gpus(monkeypatch):
    class ReachedError(Exception):
        """The device was chosen."""

    def stop(config, device):
        raise ReachedError(device)

    second = nullcontext(Processes(rank=1, world_size=2, local_rank=1))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(evaluation, "started_by_torchrun", lambda: second)
    monkeypatch.setattr(evaluation, "load_network", stop)
    with pytest.raises(ReachedError, match="cuda:0"):
        evaluation.evaluate_tinyface(Config(checkpoint="x.pt", device="cuda"))


def test_lists_may_be_beside_the_images_or_elsewhere(testing_set, tmp_path):
    data = open_tinyface(Config(tinyface_dataset_path=str(testing_set)))
    assert data.probes.listed.names == ["1_3.png", "2_2.png", "3_1.png"]
    assert data.probes.listed.ids == ["1", "2", "3"]
    write_lists(tmp_path / "lists" / "Testing_Set")
    for file in (PROBE_LIST, GALLERY_LIST):
        (testing_set / file).unlink()
    with pytest.raises(DataError, match=f"has no {PROBE_LIST}.*--tinyface_file_list"):
        open_tinyface(Config(tinyface_dataset_path=str(testing_set)))
    paths = {"tinyface_file_list": str(tmp_path / "lists")}
    data = open_tinyface(Config(tinyface_dataset_path=str(testing_set), **paths))
    assert len(data.gallery.images) == 3


STRUCT = np.zeros((1, 1), [("a", "O")])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"probe_set": None}, "probe_img_ID_pairs.mat has no variable probe_set"),
        ({"probe_set": np.ones((3, 1))}, "probe_set is numbers of 3×1; expected an N×1 cell array"),
        ({"gallery_set": STRUCT}, "gallery_set is a struct of 1×1; expected an N×1 cell"),
        ({"gallery_set": cells(["1_1.jpg", 7, "x"])}, "gallery_set holds no name in cell 2"),
        ({"gallery_set": cells(MATES).reshape(1, 1, 3)}, "gallery_set is a cell array of 1×1×3"),
        ({"probe_ids": np.array([[1, 2], [3, 4]])}, "probe_ids is numbers of 2×2"),
        ({"probe_ids": np.array([[1.5], [2], [3]])}, "probe_ids is numbers of 3×1; expected N×1 w"),
        ({"probe_ids": np.array([[np.nan], [2], [3]])}, "expected N×1 whole numbers"),
        ({"probe_ids": np.array([[1], [2]])}, "probe_set has 3 names, but probe_ids has 2"),
        ({"probe_set": cells(["1_3.jpg", "2_2.jpg", "1_3.png"])}, "names the image 1_3 twice"),
        ({"probe_set": cells(["1_3.jpg", "2_2.jpg", "9_9.jpg"])}, "1 of the 3 .* suffix: 9_9.jpg"),
    ],
)
def test_lists_of_another_shape_are_refused(testing_set, changes, said):
    write_lists(testing_set, **changes)
    with pytest.raises(DataError, match=said) as error:
        open_tinyface(Config(tinyface_dataset_path=str(testing_set)))
    assert "img_ID_pairs.mat" in str(error.value)


def test_damaged_lists_and_folders_are_named(testing_set):
    config = Config(tinyface_dataset_path=str(testing_set))
    content = (testing_set / PROBE_LIST).read_bytes()
    values = {"probe_set": cells(PROBES), "probe_ids": np.array([[1], [2], [3]])}
    compressed = io.BytesIO()  # as MATLAB writes it
    scipy.io.savemat(compressed, values, do_compression=True)
    flipped = bytearray(compressed.getvalue())
    flipped[180] ^= 255
    newer = b"MATLAB 7.3 MAT-file" + content
    for damaged in (b"", b"<html>", content[:200], content[:-9], bytes(flipped), newer):
        (testing_set / PROBE_LIST).write_bytes(damaged)
        with pytest.raises(DataError, match=PROBE_LIST):
            open_tinyface(config)
    (testing_set / PROBE_LIST).write_bytes(content)
    distractors = testing_set / "Gallery_Distractor"
    shutil.copy(distractors / "d3.png", distractors / "d3.jpg")
    with pytest.raises(DataError, match="2 images of the name d3"):
        open_tinyface(config)
    (distractors / "d3.jpg").unlink()
    shutil.copy(testing_set / "Probe" / "2_2.png", distractors / "2_2.png")
    assert (
        "1 have the name of a probe; are they the same images? 2_2"
        in open_tinyface(config).distractors.listed.note
    )
    shutil.rmtree(distractors)
    with pytest.raises(DataError, match="Gallery_Distractor does not exist"):
        open_tinyface(config)


def test_an_image_that_cannot_be_read_is_one_paragraph(tiny, testing_set, tmp_path):
    (testing_set / "Probe" / "2_2.png").write_bytes(b"\x89PNG")
    flags = ["--checkpoint", tiny.checkpoint(), "--output", tmp_path / "out", "--device", "cpu"]
    flags += ["--num_workers", 0, "--tinyface_dataset_path", testing_set]
    assert_one_paragraph(run_script("TinyFace_Evaluation.py", *flags), "Probe/2_2.png")
