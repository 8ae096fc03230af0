"""The jobs that `run.py` measures: this project's side, a plain side, and the machine's limit.

Each side runs in its own process, so that memory which one has allocated does not help the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks import data_sides as data
from benchmarks import network_sides as nets
from benchmarks.measuring import Measured
from benchmarks.scale import Scale

Side = Callable[[Scale], Measured]


@dataclass(frozen=True)
class Job:
    """A row of the table.

    title: of the row. unit: "s" where the figure is the seconds of a whole job, otherwise the work
    done per second. ours, plain: the two sides; plain may be None. aim: for the ratio; with a unit,
    for our own figure. bound: the largest work per second that the machine allows, and its name.
    """

    title: str
    unit: str
    ours: Side
    plain: Side | None
    aim: str
    bound: Callable[[Scale], tuple[float, str]] | None = None


def _embedding(name: str, dtype: str, aim: str) -> Job:
    return Job(
        f"embedding, {name}, {dtype}",
        "pairs/s",
        partial(nets.our_embedding, name, dtype),
        partial(nets.plain_embedding, name),
        aim,
        partial(nets.embedding_bound, name, dtype),
    )


JOBS: dict[str, Job] = {
    "head": Job(
        "margin head, N 256, D 512", "s", nets.our_head, nets.plain_head, "≥ 3.33", nets.head_bound
    ),
    "step": Job(
        "training step, MobileFaceNet",
        "images/s",
        nets.our_step,
        nets.plain_step,
        "≥ 1.4",
        nets.step_bound,
    ),
    "embed": _embedding("MobileFaceNet", "fp32", "≥ 7"),
    "embed_bf16": _embedding("MobileFaceNet", "bf16", "≥ 12"),
    "embed_r50": _embedding("ResNet50_IR", "fp32", "≥ 3"),
    "embed_r50_bf16": _embedding("ResNet50_IR", "bf16", "≥ 6"),
    "verify": Job(
        "10-fold evaluation, cosine",
        "s",
        data.our_verification,
        data.plain_verification,
        "≤ 0.05 s",
    ),
    "load": Job(
        "decoded, batched, one core",
        "images/s",
        data.our_loading,
        data.plain_loading,
        "≥ 2.8",
        data.decode_bound,
    ),
    "megaface": Job(
        "MegaFace scoring, 256-d", "distractors/s", data.our_scoring, data.bare_scoring, "≥ 0.4"
    ),
    "list": Job("opening a list", "images/s", data.our_listing, data.plain_listing, ""),
    "start": Job("Train.py to the first step", "s", data.our_start, None, "≤ 10 s, ≤ 1 GiB"),
}
