"""Landmarks that somebody has found already.

The files of this package:

lists.py      lists in the forms that the field distributes, and the faces of each photograph
columns.py    the columns of a list, by the header line that names them
"""
