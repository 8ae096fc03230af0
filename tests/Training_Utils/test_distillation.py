"""A teacher: the loss by its formula, the table of its embeddings, exact resume, mistakes."""

import dataclasses

import pytest
import torch

from Backbone import build_backbone, describe_backbone
from tests.scripts.test_training import assert_same_weights, only_run, tiny_config  # noqa: F401
from Utils.Pretrained_Utils.files import Description, write_backbone
from Utils.Training_Utils.trainer import Trainer


@pytest.fixture
def config(tiny_config, tmp_path):  # noqa: F811
    torch.manual_seed(1)
    teacher = build_backbone("MobileFaceNet", 24, (48, 48))
    path = tmp_path / "teacher.pt"
    write_backbone(path, teacher.state_dict(), Description(describe_backbone(teacher), "a test"))
    return dataclasses.replace(tiny_config, teacher=str(path))


def test_smoke(config):
    trainer = Trainer(config)
    result = trainer.run()
    print((result.run / "train.log").read_text())
    print((result.run / "metrics.csv").read_text())
    again = dataclasses.replace(config, jitter_prob=0.1)
    print((Trainer(again).run().run / "train.log").read_text())
