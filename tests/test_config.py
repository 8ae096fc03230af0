"""Settings: defaults, recipes, flags, and errors that name the setting."""

import dataclasses
import subprocess
import sys

import pytest

from Config import RECIPES, Config, ConfigError, read_config, validate
from tests.conftest import ROOT
from Train import JUDGING_ONLY


def read(*argv, **kwargs):
    return read_config("test", argv=argv, **kwargs)


def test_defaults_are_the_demo():
    assert Config() == dataclasses.replace(Config(), **RECIPES["demo"])
    validate(Config())


def test_published_recipes_hold_the_published_settings():
    casia = dataclasses.replace(Config(), **RECIPES["casia_webface"])
    assert (casia.batch_size, casia.initial_lr, casia.total_epoch) == (256, 0.05, 36)
    assert (casia.milestones, casia.scale_size, casia.margin_size) == ((22, 31), 32.0, 0.5)
    ms1m = dataclasses.replace(Config(), **RECIPES["ms_celeb_1m"])
    assert (ms1m.batch_size, ms1m.initial_lr, ms1m.total_epoch) == (256, 0.05, 25)
    assert (ms1m.milestones, ms1m.scale_size) == ((13, 21), 32.0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_need_nothing_but_paths(recipe):
    paths = {"webface_dataset_path": "somewhere", "ms1m_dataset_path": "somewhere"}
    validate(dataclasses.replace(Config(), **RECIPES[recipe], **paths))
    validate(dataclasses.replace(Config(), **RECIPES[recipe], **paths), cuda_devices=2)


def test_every_setting_is_a_flag_of_its_own_name():
    config = read(
        *("--backbone", "ResNet18_IR", "--batch_size", "64", "--initial_lr", "0.01"),
        *("--milestones", "1,2", "--gpus", "1,0", "--use_amp", "--no-use_visdom"),
        *("--margin_size", "0.4"),
    )
    assert (config.backbone, config.batch_size, config.initial_lr) == ("ResNet18_IR", 64, 0.01)
    assert (config.milestones, config.gpus, config.margin_size) == ((1, 2), (1, 0), 0.4)
    assert config.use_amp is True
    assert config.use_visdom is False
    assert read("--milestones", "", "--margin_size", "none").milestones == ()


def test_explicit_flags_win_over_the_recipe_even_at_default_values():
    default = Config().batch_size
    assert RECIPES["casia_webface"]["batch_size"] != default
    config = read("--recipe", "casia_webface", "--batch_size", str(default))
    assert config.batch_size == default
    assert config.total_epoch == 36


def test_resume_starts_from_the_run_and_flags_win():
    saved = dataclasses.replace(Config(), backbone="ResNet18_IR", total_epoch=9).to_dict()
    config = read(
        "--resume", "last", "--total_epoch", "12", saved_settings=lambda resume, save_dir: saved
    )
    assert (config.backbone, config.total_epoch, config.resume) == ("ResNet18_IR", 12, "last")


def test_settings_survive_their_trip_through_plain_values():
    config = dataclasses.replace(Config(), gpus=(0, 1), margin_size=0.2)
    assert Config.from_dict({**config.to_dict(), "a_setting_of_tomorrow": 1}) == config


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"backbone": "mobilefacenets"}, "'MobileFaceNet'"),
        ({"margin": "ArcFce"}, "'ArcFace'"),
        ({"milestones": (2, 4)}, "total_epoch is 4"),
        ({"milestones": (3, 2)}, "increasing"),
        ({"batch_size": 1}, "at least 2"),
        ({"initial_lr": 0.0}, "above 0"),
        ({"initial_lr": float("nan")}, "finite"),
        ({"input_size": (112, 100)}, "multiple of 16"),
        ({"use_amp": True, "amp_dtype": "fp16"}, "bf16 or auto"),
        ({"device": "cuda:1"}, "0 CUDA devices"),
        ({"device": "gpu"}, "auto, cpu, cuda"),
        ({"gpus": (0, 0)}, "different"),
        ({"train_dataset": "MyFaces"}, "train_dataset_path"),
        ({"train_dataset": "CASIA_WebFace"}, "webface_dataset_path"),
        ({"margin_size": 3.5}, "below π"),
        ({"momentum": 1.0}, "below 1"),
    ],
)
def test_a_bad_setting_is_named_with_what_is_allowed(changes, named):
    with pytest.raises(ConfigError) as error:
        validate(dataclasses.replace(Config(), **changes), cuda_devices=0)
    # The last name is the setting at fault; the ones before it make it one.
    assert f"setting {list(changes)[-1]} is" in str(error.value)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--batchsize", "3"], "--batch_size"),
        (["--use_amp", "False"], "--no-use_amp"),
        (["--milestones", "2,x"], "22,31"),
        (["--recipe", "casia"], "casia_webface"),
    ],
)
def test_a_flag_that_cannot_be_read_says_what_would_be(argv, said, capsys):
    with pytest.raises(SystemExit) as exit_:
        read(*argv)
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err


def test_help_of_the_script_shows_each_setting_with_its_text():
    run = subprocess.run(
        [sys.executable, "Train.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    words = " ".join(run.stdout.split())
    for field in dataclasses.fields(Config):
        if field.name not in JUDGING_ONLY:
            assert f"--{field.name}" in words
            assert " ".join(field.metadata["help"].split()) in words
