"""IJB-B and IJB-C: from crops and the meta folder's lists to figures, a results file and pictures.

evaluation.py      the way through: read the lists, embed, evaluate, report
lists.py           the meta folder: images, templates, media, points, pairs, galleries, probes
pair_list.py       the pairs among them, millions of lines
alignment.py       a crop brought to 112×112 by its five points
templates.py       the conventions; one vector for each template, from its images' features
verification.py    1:1: scores of the listed pairs, TAR@FAR by the exact and the nearest rule
identification.py  1:N: ranks and TPIR@FPIR of probes in each gallery
further.py         intervals over subjects, thresholds of another set, error versus discard
report.py          ijbc.json (ijbb.json), the printed table, the picture
"""
