"""ONNX files: read without leaving their folder, and what their graphs say of the input.

https://github.com/onnx/onnx/blob/main/docs/IR.md. A graph is data, not code: onnxruntime computes
the operators that it has itself, and a file can name nothing else to run.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from Config.errors import shortened
from Utils.errors import CheckpointError
from Utils.files import reading
from Utils.Pretrained_Utils.files import METADATA
from Utils.Pretrained_Utils.lineages import OWN, Lineage, find_lineage
from Utils.Pretrained_Utils.lineages.descriptions import ENTRIES, check_kinds

if TYPE_CHECKING:  # here and in functions: few runs need it, and it takes a second
    import onnx

MOST_BYTES = 2**31 - 1  # of a protobuf message; the largest face networks have half of it
# (height, width) to try on a graph that takes any: the usual crop, and the first MobileFaceNet's.
USUAL_SIZES = ((112, 112), (112, 96))
IMAGE_DTYPES = {
    "FLOAT": torch.float32,
    "FLOAT16": torch.float16,
    "DOUBLE": torch.float64,
    "UINT8": torch.uint8,
}
UNKNOWN = "unknown origin"
FLAGS = {
    "channel_order": "--channel_order RGB (or BGR)",
    "mean": "--input_mean",
    "scale": "--input_scale",
}


@dataclass(frozen=True)
class ImageInput:
    """What a graph takes.

    channels_last: N×H×W×3 in place of N×3×H×W. batch: the N that it was written for; None: any;
    batch_name: what it then calls N.
    sizes: (height, width) in pixels that it may take, the likeliest first.
    """

    name: str
    dtype: torch.dtype
    channels_last: bool
    batch: int | None
    batch_name: str
    sizes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Origin:
    """Whose network it is, and the entries of `Preprocessing` for its input.

    source: where those were read, for people. architecture: of a network that this program
    exported; {} in other files.
    """

    lineage: str
    preprocessing: dict[str, Any]
    source: str
    architecture: dict[str, Any]


def read_onnx(path: Path) -> "onnx.ModelProto":
    """The model in a file, with the weights that it keeps in files beside it.

    Raises CheckpointError if it is damaged, too large, or names a file outside of its folder,
    which is then not opened.
    """
    import onnx
    from google.protobuf.message import DecodeError

    with reading(path, "checkpoint", CheckpointError):
        content = path.read_bytes()
    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError:
        model = None
    if model is None or any(_has_broken_text(message) for message in _messages(model)):
        raise CheckpointError(
            f"checkpoint {path} can't be read: it is a truncated or damaged ONNX file. Fetch it "
            f"again."
        )
    total = len(content)
    for message in _messages(model):
        if isinstance(message, onnx.TensorProto) and message.data_location == message.EXTERNAL:
            message.raw_data = _beside(path, message, MOST_BYTES - total)
            total += len(message.raw_data)
            message.ClearField("data_location")
            message.ClearField("external_data")
    return model


def _messages(message: Any) -> Iterator[Any]:
    """A protobuf message and all that are in it, however deep: no tensor is missed."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                yield from _messages(inner)


def _has_broken_text(message: Any) -> bool:
    """Whether a text in a message is not UTF-8: protobuf gives its bytes then."""
    fields = [value for field, value in message.ListFields() if field.type == field.TYPE_STRING]
    texts = [[value] if isinstance(value, str | bytes) else value for value in fields]
    return any(isinstance(text, bytes) for several in texts for text in several)


