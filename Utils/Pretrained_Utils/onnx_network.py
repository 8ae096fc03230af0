"""Networks in ONNX files, computed by onnxruntime: `load_onnx` makes a module of one.

Any number of images goes through any graph: at once where that gives the same embeddings as one by
one, and otherwise in the number that the graph was written for.
"""

import hashlib
import json
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from Backbone import ArchitectureError, Preprocessing
from Config.errors import shortened
from Utils.errors import CheckpointError, first_line
from Utils.Pretrained_Utils.lineages import Lineage
from Utils.Pretrained_Utils.onnx_files import (
    ImageInput,
    find_origin,
    free_batch,
    image_input,
    read_onnx,
)

if TYPE_CHECKING:
    import onnxruntime

FEWEST = 16  # values of an embedding; fewer are ages or boxes
ALIKE = 1e-3  # of the largest value: an image alone and among others
NUMPY_DTYPES = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.float64: np.float64,
    torch.uint8: np.uint8,
}


@dataclass(frozen=True)
class EmbeddingOutput:
    """The output with the embeddings.

    shape: of one image's. rows: images that the graph takes at once; None: any number.
    normalised: whether embeddings are L2-normalised.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    rows: int | None
    normalised: bool


class OnnxBackbone(nn.Module):
    """A network in an ONNX file: float32 N×3×H×W, preprocessed, to float32 N×D.

    It computes on the device that it was moved to; on a CPU in the one thread that calls it, so
    that several threads can each compute a part. It has no weights to train, and computes in the
    dtypes of its file. note: where the input was read, for people.
    """

    def __init__(
        self,
        path: Path,
        model: bytes,
        session: "onnxruntime.InferenceSession",
        image: ImageInput,
        output: EmbeddingOutput,
        preprocessing: Preprocessing,
    ) -> None:
        super().__init__()
        self.preprocessing, self.feature_dim = preprocessing, math.prod(output.shape)
        self.note = ""
        self._path, self._model, self._image, self._output = path, model, image, output
        # A part of the state_dict: from it, tables of features know whose they are.
        content = bytearray(hashlib.sha256(model).digest())
        self.register_buffer("content", torch.frombuffer(content, dtype=torch.uint8))
        self._session = session

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.float32 or images.device != self.content.device:
            raise ValueError(
                f"images are {images.dtype} on {images.device}; expected float32 on "
                f"{self.content.device}"
            )
        return torch.cat([self._run(part) for part in images.split(self._output.rows or 2**31)])

    def _run(self, images: Tensor) -> Tensor:
        count, rows = len(images), self._output.rows or len(images)
        if count < rows:
            images = torch.cat((images, images.new_zeros(rows - count, *images.shape[1:])))
        pixels = as_input(images, self._image)
        shape = (rows, *self._output.shape)
        embeddings = torch.empty(shape, dtype=self._output.dtype, device=images.device)
        binding = self._session.io_binding()
        for bind, name, tensor in (
            (binding.bind_input, self._image.name, pixels),
            (binding.bind_output, self._output.name, embeddings),
        ):
            device, dtype = tensor.device, NUMPY_DTYPES[tensor.dtype]
            place = (device.type, device.index or 0)
            bind(name, *place, dtype, tuple(tensor.shape), tensor.data_ptr())
        if images.is_cuda:  # onnxruntime has a stream of its own, and would not wait for this one
            torch.cuda.current_stream(images.device).synchronize()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return embeddings[:count].flatten(1).float()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        before = self.content.device
        super()._apply(fn, recurse)
        if self.content.device != before:
            self._session = open_session(self._path, self._model, self.content.device)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return self  # nothing in it ever changes, and a session can't be copied


def load_onnx(path: Path, lineage: Lineage | None, given: dict[str, Any]) -> OnnxBackbone:
    """The network in an ONNX file, in evaluation mode on the CPU.

    lineage: whose input it has, or None. given: entries of `Preprocessing`; those that are None,
    the file is to tell. Raises CheckpointError for a file that can't be read or computed, that is
    no network of face embeddings, or that does not tell its input.
    """
    model = read_onnx(path)
    image = image_input(path, model)
    free_batch(model)
    content = model.SerializeToString()
    session = open_session(path, content, torch.device("cpu"))
    origin = find_origin(path, model, image, lineage, given)
    for size in image.sizes:
        try:
            preprocessing = Preprocessing(input_size=size, **origin.preprocessing)
        except ArchitectureError as error:
            raise CheckpointError(f"checkpoint {path}: {error}.") from None
        try:
            output = _find_output(path, session, image, preprocessing, bool(origin.architecture))
            break
        except _errors() as error:
            failure = error
    else:
        raise CheckpointError(
            f"checkpoint {path} can't be computed with images of {size[0]}×{size[1]}: "
            f"{first_line(failure).rstrip('.')}. Is it a detector? Give a network of embeddings."
        )
    backbone = OnnxBackbone(path, content, session, image, output, preprocessing)
    about = origin.architecture
    backbone.lineage = origin.lineage
    backbone.architecture = {
        "name": about.get("name", "network in ONNX"),
        "feature_dim": backbone.feature_dim,
        "input_size": list(size),
        "variant": about.get("variant", {}),
    }
    notes = [origin.source]
    if output.normalised:
        notes.append("embeddings L2-normalised")
    if output.rows:
        notes.append(f"{output.rows} at a time")
    backbone.note = "; ".join(notes)
    return backbone.eval()


def open_session(path: Path, model: bytes, device: torch.device) -> "onnxruntime.InferenceSession":
    """What computes a model on a device. Raises CheckpointError if onnxruntime can't do that."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised, too
    # As exact and repeatable as `Utils.devices.full_precision`.
    cuda = {
        "device_id": device.index or 0,
        "use_tf32": 0,
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    providers = {
        "cpu": ["CPUExecutionProvider"],
        "cuda": [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"],
    }.get(device.type, [])
    there = f"{device.type.upper()}ExecutionProvider" in onnxruntime.get_available_providers()
    try:
        if providers and there:
            session = onnxruntime.InferenceSession(model, options, providers=providers)
            # Where CUDA's libraries are missing, it takes the CPU instead.
            there = device.type.upper() in session.get_providers()[0]
    except _errors() as error:
        raise CheckpointError(
            f"checkpoint {path} can't be computed by onnxruntime {onnxruntime.__version__}: "
            f"{first_line(error).rstrip('.')}. A newer onnxruntime, or an export with ONNX's own "
            f"operators alone, may help."
        ) from None
    if not (providers and there):
        raise CheckpointError(
            f"checkpoint {path} is an ONNX network, and onnxruntime computes here only on a CPU, "
            f"not on {device}. Give `--device cpu`; or for CUDA replace the package onnxruntime by "
            f"onnxruntime-gpu, in a release for the CUDA that PyTorch has here."
        )
    return session


def as_input(images: Tensor, image: ImageInput) -> Tensor:
    """Preprocessed images, float32 N×3×H×W, in the layout and dtype that a graph takes."""
    if image.channels_last:
        images = images.permute(0, 2, 3, 1)
    return images.to(image.dtype).contiguous()


def _find_output(
    path: Path,
    session: "onnxruntime.InferenceSession",
    image: ImageInput,
    preprocessing: Preprocessing,
    own: bool,
) -> EmbeddingOutput:
    """The output with the embeddings, found by computing two images of noise.

    own: whether the file is this program's. Raises CheckpointError if there is none or several,
    and onnxruntime's errors.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (2, *preprocessing.input_size, 3)
    noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    noise[1] //= 2
    pixels = as_input(preprocessing(noise), image).numpy()
    rows = image.batch or 1

    def compute(images: np.ndarray) -> list[Any]:
        return session.run(None, {image.name: images})

    alone = [compute(np.repeat(pixels[i : i + 1], rows, 0)) for i in (0, 1)]
    found = [
        (i, output)
        for i, output in enumerate(alone[0])
        if isinstance(output, np.ndarray)
        and output.dtype in NUMPY_DTYPES.values()
        and output.ndim > 1
        and len(output) == rows
        and output.size == rows * output.shape[1] >= rows * (1 if own else FEWEST)
    ]
    if len(found) != 1:
        raise CheckpointError(_not_one(path, session, alone[0], [i for i, _ in found]))
    ((index, example),) = found
    expected = np.stack([outputs[index][0] for outputs in alone])
    limit = ALIKE * np.abs(expected).max()

    def same_among_others() -> bool:
        try:
            together = compute(np.concatenate([pixels] * rows))[index]  # twice its own number
        except _errors():  # the number is written into the graph
            return False
        wanted = np.concatenate([expected] * rows)
        return together.shape == wanted.shape and bool(np.abs(together - wanted).max() <= limit)

    again = compute(np.repeat(pixels[:1], rows, 0))[index][0]
    if not np.abs(again - expected[0]).max() <= limit:
        raise CheckpointError(
            f"checkpoint {path} gives another embedding of the same image each time, or no numbers "
            f"at all; it was exported in training mode, or is damaged."
        )
    lengths = np.linalg.norm(expected.reshape(2, -1).astype(np.float64), axis=1)
    return EmbeddingOutput(
        name=session.get_outputs()[index].name,
        dtype=next(dtype for dtype, kind in NUMPY_DTYPES.items() if kind == example.dtype),
        shape=example.shape[1:],
        rows=None if same_among_others() else rows,
        normalised=bool(np.abs(lengths - 1).max() < ALIKE),
    )


def _not_one(
    path: Path, session: "onnxruntime.InferenceSession", outputs: list[Any], found: list[int]
) -> str:
    """The error for a graph with no output of embeddings, or with several."""
    names = [output.name for output in session.get_outputs()]
    shown = ", ".join(
        f"{shortened(name)} {'×'.join(map(str, np.shape(output)))}"
        for name, output in zip(names, outputs, strict=True)
    )
    if not found:
        return (
            f"checkpoint {path} is no network of face embeddings, but perhaps a detector: of one "
            f"image it makes {shortened(shown, 300)}; expected N×D, with D of at least {FEWEST}."
        )
    target = path.with_name(f"{path.stem}_embedding.onnx")
    inputs = [value.name for value in session.get_inputs()]
    arguments = json.dumps([str(path), str(target), inputs, [names[found[0]]]])
    code = f"import onnx.utils; onnx.utils.extract_model(*{arguments})"
    return (
        f"checkpoint {path} has {len(found)} outputs that may be its embedding: "
        f"{shortened(shown, 300)}. Write it with one of them: `python -c {shlex.quote(code)}`."
    )


def _errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises: each of its statuses has an exception of its own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = (kind for kind in vars(state).values() if isinstance(kind, type))
    return tuple(kind for kind in kinds if issubclass(kind, Exception))
