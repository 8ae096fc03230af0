"""Data sets: two functions that recognise the format at a path and open it.

The files of this package:

training_set.py             images with labels, and the store that a format is a subclass of
verification_set.py         unique images, and pairs of them in folds
images.py                   reading, decoding and checking one encoded image
pairs.py                    the two formats of pairs files
photos.py                   MegaFace's photos: its lists, and images by their names
formats/                    the table of formats, a file for each, and the writers
demo/                       the drawn faces that a fresh clone trains on
generate_dataset_list.py    a command: write the image list of a training set
convert_dataset.py          a command: convert a data set to another format
check_dataset.py            a command: read every image of a training set, report what is wrong
"""

from pathlib import Path

from Utils.Datasets_Utils.formats import open_training, open_verification
from Utils.Datasets_Utils.training_set import TrainingSet
from Utils.Datasets_Utils.verification_set import VerificationSet

__all__ = ["open_training_set", "open_verification_set"]


def open_training_set(path: str | Path, file_list: str | Path | None = None) -> TrainingSet:
    """Open training images with labels 0..C-1.

    path: a folder of images; a record file or its folder; a folder of tar shards; a .zip or .tar.
    file_list: an image list, lines `name  label`, to use those images with those labels. A name is
    a path in the folder or archive, a record's key, or `<shard>/<member>`.

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
    or shards, each with a pairs file. file_list: the pairs file, in the format of LFW or of
    AgeDB-30 and CFP-FP (default: pairs.txt in the folder or archive), or the issame list of a .blp
    set (default: `<path>_list.npy`). blp_channel_order: of the values in a .blp set, BGR or RGB.

    The set has `images`, `left`, `right` (indices into images), `same` and `folds`. Raises
    DataError for a path or list that can't be read or does not fit, PairsError for a pairs file.
    """
    pairs = Path(file_list) if file_list else None
    return open_verification(Path(path).absolute(), pairs, blp_channel_order)
