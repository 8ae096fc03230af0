"""The memory that a training step needs on each GPU, and the bytes that the GPU sends.

    python -m benchmarks.memory_plan [--backbones ...] [--classes ...] [--world ...] [--batch ...]
    python -m benchmarks.memory_plan --teacher ResNet100_IR ...
    python -m benchmarks.memory_plan --check

The plan is computed and not measured; no GPU has run it. Each row is one combination of the given
values. --check trains some small ones on the CPU and compares the plan with the process's memory.
The columns, all in bytes for each GPU:

    backbone      weights, gradients and optimiser state (momentum, or AdamW's two), float32
    activations   tensors saved for the backward pass; measured on a CPU, see `Activations`; with
                  --activation_checkpointing without those of the one block that is computed again
    classes       class weights and their optimiser state: C·K·D values, divided by W if sharded
    trained rows  their gradient; with sampling, of the sampled rows only, and a copy of these
    logits        an N×k matrix and some blocks; N is the whole batch if the head is sharded
    teacher       weights of a teacher, float32, and what it needs to embed a micro-batch, see
                  `Teacher`; nothing where its embeddings are kept in a table, as they are where
                  augmentation only mirrors the images
    peak          the largest sum, in the head's backward pass or in the optimiser's step

The workspaces of libraries, the CUDA context (about 0.5 GB) and fragmentation need more memory.
"Sent" are the bytes that each GPU sends in a step with ring algorithms: an all-reduce of B bytes
sends 2·B·(W-1)/W bytes, a gather or a scatter half as many.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass

import torch

from Backbone import build_backbone
from Head import softmax
from Head.sampling import sample_size

FLOAT, LONG = 4, 8
AMP = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
STATES = {"sgd": 1, "adamw": 2}  # numbers that an optimiser keeps for each weight


@dataclass(frozen=True)
class Setup:
    """batch: the images of a step in all processes. parallel: the head is sharded or replicated.
    recompute: activation checkpointing."""

    backbone: str = "ResNet50_IR"
    classes: int = 1_000_000
    world: int = 8
    batch: int = 1024
    sample_rate: float = 1.0
    dtype: str = "bf16"
    feature_dim: int = 512
    input_size: tuple[int, int] = (112, 112)
    sub_centers: int = 1
    accumulate: int = 1
    optimizer: str = "sgd"
    parallel: str = "sharded"
    recompute: bool = False
    teacher: str = ""

    @property
    def classes_here(self) -> int:
        return -(-self.classes // self.world) if self.parallel == "sharded" else self.classes

    @property
    def images_here(self) -> int:
        """Images that are in the backbone at the same time."""
        return self.batch // self.world // self.accumulate

    @property
    def images_in_head(self) -> int:
        return self.images_here * (self.world if self.parallel == "sharded" else 1)

    @property
    def rows_trained(self) -> int:
        """Class weights with a gradient in a step; classes are sampled once for its whole batch."""
        images = self.batch if self.parallel == "sharded" else self.batch // self.world
        classes = self.classes_here
        if self.sample_rate < 1:
            classes = sample_size(classes, self.sample_rate, images)
        return classes * self.sub_centers


@dataclass(frozen=True)
class Activations:
    """Bytes saved by a forward pass: `each` for every image, `once` for weights in half
    precision."""

    each: int
    once: int
    parameters: int

    @classmethod
    def measure(cls, setup: Setup) -> Activations:
        """Measure by running the backbone on 2 and on 4 images, on the CPU."""
        backbone = build_backbone(setup.backbone, setup.feature_dim, setup.input_size)
        backbone.recompute = setup.recompute
        two, four = (_kept(backbone, images, AMP[setup.dtype]) for images in (2, 4))
        each = (four - two) // 2
        parameters = sum(p.numel() for p in backbone.parameters())
        return cls(each, two - 2 * each, parameters)


def _kept(backbone: torch.nn.Module, images: int, amp: torch.dtype | None) -> int:
    """Bytes that the autograd graph keeps, without the parameters."""
    own = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    x = torch.randn(images, 3, *backbone.preprocessing.input_size)
    x = x.to(memory_format=torch.channels_last)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", amp, enabled=amp is not None),
    ):
        output = backbone(x)
    total = sum(storage.nbytes() for storage in kept.values())
    del output
    return total


@dataclass(frozen=True)
class Teacher:
    """Bytes of a teacher that embeds the images of each step: its `weights`, and for `each` image
    of a micro-batch the most that one of its layers reads and writes. The network's own
    activations do not exist at that time."""

    weights: int
    each: int

    @classmethod
    def measure(cls, setup: Setup) -> Teacher:
        """Measure by running it on one image, on the CPU."""
        network = build_backbone(setup.teacher, 512, setup.input_size).eval()
        largest = [0]

        def note(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor):
            largest[0] = max(largest[0], output.nbytes + sum(value.nbytes for value in inputs))

        for module in network.modules():
            if not any(module.children()):
                module.register_forward_hook(note)
        amp = AMP[setup.dtype]
        with torch.no_grad(), torch.autocast("cpu", amp, enabled=amp is not None):
            network(torch.zeros(1, 3, *setup.input_size))
        tensors = (*network.parameters(), *network.buffers())
        return cls(sum(tensor.nbytes for tensor in tensors), largest[0])


@dataclass(frozen=True)
class Plan:
    """Bytes; see the top of the file."""

    backbone: int
    activations: int
    classes: int
    trained_rows: int
    logits: int
    teacher: int
    peak: int
    sent: int


def plan(
    setup: Setup, activations: Activations, on_gpu: bool = True, teacher: Teacher | None = None
) -> Plan:
    states, n, d = STATES[setup.optimizer], setup.images_in_head, setup.feature_dim
    gradients = activations.parameters * FLOAT
    backbone = gradients * (2 + states)
    of_images = activations.once + activations.each * setup.images_here
    rows = setup.classes_here * setup.sub_centers
    classes = rows * d * FLOAT * (1 + states)
    trained = setup.rows_trained * d * FLOAT
    copies = trained if setup.sample_rate < 1 else 0
    block = softmax.BLOCK_ON_GPU if on_gpu else softmax.BLOCK_ON_CPU
    blocks = 2 * min(block, n * setup.rows_trained)  # logits or their gradient, a product
    embeddings = 5 * n * d  # gathered, directions, what comes back for each, to be scattered
    logits = (n * setup.rows_trained + blocks + embeddings) * FLOAT
    taught = teacher.weights if teacher else 0
    embedding = teacher.each * setup.images_here if teacher else 0
    fixed = backbone + classes + trained + copies + taught
    in_step = copies * states  # the drawn rows of the optimiser's state
    if not on_gpu:  # there the optimiser is fused; else it has two more of a weight's size
        in_step += 2 * trained
    # The teacher embeds a micro-batch before the network that is trained does.
    peak = fixed + max(of_images + logits, in_step, embedding)
    return Plan(
        backbone=backbone,
        activations=of_images,
        classes=classes,
        trained_rows=trained + copies,
        logits=logits,
        teacher=taught + embedding,
        peak=peak,
        sent=sent(setup, gradients),
    )


def sent(setup: Setup, gradients: int) -> int:
    """Bytes that a process sends in a step. gradients: bytes of the backbone's."""
    others = (setup.world - 1) / setup.world
    all_reduced = gradients
    gathered = 0
    if setup.parallel == "sharded":
        numbers = 5  # an image: target's cosine, maximum of all, of the others, and two sums
        all_reduced += setup.batch * numbers * FLOAT
        gathered = setup.batch * (2 * setup.feature_dim * FLOAT + LONG)  # there, back, labels
        if setup.sample_rate < 1:
            gathered += setup.batch * LONG
    else:
        all_reduced += setup.rows_trained * setup.feature_dim * FLOAT
    return round(others * (2 * all_reduced + gathered))


