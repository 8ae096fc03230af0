"""Training sets in an LMDB database: `x.lmdb`, or a folder with `data.mdb`, as HSFace circulates.

A key for each image, `0`, `1`, ...; its value is (image file, label), packed by msgpack, or pickled
as older converters of image folders do. `__len__` has the number of images; `__keys__` repeats the
keys, and `__classnum__` has the number of classes: readers here need neither. A value may also be
an image file alone: its label is then in an image list, by its key.

The database is read without the lmdb package, which maps a file and trusts it: a truncated one ends
the process there. The files of this package:

images.py   the images of a database and their labels
values.py   what is in a value: msgpack, plain pickles, image files
tree.py     the file itself: pages, and the entries of its B+ tree
"""

from Utils.Datasets_Utils.formats.lmdb_set.images import SUFFIXES, is_lmdb, open_lmdb

__all__ = ["SUFFIXES", "is_lmdb", "open_lmdb"]
