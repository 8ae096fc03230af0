"""Whether crops are worth training on, and which of them are alike.

The files of this package:

sharpness.py    how blurred a crop is, and how large its original was
crops.py        these and a detector's points for each image of a set; limits; the table
alike.py        pictures that are nearly the same
table.py        the report of check_dataset for printing
"""
