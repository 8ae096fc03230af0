"""People that are in a training set and in a test set.

The files of this package:

nearest.py     the classes nearest to a feature, and the threshold, on arrays alone
people.py      a test set's images and people, and the names that both sets have
pictures.py    pictures that both sets have
report.py      the list, the table, the picture and the clean list
__main__.py    the command
"""
