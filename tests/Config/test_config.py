"""Settings: defaults, recipes, flags, and errors that name the setting."""

import dataclasses
import re
import shlex
import subprocess
import sys
from typing import Literal

import pytest
import torch

from Backbone import BACKBONES
from Backbone.preprocessing import CHANNEL_ORDERS
from Config import RECIPES, Config, ConfigError, read_config, settings_for, validate
from Config.command_line import flags_of, make_parser
from Config.fields import group, settings_of
from Config.sweep import settings_of_run
from Head import HEADS, build_head
from tests.conftest import ROOT, run_script
from Utils.Datasets_Utils.formats.blp_set import CHANNEL_ORDERS as BLP_CHANNEL_ORDERS
from Utils.devices import choose_device, find_device
from Utils.Evaluation_Utils.verification import PROTOCOLS
from Utils.Training_Utils.optimization import describe_rates, scaled_rate


def read(*argv, **kwargs):
    return read_config("test", argv=argv, **kwargs)


def test_defaults_are_the_demo():
    assert Config() == dataclasses.replace(Config(), **RECIPES["demo"].settings)
    validate(Config())


def test_published_recipes_hold_the_published_settings():
    casia = dataclasses.replace(Config(), **RECIPES["casia_webface"].settings)
    assert (casia.batch_size, casia.initial_lr, casia.total_epoch) == (256, 0.05, 36)
    assert (casia.milestones, casia.scale_size, casia.margin_size) == ((22, 31), 32.0, 0.5)
    ms1m = dataclasses.replace(Config(), **RECIPES["ms_celeb_1m"].settings)
    assert (ms1m.batch_size, ms1m.initial_lr, ms1m.total_epoch) == (256, 0.05, 25)
    assert (ms1m.milestones, ms1m.scale_size) == ((13, 21), 32.0)
    insightface = dataclasses.replace(Config(), **RECIPES["insightface_ms1mv3"].settings)
    assert scaled_rate(insightface.initial_lr, insightface) == 0.1 * insightface.batch_size / 512
    assert (insightface.schedule, insightface.total_epoch) == ("polynomial", 20)
    assert insightface.clip_norm == 5
    adaface = dataclasses.replace(Config(), **RECIPES["adaface_ms1mv2"].settings)
    assert (adaface.batch_size, adaface.initial_lr, adaface.total_epoch) == (512, 0.1, 26)
    assert (adaface.margin, adaface.milestones) == ("AdaFace", (12, 20, 24))
    assert (adaface.crop_prob, adaface.low_res_prob, adaface.jitter_prob) == (0.2, 0.2, 0.2)
    vit = dataclasses.replace(Config(), **RECIPES["insightface_wf42m_vit"].settings)
    assert (vit.optimizer, vit.initial_lr, vit.weight_decay) == ("adamw", 0.001, 0.1)
    assert vit.batch_size / 8 / vit.accumulate_steps == 256
    assert (vit.margin, vit.margin_size, vit.sample_rate) == ("CosFace", 0.4, 0.3)
    assert (vit.total_epoch, vit.warmup_epochs) == (40, 40 // 10)
    kprpe = dataclasses.replace(Config(), **RECIPES["cvlface_wf4m_vit_kprpe"].settings)
    assert (kprpe.batch_size / 7, kprpe.optimizer, kprpe.initial_lr) == (256, "sgd", 0.1)
    assert (kprpe.milestones, kprpe.total_epoch, kprpe.warmup_epochs) == ((12, 20, 24), 26, 1)
    for recipe in (insightface, adaface, kprpe):
        assert (recipe.weight_decay, recipe.feature_dim) == (5e-4, 512)
        head = build_head(recipe.margin, 2, 2, recipe.scale_size, recipe.margin_size)
        assert head.scale == 64


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_need_nothing_but_paths(recipe):
    paths = {"webface_dataset_path": "somewhere", "ms1m_dataset_path": "somewhere"}
    if RECIPES[recipe].settings["train_dataset"] in ("Own", "WebFace42M", "WebFace4M"):
        paths = {"train_dataset_path": "somewhere"}
    if recipe == "fine_tuning":
        paths["pretrained"] = "weights"
    validate(dataclasses.replace(Config(), **RECIPES[recipe].settings, **paths))
    validate(dataclasses.replace(Config(), **RECIPES[recipe].settings, **paths), cuda_devices=2)


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
    config = read("--combined_margin", "1,0.2,0.1", "--scale_size", "none")
    assert (config.combined_margin, config.scale_size) == ((1.0, 0.2, 0.1), None)


def test_explicit_flags_win_over_the_recipe_even_at_default_values():
    default = Config().batch_size
    assert RECIPES["casia_webface"].settings["batch_size"] != default
    config = read("--recipe", "casia_webface", "--batch_size", str(default))
    assert config.batch_size == default
    assert config.total_epoch == 36


def test_resume_starts_from_the_run_and_flags_win():
    changes = {"backbone": "ResNet18_IR", "total_epoch": 9, "resume": "run/last.pt"}
    saved = dataclasses.replace(Config(), **changes).to_dict()
    config = read(
        "--resume", "last", "--total_epoch", "12", saved_settings=lambda resume, save_dir: saved
    )
    assert (config.backbone, config.total_epoch, config.resume) == (
        "ResNet18_IR",
        12,
        "run/last.pt",
    )


def test_a_network_of_timm_is_refused_where_the_package_or_the_name_is_missing(monkeypatch):
    config = read("--backbone", "timm:resnet18")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "timm", None)
        with pytest.raises(ConfigError, match="make extras"):
            validate(config)
    pytest.importorskip("timm")
    validate(config)
    with pytest.raises(ConfigError, match="did you mean timm:resnet18"):
        validate(read("--backbone", "timm:resnet1800"))
    with pytest.raises(ConfigError, match=r"no network of that name; timm\.list_models\(\) names"):
        validate(read("--backbone", "timm:unknown"))


