"""Write a network for other runtimes: ONNX, or PyTorch's own exported program.

    python -m Utils.Pretrained_Utils.export CHECKPOINT network.onnx
    python -m Utils.Pretrained_Utils.export CHECKPOINT network.pt2 --include_preprocessing

The batch may have any size. The command runs the file that it wrote and compares its outputs with
the network's; a file that differs is not kept. Input: float N×3×H×W, normalised as the file's
metadata say; with --include_preprocessing uint8 N×H×W×3, RGB.
"""

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from Backbone import describe_backbone
from Utils.errors import RunError, run_script
from Utils.files import atomic_path, writing
from Utils.Pretrained_Utils.files import METADATA, writable_target
from Utils.Pretrained_Utils.lineages import reading_flags
from Utils.Pretrained_Utils.load import build, describe, read_weights

SUFFIXES = (".onnx", ".pt2")
TOLERANCE = 1e-4  # of the largest output, or of 1 where that is smaller
EXAMPLE_BATCH = 2  # 0 and 1 are special to torch.export
CHECKED_BATCHES = (1, 3)
Writer = Callable[[Path], object]


class WithPreprocessing(nn.Module):
    """A backbone that takes uint8 images N×H×W×3, RGB, of its input size."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.preprocessing = backbone.preprocessing

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(self.preprocessing(images))


def main() -> None:
    """Read the flags, export, and print how far the result is from the network."""
    parser = reading_flags(__doc__)
    parser.add_argument("target", type=Path, help=f"ends in {' or '.join(SUFFIXES)}")
    parser.add_argument(
        "--include_preprocessing", action="store_true", help="take uint8 N×H×W×3 RGB images"
    )
    flags = parser.parse_args()
    target = writable_target(flags.target, SUFFIXES)
    weights = read_weights(flags.source, flags.lineage, flags.weights, flags.channel_order)
    backbone = build(weights, flags.channel_order, flags.input_mean, flags.input_scale)
    print(f"read     {flags.source}: {describe(backbone)}")
    difference, largest = export(backbone, target, flags.include_preprocessing)
    print(f"written  {target}: {target.stat().st_size / 2**20:.1f} MiB")
    print(
        f"checked  largest difference {difference:.2e} (largest output {largest:.2f}), batches of "
        f"{' and '.join(map(str, CHECKED_BATCHES))}"
    )


def export(
    backbone: nn.Module, target: Path, include_preprocessing: bool = False
) -> tuple[float, float]:
    """Write a backbone in evaluation mode on the CPU to `.onnx` or `.pt2`, and check the file.

    Returns the largest absolute difference to the backbone and its largest output. Raises RunError,
    and leaves no file, if they differ by more than `TOLERANCE` or it can't be written.
    """
    module = WithPreprocessing(backbone) if include_preprocessing else backbone
    convert, run = RUNTIMES[target.suffix]
    with atomic_path(target) as temporary, torch.inference_mode(False), torch.no_grad():
        example = _example(backbone, EXAMPLE_BATCH, include_preprocessing)
        program = torch.export.export(
            module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        write = convert(program, json.dumps(describe_backbone(backbone)))
        with writing(target):
            write(temporary)
        differences, largest = [], []
        for batch in CHECKED_BATCHES:
            images = _example(backbone, batch, include_preprocessing)
            expected = module(images)
            differences.append((run(temporary, images) - expected).abs().max().item())
            largest.append(expected.abs().max().item())
        # NumPy's maximum of anything and NaN is NaN, Python's may be the other.
        difference, size = float(np.max(differences)), float(np.max(largest))
        if not difference <= TOLERANCE * max(1.0, size):
            raise RunError(
                f"{target} was not written: its outputs differ by {difference:.2e} from those of "
                f"the network, whose largest is {size:.2f}."
            )
    return difference, size


def _example(backbone: nn.Module, batch: int, include_preprocessing: bool) -> Tensor:
    """Noise in the form that the exported network takes."""
    generator = torch.Generator().manual_seed(batch)
    shape = (batch, *backbone.preprocessing.input_size, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return images if include_preprocessing else backbone.preprocessing(images).contiguous()


def _to_onnx(program: torch.export.ExportedProgram, metadata: str) -> Writer:
    converted = torch.onnx.export(
        program, dynamo=True, input_names=["input"], output_names=["embedding"], verbose=False
    )
    converted.model.metadata_props[METADATA] = metadata
    return partial(converted.save, external_data=False)


def _run_onnx(path: Path, images: Tensor) -> Tensor:
    # Imported here: only this command needs it.
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (embeddings,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(np.asarray(embeddings))


def _to_pt2(program: torch.export.ExportedProgram, metadata: str) -> Writer:
    # Into memory first: PyTorch's writer ends the whole process when the disk is full.
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: metadata})
    return lambda path: path.write_bytes(buffer.getbuffer())


def _run_pt2(path: Path, images: Tensor) -> Tensor:
    return torch.export.load(path).module()(images)


# Suffix -> what makes a writer of a program, and what runs the file.
RUNTIMES: dict[str, tuple[Callable[..., Writer], Callable[[Path, Tensor], Tensor]]] = {
    ".onnx": (_to_onnx, _run_onnx),
    ".pt2": (_to_pt2, _run_pt2),
}


if __name__ == "__main__":
    run_script(main)
