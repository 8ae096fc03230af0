"""Heads that come with weights: in the network's file, or in files beside it."""

import re

import pytest
import torch

from Config import Config
from tests import lineage_networks as networks
from tests.lineage_networks import Recorder
from tests.Pretrained_Utils.test_lineages import partial_fc_checkpoint, quasarlight_mobile, wujiyang
from Utils.Pretrained_Utils.heads import class_weights, find_class_weights
from Utils.Pretrained_Utils.load import read_weights
from Utils.Training_Utils.start import build_state

CPU = torch.device("cpu")
WEIGHTS = torch.arange(11 * 4.0).view(11, 4)  # C×D


@pytest.fixture(scope="module")
def mobile() -> dict:
    net = Recorder()
    quasarlight_mobile(net, torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    return net.state


def start(path, classes=11) -> tuple[torch.Tensor, str]:
    """The head's weights and its line in the log of a run that begins with a file."""
    config = Config(pretrained=str(path), input_size=(32, 32), feature_dim=128)
    state = build_state(config, classes, 1, CPU, None)
    return state.head.weight.detach(), state.start[1]


def test_the_parents_margin_beside_its_network_is_taken(mobile, tmp_path):
    head = torch.rand(11, 128)
    torch.save(mobile, tmp_path / "Iter_300_net.pth")
    torch.save({"module.weight": head}, tmp_path / "Iter_300_margin.pth")
    torch.save({"weight": torch.zeros(11, 128)}, tmp_path / "Iter_600_margin.pth")
    found, line = start(tmp_path / "Iter_300_net.pth")
    assert torch.equal(found, head)
    assert line == "head: 11×128 class weights taken from Iter_300_margin.pth"
    _, line = start(tmp_path / "Iter_300_net.pth", classes=12)
    assert line.startswith("head: new weights; Iter_300_margin.pth has weights for other classes")


def test_the_log_says_where_a_head_was_looked_for(mobile, tmp_path):
    path = tmp_path / "Iter_300_net.pth"
    torch.save(mobile, path)
    looked = "head: new weights; looked for class weights in Iter_300_net.pth and "
    assert start(path)[1] == f"{looked}Iter_300_margin.pth beside it, which is not there"
    margin = tmp_path / "Iter_300_margin.pth"
    torch.save({"weight": torch.zeros(11, 64)}, margin)
    assert "Iter_300_margin.pth holds no class weights for 128 values" in start(path)[1]
    margin.write_bytes(b"PK")
    assert "Iter_300_margin.pth can't be read" in start(path)[1]


@pytest.mark.parametrize(
    ("network", "beside", "contents"),
    [
        ("model.pt", "classifier_rank0.pt", {"net.fc.weight": torch.zeros(128, 2048)}),
        ("model.pt", "classifier_rank0.pt", {"a.weight": WEIGHTS, "b.weight": WEIGHTS}),
        ("model.pt", "classifier_rank0.pt", {"weight": WEIGHTS.int()}),
        (
            "checkpoint_gpu_0.pt",
            "checkpoint_gpu_0.pt",
            {
                "state_dict_backbone": {
                    "conv1.weight": torch.zeros(64, 3, 3, 3),
                    "fc.weight": WEIGHTS,
                }
            },
        ),
    ],
)
def test_a_file_beside_that_is_no_head_is_not_taken_for_one(network, beside, contents, tmp_path):
    torch.save(contents, tmp_path / beside)
    dimension = 128 if "net.fc.weight" in contents else 4
    found = find_class_weights(tmp_path / network, None, dimension, by_columns=False)
    assert found.weights is None
    assert f"{beside} holds no class weights for {dimension} values" in found.where


def test_a_head_that_is_cut_short_leaves_the_run_its_own(mobile, tmp_path):
    torch.save(mobile, tmp_path / "Iter_300_net.pth")
    margin = tmp_path / "Iter_300_margin.pth"
    torch.save({"weight": torch.zeros(11, 128)}, margin, _use_new_zipfile_serialization=False)
    margin.write_bytes(margin.read_bytes()[:-300])
    assert "Iter_300_margin.pth can't be read" in start(tmp_path / "Iter_300_net.pth")[1]


def test_a_head_under_its_own_key_is_taken(mobile, tmp_path):
    head = torch.rand(11, 128)
    torch.save({"backbone": mobile, "head": {"module.weight": head}}, tmp_path / "net.pt")
    assert torch.equal(start(tmp_path / "net.pt")[0], head)


def test_wrappers_are_taken_off_partial_fcs_head(tmp_path):
    net = Recorder()
    networks.iresnet(net, torch.zeros(1, 3, 32, 32, dtype=torch.float64), 18)
    contents = partial_fc_checkpoint(net.state)
    contents["state_dict_softmax_fc"] = {"module.weight": torch.ones(11, 512)}
    torch.save(contents, tmp_path / "checkpoint.pt")
    assert torch.equal(read_weights(tmp_path / "checkpoint.pt").head, torch.ones(11, 512))


@pytest.mark.parametrize(
    ("network", "heads"),
    [
        ("Iter_7_net.ckpt", {"Iter_7_margin.ckpt": wujiyang({"weight": WEIGHTS})}),
        (
            "Backbone_IR_50_Epoch_3_Batch_9_Time_2019-01-01-10-00_checkpoint.pth",
            {
                "Head_ArcFace_Epoch_3_Batch_9_Time_2019-01-01-10-00_checkpoint.pth": {
                    "weight": WEIGHTS
                }
            },
        ),
        (
            "model_2018-10-01_accuracy:0.99_step:7_None.pth",
            {"head_2018-10-01_accuracy:0.99_step:7_None.pth": {"kernel": WEIGHTS.T}},
        ),
        ("model.pt", {"classifier_rank0.pt": {"classifier.weight": WEIGHTS}}),
        (
            "model.pt",
            {
                f"classifier_rank{rank}.pt": {"partial_fc.weight": WEIGHTS[[rank]]}
                for rank in range(11)  # rank 10 comes after 9, not after 1
            },
        ),
        (
            "checkpoint_gpu_1.pt",
            {
                f"checkpoint_gpu_{rank}.pt": partial_fc_checkpoint({"conv1.weight": torch.ones(1)})
                | {"state_dict_softmax_fc": {"weight": part}}
                for rank, part in enumerate((WEIGHTS[:6], WEIGHTS[6:]))
            },
        ),
        ("run [1]_net.pth", {"run [1]_margin.pth": {"weight": WEIGHTS}}),
    ],
    ids=["wujiyang", "face.evoLVe", "TreB1eN", "CVLface", "CVLface-split", "insightface", "glob"],
)
def test_heads_are_found_by_the_names_that_each_code_gives(network, heads, tmp_path):
    for name, contents in heads.items():
        torch.save(contents, tmp_path / name)
    inside = WEIGHTS[6:] if network in heads else None
    found = find_class_weights(tmp_path / network, inside, 4, by_columns=False)
    assert found.weights is not None, found.where
    assert torch.equal(found.weights, WEIGHTS)
    assert all(name in found.where for name in heads)


def test_a_part_that_is_not_there_is_named(tmp_path):
    torch.save({"partial_fc.weight": WEIGHTS}, tmp_path / "classifier_rank1.pt")
    found = find_class_weights(tmp_path / "model.pt", None, 4, by_columns=False)
    assert found.weights is None
    assert re.search("process 0 is not there", found.where)


def test_of_two_heads_for_one_network_neither_is_taken(tmp_path):
    for name in ("ArcFace", "CosFace"):
        head = tmp_path / f"Head_{name}_Epoch_1_Batch_9_Time_2019-01-01-10-00_checkpoint.pth"
        torch.save({"weight": WEIGHTS}, head)
    network = "Backbone_IR_50_Epoch_1_Batch_9_Time_2019-01-01-09-59_checkpoint.pth"
    found = find_class_weights(tmp_path / network, None, 4, by_columns=False)
    assert found.weights is None
    assert "of which only one can belong to" in found.where


def test_a_square_head_is_turned_where_the_code_keeps_classes_in_columns():
    square = torch.arange(16.0).view(4, 4)
    assert torch.equal(class_weights({"weight": square}, 4), square)
    assert torch.equal(class_weights({"weight": square}, 4, by_columns=True), square.T)
    assert torch.equal(class_weights({"kernel": square}, 4), square.T)
