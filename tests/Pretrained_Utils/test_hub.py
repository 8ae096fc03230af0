"""Folders of the Hugging Face hub: written, read from the disk, and fetched from a small hub."""

import json
import shutil
import struct
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from Backbone import build_backbone, describe_backbone
from tests.hub_server import COMMIT, running_hub
from tests.lineage_networks import Recorder, adaface
from Utils.errors import CheckpointError, DataError, RunError
from Utils.Evaluation_Utils.features import weights_digest
from Utils.Pretrained_Utils import convert, find_weights, load_backbone
from Utils.Pretrained_Utils.files import Description, default_output, write_backbone
from Utils.Pretrained_Utils.hub.write import training_settings, write_hub_folder
from Utils.Pretrained_Utils.load import build, read_weights


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A file with a network whose input is like nobody else's."""
    torch.manual_seed(0)
    backbone = build_backbone("MobileFaceNet", 16, (32, 48), repeats=[1, 0, 0, 0])
    state = {
        name: tensor + torch.rand_like(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in backbone.state_dict().items()
    }
    about = describe_backbone(backbone)
    about["preprocessing"] = {"channel_order": "BGR", "mean": 100.5, "scale": 128.0}
    path = tmp_path_factory.mktemp("network") / "net.pt"
    write_backbone(path, state, Description(about, "this project"))
    return path


@pytest.fixture
def command(monkeypatch, capsys):
    """A function that runs the command in this process and returns what it prints."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["convert", *map(str, arguments)])
        convert.main()
        return capsys.readouterr().out

    return run


def results(path, digest, benchmark="LFW", **more):
    """A results file as LFW_Evaluation.py writes it, of 6,000 pairs."""
    found = {"accuracy": 0.9915, "std": 0.004, "tar_at_far": {"0.001": 0.97, "0.0001": None}}
    found["intervals"] = {"accuracy": [0.98, 0.995]}
    about = {"benchmark": benchmark, "weights": digest, "pairs": 6000, **more}
    path.write_text(json.dumps({**about, "results": {"cosine": found}}))
    return path


def assert_same_network(found, path):
    expected = load_backbone(path)
    assert found.preprocessing == expected.preprocessing
    images = torch.randint(0, 256, (2, *expected.preprocessing.input_size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        outputs = [net(net.preprocessing(images)) for net in (found, expected)]
    assert torch.equal(*outputs)
    states = found.state_dict(), expected.state_dict()
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


def test_a_folder_there_and_back_is_bit_identical(network, command, tmp_path):
    said = command(network, tmp_path / "face-net", "--to", "hub", "--license", "mit")
    assert "hf upload USER/face-net" in said
    assert {f.name for f in (tmp_path / "face-net").iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
    }
    assert_same_network(load_backbone(tmp_path / "face-net"), network)
    command(tmp_path / "face-net", tmp_path / "back.pt")
    assert_same_network(load_backbone(tmp_path / "back.pt"), network)
    with pytest.raises(RunError, match=r"already has model.safetensors, config.json, README.md"):
        command(network, tmp_path / "face-net", "--to", "hub")
    assert default_output(tmp_path / "face-net/model.safetensors").name == "face-net"


@pytest.mark.parametrize("teacher", ["", "/home/me/teacher.pt"])
def test_the_card_says_that_a_network_had_a_teacher_and_not_where(teacher, tmp_path):
    settings = {"teacher": teacher, "teacher_loss": "l2", "teacher_weight": 10.0, "seed": 1}
    torch.save({"settings": settings}, tmp_path / "last.pt")
    own = {"teacher_loss": "l2", "teacher_weight": 10.0} if teacher else {}
    assert training_settings(tmp_path / "last.pt") == {"seed": 1, **own}


def test_the_card_has_the_hubs_fields_and_only_figures_of_this_network(
    network, command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Results/net").mkdir(parents=True)
    digest = weights_digest(load_backbone(network))
    results(tmp_path / "Results/net/lfw.json", digest)
    drawn = "/x/Datasets/Demo/agedb/images, /x/pairs.txt"
    results(tmp_path / "Results/net/agedb30.json", digest, "AgeDB-30", data=drawn)
    other = results(tmp_path / "Results/net/cfpfp.json", "0" * 64, "CFP-FP")
    (tmp_path / "Results/net/else.json").write_text("[1]")
    said = command(network, tmp_path / "card", "--to", "hub")
    assert "left out" in said
    assert "cfpfp.json has results of another network" in said
    text = (tmp_path / "card/README.md").read_text()
    _, front, body = text.split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["license"] == "unknown"
    assert "face-recognition" in values["tags"]
    (index,) = values["model-index"]
    names = [result["dataset"] for result in index["results"]]
    assert names == [
        {
            "type": "drawn-faces-of-the-demo",
            "name": "drawn faces of the demo, as AgeDB-30, 6,000 pairs",
        },
        {"type": "lfw", "name": "LFW, 6,000 pairs"},
    ]
    accuracy, tar = index["results"][1]["metrics"]
    assert accuracy == {"type": "accuracy", "name": "accuracy (cosine)", "value": 0.9915}
    assert tar["value"] == 0.97
    row = "| LFW, 6,000 pairs | accuracy (cosine) | 99.15 % ± 0.40, 95 % interval 98.00 to 99.50 |"
    assert row in body
    with pytest.raises(DataError, match=r"cfpfp.json has results of another network"):
        command(network, tmp_path / "no", "--to", "hub", "--results", other)
    with pytest.raises(DataError, match=r"else.json is no file of results"):
        command(network, tmp_path / "no", "--to", "hub", "--results", "Results/net/else.json")
    if hub := sys.modules.get("huggingface_hub"):
        card = hub.ModelCard.load(tmp_path / "card/README.md")
        assert [r.metric_value for r in card.data.eval_results if r.dataset_type == "lfw"] == [
            0.9915,
            0.97,
        ]


def test_the_forms_of_all_benchmarks_get_rows():
    from Utils.Pretrained_Utils.hub.results import _figures

    tiny = _figures("TinyFace", {"mAP": 0.5, "rank_rates": {"1": 0.6, "50": 0.9}})
    mega = [{"distractor_set": "a", "photos": "as listed", "distractors": 10**6, "rank1": 0.7}]
    rates = {"1e-05": {"tar": 0.8, "threshold": 1.0}, "0.1": {"tar": 1.0}}
    ijb = [{"convention": {"names": ["insightface"]}, "verification": {"exact": rates}}]
    rows = [*tiny, *_figures("MegaFace", mega), *_figures("IJB-C", ijb)]
    assert [(f.benchmark, f.metric, f.value) for f in rows] == [
        ("TinyFace", "mAP", 0.5),
        ("TinyFace", "rank-1", 0.6),
        ("MegaFace, 1,000,000 distractors, as listed", "rank-1", 0.7),
        ("IJB-C, insightface", "TAR@FAR=1e-05", 0.8),
    ]


@pytest.fixture(scope="module")
def written(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "net"
    weights = read_weights(network)
    write_hub_folder(folder, weights, build(weights))
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "net")


def without_metadata(folder):
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def test_a_config_alone_describes_the_network(folder, network):
    without_metadata(folder)
    assert_same_network(load_backbone(folder), network)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "../../etc/passwd"}, "does not fit the network"),
        ({"name": 3}, "architecture.name is 3; expected text"),
        ({"feature_dim": 10**18}, "does not fit the network"),
        ({"feature_dim": 2**24}, "does not fit the network"),
        ({"input_size": [2**40, 16]}, "does not fit the network"),
        ({"input_size": "112"}, "expected two whole numbers"),
        ({"variant": {"repeats": [10**9, 0, 0, 0]}}, "more blocks than"),
        ({"variant": {"__class__": "os.system"}}, "can't be built with"),
        ({"preprocessing": {"channel_order": "BGR", "mean": float("nan"), "scale": 1}}, "finite"),
    ],
)
def test_a_hostile_config_is_refused_in_words(folder, change, said):
    without_metadata(folder)
    config = json.loads((folder / "config.json").read_text())
    change_config(folder, architecture={**config["architecture"], **change})
    with pytest.raises(CheckpointError, match=said) as error:
        load_backbone(folder)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000, "is not JSON"),
        (b"{", "is not JSON"),
        (b"[1]", "no JSON object"),
        (b" " * (1 << 20) + b"{}", "at most 1 MB"),
    ],
)
def test_a_config_that_is_none_is_named(folder, content, said):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        load_backbone(folder)


def test_a_config_that_contradicts_the_file_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())["architecture"]
    swapped = {**config["preprocessing"], "channel_order": "RGB"}
    change_config(folder, architecture={**config, "preprocessing": swapped})
    with pytest.raises(CheckpointError, match="they differ in architecture"):
        load_backbone(folder)


def test_a_header_that_lies_is_refused(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    (size,) = struct.unpack_from("<Q", whole)
    header = json.loads(whole[8 : 8 + size])
    name = next(key for key in header if key != "__metadata__")
    for entry in (
        {**header[name], "shape": [2**40, 2**40]},
        {**header[name], "data_offsets": [0, 2**50]},
        {**header[name], "dtype": "PICKLE"},
    ):
        text = json.dumps({**header, name: entry}).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + size :])
        with pytest.raises(CheckpointError, match="can't be read"):
            load_backbone(folder)
    path.write_bytes(struct.pack("<Q", 2**62) + b"{")
    with pytest.raises(CheckpointError, match="can't be read"):
        load_backbone(folder)


def test_cvlfaces_folder_is_read_and_its_code_is_not(tmp_path):
    net = Recorder()
    adaface(net, torch.zeros(1, 3, 32, 32, dtype=torch.float64), 18, "ir")
    save_file({f"model.net.{k}": v for k, v in net.state.items()}, tmp_path / "model.safetensors")
    (tmp_path / "wrapper.py").write_text("raise SystemExit")
    auto = {"AutoModel": "wrapper.CVLFaceRecognitionModel"}
    config = {"auto_map": auto, "conf": {"color_space": "BGR", "input_size": [3, 112, 112]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = load_backbone(tmp_path)
    assert (found.lineage, found.preprocessing.channel_order) == ("mk-minchul CVLface", "BGR")


def test_a_folder_of_timm_is_the_network_that_timm_saved(tmp_path):
    timm = pytest.importorskip("timm", reason="make extras installs timm")
    torch.manual_seed(0)
    settings = {"img_size": 32, "patch_size": 8}
    theirs = timm.create_model("test_vit", num_classes=12, **settings).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    about = {"mean": [0.5, 0.25, 0.5], "std": [0.5, 0.5, 0.25], "input_size": [3, 32, 32]}
    config = {"architecture": "test_vit", "num_classes": 12, "pretrained_cfg": about}
    change = (tmp_path / "config.json").write_text
    change(json.dumps({**config, "model_args": settings}))
    found = load_backbone(tmp_path)
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    mean, std = (torch.tensor(about[name]) for name in ("mean", "std"))
    images = ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        torch.testing.assert_close(found(found.preprocessing(pixels)), theirs(images))
    for bad, said in (
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "checkpoint_path is none of"),
        ({"model_args": {**settings, "embed_dim": 10**9}}, "embed_dim is 1000000000"),
        ({"model_args": {**settings, "embed_dim": 4032}}, "does not fit the network"),
        ({"model_args": {**settings, "num_heads": 7}}, "can't take images of 32×32 pixels"),
        ({"architecture": "hf_hub:evil/net"}, "timm has no network of that name"),
        ({"num_classes": 0}, "num_classes 0"),
    ):
        change(json.dumps({**config, "model_args": settings, **bad}))
        with pytest.raises(CheckpointError, match=said):
            load_backbone(tmp_path)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A small hub to which the real package is pointed, with a cache of its own."""
    package = pytest.importorskip("huggingface_hub.constants", reason="make extras installs it")
    with running_hub() as server:
        monkeypatch.setattr(package, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(package, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(package, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(package, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the package's attempts
        yield server


def test_a_network_comes_back_from_the_hub_and_from_the_cache(hub, folder, network, monkeypatch):
    hub.publish("me/net", folder)
    hub.repos["me/net"]["wrapper.py"] = b"raise SystemExit"
    hub.repos["me/net"]["pytorch_model.bin"] = b"a pickle"
    for name in ("hf:me/net", "hf:me/net@v1", f"hf:me/net@{COMMIT}"):
        assert_same_network(load_backbone(name), network)
    taken = {request.rpartition("/")[2] for request in hub.asked if "/resolve/" in request}
    assert taken == {"model.safetensors", "config.json"}
    path = find_weights("hf:me/net")
    assert default_output(path).name == "me_net_0123456"
    hub.asked.clear()
    monkeypatch.setattr(sys.modules["huggingface_hub.constants"], "HF_HUB_OFFLINE", True)
    assert find_weights("hf:me/net") == path
    assert hub.asked == []
    with pytest.raises(CheckpointError, match=r"not in the cache, and HF_HUB_OFFLINE is set"):
        find_weights("hf:me/other")


def test_a_file_may_be_named_and_need_not_be_where_only_one_is_there(hub, folder, network):
    content = (folder / "model.safetensors").read_bytes()
    hub.repos["me/one"] = {"README.md": b"", "weights/face.safetensors": content}
    assert_same_network(load_backbone("hf:me/one"), network)
    assert_same_network(load_backbone("hf:me/one/weights/face.safetensors@v1"), network)
    hub.repos["me/two"] = {"a.safetensors": content, "b.safetensors": content}
    with pytest.raises(CheckpointError, match=r"has 2 .*`--checkpoint hf:me/two/a.safetensors@v1`"):
        load_backbone("hf:me/two@v1")
    with pytest.raises(CheckpointError, match=r"hub's me/two has no c.safetensors"):
        load_backbone("hf:me/two/c.safetensors")


def test_what_is_not_there_or_can_not_be_had_is_said_in_words(hub, folder):
    hub.publish("me/net", folder)
    hub.repos["me/pickle"] = {"README.md": b"", "model.pt": b"a pickle"}
    hub.repos["me/onnx"] = {"w600k_r50.onnx": b"a graph"}
    hub.repos["me/empty"] = {"README.md": b""}
    hub.repos["me/hostile"] = {"../../evil.safetensors": b"", "/evil.safetensors": b""}
    for name, said in (
        ("hf:me/pickle", r"only model.pt: a pickle, which can run code.*`hf download me/pickle"),
        ("hf:me/onnx", r"only w600k_r50.onnx: a network in ONNX"),
        ("hf:me/empty", "has no weights; its files are README.md"),
        ("hf:me/hostile", "has no weights"),
        ("hf:me/nobody", "the hub has no model me/nobody, or it is private"),
        ("hf:me/net@v7", "has no revision v7"),
        ("hf:net", "the hub's names are hf:USER/NAME"),
        ("hf:../net", "the hub's names are hf:USER/NAME"),
        ("hf:me/net/../x.safetensors", "the hub's names are hf:USER/NAME"),
        ("hf:me/pickle/model.pt", "only .safetensors files are read from the hub"),
    ):
        with pytest.raises(CheckpointError, match=said) as error:
            load_backbone(name)
        assert "\n" not in str(error.value), name
    assert not any(request.endswith((".pt", ".onnx")) for request in hub.asked)


def test_a_hub_that_fails_is_named(hub, folder, tmp_path, monkeypatch):
    hub.publish("me/net", folder)
    hub.cut = 1000
    with pytest.raises(CheckpointError, match=r"model.safetensors could not be had from http"):
        load_backbone("hf:me/net")
    assert not list((tmp_path / "cache").rglob("model.safetensors"))
    hub.cut, hub.status = 0, 503
    with pytest.raises(CheckpointError, match=r"answers with an error.*503"):
        load_backbone("hf:me/net")
    hub.status, hub.extra = 0, {"X-Repo-Commit": "../../../../evil"}
    with pytest.raises(CheckpointError, match="could not be had"):
        load_backbone("hf:me/net")
    assert not list(tmp_path.rglob("evil*"))
    nobody = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    package = sys.modules["huggingface_hub.constants"]
    monkeypatch.setattr(package, "HUGGINGFACE_CO_URL_TEMPLATE", nobody)
    with pytest.raises(CheckpointError, match="can't be reached"):
        load_backbone("hf:me/net")


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    with pytest.raises(CheckpointError, match=r"package huggingface_hub, .*`make extras` installs"):
        load_backbone("hf:me/net")
