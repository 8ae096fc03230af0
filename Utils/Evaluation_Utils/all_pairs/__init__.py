"""Every pair of the images of a labelled set, as in MFR-Ongoing: from features to a report.

report.py     a checkpoint on a labelled set, from its data to table, JSON and pictures
figures.py    what is measured: TAR at a FAR, rank-1, groups; on arrays alone
pair_set.py   all pairs or a group's: from counts to the point at a FAR
counting.py   the passes over blocks of images × images, exact and in bounded memory
"""