COLUMNS = {
    "backbone": "backbone",
    "activations": "activ.",
    "classes": "classes",
    "trained_rows": "trained",
    "logits": "logits",
    "teacher": "teacher",
    "peak": "PEAK",
    "sent": "sent",
}


def columns(setup: Setup) -> dict[str, str]:
    """The headings of the columns by name; that of a teacher where there is one."""
    return {k: v for k, v in COLUMNS.items() if setup.teacher or k != "teacher"}


def header(setup: Setup) -> str:
    names = columns(setup).values()
    return (
        f"{'network':<16}{'classes':>12} {'W':>4} {'batch':>6} {'rate':>5} {'type':>5}"
        + "".join(f"{name:>10}" for name in names)
    )


def line(setup: Setup, found: Plan) -> str:
    figures = "".join(f"{getattr(found, name) / 1e9:>10.2f}" for name in columns(setup))
    return (
        f"{setup.backbone:<16}{setup.classes:>12,} {setup.world:>4} {setup.batch:>6}"
        f" {setup.sample_rate:>5g} {setup.dtype:>5}{figures}"
    )


def setups(arguments: argparse.Namespace) -> list[Setup]:
    combinations = itertools.product(
        arguments.backbones,
        arguments.classes,
        arguments.world,
        arguments.rates,
        arguments.dtypes,
    )
    return [
        Setup(
            *(backbone, classes, world, arguments.batch, rate, dtype),
            feature_dim=arguments.feature_dim,
            optimizer=arguments.optimizer,
            parallel=arguments.parallel,
            recompute=arguments.activation_checkpointing,
            teacher=arguments.teacher,
        )
        for backbone, classes, world, rate, dtype in combinations
    ]


def main() -> None:
    """Print the table, or the check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=["MobileFaceNet", "ResNet100_IR"])
    parser.add_argument(
        "--classes", type=int, nargs="+", default=[85_742, 1_000_000, 10_000_000, 100_000_000]
    )
    parser.add_argument("--world", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 0.1])
    parser.add_argument("--dtypes", choices=AMP, nargs="+", default=["bf16"])
    parser.add_argument("--feature_dim", type=int, default=512)
    parser.add_argument("--optimizer", choices=STATES, default="sgd")
    parser.add_argument("--parallel", choices=("sharded", "replicated"), default="sharded")
    parser.add_argument("--activation_checkpointing", action="store_true")
    parser.add_argument("--teacher", default="", help="a backbone, of 512 values")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        from benchmarks.memory_check import print_check

        print_check()
        return
    print(
        f"GB (10^9) a GPU; {arguments.optimizer}, D {arguments.feature_dim}, {arguments.parallel}"
    )
    planned = setups(arguments)
    print(header(planned[0]))
    measured: dict[tuple[str, str], Activations] = {}
    teacher = Teacher.measure(planned[0]) if arguments.teacher else None
    for setup in planned:
        network = setup.backbone, setup.dtype
        if network not in measured:
            measured[network] = Activations.measure(setup)
        print(line(setup, plan(setup, measured[network], teacher=teacher)))


if __name__ == "__main__":
    main()
