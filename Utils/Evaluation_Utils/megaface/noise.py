"""Trials with and without the photos on the noise lists of mislabelled photos.

`drop`: noisy probes and distractors are left out. `insightface`, as its `remove_noises.py` has it:
a noisy probe becomes the centre of its person's clean ones, which finds them easily and so raises
the figures; a noisy distractor gets 100 in a dimension of its own, so that it is far from
everything but still counts as a distractor. (insightface adds a little random noise to the centre;
here there is none, so that figures can be repeated.)
"""

from dataclasses import dataclass

import numpy as np

from Utils.Evaluation_Utils.identification.exact_scores import unit_rows
from Utils.Evaluation_Utils.identification.ranks import has_pairs
from Utils.Evaluation_Utils.identification.scoring import Trial

RAW, CLEANED = "as listed", "cleaned"


@dataclass(frozen=True, eq=False)
class TrialSet:
    """probes: the P×D table that trials refer to, with rows added behind the P0 real ones.
    ids, origin: of each row, the identity and the real probe that it stands for.
    trials: by (label of the distractor set, RAW or CLEANED). skipped: why each label in it has no
    cleaned trial."""

    probes: np.ndarray
    ids: np.ndarray
    origin: np.ndarray
    trials: dict[tuple[str, str], Trial]
    skipped: dict[str, str]


def make_trials(
    probes: np.ndarray,
    ids: np.ndarray,
    sets: dict[str, np.ndarray],
    noisy_probes: np.ndarray | None,
    noisy_distractors: np.ndarray | None,
    how: str,
) -> TrialSet:
    """Trials for every set of distractors, without noise too if there are noise lists.

    probes: P0×D. ids: P0. sets: rows of the distractor table by label. noisy_probes: bool P0,
    noisy_distractors: bool N; None if there is no list. how: drop or insightface.
    """
    count = len(probes)
    everyone, origin = np.arange(count), np.arange(count)
    trials = {(label, RAW): Trial(everyone, rows) for label, rows in sets.items()}
    if noisy_probes is None and noisy_distractors is None:
        return TrialSet(probes, ids, origin, trials, {})
    bad = np.zeros(count, bool) if noisy_probes is None else noisy_probes
    clean = everyone[~bad]
    if how == "insightface":
        replaced = [row for row in everyone[bad] if np.any(~bad & (ids == ids[row]))]
        centres = [unit_rows(probes[~bad & (ids == ids[row])]).sum(axis=0) for row in replaced]
        place = {row: count + number for number, row in enumerate(replaced)}
        # A noisy probe without a clean photo of its person has no centre, and is left out.
        clean = np.array([place.get(r, r) for r in everyone if not bad[r] or r in place], np.int64)
        if replaced:
            probes = np.concatenate([probes, unit_rows(np.array(centres)).astype(np.float32)])
            ids = np.concatenate([ids, ids[replaced]])
            origin = np.concatenate([origin, replaced])
    skipped = {}
    for label, rows in sets.items():
        kept = rows if noisy_distractors is None else rows[~noisy_distractors[rows]]
        far = len(rows) - len(kept) if how == "insightface" else 0
        if not has_pairs(ids[clean]):
            skipped[label] = "no person has two clean probes"
        elif not len(kept):
            skipped[label] = "all of its distractors are noisy"
        else:
            trials[label, CLEANED] = Trial(clean, kept, far)
    return TrialSet(probes, ids, origin, trials, skipped)
