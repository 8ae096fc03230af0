"""Check on one GPU, in at most eight minutes, that training and evaluation are right there.

    python -m benchmarks.gpu_check [--only NAME ...] [--output gpu_check.json]
    python -m benchmarks.gpu_check --device cpu --quick      rehearse it without a GPU

It needs the repository and PyTorch, none of the optional packages. A line for each result comes as
soon as it is there, then one table. The verdicts: ok; WRONG; SLOW, right but slower than it should
be; SKIPPED, with the reason. The output file has all of it, with the end of the log of each check
in which something is wrong. The exit status is 1 if anything is wrong or the time was too short.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.gpu_checks import figures, runs, speed, steps, together
from benchmarks.gpu_checks.check import ROOT, WRONG, Check, Place, Row
from benchmarks.gpu_checks.running import AT_ONCE, Outcome, run_checks
from Utils.devices import find_device
from Utils.errors import run_script
from Utils.files import save_json
from Utils.tables import format_table

_EACH = (*runs.CHECKS, *steps.CHECKS, *together.CHECKS, *figures.CHECKS, *speed.CHECKS)
CHECKS = {check.name: check for check in _EACH}

_WIDTH = 90  # of a note in the table


def main() -> None:
    """Read the command line, run the checks, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), metavar="NAME", help="of checks")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N or cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--limit", type=float, default=465, help="seconds for everything")
    parser.add_argument("--output", default="gpu_check.json", help="file of all results")
    arguments = parser.parse_args()
    names = arguments.only or list(CHECKS)
    device = find_device(arguments.device)
    wrong = run(
        [CHECKS[name] for name in CHECKS if name in names],
        device,
        arguments.quick,
        arguments.limit,
        Path(arguments.output),
    )
    sys.exit(1 if wrong else 0)


def run(
    checks: Sequence[Check], device: torch.device, quick: bool, limit: float, output: Path
) -> bool:
    """Run checks, print their rows and the table, write the file; whether anything is wrong."""
    begin = time.monotonic()
    outcomes: list[Outcome] = []

    def say(check: str, row: Row) -> None:
        seconds = time.monotonic() - begin
        print(f"[{seconds:3.0f} s] {'  '.join(filter(None, _cells(row)))}", flush=True)

    def done(outcome: Outcome) -> None:
        outcomes.append(outcome)
        save_json(output, _values(outcomes, device, quick, time.monotonic() - begin))

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        _set_environment(Path(folder))
        run_checks(checks, Place(device, quick, Path(folder)), limit, say, done)
    order = {check.name: place for place, check in enumerate(checks)}
    outcomes.sort(key=lambda outcome: order[outcome.check.name])
    print("\n" + format_table([_cells(row) for o in outcomes for row in o.rows], "<<<<"))
    counts = Counter(row.verdict for o in outcomes for row in o.rows)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()), end="")
    print(f" in {time.monotonic() - begin:.0f} s; all of it is in {output}")
    return counts[WRONG] > 0 or any(outcome.unfinished for outcome in outcomes)


def _set_environment(folder: Path) -> None:
    """For the processes of the checks: all files into the folder, no more threads than cores."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // AT_ONCE)))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.environ["PYTHONWARNINGS"] = "ignore"
    os.environ["MPLCONFIGDIR"] = str(folder / "matplotlib")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))


def _cells(row: Row) -> list[str]:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    found = "; ".join(filter(None, (ratio, row.found)))
    return [f"{row.verdict:<7}", row.name, found[:_WIDTH], row.note[:_WIDTH]]


def _values(
    outcomes: list[Outcome], device: torch.device, quick: bool, seconds: float
) -> dict[str, object]:
    rows = [{"check": o.check.name, **asdict(row)} for o in outcomes for row in o.rows]
    return {
        "device": str(device),
        "quick": quick,
        "seconds": round(seconds, 1),
        "seconds_of_checks": {o.check.name: round(o.seconds, 1) for o in outcomes},
        "rows": rows,
        "logs": {o.check.name: o.log for o in outcomes if o.log},
    }


if __name__ == "__main__":
    run_script(main)
