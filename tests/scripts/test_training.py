"""Training as a user runs it: the run's folder, exact resume, mistakes that end in a paragraph."""

import csv
import dataclasses
import functools
import json
import re
import shutil
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from Backbone import build_backbone
from Backbone.vit import SIZES
from examples import train_arcface
from Head import HEADS
from tests.conftest import assert_one_paragraph, run_script
from tests.processes import start_script
from Utils.Datasets_Utils.demo.sets import DemoSizes, ensure_demo_sets
from Utils.errors import CheckpointError, DataError, RunError
from Utils.Pretrained_Utils import load_backbone
from Utils.Training_Utils.trainer import Trainer

ITERATIONS = 9  # 24 images in batches of 8, 3 epochs


@pytest.fixture
def tiny_config(tiny_faces, tmp_path, unpainted):
    """The settings of `TinyFaces.flags`, for a run in this process."""
    return tiny_faces.config(tmp_path / "runs")


def only_run(save_dir: Path) -> Path:
    (run,) = Path(save_dir).iterdir()
    return run


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint: networks, momentum, random states."""
    state = torch.load(checkpoint, weights_only=True)
    tensors = {f"backbone.{k}": v for k, v in state["backbone"].items()}
    tensors |= {f"head.{k}": v for k, v in state["head"].items()}
    for index, values in state["optimizer"]["state"].items():
        tensors[f"momentum.{index}"] = values["momentum_buffer"]
    return tensors | {"flip": state["random"]["flip"], "cpu": state["random"]["cpu"]}


def assert_same_weights(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture(scope="module")
def whole_run(tiny_faces, tmp_path_factory):
    """One run of the script, left alone."""
    save_dir = tmp_path_factory.mktemp("whole")
    flags = [*tiny_faces.flags, "--save_dir", save_dir]
    out = run_script("Train.py", *flags, check=True, painted=True)
    return only_run(save_dir), out


def test_a_photo_without_its_end_marker_is_trained_on_and_named_once(tiny_faces, tmp_path):
    shutil.copytree(tiny_faces.train, tmp_path / "train")
    photo = tmp_path / "train/person 0/0.png"
    content = cv2.imencode(".jpg", cv2.imread(str(photo)))[1].tobytes()
    photo.write_bytes(content[:-2])
    shutil.copytree(tiny_faces.lfw, tmp_path / "lfw")
    tested = min((tmp_path / "lfw").rglob("*.jpg"))
    tested.write_bytes(tested.read_bytes()[:-2])
    paths = ["--train_dataset_path", tmp_path / "train", "--lfw_dataset_path", tmp_path / "lfw"]
    out = run_script("Train.py", *tiny_faces.flags, *paths, "--para_adj_mode", check=True)
    said = [line for line in out.stdout.splitlines() if "in spite of a flaw" in line]
    named = [f"of a flaw ({n} so far): {name}: a JPEG without its end marker"
             for n, name in enumerate((photo, tested), 1)]  # fmt: skip
    assert [text.partition("in spite ")[2] for text in said] == named
    assert "left out" not in out.stdout


def test_a_run_leaves_settings_log_metrics_curves_results_and_checkpoints(whole_run):
    run, out = whole_run
    assert json.loads((run / "settings.json").read_text())["batch_size"] == 8
    assert f"iteration {ITERATIONS - 1}/{ITERATIONS}" in (run / "train.log").read_text()
    names = {path.name for path in (run / "checkpoints").iterdir()}
    # Every save_freq iterations and at each epoch's end (3, 6, 9), the last one with another name.
    saved = {f"iteration_{i:08d}.pt" for i in (2, 3, 4, 6, 8, 9)}
    assert names == saved | {"last.pt", "best.pt"}
    assert cv2.imread(str(run / "curves.png")).shape[2] == 3
    results = json.loads((run / "results.json").read_text())
    assert results["iterations"] == ITERATIONS
    assert results["best"]["LFW"]["accuracy"] >= results["last"]["LFW"]
    assert "best.pt" in out.stdout
    assert f"{100 * results['best']['LFW']['accuracy']:.2f} %" in out.stdout
    assert not set(": ") & set(run.name)


def test_metrics_hold_training_figures_and_test_accuracies(whole_run):
    run, _ = whole_run
    with open(run / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    training = [row for row in rows if row["loss"]]
    assert [int(row["iteration"]) for row in training] == [2, 4, 6, 8, 9]
    assert [float(row["learning_rate"]) for row in training] == pytest.approx(
        [0.1] * 3 + [0.01] * 2
    )
    assert [int(row["iteration"]) for row in rows if row["LFW"]] == [4, 8, 9]
    assert all(0 <= float(row["LFW"]) <= 1 for row in rows if row["LFW"])


def test_a_checkpoint_gives_back_the_network_it_was_taken_from(whole_run):
    run, _ = whole_run
    path = run / "checkpoints" / "last.pt"
    backbone = load_backbone(path)
    assert not backbone.training
    assert backbone.preprocessing.input_size == (32, 32)
    saved = torch.load(path, weights_only=True)["backbone"]
    other = build_backbone("SmallNet", 16, (32, 32)).eval()
    other.load_state_dict(saved)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(backbone(x), other(x))
    with pytest.raises(CheckpointError, match="holds a SmallNet, not a ResNet18_IR"):
        load_backbone(path, "ResNet18_IR")


def test_resumed_from_an_older_checkpoint_it_ends_with_the_same_weights_in_a_new_run(
    whole_run, tmp_path
):
    run, _ = whole_run
    before = {p.name: p.stat().st_mtime_ns for p in (run / "checkpoints").iterdir()}
    start = run / "checkpoints" / "iteration_00000004.pt"  # in the middle of the second epoch
    run_script("Train.py", "--resume", start, "--save_dir", tmp_path, check=True)
    new = only_run(tmp_path)
    assert_same_weights(run / "checkpoints" / "last.pt", new / "checkpoints" / "last.pt")
    after = {p.name: p.stat().st_mtime_ns for p in (run / "checkpoints").iterdir()}
    assert after == before, "another history was written into the run"


# Train.py, which is killed when it has a checkpoint of iteration 4, the first of the second epoch.
KILLED = """
import os, signal
import Train
from Utils.errors import run_script
from Utils.Training_Utils.checkpoints.run_checkpoints import CheckpointWriter

