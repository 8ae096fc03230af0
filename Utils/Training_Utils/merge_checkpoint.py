"""Join a checkpoint that lies in parts into one file.

    python -m Utils.Training_Utils.merge_checkpoint RUN/checkpoints/last.dcp whole.pt
    python -m Utils.Training_Utils.merge_checkpoint FOLDER whole.pt

The first makes of a checkpoint folder the file that the run would have saved as one: for the
evaluation scripts, and to go on from. FOLDER in the second holds insightface's checkpoint_gpu_0.pt,
checkpoint_gpu_1.pt ...; the file is as insightface saves it on a single GPU, and anything here that
reads weights reads it. Nothing in a checkpoint is ever run.
"""

import argparse
from pathlib import Path
from typing import Any

from Utils.errors import CheckpointError, run_script
from Utils.Pretrained_Utils.flags import writable_target
from Utils.Pretrained_Utils.insightface_shards import find_shards, join_shards
from Utils.Training_Utils.checkpoint import read_run, write
from Utils.Training_Utils.class_tables import put_back
from Utils.Training_Utils.dcp_folder import is_folder, read_tables


def main() -> None:
    """Read the flags, join, say what was made."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="a checkpoint folder, or one of shards")
    parser.add_argument("target", type=Path, help="the file to write, ends in .pt")
    flags = parser.parse_args()
    target = writable_target(flags.target, (".pt",))
    if is_folder(flags.source):
        state, note = merge_folder(flags.source)
    elif find_shards(flags.source):
        state, note = join_shards(find_shards(flags.source))
    else:
        raise CheckpointError(
            f"{flags.source} is neither a checkpoint folder of a run (iteration_<n>.dcp, last.dcp) "
            f"nor a folder with checkpoint_gpu_0.pt, checkpoint_gpu_1.pt ..."
        )
    write(target, state)
    print(f"read     {flags.source}: {note}")
    print(f"written  {target}")


def merge_folder(folder: Path) -> tuple[dict[str, Any], str]:
    """The contents of the file that a checkpoint folder stands for, and a line about them.

    Raises CheckpointError where it can't be read.
    """
    state = read_run(folder)
    tables = read_tables(folder)
    names = ", ".join(tables)
    put_back(state, tables)
    done = state["position"]["iteration"]
    return state, f"iteration {done}, {state['num_classes']:,} classes ({names})"


if __name__ == "__main__":
    run_script(main)
