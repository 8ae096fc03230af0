"""MegaFace from photos to figures as a user runs it, and the files that it reads and writes."""

from __future__ import annotations

import json
import signal
import struct
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from Backbone import build_backbone
from tests.processes import run_script, start_script
from tests.tiny_megaface import (
    DISTRACTORS,
    PEOPLE,
    PHOTOS,
    error_of,
    features_of,
    megaface,
    results_of,
    table_of,
)
from Utils.Datasets_Utils.photos import (
    PhotoList,
    join_lists,
    noisy_distractors,
    noisy_probes,
    read_noise_list,
    read_photo_list,
)
from Utils.errors import CheckpointError, DataError
from Utils.Evaluation_Utils.embedding import embed
from Utils.Evaluation_Utils.features import FeatureFolder, packed_features
from Utils.Evaluation_Utils.identification import evaluate
from Utils.Evaluation_Utils.megaface.devkit import read_devkit_file, write_devkit_file
from Utils.Evaluation_Utils.megaface.noise import CLEANED, RAW, make_trials
from Utils.Pretrained_Utils import load_backbone
from Utils.Pretrained_Utils.load import weights_digest


@pytest.fixture(scope="session")
def first_run(tiny, tmp_path_factory) -> tuple[Path, str]:
    """The output folder of a run with the default settings, and what it printed."""
    folder = tmp_path_factory.mktemp("first")
    done = megaface(*tiny.flags("--output", folder), painted=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


# --- the script ---------------------------------------------------------------------------------


def test_figures_are_those_of_the_extracted_features(tiny, first_run):
    folder, printed = first_run
    probes, distractors = table_of(folder, "probes"), table_of(folder, "distractors")
    assert probes.shape == (len(PEOPLE) * PHOTOS, 16)
    assert np.allclose(np.linalg.norm(distractors, axis=1), 1, atol=1e-6)
    ids = np.repeat(PEOPLE, PHOTOS)
    values = json.loads((folder / "megaface.json").read_text())
    assert values["weights"] == weights_digest(load_backbone(tiny.checkpoint()))
    found = results_of(folder)
    assert [r["distractors"] for r in found] == [10, 100, DISTRACTORS]
    for result in found:
        expected = evaluate(probes, ids, distractors[: result["distractors"]], fprs=(1e-2, 1e-3))
        assert result["rank1"] == expected.rank1
        point = expected.verification["all"].points[1]
        assert result["verification"]["all"]["points"][1]["tpr"] == point.tar
        assert result["verification"]["all"]["positives"] == len(PEOPLE) * 6
        assert f"{result['distractors']:>11,}  as listed" in printed
        assert f"{100 * expected.rank1:.2f} %" in printed
    names = {"megaface_cmc.png", "megaface_roc.png", "megaface_rank1.png", "megaface_worst.png"}
    for name in names:
        assert cv2.imread(str(folder / name)) is not None


def test_features_are_the_sum_of_photo_and_mirror_image(tiny, first_run):
    folder, _ = first_run
    state = torch.load(tiny.checkpoint(), weights_only=True)
    backbone = build_backbone("SmallNet", 16, (32, 32))
    backbone.load_state_dict(state["backbone"])
    backbone.eval()
    listed = json.loads((tiny.root / "facescrub.json").read_text())["path"]
    for row in (0, 9, 19):
        image = cv2.imread(str(tiny.root / "probes" / listed[row]))[..., ::-1].copy()
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float().sub(127.5).div(127.5)
        with torch.no_grad():
            total = (backbone(pixels) + backbone(pixels.flip(3)))[0].numpy()
        expected = total / np.linalg.norm(total)
        assert np.allclose(table_of(folder, "probes")[row], expected, atol=1e-5)


def test_embeddings_do_not_depend_on_the_number_of_threads():
    torch.manual_seed(0)
    backbone = build_backbone("SmallNet", 32, (64, 64))
    images = list(np.random.default_rng(0).integers(0, 256, (10, 64, 64, 3), dtype=np.uint8))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(np.concatenate(embed(backbone, images, torch.device("cpu"), 4)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_a_repeated_run_extracts_nothing_and_a_changed_one_beside_it(tiny, tmp_path, run_megaface):
    flags = ("--output", tmp_path, "--feature_dtype", "fp16", "--feature_flip", "none")
    assert "distractors-" in run_megaface(*tiny.flags(*flags)).partition(": 700 to come")[0]
    file = features_of(tmp_path, "distractors") / "features.npy"
    before, written = results_of(tmp_path), file.stat().st_mtime_ns
    assert table_of(tmp_path, "distractors").dtype == np.float16

    assert "700 to come" in run_megaface(*tiny.flags(*flags, checkpoint=1))
    assert results_of(tmp_path) != before

    names = json.loads((tiny.root / f"megaface.json_{DISTRACTORS}_1").read_text())["path"]
    (tmp_path / "shorter.json").write_text(json.dumps({"path": names[:50]}))
    said = run_megaface(*tiny.flags(*flags, "--megaface_file_list", tmp_path / "shorter.json"))
    assert "50 to come" in said
    assert said.count("all there") == 1, "the probes are the same"
    assert [r["distractors"] for r in results_of(tmp_path)] == [50]

    assert run_megaface(*tiny.flags(*flags)).count("all there") == 2
    assert file.stat().st_mtime_ns == written
    assert results_of(tmp_path) == before


def test_features_of_something_else_are_not_written_over(tmp_path):
    photos, about = PhotoList(["a"], None, "a list"), {"dim": 4, "dtype": "fp32", "network": "x"}
    packed_features(tmp_path, photos, about, lambda lots: [np.ones((1, 4), np.float32)])
    with pytest.raises(DataError, match="another value of `network`"):
        packed_features(tmp_path, photos, {**about, "network": "y"}, lambda lots: [])
    assert FeatureFolder(tmp_path).open().table.tolist() == [[1] * 4]


def test_killed_in_the_middle_of_extraction_it_goes_on(tiny, first_run, tmp_path):
    running = start_script("MegaFace_Evaluation.py", *tiny.flags("--output", tmp_path))
    deadline = time.monotonic() + 60

    def begun() -> bool:
        found = tmp_path.glob("features/distractors-*/done.bin")
        return any(1 in done.read_bytes() for done in found)

    while not begun() and time.monotonic() < deadline:
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.wait()
    done = features_of(tmp_path, "distractors") / "done.bin"
    assert 0 < sum(done.read_bytes()) < len(done.read_bytes()), "not killed in the middle"

    finished = megaface(*tiny.flags("--output", tmp_path))
    assert "256 of 700 are there, going on" in finished.stdout or "512 of 700" in finished.stdout
    folder, _ = first_run
    for name in ("probes", "distractors"):
        assert np.array_equal(table_of(tmp_path, name), table_of(folder, name))
    assert results_of(tmp_path) == results_of(folder)


def test_two_processes_give_the_same_to_the_last_digit(tiny, first_run, tmp_path):
    done = megaface(*tiny.flags("--output", tmp_path), processes=2)
    assert done.returncode == 0, done.stderr
    folder, _ = first_run
    assert np.array_equal(table_of(tmp_path, "distractors"), table_of(folder, "distractors"))
    assert results_of(tmp_path) == results_of(folder)
    assert done.stdout.count("MegaFace: 20 probes of 5 people, 60 searches") == 1


def test_the_devkits_files_carry_the_features_over(tiny, first_run, tmp_path, run_megaface):
    folder, _ = first_run
    export = tmp_path / "export"
    flags = ("--export_devkit", export, "--devkit_suffix", "_mine.bin")
    run_megaface(*tiny.flags("--output", folder, *flags))
    features = table_of(folder, "probes")
    name = "facescrub/J.K._Simmons/J.K._Simmons_24002.png_mine.bin"
    assert np.allclose(read_devkit_file(export / name), features[2], atol=1e-7)
    run_megaface(
        *tiny.flags(*flags[2:], "--output", tmp_path / "out", checkpoint=None),
        *("--probe_features", export / "facescrub"),
        *("--distractor_features", export / "megaface"),
        *("--compare", folder / "megaface.json"),
    )
    ours, theirs = results_of(folder), results_of(tmp_path / "out")
    assert [r["rank1"] for r in ours] == [r["rank1"] for r in theirs]
    # And a table of ours in place of photos, without them.
    run_megaface(
        *("--probe_features", features_of(folder, "probes"), "--fprs", "1e-2,1e-3"),
        *("--distractor_features", features_of(folder, "distractors")),
        *("--distractor_sizes", "10,100", "--output", tmp_path / "ready", "--device", "cpu"),
    )
    assert results_of(tmp_path / "ready") == ours
    assert not (tmp_path / "ready" / "features").exists()


def test_both_figures_with_noise_lists(tiny, first_run, tmp_path, run_megaface):
    folder, _ = first_run
    (tmp_path / "probes.txt").write_text("# noisy\nJ.K._Simmons_24001.jpg\nOtto_24001\n")
    (tmp_path / "distractors.txt").write_text("# a/b/name\n000/00000/3@N00_3_0.jpg\n")
    noise = (
        *("--probe_noise", tmp_path / "probes.txt"),
        *("--distractor_noise", tmp_path / "distractors.txt"),
    )
    printed = run_megaface(*tiny.flags("--output", folder, *noise))
    assert "2 noisy probes and 1 noisy distractors left out" in printed
    found = {(r["distractors"], r["photos"]): r for r in results_of(folder)}
    keep = np.delete(np.arange(20), [1, 9])
    ids = np.repeat(PEOPLE, PHOTOS)[keep]
    probes, distractors = table_of(folder, "probes")[keep], table_of(folder, "distractors")
    expected = evaluate(probes, ids, np.delete(distractors, 3, axis=0), fprs=(1e-2, 1e-3))
    cleaned = found[DISTRACTORS - 1, "cleaned"]
    assert cleaned["rank1"] == expected.rank1
    assert cleaned["searches"] == 3 * 12 + 2 * 6
    assert (DISTRACTORS, "as listed") in found

    lifted = run_megaface(*tiny.flags("--output", folder, *noise, "--noise", "insightface"))
    assert "treated as insightface does" in lifted
    cleaned = results_of(folder)[-1]
    assert (cleaned["photos"], cleaned["distractors"]) == ("cleaned", DISTRACTORS)
    assert cleaned["searches"] == 60


def test_folders_without_lists(tiny, tmp_path, run_megaface):
    run_megaface(
        *("--checkpoint", tiny.checkpoint(), "--output", tmp_path, "--device", "cpu"),
        *("--facescrub_dataset_path", tiny.root / "probes", "--num_workers", 0),
        *("--megaface_dataset_path", tiny.root / "distractors", "--distractor_sizes", "5,50"),
    )
    found = results_of(tmp_path)
    assert [r["distractors"] for r in found] == [5, 50, DISTRACTORS]
    # The photo without an extension can't be told from other files here.
    assert (found[0]["probes"], found[0]["identities"]) == (19, 5)


def test_training_ends_with_megaface(tiny, tmp_path):
    command = ["Train.py", "--train_dataset", "Mine"]
    command += ["--train_dataset_path", tiny.root / "probes", "--total_epoch", 1]
    command += ["--milestones=", "--batch_size", 8, "--input_size", "32,32", "--no-use_visdom"]
    command += ["--feature_dim", 16, "--save_dir", tmp_path, "--num_workers", 0, "--device", "cpu"]
    named = [w for w in tiny.flags(checkpoint=None) if w not in ("--device", "cpu")][:8]
    command += ["--test_on_megaface", *named]
    run_script(*command, check=True)
    (figures,) = tmp_path.glob("*/megaface/megaface.json")
    rank1 = json.loads(figures.read_text())["results"][-1]["rank1"]
    (log,) = tmp_path.glob("*/train.log")
    line = next(line for line in log.read_text().splitlines() if "700  as listed" in line)
    assert f"{100 * rank1:.2f} %" in line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--megaface_file_list", "nowhere.json_10_1"), "nowhere.json_10_1"),
        (("--facescrub_file_list", "README.md"), "README.md"),
        (("--noise", "dropp"), "did you mean 'drop'"),
        (("--compare", "pyproject.toml"), "pyproject.toml"),
        (("--distractor_sizes", "5000"), "5,000 distractors"),
    ],
)
def test_mistakes_are_errors_that_name_them(tiny, tmp_path, run_megaface, flags, said):
    with pytest.raises(ValueError, match=said):
        run_megaface(*tiny.flags("--output", tmp_path, *flags))


def test_a_list_with_a_missing_photo_is_told_in_a_paragraph(tiny, tmp_path):
    listed = {"path": ["Ada/Ada_24000.png", "Ada/gone.png"], "id": ["Ada", "Ada"]}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    done = megaface(*tiny.flags("--facescrub_file_list", tmp_path / "list.json"))
    said = error_of(done)
    assert "Ada/gone.png" in said
    assert "list.json" in said


def test_nothing_to_judge(tiny, tmp_path, run_megaface):
    with pytest.raises(CheckpointError, match="give --checkpoint"):
        run_megaface(*tiny.flags("--output", tmp_path, checkpoint=None))


# --- files --------------------------------------------------------------------------------------


def test_devkit_file_byte_for_byte(tmp_path):
    path = tmp_path / "Ada_1.png_mine.bin"
    feature = np.array([1.0, -2.5, 3e-8, np.pi], np.float32)
    write_devkit_file(path, feature)
    # rows, columns, bytes a row, OpenCV's CV_32F; then float32, all little-endian.
    assert path.read_bytes()[:16] == bytes.fromhex("04000000 01000000 04000000 05000000")
    assert path.read_bytes()[16:] == struct.pack("<4f", *feature)
    assert read_devkit_file(path).tobytes() == feature.tobytes()


def test_devkit_file_of_one_row_or_with_gaps_between_rows(tmp_path):
    path = tmp_path / "a.feat"
    path.write_bytes(struct.pack("<4i3f", 1, 3, 12, 5, 1, 2, 3))
    assert read_devkit_file(path).tolist() == [1, 2, 3]
    path.write_bytes(struct.pack("<4i4f", 2, 1, 8, 5, 1, -9, 2, -9))
    assert read_devkit_file(path).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\0" * 15, "its header has 16"),
        (struct.pack("<4i", 1, 1, 8, 6) + b"\0" * 8, "type 6"),
        (struct.pack("<4i", 4, 1, 4, 5) + b"\0" * 12, "12 bytes after its header"),
        (struct.pack("<4i", 4, 2, 4, 5) + b"\0" * 16, "can't be"),
        (struct.pack("<4i", -4, 1, 4, 5), "can't be"),
    ],
)
def test_broken_devkit_files(tmp_path, content, said):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_devkit_file(tmp_path / "a.bin")