TUPLES = [s.name for s in settings_of(Config).values() if isinstance(s.default, tuple)]


@pytest.mark.parametrize("name", TUPLES)
@pytest.mark.parametrize("words", [("", "1", "2"), ("", "1,", "2"), ("=1", "2")])
def test_numbers_with_blanks_between_them_are_answered_with_the_right_way(name, words, capsys):
    first, *rest = words
    with pytest.raises(SystemExit):
        read("--seed", "2", f"--{name}{first}", *rest)
    assert f"no blanks between them: --{name} 1,2\n" in capsys.readouterr().err


def test_settings_survive_their_trip_through_plain_values():
    config = dataclasses.replace(Config(), gpus=(0, 1), margin_size=0.2)
    assert Config.from_dict({**config.to_dict(), "a_setting_of_tomorrow": 1}) == config


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"backbone": "mobilefacenets"}, "'MobileFaceNet'"),
        ({"margin": "ArcFce"}, "'ArcFace'"),
        ({"milestones": (0, 2)}, "each number must be at least 1"),
        ({"milestones": (3, 2)}, "increasing"),
        ({"batch_size": 1}, "at least 2"),
        ({"initial_lr": 0.0}, "above 0"),
        ({"initial_lr": float("nan")}, "finite"),
        ({"input_size": (112, 100)}, "multiple of 16"),
        ({"backbone": "ViT_T_KPRPE", "mask_ratio": 0.1}, "with KP-RPE sees all patches"),
        ({"mask_ratio": 0.1}, "only the ViT networks have it, and backbone is MobileFaceNet"),
        ({"use_amp": True, "amp_dtype": "fp16"}, "bf16 or auto"),
        ({"device": "cuda:1"}, "0 CUDA devices"),
        ({"device": "gpu"}, "auto, cpu, cuda"),
        ({"gpus": (0, 0)}, "different"),
        ({"train_dataset": "MyFaces"}, "train_dataset_path"),
        ({"train_dataset": "CASIA_WebFace"}, "webface_dataset_path"),
        ({"margin_size": 3.5}, "below π"),
        ({"margin": "MagFace", "margin_size": 2.0}, "MagFace's is an angle below 1.767"),
        ({"margin": "SphereFace", "margin_size": 0.3}, "at least 1; none takes the published 4"),
        ({"combined_margin": (1.0, 0.5)}, "m1,m2,m3"),
        ({"combined_margin": (1.0, 3.2, 0.0)}, "angle below π"),
        ({"combined_margin": (float("inf"), 0.3, 0.2)}, "factor above 0"),
        ({"combined_margin": (1.0, 0.3, float("inf"))}, "at least 0"),
        ({"sub_centers": 0}, "at least 1"),
        ({"label_smoothing": 0.1, "focal_gamma": 2.0}, "set one of them to 0"),
        ({"momentum": 1.0}, "below 1"),
        ({"seed": 2**63}, "at most 9223372036854775807"),
        ({"feature_dim": 999_999_999_999}, "at most 65536"),
        ({"visdom_port": 65536}, "at most 65535"),
        ({"protocol": "Cosin"}, "'cosine'? Allowed: cosine, insightface, both"),
        ({"channel_order": "GBR"}, "Allowed: RGB, BGR"),
        ({"margin": "?!"}, "is '?!': allowed: ArcFace, CosFace, Softmax"),
        ({"train_dataset_path": "faces"}, "give your set a name with --train_dataset"),
        (
            {"train_dataset": "MS_Celeb_1M", "ms1m_dataset_path": "m", "train_dataset_path": "f"},
            "ms1m_dataset_path",
        ),
        ({"lfw_file_list": "pairs.txt"}, "lfw_dataset_path, where its images are, is empty"),
        ({"cfp_file_list": "pairs.txt"}, "cfp_dataset_path"),
        ({"webface_file_list": "list.txt"}, "webface_dataset_path"),
        ({"train_file_list": "list.txt", "train_dataset": "MyFaces"}, "train_dataset_path"),
    ],
)
def test_a_bad_setting_is_named_with_what_is_allowed(changes, named):
    with pytest.raises(ConfigError) as error:
        validate(dataclasses.replace(Config(), **changes), cuda_devices=0)
    # The last name is the setting at fault; the ones before it make it one.
    assert f"setting {list(changes)[-1]} is" in str(error.value)
    assert named in str(error.value)


