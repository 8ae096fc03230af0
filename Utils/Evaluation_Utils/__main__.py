"""Evaluate a checkpoint on any verification set: .bin, .blp, or images with pairs.

python -m Utils.Evaluation_Utils --checkpoint PATH --data calfw.bin

Without --data, it is the demo's four groups, which have RFW's names and files.
With --all_pairs, on every pair of the images of a labelled set, such as a folder for each person.
"""

from Config import read_config, settings_for
from Utils.errors import run_script
from Utils.Evaluation_Utils.all_pairs.report import evaluate_all_pairs
from Utils.Evaluation_Utils.report import evaluate_set


def main() -> None:
    """Read the settings, evaluate on `data`, print the table."""
    config = read_config(__doc__, only=settings_for("any_set"))
    report = evaluate_all_pairs(config) if config.all_pairs else evaluate_set(config)
    if report:  # none in other processes than the main one
        print(f"\n{report.table}\n\nFigures and pictures: {report.folder}")


if __name__ == "__main__":
    run_script(main)
