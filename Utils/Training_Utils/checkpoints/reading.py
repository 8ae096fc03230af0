"""Reading the checkpoints of a run, files or folders, without running any code in them.

A checkpoint holds everything that a run needs to continue as if it had never stopped. The class
tables of a folder lie in files of their own, see `sharded.py`; the rest is in its common.pt.
"""

from pathlib import Path
from typing import Any

from Config import Config
from Utils.errors import CheckpointError
from Utils.files import read_tensors
from Utils.run_folder import COMMON, FORMAT, is_checkpoint_folder
from Utils.Training_Utils.checkpoints.sharded import TABLES, describes_tables

_SECTIONS = ("settings", "architecture", "backbone", "head", "optimizer", "position", "random")


def read_run(path: str | Path, lazily: bool = False) -> dict[str, Any]:
    """Read a checkpoint of a run: all of a file, or all of a folder but its class tables.

    lazily: see `read_tensors`. Raises CheckpointError for a file that Train.py did not write.
    """
    folder = Path(path) if is_checkpoint_folder(Path(path)) else None
    state = read_tensors(folder / COMMON if folder else path, lazily)
    if not (isinstance(state, dict) and state.get("format") == FORMAT):
        raise CheckpointError(
            f"checkpoint {path} was not written by Train.py, so a run can't be resumed from it."
        )
    missing = sorted(name for name in _SECTIONS if not isinstance(state.get(name), dict))
    if missing:
        raise CheckpointError(f"checkpoint {path} lacks {', '.join(missing)}.")
    if folder:
        if not describes_tables(state.get(TABLES)):
            raise CheckpointError(f"checkpoint {path} does not describe its class tables.")
        state[TABLES]["folder"] = str(folder)
    elif TABLES in state:
        raise CheckpointError(
            f"checkpoint {path} lacks the class tables; they are beside it: give the folder "
            f"{Path(path).parent}."
        )
    return state


def check_fits(
    state: dict[str, Any], path: Path, config: Config, num_classes: int, num_images: int
) -> None:
    """Raise CheckpointError where a checkpoint is of another network or of other classes; in the
    middle of an epoch also where images or batches are others, so that its order can't continue."""
    saved = Config.from_dict(state["settings"])
    for name in (
        "backbone",
        "feature_dim",
        "input_size",
        "margin",
        "sub_centers",
        "optimizer",
        "head_optimizer",
    ):
        ours, theirs = getattr(config, name), getattr(saved, name)
        if ours != theirs:
            raise CheckpointError(
                f"checkpoint {path} has {name} {theirs}, the settings say {ours}; "
                f"resume with {theirs}, or start a new run."
            )
    if state["num_classes"] != num_classes:
        raise CheckpointError(
            f"checkpoint {path} has a head for {state['num_classes']} classes, the training set "
            f"{config.train_dataset} has {num_classes}; resume with the run's own training set."
        )
    if state["position"]["batch"] == 0:
        return
    for name, ours, theirs in (
        ("batch_size", config.batch_size, saved.batch_size),
        ("seed", config.seed, saved.seed),
        ("sampler", config.sampler, saved.sampler),
        ("number of training images", num_images, state["num_images"]),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"checkpoint {path} is from the middle of an epoch with {name} {theirs}, now it "
                f"is {ours}: keep it, or resume from the end of an epoch."
            )
