"""Evaluate a checkpoint on any verification set: .bin, .blp, or images with pairs.

python -m Utils.Evaluation_Utils --checkpoint PATH --data calfw.bin

Without --data, it is the demo's four groups, which have RFW's names and files.
"""

from Config import read_config, settings_for
from Utils.errors import run_script
from Utils.Evaluation_Utils.report import evaluate_set


def main() -> None:
    """Read the settings, evaluate on `data`, print the table."""
    report = evaluate_set(read_config(__doc__, only=settings_for("any_set")))
    print(f"\n{report.table}\n\nFigures and pictures: {report.folder}")


if __name__ == "__main__":
    run_script(main)