def _beside(path: Path, tensor: "onnx.TensorProto", most: int) -> bytes:
    """The values of a tensor that are in another file of the same folder; at most so many bytes."""
    about = {entry.key: entry.value for entry in tensor.external_data}
    name, folder = about.get("location", ""), path.parent.resolve()
    try:
        file = (folder / name).resolve()
        start, length = int(about.get("offset", 0)), int(about.get("length", -1))
    except ValueError:
        start = -1
    if start < 0:
        raise CheckpointError(f"checkpoint {path} is damaged: it does not say where weights are.")
    if not file.is_relative_to(folder):
        raise CheckpointError(
            f"checkpoint {path} keeps weights in {shortened(name)}, outside of its own folder (or "
            f"behind a link to there), so that was not opened. Copy the file itself beside it."
        )
    if not file.is_file():
        raise CheckpointError(
            f"checkpoint {path} keeps weights in {shortened(name)}, which is not beside it; put it "
            f"there."
        )
    with reading(file, "file of weights", CheckpointError), file.open("rb") as opened:
        there = file.stat().st_size - start
        length = there if length < 0 else length
        if length > most:
            raise CheckpointError(f"checkpoint {path} has more than 2 GiB of weights, too many.")
        if length > there:
            raise CheckpointError(f"checkpoint {path}: {file} is truncated. Fetch it again.")
        opened.seek(start)
        return opened.read(length)


def image_input(path: Path, model: "onnx.ModelProto") -> ImageInput:
    """What a graph takes. Raises CheckpointError if that is not one batch of colour images."""
    import onnx

    # Files of the first versions list their weights among the inputs, too.
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(shortened(value.name) for value in inputs)
        raise CheckpointError(
            f"checkpoint {path} has {len(inputs)} inputs ({names}); expected one, the images."
        )
    kind = inputs[0].type.tensor_type
    dims = [dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim]
    names = {number: name for name, number in onnx.TensorProto.DataType.items()}
    dtype = names.get(kind.elem_type, "an unknown type")
    channels_last = len(dims) == 4 and dims[1] != 3 and dims[3] == 3
    if dtype not in IMAGE_DTYPES or len(dims) != 4 or not (channels_last or dims[1] in (3, None)):
        shape = "×".join(str(dim or "?") for dim in dims) or "of unknown shape"
        raise CheckpointError(
            f"checkpoint {path} takes {dtype.lower()} {shape}; expected images N×3×H×W or N×H×W×3, "
            f"as {', '.join(IMAGE_DTYPES).lower()}."
        )
    height, width = dims[1:3] if channels_last else dims[2:]
    sizes = {(height or usual[0], width or usual[1]): None for usual in USUAL_SIZES}
    return ImageInput(
        name=inputs[0].name,
        dtype=IMAGE_DTYPES[dtype],
        channels_last=channels_last,
        batch=dims[0],
        batch_name=kind.shape.dim[0].dim_param,
        sizes=tuple(sizes),
    )


def free_batch(model: "onnx.ModelProto") -> None:
    """Declare that a graph takes any number of images. Whether it does, running it will show."""
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and value.name not in weights:
            dims[0].dim_param = "batch"
    del model.graph.value_info[:]  # shapes of what is between; they are inferred anew


def find_origin(
    path: Path,
    model: "onnx.ModelProto",
    image: ImageInput,
    lineage: Lineage | None,
    given: dict[str, Any],
) -> Origin:
    """Whose network a graph is and what its input is, each value from the first source that tells.

    Sources are `given` (entries of Preprocessing; None: not given), the metadata of this program's
    export, what the graph computes first, and the lineage: the one named, or insightface if its
    exporter wrote the file. Raises CheckpointError if none tells, or the metadata are damaged.
    """
    own = _own_metadata(path, model)
    if own and lineage and lineage.title != OWN:
        raise CheckpointError(
            f"checkpoint {path} says itself which network it holds, of {OWN}, and can't be read as "
            f"{lineage.title}'s; leave --lineage out."
        )
    if not own and lineage is None and _from_insightface(model, image):
        lineage = find_lineage("insightface")
    given = {name: value for name, value in given.items() if value is not None}
    uint8 = image.dtype == torch.uint8
    if uint8 and given.keys() & {"mean", "scale"}:
        raise CheckpointError(
            f"checkpoint {path} takes uint8 pixels and normalises them itself; leave --input_mean "
            f"and --input_scale out."
        )
    # With its preprocessing inside, an exported network takes RGB, whatever it was trained with.
    exported = {"channel_order": "RGB"} if own and uint8 else own.get("preprocessing", {})
    inside = {"mean": 0.0, "scale": 1.0} if uint8 else _normalised_inside(model, image.name)
    sources = {
        "as given": given,
        "as its metadata say": exported,
        "as it takes uint8" if uint8 else "as its graph normalises": inside,
        f"as {lineage.key} does" if lineage else "": lineage.preprocessing() if lineage else {},
    }
    values, read = {}, []
    for source, found in sources.items():
        if new := {name: value for name, value in found.items() if name not in values}:
            values |= new
            read.append(f"{', '.join(new)} {source}")
    if twice := [FLAGS[name] for name in inside if given.get(name, inside[name]) != inside[name]]:
        read.append(f"warning: its graph normalises too: leave {' and '.join(twice)} out")
    if missing := [flag for name, flag in FLAGS.items() if name not in values]:
        example = find_lineage("insightface")
        raise CheckpointError(
            f"checkpoint {path} does not tell what its input is: it has no metadata of this "
            f"program, and was not exported by insightface. Give {', '.join(missing)}; or the "
            f"project whose input it takes, such as `--lineage {example.key}` for "
            f"{example.input()}."
        )
    title = f"{OWN}, in ONNX" if own else lineage.title if lineage else UNKNOWN
    return Origin(title, values, "; ".join(read), own)


