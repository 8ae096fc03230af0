"""TinyFace: faces of about 20×16 pixels, searched for among 153,428 distractors.

evaluation.py  the way through: open, extract, score, report
data.py        the official lists and the images that they name
figures.py     mAP and rank-r by the official rule, on arrays alone
"""
