"""Evaluate a checkpoint on CFP-FP: 10-fold accuracy, TAR@FAR, AUC, EER, pictures of the errors.

    python CFPFP_Evaluation.py --checkpoint Trained_Models/<run>/checkpoints/best.pt
        --cfp_dataset_path FOLDER --cfp_file_list PAIRS --output FOLDER

Without a path, the demo's set of that name is used.
"""

from Config import read_config, settings_for
from Utils.errors import run_script
from Utils.Evaluation_Utils.report import evaluate_checkpoint


def main() -> None:
    """Read the settings, evaluate, print the table."""
    config = read_config(__doc__, only=settings_for("cfp"))
    report = evaluate_checkpoint(config, "cfp")
    print(f"\n{report.table}\n\nFigures and pictures: {report.folder}")


if __name__ == "__main__":
    run_script(main)
