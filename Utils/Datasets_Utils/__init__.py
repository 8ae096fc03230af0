"""Data sets: the two doors that recognise a format from what is there (see formats.py)."""

from pathlib import Path

from Utils.Datasets_Utils.formats import open_training, open_verification
from Utils.Datasets_Utils.training_set import TrainingSet
from Utils.Datasets_Utils.verification_set import VerificationSet

__all__ = ["open_training_set", "open_verification_set"]


def open_training_set(path: str | Path, file_list: str | Path | None = None) -> TrainingSet:
    """Open training images with labels 0..C-1.

    path: a folder of images; a record file or its folder; a folder of tar shards; a .zip or .tar.
    file_list: an image list, 'name  label' a line, to take those images with those labels. A name
    is a path in the folder or archive, a record's key, or `<shard>/<member>`.

    The set has `num_classes` and `len()`, and yields (uint8 H×W×3 RGB, label). Raises DataError,
    before any image is read, for missing files, an empty set, labels that are not 0..C-1, and
    damaged files of an archive format.
    """
    return open_training(Path(path).absolute(), Path(file_list) if file_list else None)


def open_verification_set(
    path: str | Path, file_list: str | Path | None = None, blp_channel_order: str = "BGR"
) -> VerificationSet:
    """Open the unique images and the pairs of a verification benchmark.

    path: a .bin file; a folder of .blp chunks; a folder of images, an archive of one, a record file
    or shards, each with a pairs file. file_list: the pairs file, LFW's or AgeDB-30's and CFP-FP's
    format (empty: pairs.txt in the folder or archive), or the issame list of a .blp set (empty:
    `<path>_list.npy`). blp_channel_order: of the values in a .blp set, BGR or RGB.

    The set has `images`, `left`, `right` (indices into images), `same` and `folds`.
    """
    pairs = Path(file_list) if file_list else None
    return open_verification(Path(path).absolute(), pairs, blp_channel_order)
