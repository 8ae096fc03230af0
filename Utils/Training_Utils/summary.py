"""The table at the end of training."""

from Utils.Training_Utils.trainer import TrainingResult


def training_table(result: TrainingResult) -> str:
    """Lines with the accuracies at the end and the best ones, in percent, for printing."""
    lines = ["", f"Trained {result.iterations} iterations in {result.elapsed}"]
    if result.last:
        lines += ["", f"{'test set':<10}{'at the end':>12}{'best':>9}   at iteration"]
    for name, accuracy in result.last.items():
        best = result.best[name]
        lines.append(
            f"{name:<10}{100 * accuracy:>10.2f} %{100 * best.accuracy:>7.2f} %{best.iteration:>10}"
        )
    if result.run:
        weights = "best.pt" if result.last else "last.pt"
        lines += ["", f"Log, curves and checkpoints: {result.run}"]
        lines += [
            f"Judge it: python LFW_Evaluation.py --checkpoint {result.run}/checkpoints/{weights}"
        ]
    return "\n".join(lines)
