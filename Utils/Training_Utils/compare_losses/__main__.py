"""Train two sides with the same data and seed, and name the first tensor that differs.

    python -m Utils.Training_Utils.compare_losses HEAD .              your uncommitted changes
    python -m Utils.Training_Utils.compare_losses main my_branch --backbone ResNet18_IR
    python -m Utils.Training_Utils.compare_losses demo "--recipe demo --weight_decay 0"

A and B are each a commit of this repository; a folder of it, such as `.` or another clone; a
recipe; a settings.json of a run; or flags of Train.py between quotes, '' for the defaults. All
other flags are Train.py's and are given to both sides. Each step is compared in this order: labels,
the network's input, loss, gradients, and after the update parameters and buffers. Nothing is
written.

Exit status: 0 if all steps are equal, 1 if something differs, 2 for an error.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from Config import ConfigError
from Utils.errors import UserError, print_error, run_script
from Utils.Training_Utils.compare_losses.comparison import Comparison, compare
from Utils.Training_Utils.compare_losses.sides import find_side


def compare_sides(argv: Sequence[str]) -> int:
    """What the command does with these words, A and B first: prints, and returns the status."""
    own, common = _parser().parse_known_args(["A", "B", *argv[2:]])
    if own.steps < 1:
        raise ConfigError("steps", own.steps, "it must be at least 1.")
    with TemporaryDirectory() as folder:
        (Path(folder) / "files").mkdir()
        a, b = (
            find_side(text, common, Path(folder, "files", name))
            for text, name in zip(argv, "ab", strict=False)
        )
        print(f"A  {a.name}\nB  {b.name}", flush=True)
        found = compare(a, b, own.steps, own.dtype == "float64", own.tolerance, Path(folder))
    print(_report(found, own.dtype, own.tolerance))
    return 1 if found.difference else 0


def _report(found: Comparison, dtype: str, tolerance: float) -> str:
    if found.difference is None:
        exactly = f"within {tolerance:g}" if tolerance else "bit for bit"
        how = (
            "in float64, without use_amp and compile"
            if dtype == "float64"
            else "in the settings' dtypes"
        )
        return f"equal for {found.steps} steps, {found.tensors:,} tensors each, {exactly}, {how}"
    step = found.difference.step
    when = f"step {step}" if step else "before step 1"
    return f"{when}: {found.difference.tensor} differs: {found.difference.text}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m Utils.Training_Utils.compare_losses",
        usage="%(prog)s A B [--steps N] [--dtype WORD] [--tolerance X] [--SETTING VALUE ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("A", help="commit, folder, recipe, settings.json or flags in quotes")
    parser.add_argument("B", help="the same")
    parser.add_argument("--steps", type=int, default=10, help="steps to train (default: 10)")
    parser.add_argument(
        "--dtype",
        choices=("float64", "settings"),
        default="float64",
        help="float64, in which rounding is tiny, or as the settings say (default: float64)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="difference that counts as equal, as a share of a tensor's largest value, such as "
        "1e-12 for sums in another order (default: 0)",
    )
    return parser


def main() -> None:
    """Read the command line, compare, print; end with the status."""
    argv = sys.argv[1:]
    if len(argv) < 2 or {"-h", "--help"} & {*argv[:2]}:
        _parser().parse_args(argv)
    try:
        status = compare_sides(argv)
    except UserError as error:
        print_error(str(error))
        status = 2
    sys.exit(status)


if __name__ == "__main__":
    run_script(main)
