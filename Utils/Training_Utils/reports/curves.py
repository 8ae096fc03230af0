"""The curves of a run over its iterations, and their picture."""

from pathlib import Path

from Utils.Evaluation_Utils.plots import save_figure
from Utils.Training_Utils.reports.figures import Metrics

Curves = dict[str, tuple[list[float], list[float]]]  # by name: iterations, values


def curves_of(metrics: Metrics) -> dict[str, Curves]:
    """The curves of each panel of the picture, or window of a watcher, by its name."""
    columns = {
        "loss": metrics.losses,
        "test_accuracy": metrics.test_names,
        "accuracy": ["accuracy"],
        "learning_rate": ["learning_rate"],
    }
    return {
        window: {column: metrics.series(column) for column in names}
        for window, names in columns.items()
    }


def draw_curves(metrics: Metrics, path: Path, title: str) -> None:
    """Draw loss, test accuracies, training accuracy and learning rate as a PNG."""
    # Imported here: a script starts sooner without it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), dpi=110, layout="constrained")
    figure.suptitle(title)
    loss, tests, accuracy, rate = panels = figure.subplots(2, 2, sharex=True).flatten()
    for panel, curves in zip(panels, curves_of(metrics).values(), strict=True):
        panel.grid(alpha=0.3)
        for name, (iterations, values) in curves.items():
            marker = "o" if panel is tests else None
            panel.plot(iterations, values, label=name, marker=marker, markersize=4)
    loss.set_title("training loss", fontsize=10)
    if len(metrics.losses) > 1:
        loss.legend(fontsize=8)
    tests.set_title("test accuracy", fontsize=10)
    if metrics.test_names:
        tests.legend(loc="lower right", fontsize=8)
    accuracy.set_title("training accuracy, without the margin", fontsize=10)
    accuracy.set_xlabel("iteration")
    rate.set_title("learning rate", fontsize=10)
    rate.set_xlabel("iteration")
    rate.set_yscale("log")
    save_figure(figure, path)
