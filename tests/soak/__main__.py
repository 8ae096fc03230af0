"""Run campaigns and print their table: fault, tries, survived, lost."""

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

from tests.soak.campaign import Allowance, Row

# Name of the module with `campaign(allowance)`: its share of the minutes.
CAMPAIGNS: dict[str, float] = {
    "kills": 18,
    "length": 12,
    "hostile": 3,
    "mutations": 12,
    "disks": 5,
    "data": 4,
    "peers": 4,
    "numbers": 2,
}


def main() -> int:
    """Read the command line, run, print; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(CAMPAIGNS), default=list(CAMPAIGNS))
    parser.add_argument("--minutes", type=float, default=60, help="for all campaigns together")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    arguments = parser.parse_args()
    shares = sum(CAMPAIGNS[name] for name in arguments.only)
    print(f"{'fault':<72}{'tries':>8}{'survived':>10}{'lost':>6}", flush=True)
    lost = 0
    for name in arguments.only:
        seconds = 60 * arguments.minutes * CAMPAIGNS[name] / shares
        with tempfile.TemporaryDirectory(prefix=f"soak_{name}_") as folder:
            allowance = Allowance(Path(folder), arguments.seed, time.monotonic() + seconds)
            for row in importlib.import_module(f"tests.soak.{name}").campaign(allowance):
                print(line(row), flush=True)
                lost += len(row.lost)
    return 1 if lost else 0


def line(row: Row) -> str:
    """The row of the table, with its note, and a line for each try that lost something."""
    figures = f"{row.name:<72}{row.tries:>8,}{row.survived:>10,}{len(row.lost):>6,}"
    return "\n".join([f"{figures}  {row.note}".rstrip(), *(f"    {text}" for text in row.lost)])


if __name__ == "__main__":
    sys.exit(main())
