"""The picture of a run: loss, accuracy, learning rate and test accuracies over the iterations."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from Utils.files import atomic_path
from Utils.Training_Utils.metrics import TRAINING_COLUMNS, Metrics


def draw_curves(metrics: Metrics, path: Path, title: str) -> None:
    """Draw the four panels as PNG."""
    figure = Figure(figsize=(11, 7), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(2, 2, sharex=True).flat
    tests = [name for name in metrics.columns if name not in TRAINING_COLUMNS]
    for panel, heading, columns in zip(
        panels,
        ("training loss", "test accuracy", "training accuracy, margin applied", "learning rate"),
        (["loss"], tests, ["accuracy"], ["learning_rate"]),
        strict=True,
    ):
        panel.set_title(heading, fontsize=10)
        panel.grid(alpha=0.3)
        for column in columns:
            iterations, values = metrics.series(column)
            marker = "o" if column in tests else None
            panel.plot(iterations, values, label=column, marker=marker, markersize=4)
        if columns and columns == tests:
            panel.legend(loc="lower right", fontsize=8)
        if heading == "learning rate":
            panel.set_yscale("log")
    for panel in figure.axes[-2:]:
        panel.set_xlabel("iteration")
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
