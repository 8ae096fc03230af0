"""MegaFace's results file and pictures."""

from pathlib import Path
from typing import Any

import numpy as np

from Config import Config
from Utils.Evaluation_Utils.identification import Confusion, IdentificationResult
from Utils.Evaluation_Utils.identification.figures import Verification
from Utils.Evaluation_Utils.megaface.compare import read_compared
from Utils.Evaluation_Utils.megaface.noise import CLEANED, RAW
from Utils.Evaluation_Utils.megaface.plots import (
    XY,
    RocLine,
    plot_cmc,
    plot_megaface_roc,
    plot_sizes,
)
from Utils.Evaluation_Utils.megaface.run import MegaFaceResult
from Utils.Evaluation_Utils.megaface.table import about, table
from Utils.Evaluation_Utils.plots import SheetPair, contact_sheet
from Utils.files import save_json

FILE_NAME = "megaface"

_WORST_SHOWN = 20


def write_report(config: Config, judged: MegaFaceResult, judged_name: str, folder: Path) -> str:
    """Write megaface.json and the pictures into the folder, and return the table to print.

    judged_name: what was judged. Raises DataError for a `compare` file that is no megaface.json.
    """
    others = read_compared(config.compare)
    head = about(config, judged, judged_name)
    values = {
        **head,
        "results": [
            {"distractor_set": label, "photos": photos, **result_values(result)}
            for (label, photos), result in judged.results.items()
        ],
    }
    save_json(folder / f"{FILE_NAME}.json", values, indent=1)
    # The pictures are drawn from what the file holds, as those of other results are.
    draw(folder, {"": values, **others})
    _draw_confusions(judged, folder)
    return table(head, judged.results)


def result_values(result: IdentificationResult) -> dict[str, Any]:
    """The figures of a result as plain values; thresholds that accept nothing are None."""
    ranks, rates = result.cmc
    return {
        "probes": result.probes,
        "identities": result.identities,
        "probes_in_no_pair": result.alone,
        "distractors": result.distractors,
        "searches": result.searches,
        "rank1": result.rank1,
        "rank_rates": {str(rank): rate for rank, rate in result.rank_rates.items()},
        "verification": {
            name: _verification_values(found) for name, found in result.verification.items()
        },
        "devkit_probes": result.devkit_probes,
        "open_set": [
            {**vars(point), "threshold": _number(point.threshold)} for point in result.open_set
        ],
        "cmc": {"ranks": ranks.tolist(), "rates": rates.tolist()},
    }


def draw(folder: Path, runs: dict[str, dict[str, Any]]) -> None:
    """Draw CMC, ROC and rank-1 over set sizes of one or several runs, by label, "" being ours."""
    cmcs: dict[str, XY] = {}
    rocs: dict[str, RocLine] = {}
    sizes: dict[str, XY] = {}
    for run, values in runs.items():
        for photos in (RAW, CLEANED):
            results = [r for r in values["results"] if r["photos"] == photos]
            if not results:
                continue
            largest = max(results, key=lambda r: r["distractors"])
            label = ", ".join(filter(None, (run, photos)))
            cmcs[label] = np.array(largest["cmc"]["ranks"]), np.array(largest["cmc"]["rates"])
            for name, found in largest["verification"].items():
                curve = found["roc"]
                rocs[f"{label}, {name}"] = RocLine(
                    np.array(curve["fpr"]), np.array(curve["tpr"]), curve["exact_up_to_fpr"]
                )
            if len(results) > 1:
                pairs = sorted((r["distractors"], r["rank1"]) for r in results)
                sizes[label] = tuple(np.array(pairs).T)
    ours = max(runs[""]["results"], key=lambda r: r["distractors"])
    title = f"MegaFace, {ours['distractors']:,} distractors"
    plot_cmc(cmcs, folder / f"{FILE_NAME}_cmc.png", title)
    plot_megaface_roc(rocs, folder / f"{FILE_NAME}_roc.png", title)
    if sizes:
        plot_sizes(sizes, folder / f"{FILE_NAME}_rank1.png", "MegaFace, rank-1")


def _draw_confusions(judged: MegaFaceResult, folder: Path) -> None:
    """A sheet of probes beside the distractors that beat their mates, where photos are there."""
    probes, distractors = judged.data.probes.photos, judged.data.distractors.photos
    if probes is None or distractors is None:
        return
    sections = {}
    for photos in (RAW, CLEANED):
        chosen = [result for (_, kind), result in judged.results.items() if kind == photos]
        if chosen:
            largest = max(chosen, key=lambda result: result.distractors)
            found = largest.confusions
            heading = f"{photos}: {len(found)} probes that a distractor beat, the clearest first"
            pairs = (_pair(judged, confusion) for confusion in found[:_WORST_SHOWN])
            sections[heading] = [pair for pair in pairs if pair]
    title = "MegaFace: probe beside the distractor that beat its mate"
    contact_sheet(sections, folder / f"{FILE_NAME}_worst.png", title)


def _pair(judged: MegaFaceResult, confusion: Confusion) -> SheetPair | None:
    """None where one of the photos is not there."""
    data = judged.data
    chosen = (
        (data.probes, int(judged.trials.origin[confusion.probe])),
        (data.distractors, confusion.distractor),
    )
    names = [source.listed.names[row] for source, row in chosen]
    rows = [source.photo_of.get(name) for (source, _), name in zip(chosen, names, strict=True)]
    if None in rows:
        return None
    caption = (
        f"{confusion.distractor_score:.3f}, mate {confusion.mate_score:.3f} "
        f"at rank {confusion.beats + 1}\n" + "\n".join(Path(name).name for name in names)
    )
    left, right = (source.photos.images[row] for (source, _), row in zip(chosen, rows, strict=True))
    return left, right, caption


def _verification_values(found: Verification) -> dict[str, Any]:
    curve = found.curve
    return {
        "positives": found.positives,
        "negatives": found.negatives,
        "points": [
            {
                "fpr_target": point.target,
                "fpr": point.far,
                "tpr": point.tar,
                "threshold": _number(point.threshold),
            }
            for point in found.points
        ],
        "roc": {
            "fpr": curve.fpr.tolist(),
            "tpr": curve.tpr.tolist(),
            "thresholds": [_number(value) for value in curve.thresholds.tolist()],
            "exact_up_to_fpr": curve.exact_up_to,
        },
    }


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