def test_a_list_of_your_own_images_needs_a_name_for_the_set():
    config = Config(train_file_list="list.txt")
    with pytest.raises(ConfigError, match=r"setting train_file_list .* name with --train_dataset"):
        validate(config)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"gpus": (0, 2), "device": "cuda:1"}, r"gpus .*cuda:1, which is not among them"),
        ({"gpus": (0, 4)}, r"gpus .*4 CUDA devices"),
        ({"batch_size": 7}, r"batch_size .*at least 8"),
        ({"gpus": (0, 2, 3), "batch_size": 5}, r"batch_size .*at least 6"),
        # Shares are rounded up: 3, 3, 3, 1.
        ({"batch_size": 10}, r"batch_size .*fewer than the 2 images"),
    ],
)
def test_a_batch_that_cannot_be_split_over_the_gpus_is_refused(changes, named):
    with pytest.raises(ConfigError, match=f"setting {named}"):
        validate(Config(use_multi_gpus=True, **changes), cuda_devices=4)
    # Where the work isn't shared, neither setting matters.
    single = {k: v for k, v in changes.items() if k != "gpus"}
    validate(Config(**single), cuda_devices=4)


@pytest.mark.parametrize("gpus", range(2, 9))
def test_a_batch_is_allowed_where_each_share_has_two_images(gpus):
    for batch_size in range(2, 40):
        config = Config(use_multi_gpus=True, batch_size=batch_size)
        shares = [len(share) for share in torch.empty(batch_size).chunk(gpus)]
        if min(shares) < 2 or batch_size < 2 * gpus:
            with pytest.raises(ConfigError, match="batch_size"):
                validate(config, cuda_devices=gpus)
        else:
            validate(config, cuda_devices=gpus)


def test_judging_takes_its_own_device_whatever_the_gpus_of_training():
    config = Config(device="cuda", use_multi_gpus=True, gpus=(3, 1))
    assert choose_device(config) == torch.device("cuda:3")
    assert find_device(config.device) == torch.device("cuda:0")
    assert find_device("cuda:1") == choose_device(Config(device="cuda:1")) == torch.device("cuda:1")
    assert find_device("cpu") == torch.device("cpu")


def test_judging_does_not_check_what_only_training_uses():
    training = {"train_dataset": "CASIA_WebFace", "milestones": (9,), "batch_size": 1}
    training |= {"margin": "?", "use_multi_gpus": True, "gpus": (7,), "cfp_file_list": "pairs"}
    validate(Config(**training), cuda_devices=1, only=settings_for("lfw"))
    for changes in ({"protocol": "?"}, {"device": "?"}, {"lfw_file_list": "pairs"}):
        with pytest.raises(ConfigError, match=f"setting {next(iter(changes))} is"):
            validate(Config(**training, **changes), only=settings_for("lfw"))


def test_recipes_are_for_training_only(capsys):
    with pytest.raises(SystemExit) as exit_:
        read("--recipe", "casia_webface", only=settings_for("lfw"))
    assert exit_.value.code == 2
    assert "--recipe" in capsys.readouterr().err


def test_words_that_are_a_tables_names_are_equal_to_them():
    words = {name: set(setting.words) for name, setting in settings_of(Config).items()}
    assert words["backbone"] == set(BACKBONES)
    assert words["margin"] == set(HEADS)
    assert words["protocol"] == {*PROTOCOLS, "both"}
    assert words["blp_channel_order"] == set(BLP_CHANNEL_ORDERS)
    assert words["channel_order"] == {*CHANNEL_ORDERS, ""}


