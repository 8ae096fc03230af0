"""Identification and verification among many distractors, on arrays alone; exact to the last digit.

evaluation.py    what is measured: `evaluate`, its checks and results
figures.py       from ranks and scores to figures: CMC, TPR at a FPR, ROC curve, open set
scoring.py       the passes over blocks of distractors × probes
ranks.py         mates of the probes, distractors that beat them, each probe's best distractor
negatives.py     the highest scores, and a histogram of all
exact_scores.py  the score, exact and fast, and how far the fast one can be from it
"""

from Utils.Evaluation_Utils.identification.evaluation import (
    Confusion,
    IdentificationResult,
    ScoringSettings,
    Trial,
    evaluate,
    evaluate_trials,
)

__all__ = [
    "Confusion",
    "IdentificationResult",
    "ScoringSettings",
    "Trial",
    "evaluate",
    "evaluate_trials",
]