save = CheckpointWriter.save

def killed(self, state, *more):
    save(self, state, *more)
    if state.iteration == 4:
        os.kill(os.getpid(), signal.SIGKILL)

CheckpointWriter.save = killed
run_script(Train.main)
"""


def test_killed_in_the_middle_of_an_epoch_and_resumed_it_ends_with_the_same_weights(
    whole_run, tiny_faces, tmp_path
):
    killed = run_script("-c", KILLED, *tiny_faces.flags, "--save_dir", tmp_path)
    assert killed.returncode == -signal.SIGKILL
    run = only_run(tmp_path)
    run_script("Train.py", "--resume", "last", "--save_dir", tmp_path, check=True)
    assert only_run(tmp_path) == run
    assert_same_weights(whole_run[0] / "checkpoints" / "last.pt", run / "checkpoints" / "last.pt")
    with open(run / "metrics.csv") as file:
        iterations = [int(row["iteration"]) for row in csv.DictReader(file) if row["loss"]]
    assert iterations == [2, 4, 6, 8, 9]  # none lost, none twice


@pytest.mark.parametrize(
    "network",
    [{"margin": "CurricularFace"}, {"margin": "ElasticArcFacePlus"}, {"backbone": "ViT_T"}],
)
def test_what_a_head_remembers_and_a_vit_draws_goes_on_with_a_resumed_run(
    tiny_config, network, monkeypatch
):
    monkeypatch.setitem(SIZES, "T", (32, 2, 0.1))  # width, depth, share of masked patches
    config = dataclasses.replace(tiny_config, margin_size=None, test_freq=99, **network)
    whole = Trainer(config).run().run / "checkpoints"
    resumed = dataclasses.replace(config, resume=str(whole / "iteration_00000004.pt"))
    assert_same_weights(Trainer(resumed).run().run / "checkpoints" / "last.pt", whole / "last.pt")


def test_a_finished_run_can_be_trained_on_with_other_settings(tiny_config):
    Trainer(tiny_config).run()
    changes = {"resume": "last", "total_epoch": 5, "milestones": (1, 4), "initial_lr": 0.5}
    config = dataclasses.replace(tiny_config, weight_decay=0.0, **changes)
    trainer = Trainer(config)
    assert trainer.state.optimizer.param_groups[0]["weight_decay"] == 0
    assert trainer.run().iterations == 15
    rates = dict(zip(*trainer.progress.metrics.series("learning_rate"), strict=True))
    assert rates[8] == pytest.approx(0.01)  # before: 0.1 with a milestone at 2
    assert rates[10] == pytest.approx(0.05)  # after: 0.5 with milestones at 1 and 4
    assert rates[14] == pytest.approx(0.005)


def test_para_adj_mode_writes_nothing(tiny_faces, tmp_path):
    save_dir = tmp_path / "runs"
    run = run_script(
        "Train.py", *tiny_faces.flags, "--para_adj_mode", "--save_dir", save_dir, check=True
    )
    assert "LFW" in run.stdout
    assert not save_dir.exists()


@pytest.mark.parametrize("margin", HEADS)
def test_the_loss_falls_with_every_head(tiny_config, margin):
    config = dataclasses.replace(
        tiny_config, margin=margin, para_adj_mode=True, total_epoch=6, milestones=(), test_freq=99,
        initial_lr=0.05, scale_size=16.0, margin_size=None, log_freq=1,
    )  # fmt: skip
    trainer = Trainer(config)
    trainer.run()
    _, losses = trainer.progress.metrics.series("loss")
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])


def test_bf16_trains_on_a_cpu_and_keeps_the_head_in_float32(tiny_config):
    config = dataclasses.replace(tiny_config, use_amp=True, amp_dtype="auto", total_epoch=3)
    trainer = Trainer(config)
    assert trainer.amp_dtype == torch.bfloat16
    assert not trainer.state.scaler.is_enabled()
    result = trainer.run()
    assert result.iterations == ITERATIONS
    assert all(p.dtype == torch.float32 for p in trainer.state.backbone.parameters())


def test_use_multi_gpus_without_gpus_says_so_and_trains(tiny_config):
    config = dataclasses.replace(tiny_config, use_multi_gpus=True, total_epoch=1, milestones=())
    result = Trainer(config).run()
    log = (result.run / "train.log").read_text()
    assert "use_multi_gpus is on, but there is 0 CUDA devices" in log


def test_a_corrupt_image_is_left_out_and_named_once(tiny_config, tiny_faces, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff not a photo")
    file_list = tmp_path / "list.txt"
    file_list.write_text(tiny_faces.train_list.read_text() + f"{bad}  0\n")
    config = dataclasses.replace(
        tiny_config, train_file_list=str(file_list), batch_size=5, total_epoch=3
    )
    result = Trainer(config).run()
    log = (result.run / "train.log").read_text()
    assert log.count(str(bad)) == 1
    assert result.iterations == 15


def test_only_corrupt_images_is_an_error(tiny_config, tmp_path):
    for number in range(10):
        (tmp_path / f"person {number % 2}").mkdir(exist_ok=True)
        (tmp_path / f"person {number % 2}" / f"{number}.jpg").write_bytes(b"nothing")
    config = dataclasses.replace(
        tiny_config, train_dataset_path=str(tmp_path), train_file_list="", lfw_dataset_path="",
        lfw_file_list="",
    )  # fmt: skip
    with pytest.raises(RunError, match="so they can't be replaced"):
        Trainer(config).run()


def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_checkpoints(tiny_config):
    trainer = Trainer(dataclasses.replace(tiny_config, save_freq=1, total_epoch=2, milestones=(1,)))
    step = trainer.step
    calls = iter(range(100))

    def poisoned(batch):
        if next(calls) == 4:
            with torch.no_grad():
                trainer.state.head.weight.fill_(torch.nan)
        return step(batch)

    trainer.step = poisoned
    with pytest.raises(RunError, match=r"the loss is nan by iteration 5\. The last checkpoint is"):
        trainer.run()
    checkpoints = trainer.run_folder.checkpoints
    assert sorted(p.name for p in checkpoints.glob("iteration*")) == [
        f"iteration_{i:08d}.pt" for i in range(1, 5)
    ]
    assert all(t.isfinite().all() for t in weights(checkpoints / "last.pt").values())


def test_weights_that_a_step_makes_infinite_are_not_saved_though_the_loss_was_finite(tiny_config):
    config = dataclasses.replace(tiny_config, initial_lr=1e38, save_freq=1, log_freq=1)
    with pytest.raises(RunError, match="not finite"):
        Trainer(config).run()
    (run,) = Path(config.save_dir).iterdir()
    assert not list((run / "checkpoints").iterdir())


def test_a_run_in_fp16_whose_every_step_is_skipped_ends_and_says_why(tiny_config):
    trainer = Trainer(tiny_config)
    # Without fp16 itself, which takes a CPU minutes.
    trainer.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-13)
    embed = trainer.networks.embed

    def overflowing(pixels):
        embeddings = embed(pixels)
        embeddings.register_hook(lambda gradient: gradient * torch.inf)
        return embeddings

    trainer.networks.embed = overflowing
    with pytest.raises(RunError, match=r"overflow in every step.*by iteration 2\."):
        trainer.run()


def test_a_test_photo_that_cannot_be_read_does_not_end_the_run(tiny_config, tiny_faces, tmp_path):
    broken = shutil.copytree(tiny_faces.lfw, tmp_path / "lfw")
    next(broken.glob("*/*.jpg")).write_bytes(b"no photo")
    result = Trainer(dataclasses.replace(tiny_config, lfw_dataset_path=str(broken))).run()
    assert result.last == {}
    assert (result.run / "checkpoints" / "iteration_00000009.pt").exists()
    assert "test sets not evaluated" in (result.run / "train.log").read_text()


def test_an_error_in_megaface_at_the_end_costs_no_results(tiny_config, tiny, monkeypatch):
    root = tiny.root
    config = dataclasses.replace(
        tiny_config,
        test_on_megaface=True,
        facescrub_dataset_path=str(root / "probes"),
        facescrub_file_list=str(root / "facescrub.json"),
        megaface_dataset_path=str(root / "distractors"),
        megaface_file_list=str(root / "megaface.json_10_1"),
    )
    trainer = Trainer(config)

    def fails(*_):
        raise RunError("no space left")

    monkeypatch.setattr(trainer.megaface, "evaluate", fails)
    with pytest.raises(RunError, match="no space left"):
        trainer.run()
    run = only_run(config.save_dir)
    assert json.loads((run / "results.json").read_text())["iterations"] == ITERATIONS
    assert (run / "curves.png").is_file()


def test_a_run_shorter_than_log_freq_still_shows_its_figures(tiny_config):
    trainer = Trainer(dataclasses.replace(tiny_config, log_freq=1000, para_adj_mode=True))
    result = trainer.run()
    iterations, losses = trainer.progress.metrics.series("loss")
    assert iterations == [ITERATIONS]
    assert losses[0] == pytest.approx(result.loss, abs=1e-5)


def test_resumed_at_an_epochs_end_with_other_batches_the_total_is_right(tiny_config, capsys):
    Trainer(dataclasses.replace(tiny_config, total_epoch=2, milestones=())).run()
    changes = {"resume": "last", "batch_size": 24, "log_freq": 1}
    result = Trainer(dataclasses.replace(tiny_config, **changes)).run()
    assert result.iterations == 7  # two epochs of 3 batches and one of 1
    assert "iteration 7/7" in capsys.readouterr().out


def test_ctrl_c_saves_and_says_where_to_go_on(tiny_faces, tmp_path):
    flags = [*tiny_faces.flags, "--total_epoch", "200", "--milestones=", "--save_dir", tmp_path]
    process = start_script("Train.py", *flags)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/checkpoints/last.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    done = torch.load(only_run(tmp_path) / "checkpoints/last.pt", weights_only=True)["position"]
    assert f"stopped at iteration {done['iteration']}. The last checkpoint is" in out
    assert "To continue from it: --resume last" in out
    assert "Traceback" not in out + err


def test_pairs_of_one_kind_are_found_before_training(tiny_config, tiny_faces, tmp_path):
    pairs = tmp_path / "pairs.txt"
    photos = [f"Person_0_{i}/Person_0_{i}_0001.jpg" for i in range(3)]
    pairs.write_text("".join(f"{photo} {photo} 1\n" for photo in photos * 4))
    with pytest.raises(DataError, match=r"no mismatched pairs.*--lfw_dataset_path ''"):
        Trainer(dataclasses.replace(tiny_config, lfw_file_list=str(pairs)))


def test_mistakes_of_a_user_end_in_one_paragraph(whole_run, tiny_faces, tmp_path):
    run, _ = whole_run
    last = run / "checkpoints" / "last.pt"
    middle = run / "checkpoints" / "iteration_00000004.pt"
    cut = tmp_path / "cut.pt"
    cut.write_bytes(last.read_bytes()[:5000])
    code = tmp_path / "code.pt"
    torch.save({"format": print}, code)
    other_list = tmp_path / "other.txt"
    other_list.write_text(tiny_faces.train_list.read_text().replace("  5\n", "  4\n"))
    flags, new = tiny_faces.flags, ["--save_dir", tmp_path / "runs"]
    a_file = tmp_path / "file"
    a_file.write_text("")
    cases = (
        (["--resume", last, "--backbone", "ResNet18_IR"], ["SmallNet", "ResNet18_IR"]),
        (["--resume", last, "--sub_centers", "2"], ["sub_centers 3, the settings say 2"]),
        (["--resume", last, "--train_file_list", other_list], ["6 classes", "has 5"]),
        (["--resume", last], ["end of 3 epochs", "larger --total_epoch"]),
        (["--resume", middle, "--batch_size", "4"], ["batch_size 8, now it is 4"]),
        (["--resume", cut], [str(cut), "truncated"]),
        (["--resume", code], [str(code), "needs code"]),
        (["--resume", tmp_path / "none.pt"], ["none.pt", "not a file"]),
        (["--resume", "last", "--save_dir", tmp_path / "x"], ["no run", "has a checkpoint"]),
        ([*flags, "--save_dir", a_file / "runs"], [str(a_file), "is a file"]),
        ([*flags, *new, "--batch_size", "100"], ["batch_size is 100", "24 images"]),
        ([*flags, *new, "--backbone", "MobilFaceNet"], ["did you mean 'MobileFaceNet'"]),
        ([*flags, *new, "--lfw_file_list", a_file], [str(a_file)]),
    )
    for arguments, said in cases:
        assert_one_paragraph(run_script("Train.py", *arguments), *said)
    assert not (tmp_path / "runs").exists()


def test_the_example_trains_and_evaluates(tmp_path, monkeypatch, capsys):
    sizes = DemoSizes(3, 4, 2, 4, 4, 8, people_per_fold=4, probe_people=2, distractors=2)
    demo = ensure_demo_sets(tmp_path / "demo", sizes=sizes)
    monkeypatch.setattr(train_arcface, "ensure_demo_sets", lambda root: demo)
    monkeypatch.setattr(train_arcface, "EPOCHS", 6)
    short = functools.partial(build_backbone, repeats=(1, 0, 0, 0))
    monkeypatch.setattr(train_arcface, "build_backbone", short)
    monkeypatch.setattr(train_arcface, "BATCH_SIZE", 8)
    train_arcface.main()
    *losses, accuracy = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[-1]) for line in losses]
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 1
    assert re.fullmatch(r"LFW: \d+\.\d\d% ± \d+\.\d\d% of 8 pairs", accuracy)
