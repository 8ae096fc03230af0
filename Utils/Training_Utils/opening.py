"""The settings of a run to resume."""

from typing import Any

from Utils.processes import ALONE, Processes
from Utils.run_folder import find_checkpoint
from Utils.Training_Utils.checkpoint import read_run
from Utils.Training_Utils.restarts import resumed_before


def saved_settings(resume: str, save_dir: str, processes: Processes = ALONE) -> dict[str, Any]:
    """The settings inside the checkpoint that `resume` means, with its path as their `resume`; for
    `Config.read_config`.

    Started again by torchrun, the checkpoint is the last of the run that this launch was training.
    processes: call this together, and all get the checkpoint that the first of them finds. Raises
    RunError where there is none, CheckpointError where it can't be read.
    """
    # Asked once for all: what is the last one may change meanwhile.
    path = processes.from_main(
        lambda: resumed_before(save_dir) or find_checkpoint(resume, save_dir)
    )
    settings = {**read_run(path, lazily=True)["settings"], "resume": str(path)}
    if resume == "last":
        settings["save_dir"] = save_dir  # a run may have been moved; it goes on where it was found
    return settings
