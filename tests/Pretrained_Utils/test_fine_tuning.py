"""Starting from weights: the network and head that a run begins with, held still, and resumed."""

import dataclasses
import json

import pytest
import torch

from Backbone import Preprocessing, build_backbone, describe_backbone
from Config import Config
from Config.checks import ConfigError, validate
from Head.classifier import MarginHead
from Head.methods import HeadSettings, Method
from Head.sharded import class_range
from tests import lineage_mobilefacenets as mobilefacenets
from tests.conftest import assert_one_paragraph, run_script
from tests.lineage_networks import Recorder, vit
from tests.Pretrained_Utils.test_lineages import facex_zoo, networks, wujiyang, wujiyang_mobile
from Utils.errors import CheckpointError
from Utils.Pretrained_Utils import load_backbone
from Utils.Pretrained_Utils.heads import ClassWeights
from Utils.Training_Utils.start import build_state, pretrained_settings, take_class_weights
from Utils.Training_Utils.state import set_frozen
from Utils.Training_Utils.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file of wujiyang's MobileFaceNet for 32×32 images, and its tensors."""
    net = Recorder()
    wujiyang_mobile(net, torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    path = tmp_path_factory.mktemp("published") / "net.ckpt"
    torch.save(wujiyang(net.state), path)
    return path, net.state


def flags(tiny_faces, path, save_dir, *more) -> list[str]:
    """Training on the tiny faces from a file, whose network has 128 values."""
    own = list(tiny_faces.flags)
    for name in ("--backbone", "--feature_dim", "--input_size"):
        at = own.index(name)
        del own[at : at + 2]
    return [*own, "--pretrained", str(path), "--save_dir", str(save_dir), *more]


def config_of(tiny_faces, path, save_dir, **changes) -> Config:
    config = Config(
        train_dataset="Tiny",
        train_dataset_path=str(tiny_faces.train),
        train_file_list=str(tiny_faces.train_list),
        pretrained=str(path),
        save_dir=str(save_dir),
        input_size=(32, 32),
        feature_dim=128,
        batch_size=8,
        total_epoch=3,
        milestones=(),
        num_workers=0,
        test_freq=1000,
        save_freq=2,
        log_freq=1,
        use_visdom=False,
        device="cpu",
    )
    return dataclasses.replace(config, **changes)


def test_the_run_takes_the_files_network_and_preprocessing(published, tmp_path):
    path, theirs = published
    config = Config(pretrained=str(path))
    config = dataclasses.replace(config, **pretrained_settings(config))
    assert (config.backbone, config.feature_dim, config.input_size) == (
        "MobileFaceNet",
        128,
        (32, 32),
    )
    state = build_state(config, 10, 1, CPU, None)
    assert torch.equal(state.backbone.conv2.conv.weight, theirs["conv2.conv.weight"])
    assert state.backbone.preprocessing == Preprocessing("BGR", 127.5, 127.5, (32, 32))
    assert "starting from" in state.start[0]
    assert state.start[1] == "head: new weights; looked for class weights in net.ckpt"
    with pytest.raises(CheckpointError, match=r"feature_dim 128, the settings say 64; set 128"):
        build_state(dataclasses.replace(config, feature_dim=64), 10, 1, CPU, None)


def test_how_a_vit_is_trained_is_the_settings_also_with_a_files_weights(tmp_path):
    net = Recorder()
    vit(net, torch.zeros(1, 3, 32, 32, dtype=torch.float64), width=256, depth=12)
    torch.save(net.state, tmp_path / "vit.pt")
    config = Config(pretrained=str(tmp_path / "vit.pt"), drop_path=0.22)
    config = dataclasses.replace(config, **pretrained_settings(config))
    backbone = build_state(config, 10, 1, CPU, None).backbone
    assert torch.equal(backbone.pos_embed, net.state["pos_embed"])
    assert backbone.mask_ratio == 0.1
    assert backbone.blocks[1].drop_path.probability == pytest.approx(0.02)
    assert backbone.architecture["variant"] == {"drop_path": 0.22}  # as a checkpoint keeps it


def test_the_head_is_taken_where_its_classes_fit(tmp_path):
    net = Recorder()
    mobilefacenets.treb1en_mobilefacenet(net, torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    contents = facex_zoo(net.state)
    contents["state_dict"]["head.weight"] = torch.arange(512 * 11.0).view(512, 11)
    torch.save(contents, tmp_path / "net.pt")
    config = Config(pretrained=str(tmp_path / "net.pt"), input_size=(32, 32), feature_dim=512)
    state = build_state(config, 11, 1, CPU, None)
    assert torch.equal(state.head.weight, torch.arange(512 * 11.0).view(512, 11).T)
    assert state.start[1] == "head: 11×512 class weights taken from net.pt"
    other = build_state(config, 12, 1, CPU, None)
    assert "for other classes (11×512, the training set needs 12×512)" in other.start[1]


@pytest.mark.parametrize("sub_centers", [1, 2])
def test_each_process_takes_the_rows_of_its_own_classes(sub_centers):
    weights = torch.arange(7.0 * sub_centers * 4).view(-1, 4)
    rows = []
    for rank in range(3):  # 3, 3 and 1 classes
        here = class_range(7, rank, 3)
        settings = HeadSettings(64.0, sub_centers=sub_centers)
        head = MarginHead(4, 7, Method(), settings, local_classes=here)
        note = take_class_weights(head, ClassWeights(weights, "net.pt"))
        assert note == f"head: {7 * sub_centers}×4 class weights taken from net.pt"
        rows.append(head.weight.detach())
    assert torch.equal(torch.cat(rows), weights)
    other = take_class_weights(head, ClassWeights(weights[1:], "net.pt"))
    assert f"({7 * sub_centers - 1}×4, the training set needs {7 * sub_centers}×4)" in other


def test_held_still_nothing_of_the_backbone_moves(published, tiny_faces, tmp_path):
    path, theirs = published
    config = config_of(tiny_faces, path, tmp_path, total_epoch=2, freeze_backbone_epochs=2)
    trainer = Trainer(config)
    head = trainer.state.head.weight.detach().clone()
    trainer.run()
    state = trainer.state.backbone.state_dict()
    # Weights (weight decay would shrink them), statistics, counters.
    assert torch.equal(state["conv2.conv.weight"], theirs["conv2.conv.weight"])
    for leaf in ("weight", "running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(state[f"conv2.bn.{leaf}"], theirs[f"conv2.bn.{leaf}"])
    assert not torch.equal(trainer.state.head.weight, head)


def test_let_go_it_learns(published, tiny_faces, tmp_path):
    path, theirs = published
    config = config_of(tiny_faces, path, tmp_path, total_epoch=2, freeze_backbone_epochs=1)
    trainer = Trainer(config)
    trainer.run()
    state = trainer.state.backbone.state_dict()
    assert not torch.equal(state["conv2.conv.weight"], theirs["conv2.conv.weight"])
    # 24 images in batches of 8: three batches were seen by BatchNorm, those of the second epoch.
    assert state["conv2.bn.num_batches_tracked"] == theirs["conv2.bn.num_batches_tracked"] + 3


def test_frozen_and_back_is_what_it_was():
    backbone = build_backbone("MobileFaceNet", 16, (32, 32)).train()
    set_frozen(backbone, True)
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(m.training for m in backbone.modules())
    set_frozen(backbone, False)
    assert all(p.requires_grad for p in backbone.parameters())
    assert all(m.training for m in backbone.modules())


def test_resuming_in_and_after_the_frozen_epochs_is_exact_without_the_file(
    published, tiny_faces, tmp_path
):
    path, _ = published
    copy = tmp_path / "net.ckpt"
    copy.write_bytes(path.read_bytes())
    config = config_of(tiny_faces, copy, tmp_path / "runs", freeze_backbone_epochs=1)
    whole = Trainer(config)
    whole.run()
    expected = whole.state.backbone.state_dict()
    copy.unlink()
    for iteration in (2, 3, 4):  # amid the frozen epoch, at its end, and after it
        checkpoint = whole.run_folder.checkpoints / f"iteration_{iteration:08d}.pt"
        again = Trainer(
            dataclasses.replace(config, resume=str(checkpoint), save_dir=str(tmp_path / "again"))
        )
        assert again.state.backbone.preprocessing.channel_order == "BGR"
        again.run()
        found = again.state.backbone.state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert torch.equal(again.state.head.weight, whole.state.head.weight)


def test_a_variant_trained_on_is_read_back_as_it_is(tiny_faces, tmp_path):
    net = Recorder()
    networks.adaface(net, torch.zeros(1, 3, 32, 32, dtype=torch.float64), 18, "ir")
    torch.save({f"net.{k}": v for k, v in net.state.items()}, tmp_path / "model.pt")
    config = config_of(
        tiny_faces,
        tmp_path / "model.pt",
        tmp_path / "runs",
        backbone="ResNet18_IR",
        feature_dim=512,
        total_epoch=1,
    )
    trainer = Trainer(config)
    trainer.run()
    backbone = load_backbone(trainer.run_folder.checkpoints / "last.pt")
    assert describe_backbone(backbone) == describe_backbone(trainer.state.backbone)
    assert backbone.architecture["variant"] == {"shortcut": "pool", "output_affine": False}


def test_the_script_fine_tunes(published, tiny_faces, tmp_path):
    path, _ = published
    run = run_script(
        "Train.py", *flags(tiny_faces, path, tmp_path, "--freeze_backbone_epochs", "1")
    )
    assert run.returncode == 0, run.stderr
    (folder,) = tmp_path.iterdir()
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["feature_dim"] == 128
    assert settings["input_size"] == [32, 32]
    assert "wujiyang" in (folder / "train.log").read_text()
    wrong = run_script("Train.py", *flags(tiny_faces, path, tmp_path, "--feature_dim", "64"))
    assert_one_paragraph(wrong, "has feature_dim 128, the settings say 64")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"freeze_backbone_epochs": 2}, "it needs pretrained weights"),
        ({"freeze_backbone_epochs": 99, "pretrained": "x.pt"}, "total_epoch is only"),
        ({"channel_order": "rgb"}, "did you mean 'RGB'"),
        ({"input_scale": 0.0}, "must be above 0"),
    ],
)
def test_settings_are_checked(changes, said):
    with pytest.raises(ConfigError, match=said):
        validate(Config(**changes))