@pytest.mark.parametrize(
    ("name", "word"), [(s.name, word) for s in settings_of(Config).values() for word in s.words]
)
def test_each_allowed_word_is_a_flag_and_valid(name, word):
    config = read(f"--{name}", word)
    assert getattr(config, name) == word
    validate(dataclasses.replace(config, margin_size=None), cuda_devices=1)


@pytest.mark.parametrize("recipe", RECIPES)
def test_settings_survive_their_trip_through_flags(recipe):
    config = dataclasses.replace(Config(), **RECIPES[recipe].settings)
    odd = {"save_dir": "-a b", "head_lr": 1 / 3, "fprs": (1e-7, 0.1), "seed": 2**63 - 1}
    config = dataclasses.replace(config, **odd, gpus=(1, 0))
    assert read(*flags_of(config)) == config


def test_a_new_setting_is_one_place(capsys):
    @dataclasses.dataclass(frozen=True)
    class Mine(Config):
        setting = group("Taste")
        flavour: Literal["sweet", "sour"] = setting("sweet", "taste of the run")
        spoons: int = setting(3, "how much of it", above=1, at_most=9, changes_run=False)
        del setting

    mine = settings_of(Mine)
    assert list(mine)[-2:] == ["flavour", "spoons"]
    parser = make_parser("test", [s for s in mine.values() if "training" in s.scripts])
    given = vars(parser.parse_args(["--flavour", "sour", "--spoons", "4"]))
    assert given == {"flavour": "sour", "spoons": 4}
    validate(Mine(**given))
    with pytest.raises(ConfigError, match=r"flavour is 'swet': did you mean 'sweet'\? Allowed"):
        parser.parse_args(["--flavour", "swet"])
    with pytest.raises(ConfigError, match="flavour is 'salty'"):
        validate(Mine(flavour="salty"))
    with pytest.raises(ConfigError, match="spoons is 10: it must be above 1 and at most 9"):
        validate(Mine(spoons=10))
    assert settings_of_run(Mine()) == settings_of_run(Mine(spoons=5))
    assert settings_of_run(Mine()) != settings_of_run(Mine(flavour="sour"))
    parser.print_help()
    words = " ".join(capsys.readouterr().out.split())
    assert "Taste: --flavour WORD taste of the run (one of: sweet, sour; default: sweet)" in words
    assert "--spoons N how much of it (default: 3)" in words


def test_a_milestone_after_the_end_never_comes_and_is_told():
    config = Config(total_epoch=3, milestones=(2, 3, 7))
    validate(config)
    line = describe_rates(config)
    assert "÷ 10 after epoch 2; milestones never reached, as total_epoch is 3: 3, 7" in line
    assert "never" not in describe_rates(Config(total_epoch=3, milestones=(1, 2)))
    alone = describe_rates(Config(total_epoch=1))
    assert alone == "learning rate 0.1; milestones never reached, as total_epoch is 1: 3"


def test_make_train_goes_on_with_a_run():
    command = ["make", "-n", "train", "ARGS=--resume last"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    line = next(line for line in run.stdout.splitlines() if "Train.py" in line)
    argv = shlex.split(line.partition("Train.py")[2])
    config = read(*argv, saved_settings=lambda *_: {"total_epoch": 9, "resume": "last.pt"})
    assert (config.resume, config.total_epoch) == ("last.pt", 9)


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
    run = run_script("Train.py", "--help", check=True)
    words = " ".join(run.stdout.split())
    taken = settings_for("training")
    for name, known in settings_of(Config).items():
        assert bool(re.search(rf"--{name}\b", words)) == (name in taken)
        assert name not in taken or " ".join(known.help.split()) in words
    assert words.startswith("usage: Train.py [--recipe NAME] [--SETTING VALUE ...] Train a")
    assert words.index("Training data:") < words.index("Optimisation:") < words.index("MegaFace:")


@pytest.mark.parametrize(
    ("script", "takes", "leaves"),
    [
        ("training", {"batch_size", "cfp_file_list", "ties"}, {"checkpoint", "data", "output"}),
        ("lfw", {"checkpoint", "lfw_file_list", "protocol", "device"}, {"cfp_file_list", "ties"}),
        ("any_set", {"checkpoint", "data", "pairs"}, {"agedb_dataset_path", "lfw_file_list"}),
        ("megaface", {"checkpoint", "ties", "compare"}, {"protocol", "eval_dtype", "resume"}),
        ("ijb", {"checkpoint", "ijb_norm", "aligned"}, {"protocol", "ties", "fprs"}),
    ],
)
def test_each_script_takes_its_own_settings(script, takes, leaves):
    assert takes <= settings_for(script)
    assert not leaves & settings_for(script)
