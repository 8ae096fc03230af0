"""Pairs files: which images are compared, and in which folds; recognised from what is there.

contents.py     what a pairs file gives, its errors, commands that mend one
lines.py        the forms of a line
lists.py        text files: LFW's form, RFW's, CALFW's and CPLFW's, lists with flags
protocols.py    AgeDB-30's .mat file, CFP's folders of splits
groups.py       the group of each pair, from a file with the group of each image
"""

from __future__ import annotations

import os
from pathlib import Path

from Utils.Datasets_Utils.pairs.contents import Pairs, PairsError, dropping, without_images
from Utils.Datasets_Utils.pairs.lists import parse_list
from Utils.Datasets_Utils.pairs.protocols import is_mat, parse_agedb, read_cfp
from Utils.files import reading

__all__ = ["Pairs", "PairsError", "dropping", "parse_pairs", "read_pairs", "without_images"]


def read_pairs(path: str | os.PathLike[str], encoding: str = "") -> Pairs:
    """The pairs in a file of any form, or in a folder of CFP's splits.

    encoding: of a text file; "" finds it out. Raises PairsError, naming the file and the line, for
    what can't be read, is malformed, or can be read in two ways.
    """
    path = Path(path)
    if path.is_dir():
        return read_cfp(path)
    with reading(path, "pairs file", PairsError):
        content = path.read_bytes()
    return parse_pairs(path, content, encoding)


def parse_pairs(path: Path, content: bytes, encoding: str = "") -> Pairs:
    """As `read_pairs`, for the bytes of a pairs file; path: its name, for messages."""
    if is_mat(path, content):
        return parse_agedb(path, content)
    return parse_list(path, content, encoding)
