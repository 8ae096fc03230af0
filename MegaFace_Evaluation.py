"""Evaluate a checkpoint on MegaFace: rank-1 identification and TPR@FPR=1e-6 among up to a million
distractors, CMC and ROC curves, open-set identification, and pictures of the worst confusions.

    python MegaFace_Evaluation.py --checkpoint Trained_Models/<run>/checkpoints/best.pt
        --facescrub_dataset_path FOLDER --facescrub_file_list facescrub_features_list.json
        --megaface_dataset_path FOLDER --megaface_file_list "megaface_features_list.json_*_1"

Without paths, the demo's probes and distractors are used. Several GPUs or processes share the
work: torchrun --nproc_per_node 4 MegaFace_Evaluation.py ... An interrupted extraction resumes.
"""

from Config import read_config, settings_for
from Utils.errors import run_script
from Utils.Evaluation_Utils.megaface.evaluation import evaluate_megaface


def main() -> None:
    """Read the settings, evaluate, print the table."""
    config = read_config(__doc__, only=settings_for("megaface"))
    report = evaluate_megaface(config)
    if report:
        print(f"\n{report.table}\n\nFigures and pictures: {report.folder}")


if __name__ == "__main__":
    run_script(main)
