"""Every setting of a run: the one file to edit. Flags of the same names override it.

    python Train.py --backbone ResNet50_IR --batch_size 128 --use_amp

The text behind each setting is also its help text (`python Train.py --help`). The values here are
those of the demo, which needs no data and has a few minutes: for real data start from a recipe
(`Config/recipes.py`, `--recipe casia_webface`), which has the published ones.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any


def setting(default: Any, text: str) -> Any:
    """A dataclass field with its help text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Config:
    """The settings of training and judging. `Config.checks.validate` checks them."""

    # Modes
    para_adj_mode: bool = setting(
        False, "parameter adjustment: try settings out, write nothing, not even a folder"
    )
    use_visdom: bool = setting(True, "draw live curves in Visdom (start: python -m visdom.server)")
    visdom_server: str = setting("http://localhost", "address of the Visdom server")
    visdom_port: int = setting(8097, "port of the Visdom server")

    # Devices
    device: str = setting("auto", "auto (CUDA where there is any), cpu, cuda or cuda:N")
    use_amp: bool = setting(False, "automatic mixed precision in the backbone")
    amp_dtype: str = setting(
        "auto", "fp16 (with gradient scaler), bf16, or auto: bf16 where the device has it, or fp16"
    )
    compile: bool = setting(False, "compile the backbone: a minute or two, then faster steps")
    use_multi_gpus: bool = setting(False, "split each batch over several CUDA devices")
    gpus: tuple[int, ...] = setting((), "CUDA devices for use_multi_gpus, as in 0,1; empty: all")

    # Several processes, started by torchrun
    head_parallel: str = setting(
        "auto",
        "the head in several processes: replicated (a copy in each), sharded (a part of the "
        "classes in each) or auto: sharded from 20,000 classes on, and with a sample_rate",
    )
    sync_batchnorm: bool = setting(
        False, "batch statistics over the images of all processes, in place of each one's; on GPUs"
    )
    ddp_compression: str = setting(
        "none",
        "number format in which processes exchange gradients: none (as they are), fp16, bf16",
    )

    # Training data
    train_dataset: str = setting(
        "Demo", "Demo, CASIA_WebFace, MS_Celeb_1M, or a name of your own with train_dataset_path"
    )
    train_dataset_path: str = setting(
        "", "your own training images: folder, .rec, tar shards, .zip, .tar"
    )
    train_file_list: str = setting(
        "",
        "list of your own training images, 'path  label' a line; empty: labels as they lie there",
    )
    webface_dataset_path: str = setting(
        "", "CASIA-WebFace, 112×112: folder, .rec, tar shards, .zip"
    )
    webface_file_list: str = setting("", "list of CASIA-WebFace; empty: labels as they lie there")
    ms1m_dataset_path: str = setting("", "MS-Celeb-1M, 112×112: folder, .rec, tar shards, .zip")
    ms1m_file_list: str = setting("", "list of MS-Celeb-1M; empty: labels as they lie there")
    demo_dataset_path: str = setting("Datasets/Demo", "where the demo faces are drawn, once")
    min_images: int = setting(
        1, "identities with fewer images are left out, and the labels numbered anew"
    )
    sampler: str = setting(
        "shuffled",
        "order of an epoch: shuffled (each image once) or balanced (as many images, but of each "
        "identity equally many: for sets in which a few have most of them)",
    )
    batch_size: int = setting(16, "images a step, over all devices and processes together")
    accumulate_steps: int = setting(
        1, "equal parts that each step is computed in, one after the other, to need less memory"
    )
    num_workers: int = setting(2, "processes that decode images; 0: the main process does it")
    seed: int = setting(42, "seed of initial weights, image order and flips")

    # Augmentation, on the device, each image by a draw of its own
    flip_prob: float = setting(0.5, "share of the images that are mirrored")
    crop_prob: float = setting(0.0, "share of which a part is cut out; AdaFace: 0.2")
    crop_kind: str = setting(
        "resize", "the part fills the image (resize), or stays, with black around (blank: AdaFace)"
    )
    crop_scale: float = setting(0.2, "smallest part of the area that is cut out; AdaFace: 0.2")
    low_res_prob: float = setting(
        0.0, "share made smaller, to 0.2 to 1 of its side, and enlarged again; AdaFace: 0.2"
    )
    jitter_prob: float = setting(
        0.0, "share whose brightness, contrast and saturation become 0.5 to 1.5; AdaFace: 0.2"
    )
    jpeg_prob: float = setting(0.0, "share coded as JPEG of quality 20 to 95")
    erasing_prob: float = setting(0.0, "share in which noise covers 0.02 to 0.4 of the area")

    # Test data
    lfw_dataset_path: str = setting("", "LFW: .bin, .blp folder, or images; empty: the demo's")
    lfw_file_list: str = setting("", "pairs.txt of LFW; none for .bin and .blp")
    agedb_dataset_path: str = setting(
        "", "AgeDB-30: .bin, .blp folder, or images; empty: the demo's"
    )
    agedb_file_list: str = setting(
        "", "its pairs, 'left right 1|-1' a line; none for .bin and .blp"
    )
    cfp_dataset_path: str = setting("", "CFP-FP: .bin, .blp folder, or images; empty: the demo's")
    cfp_file_list: str = setting("", "its pairs, 'left right 1|-1' a line; none for .bin and .blp")
    blp_channel_order: str = setting("BGR", "channel order of the values in .blp sets, BGR or RGB")

    # MegaFace
    facescrub_dataset_path: str = setting("", "folder of the FaceScrub probes; empty: the demo's")
    facescrub_file_list: str = setting(
        "", "the probes' devkit list (JSON); empty: all images, a folder for each person"
    )
    megaface_dataset_path: str = setting("", "folder of the MegaFace distractors")
    megaface_file_list: str = setting(
        "",
        "devkit lists of distractors, one for each set size, with commas between or a pattern like "
        "DIR/megaface_features_list.json_*_1; empty: all images of the folder",
    )
    distractor_sizes: tuple[int, ...] = setting(
        (), "more set sizes, as in 10,100,1000: the first so many of the largest list"
    )
    probe_noise: str = setting("", "list of mislabelled probes; figures with and without them")
    distractor_noise: str = setting(
        "", "list of distractors that are FaceScrub people; figures with and without them"
    )
    noise: str = setting(
        "drop",
        "what is done with photos on the noise lists: drop, or insightface (probes become their "
        "person's clean centre, distractors lie far off), for comparison with its figures",
    )
    ties: str = setting(
        "mate", "a distractor that scores as high as the mate: mate (does not beat it) or against"
    )
    ranks: tuple[int, ...] = setting((1, 10, 100), "ranks to report")
    fprs: tuple[float, ...] = setting((1e-4, 1e-5, 1e-6), "false positive rates to report TPR at")
    fpirs: tuple[float, ...] = setting(
        (1e-2, 1e-3), "false positive identification rates to report FNIR at (open set)"
    )
    feature_flip: str = setting(
        "sum", "feature of a photo and its mirror image: sum, concat or none (photo alone)"
    )
    feature_dtype: str = setting("fp32", "number format of feature files: fp32 or fp16")
    score_dtype: str = setting(
        "fp32", "number format of the products that find what to score: fp32, bf16 or fp16"
    )
    probe_features: str = setting(
        "", "folder of the probes' features in place of photos: the devkit's files, or ours"
    )
    distractor_features: str = setting(
        "", "folder of the distractors' features in place of photos: the devkit's files, or ours"
    )
    devkit_suffix: str = setting(
        "_features.bin", "what follows the image's name in the name of a devkit feature file"
    )
    export_devkit: str = setting("", "folder to write the devkit's feature files to")
    compare: str = setting(
        "", "megaface.json of other results to draw in the same pictures, with commas between"
    )
    test_on_megaface: bool = setting(False, "judge on MegaFace at the end of training")

    # Network
    backbone: str = setting(
        "MobileFaceNet",
        "MobileFaceNet, ResNet{18,34,50,100,152,200}_IR, SEResNet{18,34,50,100,152,200}_IR or "
        "ResNet{50,101,152}",
    )
    feature_dim: int = setting(128, "size of the embedding; usual: 128 (MobileFaceNet) or 512")
    input_size: tuple[int, ...] = setting(
        (112, 112), "height,width of the input in pixels, each divisible by 16"
    )
    margin: str = setting(
        "ArcFace",
        "ArcFace, CosFace, Softmax, SphereFace, Combined, CurricularFace, AdaFace, MagFace, "
        "SubCenterArcFace, ElasticArcFace, ElasticCosFace, or the last two with Plus at the end",
    )
    margin_size: float | None = setting(
        0.3, "margin m; none: the published one of the head (ArcFace 0.5 radians, CosFace 0.35)"
    )
    combined_margin: tuple[float, ...] = setting(
        (1.0, 0.3, 0.2), "Combined: m1,m2,m3 of cos(m1·θ + m2) - m3"
    )
    easy_margin: bool = setting(
        False, "margins that are angles: apply them only where the cosine is above 0"
    )
    sub_centers: int = setting(3, "SubCenterArcFace: weights of each class")
    scale_size: float | None = setting(
        16.0,
        "scale s of the logits; none: the published one of the head (64). Softmax has none, "
        "SphereFace takes the embedding's norm",
    )
    sample_rate: float = setting(
        1.0,
        "share of the classes in the softmax of a step (Partial FC), always the batch's; 1: all",
    )
    label_smoothing: float = setting(0.0, "share of the target given to all classes, 0 to below 1")
    focal_gamma: float = setting(0.0, "gamma of the focal loss, as in 2; 0: cross-entropy")

    # Weights to start from, and what a network is fed
    pretrained: str = setting(
        "",
        "weights of any known lineage to start from, a file or a name in Pretrained; the "
        "network is then the file's",
    )
    freeze_backbone_epochs: int = setting(
        0, "epochs at the start in which only the head learns; with pretrained"
    )
    lineage: str = setting(
        "",
        "whose weights a file holds, where two lineages look alike, as in face_evolve; empty: "
        "recognised",
    )
    weights: str = setting(
        "averaged",
        "of a checkpoint that has both, with ema_decay: averaged or raw weights; others have one",
    )
    channel_order: str = setting("", "RGB or BGR; empty: as the weights were trained, RGB if new")
    input_mean: float | None = setting(
        None, "input = (pixel - input_mean) / input_scale; none: as the weights were trained"
    )
    input_scale: float | None = setting(None, "see input_mean; both in pixel values, 0..255")

    # Optimisation
    optimizer: str = setting("sgd", "sgd (Nesterov) or adamw")
    initial_lr: float = setting(0.1, "learning rate at the start")
    momentum: float = setting(0.9, "Nesterov momentum of SGD")
    weight_decay: float = setting(5e-4, "weight decay, on all weights")
    head_optimizer: str = setting("", "sgd or adamw for the head alone; empty: as optimizer says")
    head_lr: float | None = setting(None, "the head's own initial_lr; none: the same")
    head_weight_decay: float | None = setting(None, "the head's own weight_decay; none: the same")
    lr_scaling: str = setting(
        "none",
        "linear: initial_lr and head_lr are those of batches of lr_reference_batch, and grow with "
        "batch_size; none: they hold as they are",
    )
    lr_reference_batch: int = setting(256, "see lr_scaling")
    clip_norm: float = setting(0.0, "longest gradient, of all weights together; 0: any length")
    ema_decay: float = setting(
        0.0,
        "decay of a moving average of the weights, judged and saved beside them, as 0.999; 0: none",
    )
    total_epoch: int = setting(4, "epochs to train")
    warmup_epochs: float = setting(0.0, "epochs, or a part of one, in which the rate rises to it")
    schedule: str = setting(
        "milestones", "how the learning rate falls: milestones, polynomial (power 2) or cosine"
    )
    milestones: tuple[int, ...] = setting(
        (3,), "finished epochs after which the learning rate is divided by 10, as in 22,31"
    )

    # Watching and saving
    log_freq: int = setting(25, "iterations between two lines of the log")
    test_freq: int = setting(250, "iterations between two rounds of the verification sets")
    save_freq: int = setting(
        250, "iterations between two checkpoints; each epoch's end has one too"
    )
    profile: int = setting(
        0, "steps to profile: a trace in the run's folder, the slowest operators; 0: none"
    )
    checkpoint_format: str = setting(
        "auto",
        "file, sharded (a folder that all processes write while training goes on) or auto: "
        "sharded where the head is",
    )
    save_dir: str = setting("Trained_Models", "folder that gets one folder a run")
    resume: str = setting(
        "", "checkpoint to continue from, or last: the newest run's last one; its settings hold"
    )

    # Judging
    checkpoint: str = setting(
        "", "weights to judge, of any known lineage: a file, or a name in Pretrained"
    )
    data: str = setting("", "any other verification set: .bin, .blp folder, or images with pairs")
    pairs: str = setting("", "its pairs file; none for .bin and .blp")
    protocol: str = setting("both", "10-fold rule: cosine, insightface or both")
    eval_batch_size: int = setting(64, "images embedded at once")
    eval_dtype: str = setting(
        "fp32",
        "number format of the network when verification sets are judged: fp32, bf16 or fp16; what "
        "that changes is printed",
    )
    output: str = setting("", "folder for figures and pictures; empty: Results/<run>_<checkpoint>")

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
