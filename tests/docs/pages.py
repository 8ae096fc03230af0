"""The documentation pages, and what a reader would copy from them: commands, code, names."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "Pretrained/README.md", "benchmarks/RESULTS.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
# bash: each line is a command. console: lines after "$ " are, the others what they print.
# python: code. diff: lines to add to a file. text: anything else.
LANGUAGES = {"bash", "console", "python", "diff", "text"}

_BLOCK = re.compile(r"^```(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^    (python .*)$", re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block. line: of the page, from 1, where its text begins."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, match.start(2)) + 1, match[1], match[2])
        for match in _BLOCK.finditer(text)
    ]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def inline_code(page: Path) -> list[str]:
    return _INLINE.findall(prose(page))


def links(page: Path) -> list[str]:
    return _LINK.findall(prose(page))


def commands(page: Path) -> list[str]:
    """The shell commands of a page, each in one line."""
    found = []
    for block in blocks(page):
        text = block.text.replace("\\\n", " ")
        if block.language == "console":
            found += [line[2:] for line in text.splitlines() if line.startswith("$ ")]
        elif block.language == "bash":
            found += [line for line in text.splitlines() if line.strip()]
    found += _INDENTED.findall(prose(page))
    return [command.strip() for command in found]


@dataclass(frozen=True)
class Call:
    """A script or module of the project, and the words that it is called with."""

    script: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def flags(self) -> list[str]:
        flags = (word for word in self.words if word.startswith("--"))
        return [flag.partition("=")[0] for flag in flags]


def call_of(command: str) -> Call | None:
    """What a command calls of the project: `python X.py`, `python -m X`, `torchrun ... X.py` or
    make, whose ARGS go to Train.py or pytest. None for anything else, such as `X=$(...)`."""
    words = shlex.split(command, comments=True)
    if not words:
        return None
    if words[0] == "make":
        arguments = [word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")]
        given = tuple(shlex.split(" ".join(arguments)))
        return Call(("Train.py",), given) if "train" in words else None
    scripts = [i for i, word in enumerate(words) if word.endswith(".py")]
    if "torchrun" in words or (words[0] == "python" and words[1] != "-m"):
        first = scripts[0]
        return Call((words[first],), tuple(words[first + 1 :]))
    if words[:2] == ["python", "-m"]:
        return Call(("-m", words[2]), tuple(words[3:]))
    return None
