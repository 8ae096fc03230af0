"""Every setting of a run: the one file to edit. Flags of the same names override it.

    python Train.py --backbone ResNet50_IR --batch_size 128 --use_amp

Each setting is defined here only: its name, its type or its allowed words, its default, its help
text (`python Train.py --help`), its bounds, the scripts that take it as a flag (by default those of
its group), and whether it changes what a run trains. The defaults are those of the demo, which
needs no data and takes a few minutes; for real data start from a recipe (`Config/recipes.py`,
`--recipe casia_webface`), which has the published values.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from Backbone import BACKBONES, PREFIX
from Config.fields import (
    ALL_SCRIPTS,
    EVALUATION,
    TRAINING,
    VERIFICATION,
    Script,
    group,
    settings_of,
)
from Head import HEADS


@dataclass(frozen=True)
class Config:
    """The settings of training and evaluation. `Config.checks.validate` checks them."""

    setting = group("Training data")
    train_dataset: str = setting(
        "Demo", "Demo, CASIA_WebFace, MS_Celeb_1M, or a name of your own with train_dataset_path"
    )
    train_dataset_path: str = setting(
        "", "your own images: folder, .rec, tar shards, .zip, .tar, .tgz"
    )
    train_file_list: str = setting(
        "", "list of your own images, 'path  label' on each line; empty: the data's own labels"
    )
    webface_dataset_path: str = setting("", "CASIA-WebFace: folder, .rec, tar shards, .zip")
    webface_file_list: str = setting("", "list of CASIA-WebFace; empty: the data's own labels")
    ms1m_dataset_path: str = setting("", "MS-Celeb-1M: folder, .rec, tar shards, .zip")
    ms1m_file_list: str = setting("", "list of MS-Celeb-1M; empty: the data's own labels")
    train_channel_order: Literal["RGB", "BGR"] = setting(
        "RGB", "BGR: the training images have red and blue swapped on disk, and are swapped back"
    )
    identity_folder: Literal["top", "deepest"] = setting(
        "top",
        "which folder of a tree is the person: top (directly under the root, with all images below "
        "it) or deepest (each folder that has images); of MegaFace's probes and all_pairs too",
        scripts=(*TRAINING, "any_set", "megaface"),
    )
    min_images: int = setting(
        1, "leave out identities with fewer images than this, and renumber the labels", at_least=1
    )
    sampler: Literal["shuffled", "balanced"] = setting(
        "shuffled",
        "images of an epoch: shuffled (each image once) or balanced (as many images, but equally "
        "many of each identity; for sets in which a few identities have most of the images)",
    )
    batch_size: int = setting(
        16, "images in one step, counted over all devices and processes", at_least=2
    )
    accumulate_steps: int = setting(
        1, "number of micro-batches that a step is split into, which needs less memory", at_least=1
    )
    seed: int = setting(
        42, "seed of initial weights, image order and augmentation", at_least=0, at_most=2**63 - 1
    )

    setting = group("Network and head")
    backbone: Literal[*BACKBONES] = setting(
        "MobileFaceNet",
        "network that embeds the images; timm:NAME is that of the package timm",
        prefix=PREFIX,
    )
    feature_dim: int = setting(
        128, "size of the embedding; usual: 128 or 512", at_least=1, at_most=2**16
    )
    input_size: tuple[int, ...] = setting(
        (112, 112), "height,width of the input in pixels, each divisible by 16"
    )
    drop_path: float | None = setting(
        None,
        "probability that an image skips a branch of a ViT's last block in training, falling to 0 "
        "in the first; none: the network's own, 0.1",
        at_least=0,
        below=1,
    )
    mask_ratio: float | None = setting(
        None,
        "share of an image's patches that a ViT does not see in training; none: the network's "
        "own, 0.1 (ViT_H and those with KP-RPE: 0)",
        at_least=0,
        below=1,
    )
    margin: Literal[*HEADS] = setting("ArcFace", "head that the network is trained with")
    margin_size: float | None = setting(
        0.3, "margin m; none: as published (ArcFace 0.5 radians, CosFace 0.35)", at_least=0
    )
    combined_margin: tuple[float, ...] = setting(
        (1.0, 0.3, 0.2), "m1,m2,m3 of the head Combined: cos(m1·θ + m2) - m3"
    )
    easy_margin: bool = setting(False, "apply an angular margin only where the cosine is above 0")
    sub_centers: int = setting(
        3, "number of weight vectors of each class, for SubCenterArcFace", at_least=1
    )
    scale_size: float | None = setting(
        16.0,
        "scale s of the logits; none: as published (64). Softmax, SphereFace have none",
        above=0,
    )
    sample_rate: float = setting(
        1.0,
        "share of the classes in each softmax, always with the batch's (Partial FC); 1: all",
        above=0,
        at_most=1,
    )
    label_smoothing: float = setting(
        0.0, "share of the target probability that is spread over all classes", at_least=0, below=1
    )
    focal_gamma: float = setting(
        0.0, "gamma of focal loss, such as 2; 0: cross-entropy", at_least=0
    )

    setting = group("Optimisation")
    total_epoch: int = setting(4, "epochs to train", at_least=1)
    optimizer: Literal["sgd", "adamw"] = setting("sgd", "sgd has Nesterov momentum")
    initial_lr: float = setting(0.1, "learning rate at the start", above=0)
    momentum: float = setting(0.9, "Nesterov momentum of SGD", above=0, below=1)
    weight_decay: float = setting(5e-4, "weight decay of all weights", at_least=0)
    head_optimizer: Literal["", "sgd", "adamw"] = setting("", "the head's; empty: as optimizer")
    head_lr: float | None = setting(None, "the head's initial_lr; none: the same", above=0)
    head_weight_decay: float | None = setting(
        None, "the head's weight_decay; none: the same", at_least=0
    )
    lr_scaling: Literal["none", "linear"] = setting(
        "none",
        "linear: initial_lr and head_lr are meant for batches of lr_reference_batch images, and "
        "grow with batch_size; none: they are used as they are",
    )
    lr_reference_batch: int = setting(256, "batch_size of the rates, for lr_scaling", at_least=1)
    warmup_epochs: float = setting(
        0.0, "epochs at the start in which the learning rate rises, for example 0.5", at_least=0
    )
    schedule: Literal["milestones", "polynomial", "cosine"] = setting(
        "milestones", "how the learning rate falls: milestones, polynomial (power 2) or cosine"
    )
    milestones: tuple[int, ...] = setting(
        (3,), "epochs after which the learning rate is divided by 10, for example 22,31", at_least=1
    )
    clip_norm: float = setting(
        0.0, "largest allowed norm of the gradient of all weights; 0: no limit", at_least=0
    )
    ema_decay: float = setting(
        0.0,
        "decay of a moving average of the weights, also saved and tested, such as 0.999; 0: none",
        at_least=0,
        at_most=0.999999,
    )

    setting = group("Augmentation, on the device, drawn anew for each image")
    flip_prob: float = setting(0.5, "share of images that are mirrored", at_least=0, at_most=1)
    crop_prob: float = setting(
        0.0, "share of images that are cropped; AdaFace: 0.2", at_least=0, at_most=1
    )
    crop_kind: Literal["resize", "blank"] = setting(
        "resize",
        "resize: enlarge the crop to the whole image; blank: make the rest black, as AdaFace does",
    )
    crop_scale: float = setting(
        0.2, "smallest crop, as a share of the area; AdaFace: 0.2", above=0, at_most=1
    )
    low_res_prob: float = setting(
        0.0,
        "share of images made smaller, to 0.2 to 1 of their side, and enlarged again; AdaFace: 0.2",
        at_least=0,
        at_most=1,
    )
    jitter_prob: float = setting(
        0.0,
        "share of images whose brightness, contrast and saturation change; AdaFace: 0.2",
        at_least=0,
        at_most=1,
    )
    jpeg_prob: float = setting(
        0.0, "share of images compressed as JPEG of quality 20 to 95", at_least=0, at_most=1
    )
    erasing_prob: float = setting(
        0.0, "share of images in which noise covers 0.02 to 0.4 of the area", at_least=0, at_most=1
    )

    setting = group("Fine-tuning")
    pretrained: str = setting(
        "",
        "weights to start from, of any known lineage: a file, or a name in Pretrained; they decide "
        "which network is trained",
    )
    freeze_backbone_epochs: int = setting(
        0, "epochs at the start in which only the head is trained; needs pretrained", at_least=0
    )

    setting = group("Teacher")
    teacher: str = setting(
        "",
        "trained network whose embeddings are learnt too, of any known lineage, or in ONNX: a "
        "file, or a name in Pretrained",
    )
    teacher_loss: Literal["cosine", "l2"] = setting(
        "cosine",
        "with a teacher: cosine (the directions of the embeddings are learnt) or l2 (the "
        "embeddings as they are, with their norms)",
    )
    teacher_weight: float = setting(
        10.0, "with a teacher: factor of its loss, added to the margin loss", at_least=0
    )
    margin_weight: float = setting(
        1.0,
        "with a teacher: factor of the margin loss; 0: the network learns from the teacher alone",
        at_least=0,
    )

    setting = group("Evaluation", EVALUATION)
    checkpoint: str = setting(
        "",
        "weights to evaluate, of any known lineage, or a network in ONNX: a file, or a name in "
        "Pretrained",
    )
    eval_batch_size: int = setting(64, "images embedded at once", at_least=1, scripts=ALL_SCRIPTS)
    output: str = setting("", "folder for figures and pictures; empty: Results/<run>_<checkpoint>")

    setting = group("How weights are read", ALL_SCRIPTS)
    lineage: str = setting(
        "",
        "project that the weights are from, such as face_evolve, for files that fit two projects; "
        "empty: it is recognised",
    )
    weights: Literal["averaged", "raw"] = setting(
        "averaged",
        "weights to use of a checkpoint that has both, after training with ema_decay",
    )
    channel_order: Literal["", "RGB", "BGR"] = setting(
        "", "channels of the network's input; empty: as the weights were trained, RGB for new ones"
    )
    input_mean: float | None = setting(
        None, "input = (pixel - input_mean) / input_scale; none: as the weights were trained"
    )
    input_scale: float | None = setting(
        None, "see input_mean; both are in pixel values, 0..255", above=0
    )

    setting = group("Devices and processes")
    device: str = setting(
        "auto", "auto (CUDA where there is any), cpu, cuda or cuda:N", scripts=ALL_SCRIPTS
    )
    num_workers: int = setting(
        2,
        "number of processes that decode images; 0: the main process decodes them",
        at_least=0,
        scripts=ALL_SCRIPTS,
        changes_run=False,
    )
    use_amp: bool = setting(False, "automatic mixed precision in the backbone")
    amp_dtype: Literal["auto", "fp16", "bf16"] = setting(
        "auto", "dtype for use_amp; auto: bf16 where the device supports it, else fp16"
    )
    tf32: bool = setting(
        True,
        "let CUDA devices multiply float32 as TF32 in training: faster, with fp16's precision; "
        "evaluation never does",
    )
    deterministic: bool = setting(
        False,
        "the same weights, bit for bit, in every run with the same settings and after every "
        "--resume, also on CUDA; slower there",
    )
    compile: bool | None = setting(
        None,
        "compile the backbone: a minute or two, then faster steps; None, or neither flag: on "
        "one GPU, in runs of at least 5,000 iterations",
    )
    activation_checkpointing: bool = setting(
        False,
        "keep only the inputs of the backbone's blocks, and compute the rest again in the backward "
        "pass: less memory, a third more time, the same results",
        changes_run=False,
    )
    use_multi_gpus: bool = setting(False, "split each batch over several CUDA devices")
    gpus: tuple[int, ...] = setting(
        (), "CUDA devices for use_multi_gpus, for example 0,1; empty: all", at_least=0
    )
    head_parallel: Literal["auto", "replicated", "sharded"] = setting(
        "auto",
        "the head under torchrun: replicated (each process has all classes), sharded (each has "
        "some of them) or auto (sharded from 20,000 classes on, and with a sample_rate)",
    )
    sync_batchnorm: bool = setting(
        False, "compute BatchNorm statistics over the images of all processes; only on GPUs"
    )
    ddp_compression: Literal["none", "fp16", "bf16"] = setting(
        "none", "dtype in which processes exchange gradients; none: the gradients' own"
    )

    setting = group("Demo data", ALL_SCRIPTS)
    demo_dataset_path: str = setting("Datasets/Demo", "folder of the demo faces, drawn if missing")

    setting = group("LFW", ("training", "lfw"))
    lfw_dataset_path: str = setting("", ".bin file, .blp folder or images; empty: the demo's")
    lfw_file_list: str = setting("", "pairs.txt; not for .bin and .blp")

    setting = group("AgeDB-30", ("training", "agedb"))
    agedb_dataset_path: str = setting("", ".bin file, .blp folder or images; empty: the demo's")
    agedb_file_list: str = setting(
        "", "pairs, 'left right 1|-1' on a line, or AgeDB's .mat; not for .bin and .blp"
    )

    setting = group("CFP-FP", ("training", "cfp"))
    cfp_dataset_path: str = setting("", ".bin file, .blp folder or images; empty: the demo's")
    cfp_file_list: str = setting("", "pairs file, or CFP's folder Split/FP; not for .bin and .blp")

    setting = group("Any other verification set", ("any_set",))
    data: str = setting(
        "",
        ".bin file, .blp folder, RFW's folder or folder of images; empty: the demo's four groups",
    )
    pairs: str = setting(
        "", "pairs of the images; not for .bin and .blp. With all_pairs: an image list, if any"
    )
    all_pairs: bool = setting(
        False,
        "every pair of the images of a labelled set, in all formats of training data, instead of "
        "listed pairs; without data, of the demo's training faces",
    )

    setting = group("Lists of images and pairs", (*TRAINING, *VERIFICATION))
    list_encoding: str = setting(
        "", "their encoding, such as gbk or cp1252; empty: UTF-8, UTF-16, or that of the images"
    )

    setting = group("Photographs that nobody aligned", (*TRAINING, *VERIFICATION))
    align: str = setting(
        "",
        "align the faces of photographs first, once: a detector (yunet, mtcnn), or a list of "
        "landmarks, in training of the training set alone; empty: images are taken as they are",
    )
    detector_file: str = setting("", "the detector's weights; empty: those in Pretrained/")

    setting = group("Verification", (*TRAINING, *VERIFICATION))
    protocol: Literal["cosine", "insightface", "both"] = setting("both", "rule of the 10 folds")
    blp_channel_order: Literal["BGR", "RGB"] = setting("BGR", "order of the channels in .blp sets")
    eval_dtype: Literal["fp32", "bf16", "fp16"] = setting(
        "fp32", "dtype of the network; with bf16 or fp16, the change of the figures is printed too"
    )

    setting = group("More figures of a verification", VERIFICATION)
    compare: str = setting(
        "",
        "results files (.json) of others on the same set, separated by commas: the difference, and "
        "how sure it is. MegaFace: also drawn in the same pictures",
        scripts=EVALUATION,
    )
    threshold_from: str = setting(
        "",
        "results file (.json) of another set, of pairs or IJB, whose thresholds are used on this "
        "one too",
        scripts=(*VERIFICATION, "ijb"),
    )
    quality: str = setting(
        "",
        "error versus discard by quality: norm (of the features), a file 'image  score', or for "
        "IJB detector (the list's scores)",
        scripts=(*VERIFICATION, "ijb"),
    )

    setting = group("Groups of people, such as races", VERIFICATION)
    groups: str = setting(
        "",
        "file with the group of each image, 'image group' on a line, for figures of each group; "
        "empty: the groups that the pairs have, as RFW's do",
    )
    group_far: float = setting(
        1e-3, "FAR at which the one threshold for all groups is found", at_least=0, at_most=1
    )
    threshold_group: str = setting(
        "", "group on whose pairs that threshold is found; empty: on all pairs"
    )

    setting = group("Log and checkpoints")
    log_freq: int = setting(25, "iterations between two lines of the log", at_least=1)
    test_freq: int = setting(250, "iterations between two verification tests", at_least=1)
    save_freq: int = setting(
        250,
        "iterations between two checkpoints; one is also saved after each epoch",
        at_least=1,
        changes_run=False,
    )
    save_dir: str = setting("Trained_Models", "each run makes its folder here", changes_run=False)
    resume: str = setting(
        "",
        "checkpoint to continue from, with its settings; last: the last one of the newest run",
        changes_run=False,
    )
    checkpoint_format: Literal["auto", "file", "sharded"] = setting(
        "auto",
        "file, sharded (a folder that all processes write together) or auto (sharded where the "
        "head is sharded)",
    )
    para_adj_mode: bool = setting(
        False, "parameter adjustment: try settings without writing any file or folder"
    )
    use_visdom: bool = setting(
        True, "draw live curves in Visdom (start: python -m visdom.server)", changes_run=False
    )
    use_tensorboard: bool = setting(
        False,
        "write curves, scores and the worst pairs of test sets for TensorBoard; needs no internet "
        "(look: tensorboard --logdir DIR, the save_dir)",
        changes_run=False,
    )
    use_wandb: bool = setting(
        False,
        "the same in Weights & Biases; WANDB_MODE=offline needs no internet",
        changes_run=False,
    )
    visdom_server: str = setting("http://localhost", "Visdom's address", changes_run=False)
    visdom_port: int = setting(8097, "its port", at_least=1, at_most=2**16 - 1, changes_run=False)
    profile: int = setting(
        0, "steps to profile, with a trace in the run's folder; 0: none", at_least=0
    )

    setting = group("MegaFace", (*TRAINING, "megaface"))
    test_on_megaface: bool = setting(
        False, "evaluate on MegaFace at the end of training", scripts=TRAINING
    )
    facescrub_dataset_path: str = setting("", "folder of the FaceScrub probes; empty: the demo's")
    facescrub_file_list: str = setting(
        "",
        "the probes' devkit list (JSON), or a path on each line; empty: all images, a folder for "
        "each person",
    )
    megaface_dataset_path: str = setting("", "folder of the MegaFace distractors")
    megaface_file_list: str = setting(
        "",
        "devkit lists of distractors, one a set size, separated by commas, or a pattern like "
        "DIR/megaface_features_list.json_*_1; empty: all images of the folder",
    )
    strict: bool = setting(
        False,
        "end with an error if a distractor is missing or can't be read, instead of leaving it out "
        "and naming it; probes always do",
    )
    distractor_sizes: tuple[int, ...] = setting(
        (),
        "more set sizes, for example 10,100,1000: the first photos of the largest list",
        at_least=1,
    )
    probe_noise: str = setting("", "list of mislabelled probes; figures with and without them")
    distractor_noise: str = setting(
        "", "list of distractors that are FaceScrub people; figures with and without them"
    )
    noise: Literal["drop", "insightface"] = setting(
        "drop",
        "what happens to photos on the noise lists: drop (they are left out) or insightface (a "
        "probe becomes the mean of its person's clean ones, a distractor is moved far away), to "
        "compare with insightface's figures",
    )
    ties: Literal["mate", "against"] = setting(
        "mate", "who ranks first if a distractor scores as high as the mate: mate, or against it"
    )
    ranks: tuple[int, ...] = setting((1, 10, 100), "ranks to report", at_least=1)
    fprs: tuple[float, ...] = setting(
        (1e-4, 1e-5, 1e-6), "false positive rates to report TPR at", at_least=0, at_most=1
    )
    fpirs: tuple[float, ...] = setting(
        (1e-2, 1e-3), "false positive identification rates of the open set", at_least=0, at_most=1
    )
    feature_flip: Literal["sum", "concat", "none"] = setting(
        "sum",
        "feature of a photo and its mirror image: sum, concat or none (photo alone)",
        scripts=(*TRAINING, "megaface", "tinyface"),
    )
    feature_dtype: Literal["fp32", "fp16"] = setting(
        "fp32", "dtype of feature files", scripts=(*TRAINING, "megaface", "tinyface")
    )
    score_dtype: Literal["fp32", "bf16", "fp16"] = setting(
        "fp32", "dtype of the products that find which scores to compute exactly"
    )

    setting = group("MegaFace features, ready or to be written", ("megaface",))
    probe_features: str = setting(
        "", "folder of the probes' features, instead of photos: the devkit's files or our own"
    )
    distractor_features: str = setting(
        "", "folder of the distractors' features, instead of photos: the devkit's files or our own"
    )
    devkit_suffix: str = setting("_features.bin", "ending that follows the image's name")
    export_devkit: str = setting("", "folder to write the devkit's feature files to")

    setting = group("TinyFace", ("tinyface",))
    tinyface_dataset_path: str = setting(
        "",
        "folder of Probe/, Gallery_Match/ and Gallery_Distractor/, aligned, the images with their "
        "official names and any suffixes; empty: the demo's",
    )
    tinyface_file_list: str = setting(
        "", "folder of the two official .mat lists; empty: they are beside the images"
    )

    setting = group("IJB", ("ijb",))
    ijb_dataset_path: str = setting(
        "",
        "IJB-B or IJB-C: the folder of loose_crop and meta, as insightface distributes it; empty: "
        "the demo's",
    )
    aligned: bool = setting(
        False, "the crops are aligned to 112x112 already; else their five points align them"
    )
    ijb_conventions: Literal["", "insightface", "adaface", "cvlface", "facexzoo", "all"] = setting(
        "",
        "how features become templates: as a project does, or all eight ways; empty: as ijb_norm, "
        "ijb_detector and ijb_flip say, whose defaults are insightface's",
    )
    ijb_norm: Literal["keep", "divide"] = setting(
        "keep", "length of an image's feature: keep (an unsure one counts less) or divide by it"
    )
    ijb_detector: bool = setting(True, "multiply an image's feature by the detector's score")
    ijb_flip: Literal["sum", "none"] = setting(
        "sum", "feature of an image: sum (with that of the mirror image) or none (image alone)"
    )

    del setting

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values that JSON and a checkpoint can hold."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """The inverse of `to_dict`; names that are no setting (any more) are left out."""
        known = {f.name for f in dataclasses.fields(cls)}
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**{k: v for k, v in values.items() if k in known})


def settings_for(script: Script) -> frozenset[str]:
    """The names of the settings that a script takes as flags."""
    return frozenset(s.name for s in settings_of(Config).values() if script in s.scripts)
