"""The evaluation scripts, as a user runs them."""

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from Backbone import build_backbone
from Config import Config
from tests.conftest import assert_one_paragraph, run_script
from Utils.Datasets_Utils import open_verification_set
from Utils.Datasets_Utils.demo.sets import STAMP, DemoSizes, ensure_demo_sets
from Utils.Datasets_Utils.images import ImageError
from Utils.Datasets_Utils.verification_set import ImageFiles
from Utils.errors import RunError
from Utils.Evaluation_Utils.embedding import embed
from Utils.Evaluation_Utils.inputs import default_output
from Utils.Evaluation_Utils.report import evaluate_checkpoint, evaluate_set
from Utils.Evaluation_Utils.verification import REPORTED_FARS, combine_flip, evaluate
from Utils.Pretrained_Utils import load_backbone


@pytest.fixture(scope="module")
def trained(tiny_faces, tmp_path_factory):
    save_dir = tmp_path_factory.mktemp("runs")
    flags = [*tiny_faces.flags, "--total_epoch", "1", "--milestones=", "--save_dir", save_dir]
    run_script("Train.py", *flags, check=True)
    return next(save_dir.glob("*/checkpoints/best.pt"))


def test_lfw_prints_what_the_library_computes_and_writes_all_of_it(trained, tiny_faces, tmp_path):
    paths = ("--lfw_dataset_path", tiny_faces.lfw, "--lfw_file_list", tiny_faces.lfw_pairs)
    flags = ("--checkpoint", trained, "--output", tmp_path / "out", "--device", "cpu")
    flags = (*paths, *flags, "--num_workers", 0)
    run = run_script("LFW_Evaluation.py", *flags, check=True, painted=True)
    values = json.loads((tmp_path / "out" / "lfw.json").read_text())
    assert (values["images"], values["pairs"], values["folds"]) == (12, 12, 2)

    # The same by hand: float64, one image at a time.
    state = torch.load(trained, weights_only=True)
    backbone = build_backbone("SmallNet", 16, (32, 32)).double().eval()
    backbone.load_state_dict(state["backbone"])
    data = open_verification_set(tiny_faces.lfw, tiny_faces.lfw_pairs)
    rows = []
    for name in data.names:
        image = cv2.imread(str(tiny_faces.lfw / f"{name}.jpg"))[..., ::-1].astype(np.float64)
        pixels = torch.from_numpy(((image - 127.5) / 127.5).transpose(2, 0, 1).copy())[None]
        with torch.no_grad():
            rows.append(torch.cat((backbone(pixels), backbone(pixels.flip(3))))[:, None])
    features, flipped = torch.cat(rows, 1).numpy()
    for protocol in ("cosine", "insightface"):
        rows = combine_flip(features, flipped, protocol)
        expected = evaluate(
            rows[data.left], rows[data.right], data.same, data.folds, protocol
        ).to_dict()
        assert values["results"][protocol]["accuracy"] == expected["accuracy"]
        assert values["results"][protocol]["auc"] == pytest.approx(expected["auc"], abs=1e-6)
        assert f"{100 * expected['accuracy']:.2f} %" in run.stdout
        assert f"{100 * expected['eer']:.2f} %" in run.stdout
    for picture in ("lfw_roc", "lfw_scores_cosine", "lfw_scores_insightface", "lfw_worst"):
        assert cv2.imread(str(tmp_path / "out" / f"{picture}.png")).size > 0


