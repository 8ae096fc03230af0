"""Judge a checkpoint on MegaFace: rank-1 identification and TPR@FPR=1e-6.

This evaluation is not built yet.
"""

from Utils.errors import RunError, run_script


def main() -> None:
    """Say that there is nothing to run yet, and fail."""
    raise RunError(
        "MegaFace evaluation is not built yet; LFW_Evaluation.py, AgeDB30_Evaluation.py and "
        "CFPFP_Evaluation.py judge a checkpoint on verification."
    )


if __name__ == "__main__":
    run_script(main)
