"""Utils/files.py: a file is written whole or not at all, and errors name it. Utils/matlab_files.py:
MATLAB's files are read as scipy reads them, and damaged ones refused."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from Utils.errors import CheckpointError, DataError, RunError, UserError
from Utils.files import (
    atomic_path,
    link_or_copy,
    read_json,
    reading,
    save_json,
    write_tensors,
)
from Utils.matlab_files import parse_matlab, read_matlab, whole_numbers_of
from Utils.run_folder import check_writable, find_checkpoint, is_checkpoint_folder
from Utils.Training_Utils.checkpoints.table_files import chunks_on_cpu


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


def test_a_name_with_a_nul_in_json_is_found_with_its_line(tmp_path):
    path = tmp_path / "list.json"
    path.write_text('{"path": ["a\\\\u0000.jpg",\n"b.jpg"]}')
    assert read_json(path, "photo list")["path"] == ["a\\u0000.jpg", "b.jpg"]
    path.write_text('{"path": ["a.jpg",\n"b\\u0000.jpg"]}')
    with pytest.raises(DataError, match=r"the photo list .*list.json has a NUL, .* in line 2"):
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


# --- MATLAB's files ---------------------------------------------------------------------------

MATLABS_OWN = Path(scipy.io.__file__).parent / "matlab" / "tests" / "data"  # by versions 5.3 to 7.4


def same_values(found, wanted):
    """Whether two variables are the same, cell by cell and field by field."""
    if (found.shape, found.dtype.kind, found.dtype.names) != (
        wanted.shape,
        wanted.dtype.kind,
        wanted.dtype.names,
    ):
        return False
    if names := found.dtype.names:
        return all(same_values(found[name], wanted[name]) for name in names)
    if found.dtype == object:
        return all(map(same_values, found.ravel(), wanted.ravel()))
    return np.array_equal(found, wanted)


def scipys(content):
    """The variables as scipy reads them, in the types that MATLAB shows, texts as UTF-16."""
    order = {b"IM": "le", b"MI": "be"}[content[126:128]]
    options = {"mat_dtype": True, "uint16_codec": f"utf-16-{order}"}
    found = scipy.io.loadmat(io.BytesIO(content), **options)
    return {name: value for name, value in found.items() if not name.startswith("__")}


@pytest.mark.parametrize(
    "kind",
    ["cell", "cellnest", "emptycell", "stringarray", "structarr", "structnest", "unicode", "minus"]
    + ["3dmatrix", "double", "onechar"],
)
def test_files_that_matlab_wrote_are_read_as_scipy_reads_them(kind):
    paths = sorted(MATLABS_OWN.glob(f"test{kind}_[5-7]*.mat"))  # of either order of bytes
    if not paths:
        pytest.skip("this SciPy comes without the files that it is tested with")
    for path in paths:
        for name, wanted in scipys(path.read_bytes()).items():
            assert same_values(read_matlab(path, (name,))[name], wanted), path.name


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_matlab_file_is_refused_or_read_as_it_says(compressed):
    """scipy's reader ends Python at some of these."""
    cell, fields = np.empty((3, 1), object), np.zeros((1, 2), [("name", object), ("age", object)])
    cell[:, 0] = ["1_1.jpg", "Zoë_2.jpg", np.array([[1, 2]], np.uint16)]
    fields["name"], fields["age"] = [["a", cell]], [[[[7.5]], np.zeros((0, 0))]]
    file = io.BytesIO()
    scipy.io.savemat(file, {"cell": cell, "fields": fields}, do_compression=compressed)
    content, rng = file.getvalue(), np.random.default_rng(0)
    refused, wanted = 0, scipys(content)
    for trial in range(3000):
        changed = bytearray(content)
        place = int(rng.integers(len(changed)))
        if trial % 3 == 0:
            changed[place] ^= 1 << rng.integers(8)
        elif trial % 3 == 1:
            changed[place : place + 4] = rng.bytes(4)
        else:
            del changed[place : place + int(rng.integers(1, 50))]
        try:
            found = parse_matlab("x.mat", bytes(changed), ("cell", "fields"))
        except DataError as error:
            assert str(error).startswith("x.mat ")  # noqa: PT017
            refused += 1
            continue
        assert found.keys() == wanted.keys()
        if compressed:  # has a checksum
            assert all(same_values(found[name], wanted[name]) for name in wanted)
    assert 2000 < refused < 3000


def test_what_no_list_has_is_refused_by_its_class():
    for kind in ("sparse", "func", "object", "complex"):
        path = MATLABS_OWN / f"test{kind}_7.4_GLNX86.mat"
        if path.exists():
            with pytest.raises(DataError, match=r"7\.4_GLNX86.mat .*class \d+, which no list has"):
                read_matlab(path, (f"test{kind}",))
    with pytest.raises(DataError, match="numbers of 2×1; expected N×1 whole numbers"):
        whole_numbers_of("x.mat", "ids", np.array([[1.0], [1e300]]))