def test_flawed_and_unaligned_photos_are_said_above_the_table_and_in_the_json(
    trained, tiny_faces, tmp_path
):
    shutil.copytree(tiny_faces.lfw, tmp_path / "lfw")
    photo = min((tmp_path / "lfw").rglob("*.jpg"))
    photo.write_bytes(photo.read_bytes()[:-2])
    for other in photo.parent.parent.rglob("*_0002.jpg"):
        cv2.imwrite(str(other), cv2.resize(cv2.imread(str(other)), (250, 250)))
    paths = ("--lfw_dataset_path", tmp_path / "lfw", "--lfw_file_list", tiny_faces.lfw_pairs)
    flags = ("--checkpoint", trained, "--output", tmp_path / "out", "--device", "cpu")
    run = run_script("LFW_Evaluation.py", *paths, *flags, "--num_workers", 0, check=True)
    values = json.loads((tmp_path / "out/lfw.json").read_text())
    assert values["flaws"] == [f"{photo}: a JPEG without its end marker"]
    assert "6 of 12 images looked at do not have the size" in values["warnings"][0]
    assert "1 images were read in spite of a flaw" in values["warnings"][-1]
    words = " ".join(run.stdout.split("LFW: 12 images")[0].split())
    assert all(f"warning: {text}." in words for text in values["warnings"])


@pytest.mark.parametrize(
    ("script", "prefix", "name"),
    [("AgeDB30_Evaluation.py", "agedb", "agedb30"), ("CFPFP_Evaluation.py", "cfp", "cfpfp")],
)
def test_the_other_two_read_their_own_pairs_format(
    trained, tiny_faces, tmp_path, script, prefix, name
):
    pairs = tmp_path / "pairs.txt"
    photo = "Person_{}_{}/Person_{}_{}_000{}.jpg"
    lines = []
    for fold in range(10):
        f, i = fold % 2, fold % 3
        lines.append(f"{photo.format(f, i, f, i, 1)} {photo.format(f, i, f, i, 2)} 1\n")
        lines.append(f"{photo.format(0, i, 0, i, 1)} {photo.format(1, i, 1, i, 2)} -1\n")
    pairs.write_text("".join(lines))
    paths = (f"--{prefix}_dataset_path", tiny_faces.lfw, f"--{prefix}_file_list", pairs)
    flags = ("--checkpoint", trained, "--output", tmp_path, "--protocol", "insightface")
    run_script(script, *paths, *flags, check=True)
    values = json.loads((tmp_path / f"{name}.json").read_text())
    assert list(values["results"]) == ["insightface"]
    assert (values["pairs"], values["folds"]) == (20, 10)


# A script, for which fewer people are drawn than for a user.
FEW_PEOPLE = """
import runpy, sys
from Utils.Datasets_Utils.demo import ijb, rfw
ijb._PEOPLE, rfw._FOLDS, rfw._PEOPLE, rfw._PAIRS = 4, 10, 20, 4
sys.argv = sys.argv[1:]
if sys.argv[0] == "-m":
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_templates_small_photos_and_groups_are_evaluated_without_data(trained, tmp_path):
    """Each on the demo's set, drawn on first use."""
    sizes = DemoSizes(2, 2, 2, 4, 4, 8, people_per_fold=4, probe_people=4, distractors=12)
    demo = ensure_demo_sets(tmp_path / "demo", sizes=sizes)
    stamp = json.loads((demo.root / STAMP).read_text())
    stamp["sizes"] = asdict(DemoSizes())  # of thousands of images, which take longer
    (demo.root / STAMP).write_text(json.dumps(stamp, indent=1))
    flags = ("--checkpoint", trained, "--output", tmp_path, "--demo_dataset_path", demo.root)
    flags = (*flags, "--device", "cpu", "--num_workers", 0)
    for script, said, name in (
        (["IJB_Evaluation.py"], "IJB-C: 52 images, 16 templates, 48 pairs", "ijbc"),
        (["TinyFace_Evaluation.py"], "8 probes, gallery of 16 mates and 12 distr", "tinyface"),
        (["-m", "Utils.Evaluation_Utils"], "images, 160 pairs, 10 folds", "rfw"),
    ):
        run = run_script("-c", FEW_PEOPLE, *script, *flags, check=True)
        assert said in run.stdout
        values = json.loads((tmp_path / f"{name}.json").read_text())
        assert values["data"].startswith(str(demo.root))
    assert "note        photos aligned by their five points" in run.stdout
    assert list(values["groups"]["cosine"]["groups"]) == ["African", "Asian", "Caucasian", "Indian"]


