"""Data sets: the two doors that recognise a format from what is there."""

from pathlib import Path

from Utils.Datasets_Utils.image_list import ImageListSet, read_class_folders, read_image_list
from Utils.Datasets_Utils.verification_set import VerificationSet, load_pairs_set

__all__ = ["open_training_set", "open_verification_set"]


def open_training_set(path: str | Path, file_list: str | Path | None = None) -> ImageListSet:
    """Open training images with labels 0..C-1.

    path: the data set's folder. file_list: its image list; without one, each folder is a class.

    The set has `num_classes` and `len()`, and yields (uint8 H×W×3 RGB, label). Raises DataError,
    before any image is read, for missing files, an empty set, or labels that are not 0..C-1.
    """
    return read_image_list(path, file_list) if file_list else read_class_folders(path)


def open_verification_set(path: str | Path, file_list: str | Path) -> VerificationSet:
    """Open the unique images and the pairs of a verification benchmark.

    path: the images' folder. file_list: its pairs file, LFW's or AgeDB-30's and CFP-FP's format.

    The set has `images`, `left`, `right` (indices into images), `same` and `folds`.
    """
    return load_pairs_set(Path(path), Path(file_list))
