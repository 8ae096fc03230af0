"""Figures of a verification again, from the scores it kept, without network or photos.

    python -m Utils.Evaluation_Utils.analysis Results/a/lfw.json --compare Results/b/lfw.json

Needs lfw_scores.npz beside lfw.json. Prints the figures with their intervals; adds to the JSON
file what --compare, --threshold_from and --quality add in an evaluation.
"""

import argparse
from pathlib import Path
from typing import Any

from Utils.errors import run_script
from Utils.Evaluation_Utils.analysis.further import (
    draw_quality,
    further_figures,
    open_others,
    read_kept,
)
from Utils.Evaluation_Utils.analysis.intervals import figures_of, show_range
from Utils.Evaluation_Utils.analysis.kept_scores import KeptScores
from Utils.Evaluation_Utils.analysis.thresholds import show_threshold
from Utils.Evaluation_Utils.roc import auc, equal_error_rate, roc_curve, tar_at_far
from Utils.Evaluation_Utils.verification import REPORTED_FARS
from Utils.files import save_json
from Utils.tables import format_table, format_warnings


def main() -> None:
    """Read the flags, compute, print the tables, write the results file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", help="the JSON file of an evaluation of pairs")
    parser.add_argument("--compare", default="", help="results file on the same pairs")
    parser.add_argument("--threshold_from", default="", help="results file of another set")
    parser.add_argument("--quality", default="", help="norm, or a file of 'image score' lines")
    flags = parser.parse_args()
    path = Path(flags.results)
    values, kept = read_kept(path)
    asked = (flags.compare, flags.threshold_from, flags.quality)
    others = open_others(kept, list(kept.protocols), *asked)
    further = further_figures(kept, others, str(values.get("checkpoint")))
    for protocol, found in further.intervals.items():
        values["results"][protocol]["intervals"] = found
    save_json(path, {**values, **further.values})
    draw_quality(further.values, path.with_suffix(""), str(values.get("benchmark")))
    print(f"{format_warnings(further.warnings)}{values.get('benchmark')}, {len(kept.same):,} pairs")
    tables = [figures_table(kept, further.intervals)] if further.intervals else []
    print("\n\n".join([*tables, *further.tables]))


def figures_table(kept: KeptScores, intervals: dict[str, dict[str, Any]]) -> str:
    """Accuracy, TAR at each FAR with threshold and interval, AUC and EER of each protocol."""
    rows = [["", "figure", "", "threshold", "95 % interval"]]
    for protocol, own in kept.protocols.items():
        accuracy = f"{100 * figures_of(kept, protocol)['accuracy']:.2f} %"
        rows.append(
            [protocol, "accuracy", accuracy, "", show_range(intervals[protocol]["accuracy"])]
        )
        roc = roc_curve(own.scores, kept.same)
        for point in tar_at_far(roc, REPORTED_FARS):
            threshold = show_threshold(point.threshold, protocol)
            ends = show_range(intervals[protocol]["tar_at_far"][str(point.target)])
            name = f"TAR@FAR={point.target:g}"
            rows.append([protocol, name, f"{100 * point.tar:.2f} %", threshold, ends])
        rows.append([protocol, "AUC", f"{auc(roc):.5f}"])
        rows.append([protocol, "EER", f"{100 * equal_error_rate(roc):.2f} %"])
    return format_table(rows, "<<>>>", indent=2)


if __name__ == "__main__":
    run_script(main)