def test_embedding_does_not_depend_on_batches_or_workers_and_keeps_the_mode():
    torch.manual_seed(0)
    backbone = build_backbone("SEResNet18_IR", 8, (32, 32)).train()
    images = list(np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), np.uint8))
    state = torch.get_rng_state()
    features, flipped = embed(backbone, images, torch.device("cpu"), batch_size=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert backbone.training
    again, _ = embed(backbone, images, torch.device("cpu"), batch_size=7, num_workers=2)
    np.testing.assert_allclose(features, again, atol=1e-4)
    mirrored, _ = embed(backbone, [i[:, ::-1] for i in images], torch.device("cpu"))
    np.testing.assert_allclose(flipped, mirrored, atol=1e-4)
    assert np.abs(features - flipped).max() > 1e-2


def test_settings_of_training_do_not_matter_in_an_evaluation(trained, tiny_faces, tmp_path):
    config = Config(
        train_dataset="CASIA_WebFace",
        milestones=(40,),
        gpus=(9,),
        use_multi_gpus=True,
        checkpoint=str(trained),
        lfw_dataset_path=str(tiny_faces.lfw),
        lfw_file_list=str(tiny_faces.lfw_pairs),
        output=str(tmp_path),
        device="cpu",
        num_workers=0,
    )
    table = evaluate_checkpoint(config, "lfw").table
    assert "12 images, 12 pairs" in table
    for far in REPORTED_FARS:
        assert f"TAR@FAR={far:g}" in table


@pytest.mark.parametrize(
    ("flags", "rate", "said"),
    [
        ("1111", "tar", "there are no mismatched pairs"),
        ("0000", "far", "there are no matched pairs"),
        ("1110", "tar", "there is only one mismatched pair"),
        ("1000", "far", "there is only one matched pair"),
    ],
)
def test_pairs_of_one_kind_have_one_rate_and_no_accuracy(
    trained, tiny_faces, tmp_path, flags, rate, said
):
    photo = "Person_0_{}/Person_0_{}_000{}.jpg"
    (tmp_path / "pairs.txt").write_text(
        "".join(
            f"{photo.format(0, 0, 1)} {photo.format(i % 3, i % 3, 2)} {flag}\n"
            for i, flag in enumerate(flags)
        )
    )
    config = Config(
        checkpoint=str(trained),
        data=str(tiny_faces.lfw),
        pairs=str(tmp_path / "pairs.txt"),
        output=str(tmp_path),
        device="cpu",
        num_workers=0,
    )
    table = evaluate_set(config).table
    assert said in table
    assert rate.upper() in table
    assert "accuracy " not in table
    found = json.loads((tmp_path / "lfw.json").read_text())
    assert said in found["notes"][0]
    # The two protocols' thresholds are those of the same cosines; their rates by hand.
    data = open_verification_set(tiny_faces.lfw, tmp_path / "pairs.txt")
    features = embed(load_backbone(trained), data.images, torch.device("cpu"), num_workers=0)
    kept = [i for i, flag in enumerate(flags) if flag == ("1" if rate == "tar" else "0")]
    both = np.concatenate(features, axis=1).astype(np.float64)
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    cosines = (both[data.left] * both[data.right]).sum(1)[kept]
    assert found["results"]["cosine"][rate] == [
        np.mean(cosines >= threshold) for threshold in (0.2, 0.3, 0.4, 0.5)
    ]
    assert found["results"]["cosine"]["pairs"] == len(kept)
    assert found["results"]["insightface"]["thresholds"] == [1.6, 1.4, 1.2, 1.0]
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder that takes no files")
def test_an_output_that_takes_no_files_is_found_before_the_work(trained, tiny_faces, monkeypatch):
    paths = {"lfw_dataset_path": str(tiny_faces.lfw), "lfw_file_list": str(tiny_faces.lfw_pairs)}
    config = Config(checkpoint=str(trained), output="/proc/self", device="cpu", **paths)
    monkeypatch.setattr("Utils.Evaluation_Utils.report.embed", None)
    with pytest.raises(RunError, match=r"/proc/self can't be .*written to.*--output"):
        evaluate_checkpoint(config, "lfw")


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "no photo.jpg").write_bytes(b"no photo")
    images = ImageFiles([str(tmp_path / "no photo.jpg")])
    backbone = build_backbone("ResNet18_IR", 8, (32, 32))
    with pytest.raises(ImageError, match=r"no photo\.jpg"):
        embed(backbone, images, torch.device("cpu"))


