"""IJB from a folder to figures: what the script does."""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from Config import Config, ConfigError, settings_for, validate
from Utils.Datasets_Utils.appearance import image_warnings
from Utils.Datasets_Utils.demo.ijb import ensure_ijb
from Utils.Datasets_Utils.demo.sets import ensure_demo_sets
from Utils.Datasets_Utils.photos import PhotoList, Photos
from Utils.devices import share_device
from Utils.errors import DataError
from Utils.Evaluation_Utils.analysis.drawn import open_compared
from Utils.Evaluation_Utils.features import (
    embedded,
    embedded_with,
    folder_for,
    list_digest,
    packed_features,
)
from Utils.Evaluation_Utils.ijb.alignment import AlignedCrops
from Utils.Evaluation_Utils.ijb.further import FurtherFigures, lists_digest, read_asked
from Utils.Evaluation_Utils.ijb.identification import IdentificationFigures, evaluate_searches
from Utils.Evaluation_Utils.ijb.lists import Lists, read_lists
from Utils.Evaluation_Utils.ijb.report import About, Figures, short_name, write_report
from Utils.Evaluation_Utils.ijb.templates import ALL, NAMED, Convention, make_templates
from Utils.Evaluation_Utils.ijb.verification import evaluate_pairs, pair_scores
from Utils.Evaluation_Utils.inputs import flaw_warnings, load_network, make_output
from Utils.Evaluation_Utils.report import Report
from Utils.files import reading
from Utils.Pretrained_Utils.load import describe, weights_digest
from Utils.processes import Processes, started_by_torchrun

_CROPS = "loose_crop"


def evaluate_ijb(config: Config) -> Report | None:
    """Evaluate `config.checkpoint` on the IJB-B or IJB-C that `ijb_dataset_path` names, or on the
    demo's.

    Writes <output>/ijbc.json (ijbb.json) with every number of the table, a picture beside it, and
    the images' features below <output>/features, which a later start uses again. Returns None in
    all processes of torchrun but the first. Raises ConfigError, DataError, ImageError,
    CheckpointError or RunError.
    """
    with started_by_torchrun() as processes:
        validate(config, torch.cuda.device_count(), settings_for("ijb"))
        conventions = conventions_of(config)
        device = share_device(config, processes)
        root = processes.one_by_one(lambda: _root(config))
        lists = read_lists(root)
        asked = read_asked(lists, config.threshold_from, config.quality)
        crops = _find_crops(root, lists)
        backbone = load_network(config, device)
        folder = make_output(config)
        names = [short_name(each) for each in conventions]
        same = {"benchmark": lists.title, "lists": lists_digest(lists)}
        others = open_compared(config.compare, folder / f"{lists.prefix}.json", same, names)
        photos = Photos(
            PhotoList(lists.names, None, str(lists.points_file)),
            AlignedCrops(crops, lists, config.aligned),
        )
        warnings = image_warnings(photos.images, backbone.preprocessing.input_size)
        flaws: list[str] = []
        table = _extract(config, lists, photos, crops, backbone, device, folder, processes, flaws)
        if not processes.is_main:
            return None
        further = FurtherFigures(lists, asked)
        figures = {each: evaluate_features(table, lists, each, further) for each in conventions}
        about = About(
            checkpoint=config.checkpoint,
            data=str(root),
            network=describe(backbone),
            weights=weights_digest(backbone),
            images="aligned already" if config.aligned else "aligned by their five points",
            warnings=[*warnings, *flaw_warnings(flaws)],
            flaws=flaws,
            compare=same,
        )
        return Report(write_report(lists, about, figures, folder, asked, others), folder)


def conventions_of(config: Config) -> tuple[Convention, ...]:
    """The conventions to evaluate under. Raises ConfigError where two settings contradict."""
    chosen = config.ijb_conventions
    if not chosen:
        flip = config.ijb_flip == "sum"
        return (Convention(config.ijb_norm == "keep", config.ijb_detector, flip),)
    for name in ("ijb_norm", "ijb_detector", "ijb_flip"):
        if getattr(config, name) != getattr(Config, name):  # a field's default
            why = f"ijb_conventions is {chosen}, which says it too; leave one of them out."
            raise ConfigError(name, getattr(config, name), why)
    return ALL if chosen == "all" else (NAMED[chosen],)


def evaluate_features(
    features: np.ndarray,
    lists: Lists,
    convention: Convention,
    further: FurtherFigures | None = None,
) -> Figures:
    """The figures under a convention. features: N×2D, see `pool_images`. further: makes those
    beside them; None: none."""
    templates = make_templates(features, lists, convention)
    scores = pair_scores(templates, lists.first, lists.second)
    identification: IdentificationFigures | None = None
    if lists.probes:
        identification = evaluate_searches(templates, lists.galleries, lists.probes)
    verification = evaluate_pairs(scores, lists.same)
    if further is None:
        return Figures(verification, identification)
    more = further.of(features, convention, scores, verification, identification)
    return Figures(verification, identification, more)


def _root(config: Config) -> Path:
    """The folder of the set; the demo's if the settings name none."""
    if config.ijb_dataset_path:
        return Path(config.ijb_dataset_path)
    return ensure_ijb(ensure_demo_sets(Path(config.demo_dataset_path)))


def _find_crops(root: Path, lists: Lists) -> Path:
    """The folder of the images. Raises DataError, naming the first one that is missing."""
    crops = root / _CROPS
    with reading(crops, "folder of crops"):
        there = {entry.name for entry in os.scandir(crops)}
    missing = [
        row
        for row, name in enumerate(lists.names)
        if name not in there and not (crops / name).exists()
    ]
    if missing:
        row = missing[0]
        raise DataError(
            f"{lists.points_file}, line {lists.lines[row]}: there is no image "
            f"{crops / lists.names[row]} ({len(missing):,} of {len(lists.names):,} are missing); "
            f"unpack the crops again."
        )
    return crops


def _extract(
    config: Config,
    lists: Lists,
    photos: Photos,
    crops: Path,
    backbone: nn.Module,
    device: torch.device,
    folder: Path,
    processes: Processes,
    flaws: list[str],
) -> np.ndarray:
    """N×2D features of the images and of their mirror images: all conventions use the same."""
    about = {
        "list": list_digest(photos.listed),
        "points": "aligned"
        if config.aligned
        else hashlib.sha256(lists.points.tobytes()).hexdigest(),
        "dtype": "fp32",
        "unit": False,
        **embedded_with(backbone, "concat", crops, photos.images),
    }
    produce = embedded(
        photos,
        backbone,
        "concat",
        device,
        config.eval_batch_size,
        config.num_workers,
        flaws=flaws,
        unit=False,
    )
    place = folder_for(folder / "features", lists.prefix, about, processes)
    found = packed_features(
        place, photos.listed, about, produce, processes, progress=lists.title, flaws=flaws
    )
    return found.table
