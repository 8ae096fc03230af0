"""README.md and docs/: their commands' flags, files, modules and names exist; their Python runs."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest
import torch

from Backbone import BACKBONES, build_backbone, describe_backbone
from Head import HEADS
from tests.conftest import ROOT, TinyFaces, run_script
from tests.docs.pages import LANGUAGES, PAGES, blocks, call_of, commands, inline_code, links
from Utils.run_folder import FORMAT

FOREIGN = {"pip", "pytest", "venv", "visdom.server"}  # modules of others
CODE = ("Backbone", "Config", "Head", "Utils", "benchmarks", "examples")
OURS = (*CODE, "tests", "docs", "Pretrained")
# Flags in the text that belong to other programs.
FOREIGN_FLAGS = {
    *("--max_restarts", "--nproc_per_node", "--rdzv_id", "--rdzv_backend", "--help"),
    *("--build-constraint", "--local-dir", "--repo-type"),
}
SHORT_README = 200  # lines

page_of = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def ours(script: tuple[str, ...]) -> bool:
    return script[-1] not in FOREIGN


CALLS = [
    (page, call)
    for page in PAGES
    for command in commands(page)
    if (call := call_of(command)) and ours(call.script)
]
SCRIPTS = sorted({call.script for _, call in CALLS})


@cache
def flags_of(script: tuple[str, ...]) -> set[str]:
    """The flags that a script's --help names, and the positional arguments it shows."""
    shown = run_script(*script, "--help")
    assert shown.returncode == 0, shown.stderr
    return set(re.findall(r"--[a-zA-Z][\w-]*", shown.stdout))


@page_of
def test_blocks_say_their_language(page):
    unknown = [block.where for block in blocks(page) if block.language not in LANGUAGES]
    assert not unknown


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= SHORT_README


@pytest.mark.parametrize("script", SCRIPTS, ids=" ".join)
def test_scripts_have_the_flags_of_their_examples(script):
    known = flags_of(script)
    for page, call in CALLS:
        if call.script == script:
            unknown = [flag for flag in call.flags if flag not in known]
            assert not unknown, f"{page.name}: {' '.join(script)} has no {unknown}"


@page_of
def test_flags_in_the_text_are_of_some_script(page):
    named = {flag for code in inline_code(page) for flag in re.findall(r"--[a-z][\w-]*", code)}
    known = FOREIGN_FLAGS.union(*map(flags_of, SCRIPTS))
    assert named <= known, f"{page.name} names {named - known}"


@page_of
def test_links_lead_to_files(page):
    for link in links(page):
        if not link.startswith("http"):
            path, _, heading = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name} links to {link}"
            assert not heading or heading in headings(target), f"{page.name} links to {link}"


def headings(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@page_of
def test_files_in_the_text_exist(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(rf"(?<![\w./-])(?:{'|'.join(OURS)})/[\w./-]*\w", text)
    named += [code for code in inline_code(page) if re.fullmatch(r"\w+\.(py|toml|txt)", code)]
    for name in set(named) - made_by_examples(page) - NOT_IN_THE_REPOSITORY:
        anywhere = "/" not in name and any(ROOT.glob(f"[A-Zbet]*/**/{name}"))
        assert (ROOT / name).exists() or anywhere, f"{page.name} names {name}"


# Files that the text describes, and that users have or runs write.
NOT_IN_THE_REPOSITORY = {
    *("Pretrained/my_network", "Pretrained/mobilefacenet_xiaoccer_068.ckpt"),
    *("pairs.txt", "clean_list.txt", "arcfacenet.py", "pairsDevTest.txt", "pairs_CALFW.txt"),
    *("pairs_CPLFW.txt", "Pair_list_F.txt", "Pair_list_P.txt"),
}


def made_by_examples(page: Path) -> set[str]:
    """The files that the examples of a page add to the repository."""
    return {path for block in blocks(page) if (path := file_of(block.text))}


def file_of(code: str) -> str:
    """The file that a block's first line names, in a comment; "" where it names none."""
    match = re.match(r"(?:# )?([\w/]+\.py)", code)
    return match[1] if match else ""


@page_of
def test_modules_and_names_in_the_text_exist(page):
    text = page.read_text(encoding="utf-8")
    for block in blocks(page):
        if file_of(block.text):  # a file that an example adds, and its imports
            text = text.replace(block.text, "")
    for name in set(re.findall(rf"(?<![\w./])(?:{'|'.join(CODE)})(?:\.[A-Za-z_]\w*)+", text)):
        assert name.endswith((".py", ".md")) or is_there(name), f"{page.name} names {name}"


def is_there(dotted: str) -> bool:
    """Whether it is a module, or what a module has."""
    words = dotted.split(".")
    for count in range(len(words), 0, -1):
        try:
            found = importlib.util.find_spec(".".join(words[:count]))
        except ModuleNotFoundError:
            continue
        if found is not None:
            value = importlib.import_module(".".join(words[:count])) if count < len(words) else 0
            for word in words[count:]:
                if not hasattr(value, word):
                    return False
                value = getattr(value, word)
            return True
    return False


@cache
def sources() -> str:
    files = [*ROOT.glob("*.py"), *(ROOT.glob("*.toml")), ROOT / ".gitignore", ROOT / "Makefile"]
    for folder in CODE:
        files += (ROOT / folder).rglob("*.py")
    return "\n".join(file.read_text() for file in files)


@page_of
def test_identifiers_in_the_text_are_in_the_sources(page):
    """Names such as `test_freq`: of settings, functions, files, columns."""
    if page.parent.name == "Pretrained":
        pytest.skip("names what is in other repositories' files")
    code = "\n".join(code for code in inline_code(page) if "/" not in code)
    known = {*BACKBONES, *HEADS, *OTHERS_WORDS, *underscored("".join(b.text for b in blocks(page)))}
    unknown = {word for word in underscored(code) - known if word not in sources()}
    assert not unknown


def underscored(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z]\w*_\w+", text))


# In the text: of files that other programs write, or that ours name after a data set.
OTHERS_WORDS = {
    *("agedb_30", "lfw_list", "Iter_N_margin", "mobilefacenet_xiaoccer_068"),
    *("lfw_roc", "lfw_det", "lfw_discard_cosine", "lfw_scores_", "lfw_worst"),
    *("pairs_CALFW", "pairs_CPLFW", "face2_2"),
}


@page_of
def test_python_examples_run(page, tiny_faces, tmp_path):
    """All blocks of a page in turn, beside `best.pt`, `faces`, `faces.txt`, `lfw`, `pairs.txt`."""
    code = [b.text for b in blocks(page) if b.language == "python" and not file_of(b.text)]
    if not code:
        pytest.skip("no Python in it")
    lay_out(tiny_faces, tmp_path)
    run_script("-c", "\n".join([f"import os; os.chdir({str(tmp_path)!r})", *code]), check=True)


def lay_out(faces: TinyFaces, folder: Path) -> None:
    (folder / "faces").symlink_to(faces.train)
    (folder / "faces.txt").symlink_to(faces.train_list)
    (folder / "lfw").symlink_to(faces.lfw)
    (folder / "pairs.txt").symlink_to(faces.lfw_pairs)
    backbone = build_backbone("MobileFaceNet", 16, (32, 32))
    state = {"format": FORMAT, "architecture": describe_backbone(backbone)}
    torch.save({**state, "backbone": backbone.state_dict()}, folder / "best.pt")
