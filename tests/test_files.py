"""Utils/files.py: a file is written whole or not at all, and errors name it."""

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from Utils.errors import CheckpointError, DataError, RunError, UserError
from Utils.files import (
    atomic_path,
    chunks_on_cpu,
    link_or_copy,
    read_json,
    reading,
    save_json,
    write_tensors,
)
from Utils.run_folder import check_writable, find_checkpoint, is_checkpoint_folder


def test_what_cannot_be_written_is_named_and_the_old_file_stays(tmp_path):
    path = tmp_path / "values.json"
    save_json(path, {"a": 1})

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left")

    with pytest.raises(RunError, match=r"values.json can't be written \(No space left\).*is whole"):
        write_half()
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["values.json"]
    for target in (tmp_path / "nowhere" / "values.json", path / "values.json"):
        with pytest.raises(RunError, match=r"values.json can't be written"):
            save_json(target, {})
    with pytest.raises(RunError, match=r"b.pt can't be written \(No such file"):
        link_or_copy(tmp_path / "a.pt", tmp_path / "b.pt")


def test_an_error_about_another_file_is_not_taken_for_one_of_writing(tmp_path):
    with pytest.raises(FileNotFoundError, match="source"), atomic_path(tmp_path / "target"):
        (tmp_path / "source").read_text()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[" * 200_000])
def test_what_is_not_json_is_named(tmp_path, content):
    path = tmp_path / "list.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"the photo list .*list.json is not JSON"):
        read_json(path, "photo list")


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"the photo list .*no.json can't be read: No such file"):
        read_json(tmp_path / "no.json", "photo list")
    unreadable = pytest.raises(CheckpointError, match=r"the index .* can't be read: Is a dir.*\.$")
    with unreadable, reading(tmp_path, "index", CheckpointError):
        tmp_path.read_bytes()


LONG = "n" * 300  # no file may have such a name, so that the system refuses to look


def test_a_path_that_the_system_refuses_to_look_at_is_a_user_error(tmp_path):
    path = tmp_path / LONG
    for look in (
        lambda: find_checkpoint(str(path), str(tmp_path)),
        lambda: find_checkpoint("last", str(path)),
        lambda: is_checkpoint_folder(path),
        lambda: check_writable(path),
    ):
        with pytest.raises(UserError, match="can't be read: File name too long"):
            look()


def test_tensors_of_a_gpu_are_written_as_the_cpus(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(torch, "save", lambda state, path: written.append(state))
    with FakeTensorMode():
        module = torch.nn.BatchNorm2d(3, device="cuda")
        state = {"net": module.state_dict(), "groups": [{"rate": 0.1, "t": torch.ones(2).cuda()}]}
        write_tensors(tmp_path / "x.pt", state)
    (found,) = written
    assert {tensor.device.type for tensor in found["net"].values()} == {"cpu"}
    assert found["net"]._metadata == state["net"]._metadata
    assert found["groups"][0]["t"].device.type == "cpu"
    assert found["groups"][0]["rate"] == 0.1
    assert state["net"]["weight"].is_cuda, "the state itself was changed"


def test_a_table_comes_from_a_gpu_in_chunks():
    with FakeTensorMode():
        chunks = list(chunks_on_cpu(torch.empty(5, 3, device="cuda"), size=4))
    assert [(c.device.type, len(c)) for c in chunks] == [("cpu", n) for n in (4, 4, 4, 3)]