def test_results_go_beside_each_other_by_run_and_checkpoint(trained, tmp_path):
    assert default_output(trained).parts == ("Results", f"{trained.parts[-3]}_best")
    assert default_output(tmp_path / "net.pt").parts == ("Results", "net")


def test_mistakes_of_a_user_end_in_one_paragraph(trained, tiny_faces, tmp_path):
    paths = ["--lfw_dataset_path", tiny_faces.lfw, "--lfw_file_list", tiny_faces.lfw_pairs]
    out = ["--output", tmp_path / "out"]
    torn = tmp_path / "pairs.txt"
    torn.write_text(tiny_faces.lfw_pairs.read_text().replace("Person_1_0\t1\t2", "Person_1_0\t1"))
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in sorted(tiny_faces.lfw.glob("*/*.jpg")):
        copy = broken / name.relative_to(tiny_faces.lfw)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(name.read_bytes())
    copy.write_bytes(b"no photo")
    a_file = tmp_path / "file"
    a_file.write_text("")
    foreign = tmp_path / "foreign.pt"
    torch.save({"layer.weight": torch.zeros(2)}, foreign)
    cases = (
        ([*paths, *out], ["--checkpoint"]),
        ([*paths, *out, "--checkpoint", a_file], [str(a_file), "it is empty"]),
        ([*paths, *out, "--checkpoint", foreign], [str(foreign), "layer.weight"]),
        ([*paths[:3], torn, *out, "--checkpoint", trained], [str(torn), "line 8"]),
        (["--lfw_dataset_path", broken, *paths[2:], *out, "--checkpoint", trained], [str(copy)]),
        (
            ["--lfw_dataset_path", tmp_path, *paths[2:], *out, "--checkpoint", trained],
            ["12 of the 12 images", "are not in", "check the data set's path"],
        ),
        ([*paths[:2], *out, "--checkpoint", trained], ["pairs.txt does not exist"]),
        ([*paths, "--output", a_file / "out", "--checkpoint", trained], [str(a_file), "--output"]),
        ([*paths[2:], *out, "--checkpoint", trained], ["lfw_file_list", "lfw_dataset_path"]),
        ([*paths[:3], "/nope", *out, "--checkpoint", trained], ["the pairs file /nope"]),
    )
    for arguments, said in cases:
        assert_one_paragraph(run_script("LFW_Evaluation.py", *arguments), *said)


def test_megaface_without_a_checkpoint_asks_for_one(tiny_faces):
    photos = ("--facescrub_dataset_path", tiny_faces.lfw, "--megaface_dataset_path", tiny_faces.lfw)
    assert_one_paragraph(run_script("MegaFace_Evaluation.py", *photos), "--checkpoint")


