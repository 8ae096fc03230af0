"""From photographs to aligned faces.

The files of this package:

transform.py    five points to the template: the similarity, the warp, and points that can't be used
faces.py        what a detector finds in a photograph, which face is taken, what is doubtful
landmarks/      landmarks that somebody has found already, in lists
detectors.py    the table of detectors; a new one is a file here and a row there
yunet.py        YuNet, through OpenCV
mtcnn.py        MTCNN: its three networks, and the cascade
photograph.py   photographs of any kind and size, upright
sources.py      the photographs of a folder, a list or an archive, and the names of their crops
work.py         what is done with one photograph
run.py          all photographs, in several processes, resumable
prepared.py     data sets of photographs, aligned once and kept
report.py       the lines of aligned.csv
sheet.py        the contact sheet of what is doubtful
"""
