"""Weights on the Hugging Face hub, by name: `hf:USER/NAME`, `hf:USER/NAME@REVISION`.

The package huggingface_hub downloads them into its own cache; it is imported only for such names,
and honours HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and the user's login. Only .safetensors files and
the config.json beside them are fetched.
"""

import re
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from Utils.errors import CheckpointError, first_line

PREFIX = "hf:"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
SUFFIX = ".safetensors"
_WORD = r"[\w-][\w.-]*"  # no name of a file or folder that begins with a dot
_NAME = re.compile(
    rf"hf:(?P<repo>{_WORD}/{_WORD})(?:/(?P<file>{_WORD}(?:/{_WORD})*))?(?:@(?P<revision>[\w./-]+))?"
)
# Files with weights that are not read, by what they are.
_OTHERS = {
    ".onnx": "a network in ONNX",
    **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt", ".pkl"), "a pickle, which can run code"),
}


class _Place(NamedTuple):
    """A name in its parts. file: of the weights, "" where the name has none. text: as given."""

    repo: str
    file: str
    revision: str | None
    text: str


def fetch(name: str) -> Path:
    """The weights file that `hf:USER/NAME[/FILE.safetensors][@REVISION]` names, on this disk.

    Without a file it is `model.safetensors`, or the only .safetensors file of the repository.
    Raises CheckpointError if the name is malformed, the package is missing, or the file can't be
    had.
    """
    place = _parse(name)
    hub = _package(place)
    path = _download(hub, place, place.file or WEIGHTS)
    if path is None and not place.file:
        place = place._replace(file=_only_weights(hub, place))
        path = _download(hub, place, place.file)
    if path is None:
        raise CheckpointError(f"checkpoint {name}: the hub's {place.repo} has no {place.file}.")
    # The config of that very commit: a branch may move between two requests.
    file = place.file or WEIGHTS
    commit = path.parents[file.count("/")].name
    config = str(Path(file).with_name(CONFIG))
    cached = hub.try_to_load_from_cache(place.repo, config, revision=commit)
    if cached is None:
        _download(hub, place._replace(revision=commit), config)
    return path


def cached_name(path: Path) -> str:
    """`USER_NAME_COMMIT` for a file in the package's cache, for a folder's name; else ""."""
    for folder in path.parents:
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
            repo = folder.parent.parent.name.removeprefix("models--").replace("--", "_")
            return f"{repo}_{folder.name[:7]}"
    return ""


def _parse(name: str) -> _Place:
    match = _NAME.fullmatch(name)
    if match is None:
        raise CheckpointError(
            f"checkpoint {name}: the hub's names are hf:USER/NAME, hf:USER/NAME@REVISION, or with "
            f"a file, hf:USER/NAME/FILE{SUFFIX}."
        )
    file = match["file"] or ""
    if file and not file.endswith(SUFFIX):
        raise CheckpointError(
            f"checkpoint {name}: only {SUFFIX} files are read from the hub. Download {file} and "
            f"give its path, if it is a file that is read from the disk."
        )
    return _Place(match["repo"], file, match["revision"], name)


def _package(place: _Place) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise CheckpointError(
            f"checkpoint {place.text}: the hub is read with the package huggingface_hub, which is "
            f"not installed; `make extras` installs it, or `python -m pip install "
            f"huggingface_hub` (22 MB)."
        ) from None
    return huggingface_hub


def _download(hub: ModuleType, place: _Place, file: str) -> Path | None:
    """A file of a repository, fetched unless it is in the cache; None if there is no such file."""
    try:
        return Path(hub.hf_hub_download(place.repo, file, revision=place.revision))
    # The package raises its own errors, and those of the library that it speaks HTTP with.
    except Exception as error:
        if isinstance(error, hub.errors.RemoteEntryNotFoundError):
            return None
        raise CheckpointError(_failure(hub, place, file, error)) from None


def _only_weights(hub: ModuleType, place: _Place) -> str:
    """The only .safetensors file of a repository. Raises CheckpointError if it has not just one."""
    try:
        files = hub.HfApi().list_repo_files(place.repo, revision=place.revision)
    except Exception as error:  # as above
        raise CheckpointError(_failure(hub, place, WEIGHTS, error)) from None
    found = sorted(file for file in files if file.endswith(SUFFIX) and _is_plain(place, file))
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"checkpoint {place.text}: the hub's {place.repo} has {len(found)} {SUFFIX} files. "
            f"Name one of them: `--checkpoint {_named(place, found[0])}`."
        )
    others = sorted(file for file in files if Path(file).suffix in _OTHERS)
    if not others:
        raise CheckpointError(
            f"checkpoint {place.text}: the hub's {place.repo} has no weights; its files are "
            f"{', '.join(sorted(files)[:5]) or 'none'}."
        )
    kind = _OTHERS[Path(others[0]).suffix]
    raise CheckpointError(
        f"checkpoint {place.text}: the hub's {place.repo} has no {SUFFIX} file, only "
        f"{', '.join(others[:3])}: {kind}, and that is not downloaded. If you trust its owner, "
        f"fetch the file yourself and give its path: `hf download {place.repo} {others[0]} "
        f"--local-dir Pretrained`."
    )


def _is_plain(place: _Place, file: str) -> bool:
    return _NAME.fullmatch(f"{PREFIX}{place.repo}/{file}") is not None


def _named(place: _Place, file: str) -> str:
    return f"{PREFIX}{place.repo}/{file}" + (f"@{place.revision}" if place.revision else "")


def _failure(hub: ModuleType, place: _Place, file: str, error: Exception) -> str:
    """The text of an error for a download that failed."""
    start, errors = f"checkpoint {place.text}: ", hub.errors
    if isinstance(error, errors.GatedRepoError):
        return start + (
            f"{place.repo} is open only to those who accepted its conditions, on its page at the "
            f"hub; then log in with `hf auth login`."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return start + (
            f"the hub has no model {place.repo}, or it is private: `hf auth login` shows the hub "
            f"who you are."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return start + f"the hub's {place.repo} has no revision {place.revision}."
    endpoint = hub.constants.ENDPOINT
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        why = f"{endpoint} can't be reached"
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            why = f"{endpoint} answers with an error ({first_line(error.__cause__)})"
        if hub.constants.HF_HUB_OFFLINE:
            why = "HF_HUB_OFFLINE is set, so the hub is not asked"
        return start + (
            f"{file} is not in the cache, and {why}. Fetch it where there is internet and give "
            f"the path of its folder: `hf download {place.repo} {file} {CONFIG} --local-dir "
            f"Pretrained/{place.repo.rpartition('/')[2]}`."
        )
    return start + f"{file} could not be had from {endpoint}; try again. ({first_line(error)})"
