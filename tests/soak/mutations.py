"""Mutated files through every reader, which may refuse them in the project's own words alone.

A crash of Python, a file that takes 10 s or a gigabyte of memory, and any error that is not one of
the project's are lost tries; `fuzz` does the work. Atheris rather than Hypothesis: it sees which
lines a file reaches, and finds in a minute what random changes do not reach in an hour.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

from tests.processes import ROOT
from tests.soak.campaign import Allowance, Row


def campaign(allowance: Allowance) -> Iterator[Row]:
    """A row for each reader."""
    if importlib.util.find_spec("atheris") is None:
        raise SystemExit("this campaign needs the package atheris: python -m pip install atheris")
    folder = allowance.folder / "readers"
    seconds = allowance.until - time.monotonic() - 20  # to import
    words = ["-m", "tests.soak.fuzz", str(folder), str(seconds), str(allowance.seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            found = json.loads(line)
            note = found.get("note", "")
            yield Row(f"mutated {found['name']}", found["tries"], found["lost"], note)
    if process.returncode:
        raise RuntimeError(f"tests.soak.fuzz ended with {process.returncode}")
