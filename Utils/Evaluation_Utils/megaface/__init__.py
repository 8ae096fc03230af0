"""MegaFace: from photos, or the devkit's files, to figures, a results file and pictures.

evaluation.py  the way through: open, extract, score, report
data.py        probes and distractors as the settings name them
devkit.py      the devkit's feature files, read and written
noise.py       the same with the published noise lists
report.py      megaface.json and the printed table
pictures.py    CMC, ROC, rank-1 over set sizes, the worst confusions; results to compare with
"""