def _own_metadata(path: Path, model: "onnx.ModelProto") -> dict[str, Any]:
    """What this program's export wrote of the network; {} in files of others."""
    entry = next((entry for entry in model.metadata_props if entry.key == METADATA), None)
    if entry is None:
        return {}
    try:
        about = {"architecture": json.loads(entry.value)}
    except (ValueError, RecursionError):
        about = {"architecture": None}
    check_kinds(path, "", about, {"architecture": ENTRIES["architecture"]})
    return about["architecture"]


def _from_insightface(model: "onnx.ModelProto", image: ImageInput) -> bool:
    """Whether insightface's torch2onnx.py wrote this, which calls the batch 'None', or the exporter
    of its older networks, MXNet's, whose first nodes are `_minusscalar0` and `_mulscalar0`."""
    first = "".join(node.name for node in model.graph.node[:2])
    return image.batch_name == "None" or first.startswith("_minusscalar0_mulscalar0")


def _normalised_inside(model: "onnx.ModelProto", name: str) -> dict[str, float]:
    """The mean and scale that are left to do where a graph begins with those of its own.

    Its first steps, sums and products with constants, make (x - zero) · slope of its input x. A
    zero above 1, or a slope that makes a small number of 255, is for pixels of 0..255; one up to 1
    for pixels of 0..1. {} if there are no such steps, or they are for something else.
    """
    constants, slope, shift = _constants(model), 1.0, 0.0
    while len(users := [node for node in model.graph.node if name in node.input]) == 1:
        (node,) = users
        others = [constants.get(other) for other in node.input if other != name]
        if node.op_type in ("Add", "Mul", "Sub", "Div") and others and others[0] is not None:
            (value,) = others
            if node.op_type in ("Sub", "Div") and node.input[0] != name:
                break
            if node.op_type in ("Add", "Sub"):
                shift += value if node.op_type == "Add" else -value
            elif value:
                factor = value if node.op_type == "Mul" else 1 / value
                slope, shift = slope * factor, shift * factor
        elif node.op_type not in ("Cast", "Identity", "Transpose"):
            break
        name = node.output[0]
    if slope <= 0:
        return {}
    zero = -shift / slope
    if zero > 1 or (slope < 0.1 and zero == 0):
        return {"mean": 0.0, "scale": 1.0}
    return {"mean": 0.0, "scale": 255.0} if 0 < zero <= 1 else {}


def _constants(model: "onnx.ModelProto") -> dict[str, float]:
    """The constants of a graph that are one number, or one a channel: their mean."""
    import onnx

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            tensors[node.output[0]] = node.attribute[0].t
    small = {name: tensor for name, tensor in tensors.items() if sum(tensor.dims) <= 6}
    return {
        name: float(values.mean())
        for name, tensor in small.items()
        if (values := onnx.numpy_helper.to_array(tensor)).size in (1, 3)
        and values.dtype.kind == "f"
    }
