"""Evaluate a checkpoint on TinyFace: mAP and rank-1/5/10/20/50 of faces of about 20×16 pixels.

    python TinyFace_Evaluation.py --checkpoint Trained_Models/<run>/checkpoints/best.pt
        --tinyface_dataset_path tinyface/Testing_Set

Images are taken as they are: give the folder of an aligned copy (Probe/, Gallery_Match/ and
Gallery_Distractor/, with any suffixes), and with --tinyface_file_list the folder of the two .mat
lists if they are elsewhere. Without paths, the demo's set is used. An interrupted extraction
resumes; torchrun shares it out.
"""

from Config import read_config, settings_for
from Utils.errors import run_script
from Utils.Evaluation_Utils.tinyface.evaluation import evaluate_tinyface


def main() -> None:
    """Read the settings, evaluate, print the table."""
    config = read_config(__doc__, only=settings_for("tinyface"))
    report = evaluate_tinyface(config)
    if report:
        print(f"\n{report.table}\n\nFigures: {report.folder}")


if __name__ == "__main__":
    run_script(main)
