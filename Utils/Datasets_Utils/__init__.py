"""Data sets: two functions that recognise the format at a path and open it.

The files of this package:

training_set.py             images with labels, and the store that a format is a subclass of
verification_set.py         unique images, and pairs of them in folds
pairs/                      pairs files in every form, and groups of pairs
folds.py                    the folds of pairs
names.py                    the images that a list means, where it writes names otherwise
text.py                     lists in text files: encodings, lines, fields
images.py                   reading, decoding and checking one encoded image
appearance.py               whether images have an aligned face's size, and a skin's colours
photos.py                   MegaFace's photos: its lists, and images by their names
quality/                    whether crops are sharp, large and aligned, and which are alike
alignment/                  photographs to aligned faces: points, detectors, the template
formats/                    the table of formats, a file for each, and the writers
demo/                       the drawn faces that a fresh clone trains on
generate_dataset_list.py    a command: write the image list of a training set
make_pairs.py               a command: draw verification pairs for a folder of people
align_faces.py              a command: align the faces of photographs
convert_dataset.py          a command: convert a data set to another format
check_dataset.py            a command: read every image of a training set, report what is wrong
"""

from Utils.Datasets_Utils.formats import open_training_set, open_verification_set

__all__ = ["open_training_set", "open_verification_set"]
