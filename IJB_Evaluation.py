"""Evaluate a checkpoint on IJB-B or IJB-C: TAR@FAR from 1e-6 to 0.1 of pairs of templates, and
ranks and TPIR@FPIR of searches in two galleries; by published figures' rules, and exactly.

    python IJB_Evaluation.py --checkpoint Trained_Models/<run>/checkpoints/best.pt
        --ijb_dataset_path FOLDER

FOLDER has loose_crop and meta, as insightface distributes them; without it, the demo's set is used.
Several GPUs or processes share the images: torchrun --nproc_per_node 4 IJB_Evaluation.py ... An
interrupted extraction resumes.
"""

from Config import read_config, settings_for
from Utils.errors import run_script
from Utils.Evaluation_Utils.ijb.evaluation import evaluate_ijb


def main() -> None:
    """Read the settings, evaluate, print the table."""
    config = read_config(__doc__, only=settings_for("ijb"))
    report = evaluate_ijb(config)
    if report:
        print(f"\n{report.table}\n\nFigures and picture: {report.folder}")


if __name__ == "__main__":
    run_script(main)
