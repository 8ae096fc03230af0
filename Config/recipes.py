"""Named sets of settings. `--recipe NAME` starts from one; flags given beside it win.

The two published experiments are those of the lineage (its README, "Training hyperparameters"):
batch 256, learning rate 0.05, s 32, ArcFace m 0.5.
"""

from typing import Any

PUBLISHED: dict[str, Any] = {
    "batch_size": 256,
    "initial_lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "margin": "ArcFace",
    "margin_size": 0.5,
    "scale_size": 32.0,
    "use_amp": True,
    "use_multi_gpus": True,
    "num_workers": 8,
    "log_freq": 100,
    "test_freq": 1000,
    "save_freq": 3000,
}

RECIPES: dict[str, dict[str, Any]] = {
    # Small enough for two CPU cores: a few minutes from nothing to a table of results.
    "demo": {
        "train_dataset": "Demo",
        "backbone": "MobileFaceNet",
        "feature_dim": 128,
        "margin": "ArcFace",
        # Milder than published: 500 iterations are too few for s 32 and m 0.5 to get going.
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
    # 453,580 images of 10,575 people.
    "casia_webface": {
        **PUBLISHED,
        "train_dataset": "CASIA_WebFace",
        "backbone": "MobileFaceNet",
        "feature_dim": 128,
        "total_epoch": 36,
        "milestones": (22, 31),
    },
    # 3,923,399 images of 86,876 people.
    "ms_celeb_1m": {
        **PUBLISHED,
        "train_dataset": "MS_Celeb_1M",
        "backbone": "ResNet50_IR",
        "feature_dim": 512,
        "total_epoch": 25,
        "milestones": (13, 21),
    },
}
