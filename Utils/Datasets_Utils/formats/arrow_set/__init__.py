"""Sets of Hugging Face's `datasets`: folders that `save_to_disk` wrote, and parquet as the hub has.

Such a set is a table with a row for each image: a column of image files, and columns of numbers.
CVLface's verification sets (facerec_val) have `image`, `index` and `is_same`: the rows of index 2i
and 2i+1 are pair i. The package pyarrow reads the tables; `datasets` is not needed, and no loading
script is ever run. Image files are decoded here, as everywhere.

The files of this package, in the order to read them:

files.py    which files are at a path
tables.py   arrow files: where each image file is, and the values of the other columns
parquet.py  parquet files, rewritten once as arrow
columns.py  which column is what
sets.py     training and verification sets of them
"""

from Utils.Datasets_Utils.formats.arrow_set.sets import (
    is_arrow,
    is_arrow_pairs,
    open_arrow,
    open_arrow_pairs,
)

__all__ = ["is_arrow", "is_arrow_pairs", "open_arrow", "open_arrow_pairs"]