def test_features_that_are_not_numbers_are_refused(tmp_path):
    photos = PhotoList(["a", "b", "c"], None, "a list")
    features = np.ones((3, 4), np.float32)
    features[1, 2] = np.nan
    about = {"dim": 4, "dtype": "fp32"}
    with pytest.raises(DataError, match="row 1"):
        packed_features(tmp_path / "f", photos, about, lambda lots: [features])


def test_features_left_half_done_can_not_be_used(tmp_path):
    photos = PhotoList([str(n) for n in range(300)], None, "a list")
    about = {"dim": 4, "dtype": "fp32"}

    def dies(lots):
        yield np.ones((256, 4), np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed_features(tmp_path, photos, about, dies)
    with pytest.raises(DataError, match="not all there"):
        FeatureFolder(tmp_path).open()
    asked = []

    def finishes(lots):
        asked.extend(lots)
        yield np.full((44, 4), 2, np.float32)

    table = packed_features(tmp_path, photos, about, finishes).table
    assert asked == [range(256, 300)]
    assert table.sum(axis=0).tolist() == [256 + 88] * 4


def test_the_real_probe_list(shared_data):
    listed = read_photo_list(shared_data / "megaface" / "facescrub_features_list.json", True)
    ids, sizes = np.unique(listed.ids, return_counts=True)
    assert (len(listed.names), len(ids)) == (3530, 80)
    assert np.sum(sizes * (sizes - 1)) == 153_634
    noisy = noisy_probes(listed, frozenset({"J.K._Simmons_24753.jpg"}))
    assert [listed.names[i] for i in np.flatnonzero(noisy)] == [
        "J.K._Simmons/J.K._Simmons_24753.png"
    ]
    rng = np.random.default_rng(0)
    probes = rng.normal(size=(3530, 8)).astype(np.float32)
    result = evaluate(probes, listed.ids, rng.normal(size=(50, 8)).astype(np.float32))
    assert result.searches == 153_634
    assert result.verification["devkit"].positives == 76_817
    assert result.verification["devkit"].negatives == 100 * 50
    assert result.alone == 0


def test_noise_lists(tmp_path):
    path = tmp_path / "noise.txt"
    path.write_text("\ufeff # columns\r\nFaceScrub name\t1/2/a b.c.jpg\n\n3/4/no_extension\n#x\n")
    noise = read_noise_list(path)
    assert noise == {"1/2/a b.c.jpg", "3/4/no_extension"}
    names = ["1/2/a b.c.jpg", "2/a b.c.jpg", "3/4/no_extension", "x/3/4/no_extension", "a b.c.jpg"]
    found = noisy_distractors(PhotoList(names, None, ""), noise)
    assert found.tolist() == [True, False, True, True, False]
    names = ["P/J.K._S_1.png", "P/J.K._S_2.png", "P/J.png", "P/plain", "P/plain.gif"]
    found = noisy_probes(PhotoList(names, None, ""), frozenset({"J.K._S_1", "plain.jpg"}))
    assert found.tolist() == [True, False, False, True, True]
    path.write_text("")
    assert read_noise_list(path) == frozenset()
    assert not noisy_probes(PhotoList(names, None, ""), frozenset()).any()
    assert not noisy_distractors(PhotoList(names, None, ""), frozenset()).any()


def test_sets_that_overlap_are_joined(tmp_path):
    lists = [
        PhotoList(["a", "b", "c"], None, "list_3_1"),
        PhotoList(["c", "d"], None, "list_2_1"),
        PhotoList(["b", "a"], None, "list_2_2"),
    ]
    sets = join_lists(lists, sizes=(1,))
    assert list(sets.photos.names) == ["a", "b", "c", "d"]
    assert {label: rows.tolist() for label, rows in sets.rows.items()} == {
        "1": [0],
        "2": [2, 3],
        "2 (list_2_2)": [0, 1],
        "3": [0, 1, 2],
    }


def test_sets_of_one_size_and_file_name_have_labels_of_their_own(tmp_path):
    lists = [PhotoList([f"{k}1", f"{k}2"], None, str(tmp_path / k / "list_2_1")) for k in "abc"]
    assert [rows.tolist() for rows in join_lists(lists).rows.values()] == [[0, 1], [4, 5], [2, 3]]
    assert list(join_lists(lists, sizes=(2,)).rows) == [
        "2",
        f"2 ({tmp_path / 'b' / 'list_2_1'})",
        f"2 ({tmp_path / 'c' / 'list_2_1'})",
        "2 (list_2_1)",
    ]


def test_insightface_noise_by_hand():
    probes = np.array([[2, 0], [0, 3], [-1, 0], [1, 1], [1, -1]], np.float32)
    ids = np.array(["a", "a", "a", "b", "c"])
    noisy = np.array([False, False, True, False, True])
    sets = {"3": np.arange(3)}
    bad = np.array([False, True, False])
    trials = make_trials(probes, ids, sets, noisy, bad, "insightface")
    cleaned = trials.trials["3", CLEANED]
    # Person c has no clean photo, so no centre; a's third photo becomes (1,0) + (0,1), normalised.
    assert cleaned.probes.tolist() == [0, 1, 5, 3]
    assert np.allclose(trials.probes[5], [np.sqrt(0.5)] * 2)
    assert (trials.ids[5], trials.origin[5]) == ("a", 2)
    assert (cleaned.distractors.tolist(), cleaned.far, cleaned.gallery) == ([0, 2], 1, 3)
    dropped = make_trials(probes, ids, sets, noisy, bad, "drop").trials
    assert dropped["3", CLEANED].probes.tolist() == [0, 1, 3]
    assert dropped["3", CLEANED].gallery == 2
    assert dropped["3", RAW].gallery == 3
