"""What a run says of itself before it trains."""

from collections.abc import Iterable
from pathlib import Path

import torch

from Config import Config
from Utils.Datasets_Utils.training_set import TrainingSet
from Utils.run_folder import RunFolder
from Utils.Training_Utils.data import describe_training_data
from Utils.Training_Utils.optimization import describe_rates
from Utils.Training_Utils.state import TrainingState


def describe_run(
    config: Config,
    data: TrainingSet,
    tests: Iterable[str],
    state: TrainingState,
    where: str,
    amp_dtype: torch.dtype | None,
    run: RunFolder | None,
    resumed: Path | None,
) -> list[str]:
    """Lines for the log.

    tests: a line for each test set. where: the devices. resumed: the checkpoint it goes on from.
    """
    precision = f", {str(amp_dtype).removeprefix('torch.')} in the backbone" if amp_dtype else ""
    lines = [
        describe_training_data(config, data),
        *tests,
        *state.start,
        f"{config.backbone} with {config.margin}, {where}{precision}",
        describe_rates(config),
        f"saving to {run.path if run else 'nowhere: para_adj_mode is on'}",
    ]
    if resumed:
        lines.append(f"continuing after iteration {state.iteration} from {resumed}")
    return lines
