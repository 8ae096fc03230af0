"""The readers of weights and of checkpoints."""

import io
import json
from pathlib import Path

import numpy as np
import torch

from Backbone import build_backbone, describe_backbone
from Config import Config
from tests.soak import messages
from tests.soak import structures as change
from tests.soak.readers.table import Subject, reader, texts, write_files
from Utils.Pretrained_Utils.contents import open_contents
from Utils.Pretrained_Utils.files import Weights, read_file
from Utils.Pretrained_Utils.lineages.descriptions import color_space
from Utils.Pretrained_Utils.load import build, load_backbone, own_weights
from Utils.Training_Utils.checkpoints.checks import check_entries
from Utils.Training_Utils.checkpoints.run_checkpoints import read_run
from Utils.Training_Utils.checkpoints.sharded import read_tables
from Utils.Training_Utils.checkpoints.table_files import write_safetensors


def _small() -> dict:
    """What describes a network that is built in a few ms, unlike those that are trained."""
    with torch.device("meta"):
        network = build_backbone("MobileFaceNet", 8, (32, 32), repeats=[1, 0, 0, 0])
    return describe_backbone(network)


SMALL = _small()  # here, as PyTorch imports much for its first network on that device


def _tensors(count: int = 54) -> dict[str, torch.Tensor]:
    """As many as make a network likely, of a few values each."""
    state = {
        f"layer{n // 3}.{n % 3}.conv.weight": torch.full((2, 1, 1, 1), n / 9) for n in range(count)
    }
    return {**state, "bn.running_mean": torch.zeros(2), "bn.num_batches_tracked": torch.tensor(3)}


def _saved(contents: object, **options: object) -> bytes:
    out = io.BytesIO()
    torch.save(contents, out, **options)
    return out.getvalue()


def _own() -> dict:
    return {
        "format": "face-backbone-1",
        "architecture": SMALL,
        "lineage": "this project",
        "backbone": _tensors(),
    }


_BUILT = {json.dumps(SMALL)}


def build_other(weights: Weights) -> None:
    """Build a network, unless one was built of that description before: it takes 30 to 100 ms, and
    these tensors fit none."""
    text = json.dumps(weights.description.architecture)
    if text not in _BUILT:
        _BUILT.add(text)
        build(weights)


def _weights(path: Path) -> None:
    """Without the comparison with every known network, which takes most of the time."""
    contents = read_file(path)
    if contents.get("format") == "face-backbone-1":
        build_other(own_weights(path, contents))
    else:
        open_contents(contents)


@reader("weights (.pt)", change.zip_file)
def _zip_weights(box: Path) -> Subject:
    path = box / "a.pt"
    values = {"state_dict": _tensors(), "epoch": np.float64(3), "args": [1, None, "x", (2.5, {})]}
    seeds = [_saved(values), _saved(_own())]
    return Subject(seeds, path, lambda: _weights(path))


@reader("weights before PyTorch 1.6", change.pickled)
def _old_weights(box: Path) -> Subject:
    path = box / "a.pth"
    state = dict(list(_tensors().items())[:3])
    seeds = [
        _saved(state, _use_new_zipfile_serialization=False),
        _saved([state, np.arange(3)], _use_new_zipfile_serialization=False),
    ]
    return Subject(seeds, path, lambda: _weights(path))


@reader("TorchScript programs", change.zip_file)
def _torchscript(box: Path) -> Subject:
    path, out = box / "a.pt", io.BytesIO()
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2)).eval()
    torch.jit.save(torch.jit.trace(network, torch.zeros(1, 3, 2, 2)), out)
    return Subject([out.getvalue()], path, lambda: _weights(path))


@reader("weights in safetensors", messages.safetensors)
def _safetensors(box: Path) -> Subject:
    path = box / "a.safetensors"
    about = {"face_backbone": json.dumps({**_own(), "backbone": {}})}
    seeds = []
    for told in ({}, about):
        few = {name: tensor.half() for name, tensor in list(_tensors().items())[:4]}
        write_safetensors(path, few, told)
        seeds.append(path.read_bytes())
    return Subject(seeds, path, lambda: _weights(path))


@reader("networks in ONNX", messages.protobuf, needs="onnx")
def _onnx(box: Path) -> Subject:
    path = box / "a.onnx"
    write_files(box, {"w.bin": np.ones(768, "<f4").tobytes()})
    return Subject(onnx_models(), path, lambda: load_backbone(path))


def onnx_models() -> list[bytes]:
    """A small network, with its weights in the file and in w.bin beside it."""
    import onnx
    from onnx import TensorProto, helper

    seeds = []
    weight = helper.make_tensor("w", TensorProto.FLOAT, [16, 3, 4, 4], np.ones(768))
    mean = helper.make_tensor("m", TensorProto.FLOAT, [1], [127.5])
    for weights in ([weight, mean],):  # ours
        graph = helper.make_graph(
            [
                helper.make_node("Sub", ["x", "m"], ["y"]),
                helper.make_node("Conv", ["y", "w"], ["c"], kernel_shape=[4, 4]),
                helper.make_node("Flatten", ["c"], ["e"]),
            ],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["None", 3, 4, 4])],
            [helper.make_tensor_value_info("e", TensorProto.FLOAT, ["None", 16])],
            weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        seeds.append(model.SerializeToString())
        outside = onnx.ModelProto.FromString(seeds[0])
        tensor = outside.graph.initializer[0]
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", "0"), ("length", "3072")):
            tensor.external_data.add(key=key, value=value)
        seeds.append(outside.SerializeToString())
    return seeds


@reader("YAML beside weights", messages.lines)
def _yaml(box: Path) -> Subject:
    path = box / "model.yaml"
    seeds = texts(
        "color_space: BGR\ninput_size: [3, 112, 112]\n",
        "a: &x {b: 1}\nc: *x\nmodel:\n  - color_space\n",
    )
    return Subject(seeds, path, lambda: color_space(path))


def _run() -> dict:
    random = {
        "cpu": torch.get_rng_state()[:16].clone(),
        "cuda": [],
        "flip": torch.zeros(8, dtype=torch.uint8),
    }
    return {
        **_own(),
        "backbone": _tensors(3),
        "format": "face-training-checkpoint-1",
        "settings": Config().to_dict(),
        "head": {"weight": torch.ones(3, 8)},
        "optimizer": {
            "state": {0: {"momentum_buffer": torch.ones(2)}},
            "param_groups": [{"lr": 0.1}],
        },
        "scaler": {},
        "best": {"LFW": {"accuracy": 0.5, "iteration": 3}},
        "position": {"epoch": 1, "batch": 2, "iteration": 3},
        "random": random,
        "num_classes": 3,
        "num_images": 9,
    }


@reader("checkpoints to resume from", change.zip_file)
def _checkpoint(box: Path) -> Subject:
    path = box / "last.pt"

    def read() -> None:
        state = read_run(path)
        check_entries(state, path)
        Config.from_dict(state["settings"])

    return Subject([_saved(_run())], path, read)


@reader("tables of checkpoint folders", messages.safetensors)
def _tables(box: Path) -> Subject:
    import torch.distributed.checkpoint as dcp

    write_files(box, {"common.pt": b""})
    rows = {"weight": torch.ones(3, 8), "momentum_buffer": torch.zeros(3, 8)}
    dcp.save(
        rows,
        storage_writer=dcp.HuggingFaceStorageWriter(str(box), save_distributed=True),
        no_dist=True,
    )
    (path,) = box.glob("*.safetensors")
    return Subject([path.read_bytes()], path, lambda: read_tables(box, list(rows), 3, [3, 8]))