def test_two_results_on_the_same_pairs_are_compared_and_again_without_the_network(
    trained, tiny_faces, tmp_path
):
    paths = ["--lfw_dataset_path", tiny_faces.lfw, "--lfw_file_list", tiny_faces.lfw_pairs]
    flags = [*paths, "--device", "cpu", "--num_workers", 0, "--checkpoint"]
    torch.manual_seed(0)
    other = tmp_path / "other.pt"
    state = torch.load(trained, weights_only=True)
    state["backbone"] = build_backbone("SmallNet", 16, (32, 32)).state_dict()
    torch.save(state, other)
    run_script("LFW_Evaluation.py", *flags, other, "--output", tmp_path / "b", check=True)
    asked = ("--compare", tmp_path / "b/lfw.json", "--threshold_from", tmp_path / "b/lfw.json")
    asked += ("--quality", "norm")
    here = ("--output", tmp_path / "a")
    again = ("LFW_Evaluation.py", *flags, trained, *here, *asked)
    run = run_script(*again, check=True, painted=True)
    values, before = (json.loads((tmp_path / f"{run}/lfw.json").read_text()) for run in "ab")
    found = values["comparisons"][0]["results"]["cosine"]["accuracy"]
    figures = [side["results"]["cosine"]["accuracy"] for side in (values, before)]
    assert [found["this"], found["other"]] == figures
    assert f"{100 * (figures[0] - figures[1]):+.2f}" in run.stdout
    for points in values["results"], before["results"]:
        for point in points["cosine"]["operating_points"]:
            assert f"{point['threshold'] or 0:.4f}".replace("0.0000", "none") in run.stdout
    assert values["at_thresholds"]["results"]["cosine"][0]["far_target"] == 0.1
    assert "thresholds of one network do not suit another" in " ".join(run.stdout.split())
    norms = np.linalg.norm(
        embed(
            load_backbone(trained),
            open_verification_set(tiny_faces.lfw, tiny_faces.lfw_pairs).images,
            torch.device("cpu"),
            num_workers=0,
        )[0],
        axis=1,
    )
    assert values["feature_norms"]["median"] == pytest.approx(np.median(norms), rel=1e-5)
    assert values["quality"]["results"]["cosine"]["0.01"]["shares"][:2] == [0, 0.05]
    for picture in ("det", "discard_cosine", "discard_insightface"):
        assert cv2.imread(str(tmp_path / f"a/lfw_{picture}.png")).size > 0

    again = run_script(
        "-m", "Utils.Evaluation_Utils.analysis", tmp_path / "a/lfw.json", *asked, check=True
    )
    start = run.stdout.index("Compared with")
    assert run.stdout[start : run.stdout.index("Figures and")].strip() in again.stdout
    assert json.loads((tmp_path / "a/lfw.json").read_text()) == values

    with np.load(tmp_path / "b/lfw_scores.npz") as file:
        columns = dict(file)
    columns["right"] = columns["left"]
    np.savez(tmp_path / "b/lfw_scores.npz", **columns)
    refused = run_script("LFW_Evaluation.py", *flags, trained, *here, *asked)
    assert_one_paragraph(refused, "lfw_scores.npz", "pair 1 is", "other pairs")


