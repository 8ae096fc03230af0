"""Find people of a test set in a training set: figures on a test set are too high for a network
that has been trained on its people.

    python -m Utils.Evaluation_Utils.overlap TRAIN TEST --checkpoint PATH

TRAIN is anything that training opens, TEST a verification set (with --pairs, if its pairs are in a
file) or labelled images. With --checkpoint, each test image is compared with the centre of each
identity of the training set: those beyond a threshold seem to be the same person. People are found
by the names of their folders too, and with --pictures by pictures that both sets have, saved again
or resized, for which all are read once more.

--output gets overlap.csv, the identities that are in both; nearest.csv, the nearest identity of
each test image; overlap.png and scores.png, to look at; report.json; clean_list.txt, the training
set without those identities, for --train_file_list; and features, which another start uses again.

The network should be one that was not trained on TRAIN: people whom a network has not seen are
nearer to each other than those whom it has, so more of them than --far are then taken for somebody.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from Config import Config, ConfigError
from Config.command_line import make_parser
from Config.config import settings_of
from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.photos import labelled_photos
from Utils.Datasets_Utils.training_set import TrainingSet
from Utils.devices import find_device
from Utils.errors import run_script
from Utils.Evaluation_Utils.inputs import NETWORK_SETTINGS, given_config, load_network
from Utils.Evaluation_Utils.label_noise import keep_features
from Utils.Evaluation_Utils.overlap.nearest import (
    class_centres,
    class_sums,
    measure_scale,
    nearest_classes,
)
from Utils.Evaluation_Utils.overlap.people import Tested, open_tested, same_names
from Utils.Evaluation_Utils.overlap.pictures import same_pictures
from Utils.Evaluation_Utils.overlap.report import (
    Nearest,
    draw_scale,
    find_suspects,
    write_report,
)
from Utils.files import make_folder
from Utils.Pretrained_Utils.load import describe

SETTINGS = (*NETWORK_SETTINGS, "pairs", "list_encoding", "identity_folder")
CLASSES = 5  # of each test image: a person may be in the training set under several names


def compare(
    data: TrainingSet,
    tested: Tested,
    backbone: nn.Module,
    folder: Path,
    device: torch.device,
    far: float,
    threshold: float | None,
    batch_size: int,
    num_workers: int,
    kept: Path | None = None,
) -> Nearest:
    """Embed both sets and find the classes that are nearest to each test image.

    folder: for their features. kept: the folder of the training set's, such as label_noise has.
    """
    photos, names = labelled_photos(data)
    how = (device, batch_size, num_workers)
    source = str(data.images.source)
    table = keep_features(photos, names, source, backbone, kept or folder / "train_features", *how)
    source = tested.photos.listed.source
    own = (tested.photos, tested.digest, source, backbone, folder / "test_features")
    rows = np.asarray(keep_features(*own, *how), np.float32)
    labels = np.asarray(data.labels)
    sums = class_sums(table, labels, data.num_classes)
    scale = measure_scale(table, labels, sums, far, device, threshold)
    classes, cosines = nearest_classes(rows, class_centres(sums), CLASSES, device)
    return Nearest(classes, cosines, scale, ~rows.any(axis=1))


def main() -> None:
    """Read the command line, compare, write the files, print the table."""
    settings = settings_of(Config)
    parser = make_parser(__doc__, [settings[name] for name in SETTINGS])
    parser.prog = "python -m Utils.Evaluation_Utils.overlap"
    parser.usage = "%(prog)s TRAIN TEST [--checkpoint PATH] [--SETTING VALUE ...]"
    parser.add_argument("train", help="the training set: all that training opens")
    parser.add_argument("test", help="the test set: a verification set, or labelled images")
    own = parser.add_argument_group("The training set, and the threshold")
    own.add_argument(
        "--pictures", action="store_true", default=False, help="look for pictures in both sets too"
    )
    own.add_argument("--file_list", default=None, help="the training set's image list")
    own.add_argument(
        "--features", type=Path, default=None, help="its features, as label_noise has kept them"
    )
    own.add_argument(
        "--far",
        type=float,
        default=0.01,
        help="share of the images of people who are in the test set alone that may be taken for "
        "people of the training set (default: 0.01)",
    )
    own.add_argument(
        "--threshold", type=float, default=None, help="a cosine, instead of the one at that share"
    )
    given = vars(parser.parse_args())
    config = given_config(given, SETTINGS)
    if not 0 < given["far"] < 1:
        raise ConfigError("far", given["far"], "it must be above 0 and below 1.")
    if given["threshold"] is not None and not -1 <= given["threshold"] <= 1:
        raise ConfigError("threshold", given["threshold"], "a cosine is from -1 to 1.")
    encoding = config.list_encoding
    data = open_training_set(given["train"], given["file_list"], config.identity_folder, encoding)
    tested = open_tested(given["test"], config.pairs, encoding)
    folder = Path(config.output or f"Results/overlap_{Path(given['train']).absolute().name}")
    nearest = None
    about = {"data": str(data.source), "test": given["test"], "checkpoint": config.checkpoint}
    if config.checkpoint:
        device = find_device(config.device)
        backbone = load_network(config, device)
        print(f"network: {describe(backbone)}")
        make_folder(folder)
        nearest = compare(
            *(data, tested, backbone, folder, device, given["far"], given["threshold"]),
            *(config.eval_batch_size, config.num_workers, given["features"]),
        )
        draw_scale(nearest, folder / "scores.png")
    make_folder(folder)
    others = {"name": same_names(data, tested)}
    if given["pictures"]:
        others["picture"] = same_pictures(data, tested, config.num_workers)
    suspects = find_suspects(tested, nearest, others)
    reasons = [*(["face"] if nearest else []), *others]
    text = write_report(data, tested, nearest, suspects, reasons, folder, about)
    print("\n" + "\n\n".join(("\n".join(data.notes), text) if data.notes else (text,)))
    print(f"\nLists and pictures: {folder}")


if __name__ == "__main__":
    run_script(main)
