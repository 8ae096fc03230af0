"""Merge a checkpoint whose class tables are split over files into one file.

    python -m Utils.Training_Utils.merge_checkpoint RUN/checkpoints/last.dcp whole.pt
    python -m Utils.Training_Utils.merge_checkpoint FOLDER whole.pt

The first merges a checkpoint folder into the file that the run would have saved with
--checkpoint_format file, which the evaluation scripts and --resume read.

In the second, FOLDER has insightface's checkpoint_gpu_0.pt, checkpoint_gpu_1.pt ..., one for each
GPU. The file is what insightface saves on a single GPU, and this project reads its weights. Its
train_v2.py writes epoch, global_step, state_dict_backbone (the same in all), state_dict_softmax_fc
(`weight`, the rows of this rank's classes, in the order of the ranks), state_optimizer (whose last
weight is that table), state_lr_scheduler.

No code in a checkpoint is ever run.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from Utils.errors import CheckpointError, run_script
from Utils.files import read_tensors, write_tensors
from Utils.Pretrained_Utils.files import writable_target
from Utils.run_folder import is_checkpoint_folder
from Utils.Training_Utils.checkpoints.checks import check_entries
from Utils.Training_Utils.checkpoints.run_checkpoints import read_run
from Utils.Training_Utils.checkpoints.sharded import TABLES, put_tables, read_tables

HEAD, OPTIMIZER = "state_dict_softmax_fc", "state_optimizer"
_NAME = re.compile(r"checkpoint_gpu_(\d+)\.pt")


def main() -> None:
    """Read the flags, merge, print what was read and written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="a checkpoint folder, or a folder of shards")
    parser.add_argument("target", type=Path, help="the file to write, ends in .pt")
    flags = parser.parse_args()
    target = writable_target(flags.target, (".pt",))
    if is_checkpoint_folder(flags.source):
        state, note = merge_folder(flags.source)
    elif shards := find_shards(flags.source):
        state, note = merge_shards(shards)
    else:
        raise CheckpointError(
            f"{flags.source} is neither a checkpoint folder of a run (iteration_<n>.dcp, last.dcp) "
            f"nor a folder with checkpoint_gpu_0.pt, checkpoint_gpu_1.pt ..."
        )
    write_tensors(target, state)
    print(f"read     {flags.source}: {note}")
    print(f"written  {target}")


def merge_folder(folder: Path) -> tuple[dict[str, Any], str]:
    """The checkpoint of a folder as a file holds it, and a line about it.

    Raises CheckpointError if it can't be read.
    """
    state = read_run(folder)
    check_entries(state, folder)
    about = state.pop(TABLES)
    tables = read_tables(folder, about["names"], state["num_classes"], about["shape"])
    put_tables(state, state["optimizer"]["state"].get(about["parameter"], {}), tables)
    done = state["position"]["iteration"]
    return state, f"iteration {done}, {state['num_classes']:,} classes ({', '.join(tables)})"


def find_shards(folder: Path) -> list[Path]:
    """The shards of a folder, by rank. Raises CheckpointError if one between them is missing."""
    found = {int(m[1]): p for p in Path(folder).glob("*.pt") if (m := _NAME.fullmatch(p.name))}
    missing = sorted(set(range(max(found, default=-1) + 1)) - set(found))
    if missing:
        raise CheckpointError(
            f"{folder} has {len(found)} shards up to number {max(found)}, but no "
            f"checkpoint_gpu_{missing[0]}.pt; copy all of them there."
        )
    return [found[rank] for rank in sorted(found)]


def merge_shards(paths: list[Path]) -> tuple[dict[str, Any], str]:
    """The checkpoint that one GPU would have saved, and a line about it.

    Raises CheckpointError if a shard can't be read or is not of the same step and network.
    """
    shards = [_read_shard(path) for path in paths]
    first = shards[0]
    for path, shard in zip(paths, shards, strict=True):
        _check_same(path, shard, paths[0], first)
    table = torch.cat([shard[HEAD]["weight"] for shard in shards])
    merged = {**first, HEAD: {**first[HEAD], "weight": table}}
    note = f"{len(paths)} shards, {len(table):,} classes, step {first.get('global_step')}"
    if OPTIMIZER in first:
        merged[OPTIMIZER] = _merge_optimizers(shards)
        if merged[OPTIMIZER] is None:
            del merged[OPTIMIZER]
            note += "; without the optimiser, which has the state of a sample of the classes"
    return merged, note


def _read_shard(path: Path) -> dict[str, Any]:
    shard = read_tensors(path, lazily=True)
    head = shard.get(HEAD) if isinstance(shard, dict) else None
    weight = head.get("weight") if isinstance(head, dict) else None
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise CheckpointError(
            f"{path} has no {HEAD} with the class weights of a rank, C×D, as insightface saves it."
        )
    return shard


def _check_same(path: Path, shard: dict[str, Any], other: Path, first: dict[str, Any]) -> None:
    for name in ("epoch", "global_step"):
        if shard.get(name) != first.get(name):
            raise CheckpointError(
                f"{path} is of {name} {shard.get(name)}, {other.name} of {first.get(name)}; "
                f"take shards that were saved together."
            )
    ours, theirs = (s[HEAD]["weight"].shape[1] for s in (shard, first))
    if ours != theirs:
        raise CheckpointError(
            f"{path} has class weights of {ours} values, {other.name} of {theirs}; they are not of "
            f"one network."
        )


def _merge_optimizers(shards: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The optimiser's state with the rows of all shards; None if its rows are not those of the
    class weights, because it has the state of a sample of the classes."""
    first = shards[0][OPTIMIZER]
    last = max(number for group in first["param_groups"] for number in group["params"])
    states = [shard[OPTIMIZER]["state"].get(last, {}) for shard in shards]
    merged = dict(states[0])
    for name, value in states[0].items():
        if not isinstance(value, Tensor) or value.ndim != 2:
            continue
        tables = [state[name] for state in states]
        rows = [shard[HEAD]["weight"].shape for shard in shards]
        if [table.shape for table in tables] != rows:
            return None
        merged[name] = torch.cat(tables)
    return {**first, "state": {**first["state"], last: merged}}


if __name__ == "__main__":
    run_script(main)
