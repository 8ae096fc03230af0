"""Where a run begins: the checkpoint that it goes on from, its state, its folder."""

from __future__ import annotations

from pathlib import Path

import torch

from Config import Config
from Utils.Datasets_Utils.training_set import TrainingSet
from Utils.errors import CheckpointError, DataError
from Utils.processes import Processes
from Utils.run_folder import RunFolder, create_run, find_checkpoint, run_to_continue
from Utils.Training_Utils import checkpoint as checkpoints
from Utils.Training_Utils.checkpoints.writer import remove_unfinished
from Utils.Training_Utils.reports.results import read_results
from Utils.Training_Utils.restarts import note_run, restarted_from
from Utils.Training_Utils.state import TrainingState, build_state


def checkpoint_to_resume(config: Config, processes: Processes) -> Path | None:
    """The checkpoint to go on from: this launch's own, if it was restarted, or `resume`'s; None
    begins anew. Raises RunError where there is none of that name."""
    # Asked once for all: what is the last one may change meanwhile.
    return processes.from_main(lambda: _find_checkpoint(config))


def begin_state(
    config: Config,
    data: TrainingSet,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    resumed: Path | None,
    processes: Processes,
) -> TrainingState:
    """The networks, and all else that changes while they train: new, or as a checkpoint has them.

    Raises CheckpointError where that can't be read, does not fit, or is the end of a finished run.
    """
    saved = checkpoints.read_run(resumed, lazily=processes.world_size > 1) if resumed else None
    if saved:
        checkpoints.check_fits(saved, resumed, config, data.num_classes, len(data))
        _check_not_over(saved["position"]["epoch"], resumed, config)
    state = build_state(
        *(config, data.num_classes, len(data) // config.batch_size),
        *(device, amp_dtype, saved, processes),
    )
    if saved:
        state.restore(saved, config, processes)
    return state


def open_run(config: Config, resumed: Path | None, processes: Processes) -> RunFolder | None:
    """The folder of the run, made: a new one, or to go on from a run's end, that run's. None in
    para_adj_mode. Raises RunError where it can't be made."""
    if config.para_adj_mode:
        return None
    return processes.from_main(lambda: _make_run(config, resumed))


def _find_checkpoint(config: Config) -> Path | None:
    restarted = None if config.para_adj_mode else restarted_from(config)
    if restarted is None and config.resume:
        return find_checkpoint(config.resume, config.save_dir)
    return restarted


def _check_not_over(epoch: int, path: Path, config: Config) -> None:
    """Raise CheckpointError where nothing is left to do. A run that was killed between its last
    checkpoint and its results has no iteration left, but its tests."""
    if epoch < config.total_epoch:
        return
    run = run_to_continue(path)
    if epoch == config.total_epoch and run is not None:
        try:
            read_results(run)
        except DataError:  # it has none
            return
    raise CheckpointError(
        f"checkpoint {path} is the end of {epoch} epochs, and total_epoch is "
        f"{config.total_epoch}: give a larger --total_epoch to train on."
    )


def _make_run(config: Config, resumed: Path | None) -> RunFolder:
    run = run_to_continue(resumed) if resumed else None
    if run is None:
        run = create_run(config)
    else:
        run.create(config)
        remove_unfinished(run)
        run.results.unlink(missing_ok=True)  # it is there for runs that came to their end
    note_run(config, run)
    return run
