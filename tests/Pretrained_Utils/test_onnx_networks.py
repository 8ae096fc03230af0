"""ONNX files as checkpoints: written here with onnx alone, and computed again by PyTorch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from Backbone import Preprocessing, build_backbone
from Config import Config, ConfigError
from tests.processes import run_printed
from Utils.errors import CheckpointError
from Utils.Evaluation_Utils import label_noise
from Utils.Evaluation_Utils.embedding import embed
from Utils.Evaluation_Utils.features import weights_digest
from Utils.Evaluation_Utils.inputs import load_network
from Utils.Pretrained_Utils import load_backbone
from Utils.Pretrained_Utils.convert import main as convert_main
from Utils.Pretrained_Utils.export import export
from Utils.Pretrained_Utils.export import main as export_main
from Utils.Pretrained_Utils.load import describe
from Utils.Pretrained_Utils.onnx_network import open_session
from Utils.Training_Utils.start import starting_backbone

RGB = {"channel_order": "RGB", "input_mean": 127.5, "input_scale": 127.5}
KERNEL = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(1)) / 4
CPU = torch.device("cpu")


def network(
    path: Path,
    front: tuple = (),
    back: tuple = (),
    batch: int | str = "n",
    size: tuple = (32, 32),
    dtype: int = TensorProto.FLOAT,
    channels_last: bool = False,
    outputs: dict | None = None,
    reshape: tuple = (0, -1),
    domain: str = "",
) -> Path:
    """A convolution of stride 4 and the mean over the map: N×16. `front` and `back` are (operator,
    constant) of what comes before and after; `outputs` the names and ranks of the outputs."""
    half = dtype == TensorProto.FLOAT16
    values, nodes, current = {}, [], "image"

    def step(kind: str, constant: np.ndarray | None = None, **attributes: object) -> None:
        nonlocal current
        inputs, result = [current], f"value{len(nodes)}"
        if constant is not None:
            constant = np.asarray(constant)
            if constant.dtype.kind == "f":
                constant = constant.astype(np.float16 if half else np.float32)
            values[f"constant{len(nodes)}"] = constant
            inputs.append(f"constant{len(nodes)}")
        where = "" if kind != "Unknown" else domain
        nodes.append(
            helper.make_node(kind, inputs, [result], f"n{len(nodes)}", "", where, **attributes)
        )
        current = result

    if dtype in (TensorProto.UINT8, TensorProto.DOUBLE):
        step("Cast", to=TensorProto.FLOAT)
    if channels_last:
        step("Transpose", perm=(0, 3, 1, 2))
    for kind, constant in front:
        step(kind, constant)
    step("Conv", KERNEL.numpy(), strides=(4, 4))
    step("GlobalAveragePool")
    step("Reshape", np.array(reshape, np.int64))
    for kind, constant in back:
        step(kind, constant)
    nodes.append(helper.make_node("Identity", [current], ["embedding"]))
    nodes.append(helper.make_node("ReduceL2", [current], ["norm"], axes=[1]))
    nodes.append(helper.make_node("Neg", [current], ["negative"]))
    shape = (batch, *size, 3) if channels_last else (batch, 3, *size)
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", dtype, shape)],
        [
            helper.make_tensor_value_info(name, dtype if half else TensorProto.FLOAT, [None] * rank)
            for name, rank in (outputs or {"embedding": 2}).items()
        ],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    versions = [helper.make_opsetid("", 13)] + [helper.make_opsetid(domain, 1)] * bool(domain)
    model = helper.make_model(graph, opset_imports=versions, ir_version=8)
    onnx.save(model, path)
    return path


def photos(count: int = 5, size: tuple = (32, 32)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8, generator=generator)


def reference(pixels: torch.Tensor) -> torch.Tensor:
    """What `network` computes of N×3×H×W."""
    return F.conv2d(pixels, KERNEL, stride=4).mean((2, 3))


def embeddings(backbone: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return backbone(backbone.preprocessing(images))


def normal(images: torch.Tensor) -> torch.Tensor:
    return (images.permute(0, 3, 1, 2).float() - 127.5) / 127.5


@pytest.mark.parametrize("include_preprocessing", [False, True])
def test_what_this_program_exports_comes_back(include_preprocessing, tmp_path):
    torch.manual_seed(0)
    backbone = build_backbone("MobileFaceNet", 8, (48, 32), repeats=[1, 1, 1, 1]).eval()
    backbone.preprocessing = Preprocessing("BGR", 100.0, 128.0, (48, 32))
    export(backbone, tmp_path / "net.onnx", include_preprocessing)
    read = load_backbone(tmp_path / "net.onnx", "MobileFaceNet")
    if not include_preprocessing:
        assert read.preprocessing == backbone.preprocessing
    assert (read.feature_dim, read.training) == (8, False)
    assert "MobileFaceNet, repeats [1, 1, 1, 1], 8-d, of this project, in ONNX" in describe(read)
    images = photos(5, (48, 32))
    difference = embeddings(read, images) - embeddings(backbone, images)
    assert difference.abs().max() < 1e-5
    with pytest.raises(CheckpointError, match="holds a MobileFaceNet, not a ResNet18_IR"):
        load_backbone(tmp_path / "net.onnx", "ResNet18_IR")
    with pytest.raises(CheckpointError, match="leave --lineage out"):
        load_backbone(tmp_path / "net.onnx", "insightface")


@pytest.mark.parametrize(
    ("batch", "reshape", "said"),
    [
        ("n", (0, -1), ""),
        (1, (0, -1), ""),  # says one, takes any
        (1, (1, 16), "1 at a time"),
        ("n", (1, 16), "1 at a time"),  # says any, takes one
        (4, (4, 16), "4 at a time"),
        (1, (1, -1), "1 at a time"),  # of two images it would make one embedding, twice as long
    ],
)
def test_any_number_of_images_goes_through_any_graph(batch, reshape, said, tmp_path):
    path = network(tmp_path / "net.onnx", batch=batch, reshape=reshape)
    backbone = load_backbone(path, **RGB)
    assert ("at a time" in describe(backbone)) == bool(said)
    assert said in describe(backbone)
    for count in (1, 3, 4, 9):
        images = photos(count)
        torch.testing.assert_close(embeddings(backbone, images), reference(normal(images)))


def test_images_that_a_graph_mixes_go_through_it_one_by_one(tmp_path):
    path = network(tmp_path / "net.onnx")
    model = onnx.load(path)
    (last,) = (node for node in model.graph.node if node.output[0] == "embedding")
    mean = helper.make_node("ReduceMean", list(last.input), ["mean"], axes=[0])
    model.graph.node.remove(last)
    model.graph.node.extend([mean, helper.make_node("Add", [last.input[0], "mean"], ["embedding"])])
    onnx.save(model, path)
    backbone = load_backbone(path, **RGB)
    torch.testing.assert_close(embeddings(backbone, photos()), 2 * reference(normal(photos())))


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ([("Sub", 127.5), ("Mul", 1 / 128)], (0, 1)),
        ([("Add", -127.5), ("Div", 127.5)], (0, 1)),
        ([("Div", 255.0), ("Sub", 0.5), ("Div", 0.5)], (0, 1)),
        ([("Div", 255.0)], (0, 1)),
        ([("Sub", 0.5), ("Div", 0.5)], (0, 255)),
        ([("Sub", np.reshape([0.485, 0.456, 0.406], (1, 3, 1, 1)))], (0, 255)),
    ],
)
def test_normalisation_is_read_from_the_graph(front, expected, tmp_path):
    path = network(tmp_path / "net.onnx", front)
    with pytest.raises(CheckpointError, match=r"Give --channel_order RGB \(or BGR\); or"):
        load_backbone(path)
    backbone = load_backbone(path, channel_order="BGR")
    given = backbone.preprocessing
    assert (given.channel_order, given.mean, given.scale) == ("BGR", *expected)
    assert "mean, scale as its graph normalises" in describe(backbone)
    pixels = (photos().flip(3).permute(0, 3, 1, 2).float() - expected[0]) / expected[1]
    operators = {"Sub": torch.sub, "Add": torch.add, "Mul": torch.mul, "Div": torch.div}
    for kind, constant in front:
        pixels = operators[kind](pixels, torch.tensor(constant, dtype=torch.float32))
    torch.testing.assert_close(
        embeddings(backbone, photos()), reference(pixels), rtol=1e-4, atol=1e-5
    )
    overridden = load_backbone(path, **RGB)
    assert overridden.preprocessing == Preprocessing(input_size=(32, 32))
    assert "channel_order, mean, scale as given" in describe(overridden)
    twice = "warning: its graph normalises too: leave --input_mean and --input_scale out"
    assert twice in describe(overridden)


@pytest.mark.parametrize("front", [[], [("Mul", 2.0)], [("Sub", -1.0)]])
def test_an_input_that_nothing_tells_is_asked_for(front, tmp_path):
    path = network(tmp_path / "net.onnx", front)
    with pytest.raises(CheckpointError, match=r"RGB .or BGR., --input_mean, --input_scale; or"):
        load_backbone(path)
    assert load_backbone(path, "magface").preprocessing == Preprocessing("BGR", 0, 255, (32, 32))


def test_insightfaces_exports_are_known(tmp_path):
    backbone = load_backbone(network(tmp_path / "new.onnx", batch="None"))
    assert backbone.preprocessing == Preprocessing(input_size=(32, 32))
    assert "of deepinsight insightface arcface_torch" in describe(backbone)
    path = network(tmp_path / "old.onnx", [("Sub", 127.5), ("Mul", 1 / 128)], batch=1)
    model = onnx.load(path)
    model.graph.node[0].name, model.graph.node[1].name = "_minusscalar0", "_mulscalar0"
    onnx.save(model, path)
    assert load_backbone(path).preprocessing == Preprocessing("RGB", 0, 1, (32, 32))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("dtype", "limit"),
    [(TensorProto.FLOAT, 1e-5), (TensorProto.DOUBLE, 1e-5), (TensorProto.FLOAT16, 5e-3)],
)
def test_layouts_and_dtypes(dtype, limit, channels_last, tmp_path):
    path = network(tmp_path / "net.onnx", dtype=dtype, channels_last=channels_last, size=(112, 96))
    backbone = load_backbone(path, **RGB)
    assert backbone.preprocessing.input_size == (112, 96)
    images = photos(3, (112, 96))
    found = embeddings(backbone, images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, reference(normal(images)), rtol=limit, atol=limit)


def test_uint8_pixels_reach_the_graph_as_they_are(tmp_path):
    front = [("Sub", 127.5), ("Div", 127.5)]
    path = network(tmp_path / "net.onnx", front, dtype=TensorProto.UINT8, channels_last=True)
    with pytest.raises(CheckpointError, match=r"Give --channel_order RGB \(or BGR\); or"):
        load_backbone(path)
    with pytest.raises(CheckpointError, match="leave --input_mean and --input_scale out"):
        load_backbone(path, **RGB)
    backbone = load_backbone(path, channel_order="RGB")
    torch.testing.assert_close(embeddings(backbone, photos()), reference(normal(photos())))


def test_a_graph_of_any_size_gets_the_size_that_it_can_compute(tmp_path):
    path = network(tmp_path / "any.onnx", size=("h", "w"))
    assert load_backbone(path, **RGB).preprocessing.input_size == (112, 112)
    path = network(tmp_path / "last.onnx", [("Add", np.zeros((1, 3, 112, 96)))], size=("h", "w"))
    assert load_backbone(path, **RGB).preprocessing.input_size == (112, 96)
    path = network(tmp_path / "other.onnx", [("Add", np.zeros((1, 3, 9, 9)))], size=("h", "w"))
    with pytest.raises(CheckpointError, match="can't be computed with images of 112×96"):
        load_backbone(path, **RGB)


def test_an_output_beside_the_embedding(tmp_path):
    path = network(tmp_path / "net.onnx", outputs={"norm": 2, "embedding": 2})
    torch.testing.assert_close(
        embeddings(load_backbone(path, **RGB), photos()), reference(normal(photos()))
    )
    path = network(tmp_path / "two.onnx", outputs={"embedding": 2, "negative": 2})
    with pytest.raises(CheckpointError, match="2 outputs that may be its embedding") as caught:
        load_backbone(path, **RGB)
    run_printed(str(caught.value).split("`")[1])
    assert load_backbone(tmp_path / "two_embedding.onnx", **RGB).feature_dim == 16


def test_l2_normalised_embeddings_are_said_to_be(tmp_path):
    path = network(tmp_path / "net.onnx")
    assert "L2-normalised" not in describe(load_backbone(path, **RGB))
    model = onnx.load(path)
    (last,) = (node for node in model.graph.node if node.output[0] == "embedding")
    last.op_type = "LpNormalization"
    onnx.save(model, path)
    assert "embeddings L2-normalised" in describe(load_backbone(path, **RGB))


def test_other_networks_are_refused_in_words(tmp_path):
    def refused(match: str, change=None, **settings: object) -> None:
        path = network(tmp_path / "net.onnx", **settings)
        if change:
            model = onnx.load(path)
            change(model.graph)
            onnx.save(model, path)
        with pytest.raises(CheckpointError, match=match):
            load_backbone(path, **RGB)

    # One row for each place that a face may be, as detectors have.
    refused("perhaps a detector: .*embedding 16×1", reshape=(-1, 1))
    refused("perhaps a detector: .*embedding 1×4×4; expected N×D", reshape=(0, 4, 4))
    refused("norm 1×1; expected N×D, with D of at least 16", outputs={"norm": 2})
    refused("has 2 inputs .image, other.", lambda graph: graph.input.add(name="other"))
    refused("takes float n×1×32×32".replace("n", r"\?"), _grey)
    refused("takes int64", dtype=TensorProto.INT64)
    refused("takes an unknown type", lambda graph: _set_type(graph, 99))
    refused("can't be computed by onnxruntime .*Unknown", back=[("Unknown", None)], domain="mine")
    refused("another embedding of the same image", back=[("RandomNormalLike", None)])


def _set_type(graph: onnx.GraphProto, number: int) -> None:
    graph.input[0].type.tensor_type.elem_type = number


def _grey(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1


def test_weights_in_a_file_beside_it(tmp_path):
    path = network(tmp_path / "net.onnx")
    whole = embeddings(load_backbone(path, **RGB), photos())
    digest = weights_digest(load_backbone(path, **RGB))
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    assert torch.equal(embeddings(load_backbone(path, **RGB), photos()), whole)
    data = tmp_path / "net.onnx.data"
    content = data.read_bytes()
    data.write_bytes(bytes([content[0] ^ 1]) + content[1:])  # one bit of the kernel
    # Features that are on disk of the one network are not taken for those of the other.
    assert weights_digest(load_backbone(path, **RGB)) != digest
    data.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=r"net.onnx.data is truncated"):
        load_backbone(path, **RGB)
    data.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"net.onnx.data, which is not beside it"):
        load_backbone(path, **RGB)


@pytest.mark.parametrize("where", ["initializer", "constant in a branch"])
@pytest.mark.parametrize("location", ["../secret", "{outside}", "link", "*/_ORT_MEM_ADDR_/*", ""])
def test_nothing_outside_of_its_folder_is_read(location, where, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(KERNEL.numpy().tobytes())
    (folder / "link").symlink_to(tmp_path / "secret")
    path = network(folder / "net.onnx")
    model = onnx.load(path)
    (kernel,) = (t for t in model.graph.initializer if tuple(t.dims) == KERNEL.shape)
    if where != "initializer":
        node = helper.make_node("Constant", [], ["inner"], value=kernel)
        branch = helper.make_graph(
            [node], "branch", [], [helper.make_tensor_value_info("inner", 1, None)]
        )
        model.graph.node.add(op_type="If", attribute=[helper.make_attribute("then_branch", branch)])
        kernel = model.graph.node[-1].attribute[0].g.node[0].attribute[0].t
    kernel.ClearField("raw_data")
    kernel.data_location = TensorProto.EXTERNAL
    kernel.external_data.add(key="location", value=location.format(outside=tmp_path / "secret"))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"outside of its own folder|not beside it"):
        load_backbone(path, **RGB)


def test_a_damaged_file_is_refused_in_words(tmp_path):
    content = network(tmp_path / "net.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    for length in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"damaged|truncated"):
            load_backbone(path, **RGB)
    for name in (b"embedding", b"image", b"n0"):  # a text that is no UTF-8
        path.write_bytes(content.replace(name, name[:-1] + b"\xff"))
        with pytest.raises(CheckpointError, match="damaged ONNX file"):
            load_backbone(path, **RGB)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(CheckpointError, match="it is a web page"):
        load_backbone(path)


def test_an_evaluation_takes_it_and_training_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Pretrained").mkdir()
    network(tmp_path / "Pretrained/w600k_r50.onnx", batch="None")
    config = Config(checkpoint="w600k_r50", device="cpu")
    backbone = load_network(config, CPU)
    images = photos(40)
    found, mirrored = embed(backbone, list(images.numpy()), CPU, batch_size=19)
    expected = reference(normal(images)), reference(normal(images.flip(2)))
    torch.testing.assert_close(torch.from_numpy(found), expected[0])
    torch.testing.assert_close(torch.from_numpy(mirrored), expected[1])
    with pytest.raises(ConfigError, match="computes in the dtypes of its file"):
        load_network(replace(config, eval_dtype="bf16"), CPU)
    path = tmp_path / "Pretrained/w600k_r50.onnx"
    for main in (convert_main, export_main):
        target = tmp_path / ("new.pt" if main is convert_main else "new.pt2")
        monkeypatch.setattr("sys.argv", ["command", str(path), str(target)])
        with pytest.raises(CheckpointError, match="can only be evaluated"):
            main()
    with pytest.raises(CheckpointError, match="can only be evaluated"):
        starting_backbone(Config(pretrained=str(path)), None)


def test_label_noise_is_measured_with_it_but_needs_a_head_for_its_weights(
    tiny_faces, tmp_path, monkeypatch, capsys
):
    path = network(tmp_path / "net.onnx", batch="None")
    flags = [str(path), str(tiny_faces.train), "--file_list", str(tiny_faces.train_list)]
    flags += ["--output", str(tmp_path / "report"), "--num_workers", "0", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["label_noise", *flags])
    label_noise.main()
    assert "24 images of 6 identities" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["label_noise", *flags, "--centres", "weights"])
    with pytest.raises(CheckpointError, match="can only be evaluated"):
        label_noise.main()


def test_a_device_without_a_provider_is_said(tmp_path):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime computes on CUDA here")
    path = network(tmp_path / "net.onnx")
    with pytest.raises(CheckpointError, match="only on a CPU, not on meta"):
        load_backbone(path, **RGB).to("meta")
    content = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"only on a CPU, not on cuda:0. Give `--device cpu`"):
        open_session(tmp_path / "net.onnx", content, torch.device("cuda", 0))


def test_a_plain_export_of_real_weights_gives_their_embeddings(shared_data, tmp_path):
    weights = load_backbone(shared_data / "checkpoints/mobilefacenet_xiaoccer_068.ckpt")
    torch.onnx.export(
        weights, (torch.zeros(1, 3, 112, 96),), tmp_path / "net.onnx", dynamo=True, verbose=False
    )
    read = load_backbone(tmp_path / "net.onnx", "xiaoccer")
    assert read.preprocessing == weights.preprocessing
    images = photos(3, (112, 96))
    assert (embeddings(read, images) - embeddings(weights, images)).abs().max() < 1e-5
