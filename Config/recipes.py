"""Named sets of settings. `--recipe NAME` starts from one; other flags override it.

casia_webface and ms_celeb_1m have the values of the lineage (its README, "Training
hyperparameters"), the others those that their authors publish with their code. Recipes name no
paths: give those of your data as flags.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """about: in one line. source: who published it. settings: by name; the others are Config's."""

    about: str
    source: str
    settings: dict[str, Any]


# The settings that all long runs on large GPUs have in common.
LONG_RUN: dict[str, Any] = {
    "use_amp": True,
    "use_multi_gpus": True,
    "num_workers": 8,
    "log_freq": 100,
    "test_freq": 1000,
    "save_freq": 3000,
    "momentum": 0.9,
    "weight_decay": 5e-4,
}

LINEAGE: dict[str, Any] = {
    **LONG_RUN,
    "batch_size": 256,
    "initial_lr": 0.05,
    "margin": "ArcFace",
    "margin_size": 0.5,
    "scale_size": 32.0,
}

RECIPES: dict[str, Recipe] = {
    # Small enough for two CPU cores: a few minutes from nothing to a table of results.
    "demo": Recipe(
        "MobileFaceNet on the demo's faces, four epochs: minutes on two CPU cores",
        "this project",
        {
            "train_dataset": "Demo",
            "backbone": "MobileFaceNet",
            "feature_dim": 128,
            "margin": "ArcFace",
            # Smaller than published: with s 32 and m 0.5, 500 iterations are too few to learn
            # anything.
            "margin_size": 0.3,
            "scale_size": 16.0,
            "batch_size": 16,
            "initial_lr": 0.1,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "total_epoch": 4,
            "milestones": (3,),
            "num_workers": 2,
            "log_freq": 25,
            "test_freq": 250,
            "save_freq": 250,
        },
    ),
    # 453,580 images of 10,575 people.
    "casia_webface": Recipe(
        "MobileFaceNet and ArcFace on CASIA-WebFace, 36 epochs",
        "https://github.com/QuasarLight/Pytorch_Face_Recognition",
        {
            **LINEAGE,
            "train_dataset": "CASIA_WebFace",
            "backbone": "MobileFaceNet",
            "feature_dim": 128,
            "total_epoch": 36,
            "milestones": (22, 31),
        },
    ),
    # 3,923,399 images of 86,876 people.
    "ms_celeb_1m": Recipe(
        "ResNet50_IR and ArcFace on MS-Celeb-1M, 25 epochs",
        "https://github.com/QuasarLight/Pytorch_Face_Recognition",
        {
            **LINEAGE,
            "train_dataset": "MS_Celeb_1M",
            "backbone": "ResNet50_IR",
            "feature_dim": 512,
            "total_epoch": 25,
            "milestones": (13, 21),
        },
    ),
    # insightface's arcface_torch, configs/ms1mv3_r50.py: 5,179,510 images of 93,431 people. The
    # rate is 0.1 for batches of 512; its train_v2.py clips gradients at 5. (It has no
    # warm-up, which batches of thousands need, and plain momentum instead of Nesterov's.)
    "insightface_ms1mv3": Recipe(
        "ResNet50_IR and ArcFace on MS1MV3, 20 epochs",
        "https://github.com/deepinsight/insightface",
        {
            **LONG_RUN,
            "train_dataset": "MS_Celeb_1M",
            "backbone": "ResNet50_IR",
            "feature_dim": 512,
            "margin": "ArcFace",
            "margin_size": None,
            "scale_size": None,
            "batch_size": 512,
            "initial_lr": 0.1,
            "clip_norm": 5.0,
            "lr_scaling": "linear",
            "lr_reference_batch": 512,
            "warmup_epochs": 1.0,
            "schedule": "polynomial",
            "milestones": (),
            "total_epoch": 20,
        },
    ),
    # insightface's arcface_torch, configs/wf42m_pfc03_40epoch_8gpu_vit_b.py: 42,474,557 images of
    # 2,059,906 people, 256 images in each of 12 micro-batches on 8 GPUs; and, with `--backbone
    # ViT_T`, ViT_S or ViT_L, the others of that name, of which T and S have mask_ratio 0. (The
    # published ratio is 0.05, but the code masks 0.1. Its train_v2.py clips gradients at 5.)
    "insightface_wf42m_vit": Recipe(
        "ViT_B and CosFace with AdamW on WebFace42M, 40 epochs",
        "https://github.com/deepinsight/insightface",
        {
            **LONG_RUN,
            "train_dataset": "WebFace42M",
            "backbone": "ViT_B",
            "drop_path": 0.05,
            "mask_ratio": 0.1,
            "feature_dim": 512,
            "margin": "CosFace",
            "margin_size": 0.4,
            "scale_size": None,
            "sample_rate": 0.3,
            "batch_size": 24_576,
            "accumulate_steps": 12,
            "optimizer": "adamw",
            "initial_lr": 1e-3,
            "weight_decay": 0.1,
            "clip_norm": 5.0,
            "warmup_epochs": 4.0,
            "schedule": "polynomial",
            "milestones": (),
            "total_epoch": 40,
        },
    ),
    # AdaFace, scripts/run_ir101_ms1mv2.sh: 5,822,653 images of 85,742 people. (In it,
    # BatchNorm has no weight decay.)
    "adaface_ms1mv2": Recipe(
        "ResNet100_IR and AdaFace on MS1MV2, 26 epochs",
        "https://github.com/mk-minchul/AdaFace",
        {
            **LONG_RUN,
            "train_dataset": "MS_Celeb_1M",
            "backbone": "ResNet100_IR",
            "feature_dim": 512,
            "margin": "AdaFace",
            "margin_size": None,
            "scale_size": None,
            "batch_size": 512,
            "initial_lr": 0.1,
            "milestones": (12, 20, 24),
            "total_epoch": 26,
            "crop_prob": 0.2,
            "crop_kind": "blank",
            "low_res_prob": 0.2,
            "jitter_prob": 0.2,
        },
    ),
    # CVLface, scripts/examples/run_vit_kprpe_webface4m.sh: 4,235,242 images of 205,990 people, 256
    # on each of 7 GPUs. (In it biases and normalisation have no weight decay, and a tenth of the
    # images is turned, scaled and shifted, with the points.)
    "cvlface_wf4m_vit_kprpe": Recipe(
        "ViT_B_KPRPE and AdaFace on WebFace4M, 26 epochs",
        "https://github.com/mk-minchul/CVLface",
        {
            **LONG_RUN,
            "use_amp": False,
            "train_dataset": "WebFace4M",
            "backbone": "ViT_B_KPRPE",
            "feature_dim": 512,
            "margin": "AdaFace",
            "margin_size": None,
            "scale_size": None,
            "batch_size": 1792,
            "initial_lr": 0.1,
            "clip_norm": 5.0,
            "warmup_epochs": 1.0,
            "milestones": (12, 20, 24),
            "total_epoch": 26,
        },
    ),
    # From `--pretrained WEIGHTS` to people of your own: `--train_dataset_path` and, if there is
    # no folder for each person, `--train_file_list`. The head is new, and is trained alone first.
    "fine_tuning": Recipe(
        "the network in --pretrained on people of your own, 10 epochs",
        "this project",
        {
            **LONG_RUN,
            "train_dataset": "Own",
            "margin": "ArcFace",
            "margin_size": None,
            "scale_size": None,
            "batch_size": 128,
            "initial_lr": 0.005,
            "head_lr": 0.05,
            "freeze_backbone_epochs": 1,
            "milestones": (6, 9),
            "total_epoch": 10,
        },
    ),
}
