"""Pickles that ask for code, where formats have pickles, and ones that are deep."""

import io
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tests.soak.attacks.table import (
    CANARY,
    Attack,
    align,
    convert_set,
    convert_weights,
    kind,
    tree_of_faces,
    written,
)
from tests.soak.readers.table import image, write_files


class _Runs:
    """Pickled as a call. function, arguments: what a reader would run."""

    def __init__(self, module: str, name: str, *arguments: object) -> None:
        self.call = module, name, arguments

    def __reduce__(self) -> tuple:
        module, name, arguments = self.call
        return _Named(module, name), arguments


class _Named:
    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __reduce__(self) -> str:
        return self.name

    def __call__(self) -> None: ...


class _Pickler(pickle._Pickler):
    """Writes `_Named` as a global of any name, without looking for it."""

    def save_global(self, obj: object, name: str | None = None) -> None:
        if not isinstance(obj, _Named):
            return super().save_global(obj, name)
        if self.proto >= 4:
            self.save(obj.module)
            self.save(obj.name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        self.memoize(obj)
        return None


def _pickled(value: object, protocol: int) -> bytes:
    out = io.BytesIO()
    _Pickler(out, protocol).dump(value)
    return out.getvalue()


def calls(folder: Path) -> dict[str, _Runs]:
    """Calls that make the canary, if anything runs them."""
    canary = str(folder / CANARY)
    make = f"open({canary!r}, 'w')"
    return {
        "os.system": _Runs("os", "system", f"touch {canary}"),
        "posix.system": _Runs("posix", "system", f"touch {canary}"),
        "builtins.eval": _Runs("builtins", "eval", make),
        "__builtin__.exec": _Runs("__builtin__", "exec", make),
        "builtins.getattr": _Runs("builtins", "getattr", "os", "system"),
        "subprocess.Popen": _Runs("subprocess", "Popen", ["touch", canary]),
        "runpy._run_code": _Runs("runpy", "_run_code", make, {}),
        "numpy.load": _Runs("numpy", "load", canary),
        "numpy.testing runstring": _Runs("numpy.testing._private.utils", "runstring", make, {}),
        "torch.load": _Runs("torch", "load", canary),
        "torch.hub.load": _Runs("torch.hub", "load", canary, "x"),
        "torch.jit.load": _Runs("torch.jit", "load", canary),
        "torch inductor": _Runs(
            "torch._inductor.codecache", "compile_file", canary, canary, ["touch", canary]
        ),
        "torch.utils.bottleneck": _Runs("torch.utils.bottleneck.__main__", "run_prof", make),
        "own _Builder": _Runs("Utils.Datasets_Utils.formats.bin_set", "_Builder", make),
        "pathlib.Path.touch": _Runs("pathlib", "Path.touch", canary),
        "codecs.open": _Runs("codecs", "open", canary, "w"),
        "dotted name": _Runs("_codecs", "encode.__self__.open", canary, "w"),
    }


def _zip_checkpoint(path: Path, pickled: bytes) -> Path:
    """PyTorch's archive of a checkpoint with another pickle in it."""
    out = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, out)
    with zipfile.ZipFile(out) as source, zipfile.ZipFile(path, "w") as target:
        for member in source.infolist():
            own = member.filename.endswith("/data.pkl")
            target.writestr(member.filename, pickled if own else source.read(member))
    return path


def _old_checkpoint(path: Path, pickled: bytes) -> Path:
    """A checkpoint of before PyTorch 1.6: the pickle takes the place of the third of five."""
    out = io.BytesIO()
    torch.save({"a": 1}, out, _use_new_zipfile_serialization=False)
    content, ends = out.getvalue(), []
    file = io.BytesIO(content)
    for _ in range(4):
        pickle.load(file)
        ends.append(file.tell())
    path.write_bytes(content[: ends[2]] + pickled + content[ends[3] :])
    return path