def test_groups_of_a_file_are_in_the_table_and_the_json(trained, tiny_faces, tmp_path):
    """The pairs of fold 0 are of one group, those of fold 1 of the other."""
    photos = sorted(tiny_faces.lfw.glob("*/*.jpg"))
    names = [str(photo.relative_to(tiny_faces.lfw)) for photo in photos]
    groups = tmp_path / "groups.txt"
    groups.write_text("".join(f"{n} {'north' if 'Person_0' in n else 'south'}\n" for n in names))
    paths = ("--lfw_dataset_path", tiny_faces.lfw, "--lfw_file_list", tiny_faces.lfw_pairs)
    flags = ("--checkpoint", trained, "--output", tmp_path, "--device", "cpu", "--num_workers", 0)
    flags = (*paths, *flags, "--groups", groups)
    run = run_script("LFW_Evaluation.py", *flags, "--group_far", 0.4, check=True)
    values = json.loads((tmp_path / "lfw.json").read_text())
    found = values["groups"]
    # By hand, from the embeddings of the library.
    data = open_verification_set(tiny_faces.lfw, tiny_faces.lfw_pairs)
    features = embed(load_backbone(trained), data.images, torch.device("cpu"), num_workers=0)
    rows = combine_flip(*features, "insightface")
    for number, name in enumerate(("north", "south")):
        own = np.flatnonzero(data.folds == number)
        sides = (rows[side] / np.linalg.norm(rows[side], axis=1)[:, None] for side in data_of(data))
        scores = -(np.subtract(*sides) ** 2).sum(1)[own]
        figures = found["insightface"]["groups"][name]
        accepted = scores >= found["insightface"]["threshold"] - 1e-9
        assert figures["fmr"] == np.mean(accepted[~data.same[own]])
        assert figures["fnmr"] == np.mean(~accepted[data.same[own]])
        folds = np.tile([0, 1, 2], 2)  # of three pairs of each kind, made anew
        alone = evaluate(
            rows[data.left[own]], rows[data.right[own]], data.same[own], folds, "insightface"
        )
        assert (figures["accuracy"], figures["folds_are_new"]) == (alone.accuracy, True)
        low, high = values["results"]["insightface"]["intervals"]["groups"][name]
        assert low <= figures["accuracy"] <= high
        assert re.search(rf"{name} .*{100 * low:.2f} to {100 * high:.2f}", run.stdout)
    assert found["insightface"]["far"] <= 0.4
    assert "FMR and FNMR at one threshold for all groups, FAR 0.4 on all pairs" in run.stdout
    # Compared with itself, group by group.
    compared = ["--compare", tmp_path / "lfw.json", "--output", tmp_path / "again"]
    again = run_script("LFW_Evaluation.py", *flags, *compared, check=True)
    assert re.search(r"insightface +accuracy of south .* \+0\.00 .* 50\.0 %", again.stdout)
    assert "The two are the same in all of these figures" in again.stdout
    # Mistakes.
    other = tmp_path / "other.txt"
    other.write_text(groups.read_text().replace("north", "west"))
    for more, said in (
        (
            [*compared, "--groups", other],
            ["lfw_scores.npz", "pair 1 is 'north' there", "'west' here"],
        ),
        (["--threshold_group", "east"], ["threshold_group is 'east'", "north, south"]),
        (["--group_far", "2"], ["group_far"]),
    ):
        assert_one_paragraph(run_script("LFW_Evaluation.py", *flags, *more), *said)
    groups.write_text(groups.read_text().split("\n", 1)[1])
    said = ("groups.txt: gives no group for 1 of the 12 images", "Person_0_0/Person_0_0_0001")
    assert_one_paragraph(run_script("LFW_Evaluation.py", *flags), *said)


def data_of(data):
    return data.left, data.right


def test_rfw_is_evaluated_in_one_run(trained, tiny_faces, tmp_path):
    root = tmp_path / "RFW"
    lines = tiny_faces.lfw_pairs.read_text().splitlines()[1:]
    for race in ("African", "Asian", "Caucasian", "Indian"):
        shutil.copytree(tiny_faces.lfw, root / "test/data" / race)
        (root / "test/txts" / race).mkdir(parents=True)
        (root / "test/txts" / race / f"{race}_pairs.txt").write_text("\n".join(lines))
    config = Config(checkpoint=str(trained), data=str(root), output=str(tmp_path), num_workers=0)
    table = evaluate_set(replace(config, threshold_group="Indian")).table
    values = json.loads((tmp_path / "RFW.json").read_text())
    groups = values["groups"]["cosine"]
    assert (values["images"], values["pairs"]) == (48, 48)
    # Four copies of one set: equal figures, no spread.
    assert len({json.dumps(group) for group in groups["groups"].values()}) == 1
    assert (groups["std"], groups["threshold_group"]) == (0, "Indian")
    assert "on group Indian" in table
    assert "6 people are in two races" in table
