"""What can be judged for identification, checked before anything is scored."""

from collections.abc import Sequence

import numpy as np

from Utils.errors import DataError
from Utils.Evaluation_Utils.exact_scores import SCORE_DTYPES
from Utils.Evaluation_Utils.mates import TIES, has_pairs
from Utils.Evaluation_Utils.scoring import ScoringSettings
from Utils.Evaluation_Utils.trials import Trial


def check_arrays(
    probes: np.ndarray, ids: np.ndarray, distractors: np.ndarray, trials: Sequence[Trial]
) -> None:
    """Raises DataError for tables, identities or trials that do not fit each other."""
    for name, table in (("probes", probes), ("distractors", distractors)):
        if table.ndim != 2 or 0 in table.shape:
            raise DataError(f"{name} have shape {table.shape}; expected a row of features each.")
        if table.dtype.kind != "f":
            raise DataError(f"{name} are {table.dtype}; expected floating-point features.")
    if probes.shape[1] != distractors.shape[1]:
        raise DataError(
            f"probes have {probes.shape[1]} features each and distractors "
            f"{distractors.shape[1]}; extract both with the same network."
        )
    if ids.shape != (len(probes),):
        raise DataError(f"{len(ids)} identities for {len(probes)} probes; expected one for each.")
    for trial in trials:
        if not len(trial.probes) or not len(trial.distractors):
            raise DataError(
                f"a set of {len(trial.probes)} probes and {len(trial.distractors)} distractors; "
                f"there must be some of both."
            )


def check_pairs(ids: np.ndarray, trials: Sequence[Trial]) -> None:
    """Raises DataError for a trial in which nobody has two probes: without mates no figures."""
    for trial in trials:
        if not has_pairs(ids[trial.probes]):
            raise DataError(
                "no identity has two probes, so there is no mate to look for; check the identities "
                "in the probe list."
            )


def check_requests(
    ranks: Sequence[int],
    fprs: Sequence[float],
    fpirs: Sequence[float],
    settings: ScoringSettings,
) -> None:
    """Raises ValueError for ranks, rates or settings that are none."""
    if any(rank < 1 or rank != int(rank) for rank in ranks):
        raise ValueError(f"ranks are {list(ranks)}; expected whole numbers from 1 on")
    for name, rates in (("fprs", fprs), ("fpirs", fpirs)):
        if any(not 0 <= rate <= 1 for rate in rates):
            raise ValueError(f"{name} are {list(rates)}; expected rates from 0 to 1")
    if settings.ties not in TIES:
        raise ValueError(f"ties is {settings.ties!r}; expected one of {', '.join(TIES)}")
    if settings.score_dtype not in SCORE_DTYPES:
        raise ValueError(
            f"score_dtype is {settings.score_dtype!r}; expected one of {', '.join(SCORE_DTYPES)}"
        )
    if settings.block_size < 0:
        raise ValueError(f"block_size is {settings.block_size}; expected 0 (automatic) or more")