@kind("pickles that ask for code, of every protocol")
def _code(folder: Path) -> Iterator[Attack]:
    store = folder / "in"
    for number, (label, call) in enumerate(calls(folder).items()):
        for protocol in range(6):
            told, name = f"{label}, protocol {protocol}", f"{number}_{protocol}"
            try:
                pickled = _pickled({"state_dict": call}, protocol)
            except (pickle.PicklingError, TypeError):  # an old protocol has no way to say it
                continue
            target = folder / "out" / f"{name}.pt"
            new = _zip_checkpoint(store / f"{name}.pt", pickled)
            old = _old_checkpoint(store / f"{name}.pth", pickled)
            pairs = written(store, f"{name}.bin", _pickled(([image(), call], [True]), protocol))
            yield Attack(f"weights: {told}", convert_weights(new, target), True)
            yield Attack(f"weights before 1.6: {told}", convert_weights(old, target), True)
            yield Attack(f".bin: {told}", convert_set(pairs, folder / "out" / name), True)
            if number == 0:
                yield from _other_pickles(folder, pickled, protocol)


def _other_pickles(folder: Path, pickled: bytes, protocol: int) -> Iterator[Attack]:
    """Pickles where other formats have values: .npy of objects, LMDB, bcolz, MXNet."""
    from tests.soak.readers.datasets import make_blp
    from Utils.Datasets_Utils.formats.writers import LmdbWriter

    box, out = folder / "in" / f"others{protocol}", folder / "out"
    box.mkdir()
    head = b"{'descr': '|O', 'fortran_order': False, 'shape': (2,), }"
    make_blp(box, "lfw_list.npy")
    npy = b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + pickled
    written(box, "lfw_list.npy", npy)
    convert = convert_set(box / "lfw", out / f"{protocol}.bin")
    yield Attack(f".npy of objects, protocol {protocol}", convert, True)
    write_files(box / "lfw", {"meta/storage": pickled, "__attrs__": pickled})
    yield Attack(f"bcolz's metadata, protocol {protocol}", convert, True)
    writer = LmdbWriter(box / "a.lmdb", np.array([0]))
    writer._batch.append((b"0", pickled))
    writer.finish(["a"])
    convert = convert_set(box / "a.lmdb", out / f"{protocol}_set")
    yield Attack(f"LMDB, protocol {protocol}", convert, True)
    params = written(box, "model.params", pickled)
    convert = convert_weights(params, out / "x.pt")
    yield Attack(f"MXNet's .params, protocol {protocol}", convert, True)


@kind("pickles and JSON that are deep")
def _deep(folder: Path) -> Iterator[Attack]:
    store, tree, many = folder / "in", tree_of_faces(folder), 300_000
    nested = {
        "tuples as a key": b"})" + b"\x85" * many + b"K\x01s.",
        "900 tuples as a key": b"})" + b"\x85" * 900 + b"K\x01s.",
        "tuples": b")" + b"\x85" * many + b".",
        "lists": b"]" * many + b"a" * (many - 1) + b".",
        "dictionaries": b"}K\1" * many + b"}" + b"s" * many + b".",
        "marks": b"(" * many + b"t" * many + b".",
        "tuples of a tuple twice": b")" + b"2\x86" * (many // 3) + b"}2s.",
        "tuples that a mark hides": b"}N" + b"\x85(0" * many + b"K\x01s.",
    }
    for number, (label, codes) in enumerate(nested.items()):
        pickled, target = b"\x80\x02" + codes, folder / "out" / "a.pt"
        new = _zip_checkpoint(store / f"{number}.pt", pickled)
        old = _old_checkpoint(store / f"{number}.pth", pickled)
        pairs = written(store, f"{number}.bin", pickled)
        yield Attack(f"weights: {label}", convert_weights(new, target), True)
        yield Attack(f"weights before 1.6: {label}", convert_weights(old, target), True)
        yield Attack(f".bin: {label}", convert_set(pairs, folder / "out" / str(number)), True)
    depth = 100_000
    for number, text in enumerate(("[" * depth, '{"a":' * depth, "[" * depth + "]" * depth)):
        listed = written(store, f"{number}.json", text)
        attack = align(tree, folder / "out" / "crops", listed, "--file_list", listed)
        yield Attack(f"photo list, JSON {number}", attack, True)
        header = struct.pack("<Q", len(text)) + text.encode()
        weights = written(store, f"{number}.safetensors", header)
        attack = convert_weights(weights, folder / "out" / "a.pt")
        yield Attack(f"safetensors, JSON {number}", attack, True)
