"""Checkpoints: everything that a run needs to go on as if it had never stopped, in one file.

Written to a temporary name and renamed, so that a kill in the middle leaves the older ones whole;
read with `weights_only`, so that no code in a file is ever run. `dcp_folder` has the other form, a
folder, in which the class tables lie apart.
"""

from pathlib import Path
from typing import Any

from Config import Config
from Utils.errors import CheckpointError
from Utils.files import link_or_copy, read_tensors, write_tensors
from Utils.run_folder import BEST, COMMON, FORMAT, LAST, SUFFIX, RunFolder, is_checkpoint_folder


def save(run: RunFolder, state: dict[str, Any], iteration: int) -> Path:
    """Write checkpoints/iteration_<n>.pt and let last.pt be the same file."""
    path = run.checkpoints / f"iteration_{iteration:08d}.pt"
    write_tensors(path, state)
    link_or_copy(path, run.checkpoints / LAST)
    _remove_other_form(run.checkpoints / LAST)
    return path


def save_best(run: RunFolder, state: dict[str, Any]) -> None:
    """Write checkpoints/best.pt."""
    write_tensors(run.checkpoints / BEST, state)
    _remove_other_form(run.checkpoints / BEST)


def read_run(path: str | Path, lazily: bool = False) -> dict[str, Any]:
    """Read a checkpoint of a run, all of a file, or of a folder all but its class tables.

    lazily: see `read_tensors`. Raises CheckpointError for what Train.py did not write.
    """
    folder = Path(path) if is_checkpoint_folder(Path(path)) else None
    state = read_tensors(folder / COMMON if folder else path, lazily)
    if not (isinstance(state, dict) and state.get("format") == FORMAT):
        raise CheckpointError(
            f"checkpoint {path} was not written by Train.py, so a run can't go on from it."
        )
    missing = {
        "settings",
        "architecture",
        "backbone",
        "head",
        "optimizer",
        "position",
        "random",
    } - set(state)
    if missing:
        raise CheckpointError(f"checkpoint {path} lacks {', '.join(sorted(missing))}.")
    if folder:
        state["class_tables"]["folder"] = str(folder)
    elif "class_tables" in state:
        raise CheckpointError(
            f"checkpoint {path} lacks the class tables; they lie beside it: give the folder "
            f"{Path(path).parent}."
        )
    return state


def check_fits(
    state: dict[str, Any], path: Path, config: Config, num_classes: int, num_images: int
) -> None:
    """Raise CheckpointError where a checkpoint is of another network, other classes, or, in the
    middle of an epoch, of other images or batches, so that it has no place to go on from."""
    saved = Config.from_dict(state["settings"])
    for name in (
        *("backbone", "feature_dim", "input_size", "margin", "sub_centers"),
        *("optimizer", "head_optimizer"),
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
    if state["position"]["batch"]:
        _check_same_batches(saved, state["num_images"], path, config, num_images)


def _check_same_batches(
    saved: Config, saved_images: int, path: Path, config: Config, num_images: int
) -> None:
    for name, ours, theirs in (
        ("batch_size", config.batch_size, saved.batch_size),
        ("seed", config.seed, saved.seed),
        ("sampler", config.sampler, saved.sampler),
        ("number of training images", num_images, saved_images),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"checkpoint {path} stands in the middle of an epoch with {name} {theirs}, now it "
                f"is {ours}: keep it, or resume from the end of an epoch."
            )


def _remove_other_form(path: Path) -> None:
    """Remove the folder's name that stood where now a file does."""
    path.with_suffix(SUFFIX).unlink(missing_ok=True)
