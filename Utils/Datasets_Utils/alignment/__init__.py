"""From photographs to aligned faces.

The files of this package:

transform.py    five points to the template: the similarity, the warp, and points that can't be used
faces.py        what a detector finds in a photograph, and which of the faces is taken
detectors.py    the table of detectors; a new one is a file here and a row there
yunet.py        YuNet, through OpenCV
"""
