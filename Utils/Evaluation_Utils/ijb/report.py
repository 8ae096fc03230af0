"""IJB's results file, the printed table and the picture."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from Utils.Evaluation_Utils.analysis.drawn import Kept, compare_drawn, keep_drawn
from Utils.Evaluation_Utils.analysis.further import draw_quality
from Utils.Evaluation_Utils.analysis.intervals import show_range
from Utils.Evaluation_Utils.analysis.pictures import plot_det
from Utils.Evaluation_Utils.analysis.quality import discard_table
from Utils.Evaluation_Utils.analysis.thresholds import (
    thresholds_table,
    warn_of_another_network,
)
from Utils.Evaluation_Utils.ijb.further import Asked, Further
from Utils.Evaluation_Utils.ijb.identification import (
    FPIRS,
    RANKS,
    GalleryFigures,
    IdentificationFigures,
)
from Utils.Evaluation_Utils.ijb.lists import Lists
from Utils.Evaluation_Utils.ijb.templates import Convention
from Utils.Evaluation_Utils.ijb.verification import FARS, VerificationFigures
from Utils.Evaluation_Utils.plots import plot_roc
from Utils.Evaluation_Utils.roc import OperatingPoint
from Utils.files import save_json
from Utils.tables import format_table, format_warnings, percent


@dataclass(frozen=True)
class About:
    """What was evaluated. weights: the digest of the network's. images: how they were aligned.
    warnings, flaws: of the images. compare: what must be the same in a result to compare with."""

    checkpoint: str
    data: str
    network: str
    weights: str
    images: str
    warnings: list[str]
    flaws: list[str]
    compare: dict[str, str]


@dataclass(frozen=True, eq=False)
class Figures:
    """Of one convention. identification: None where the set has no lists for it. further: None
    where it was not made."""

    verification: VerificationFigures
    identification: IdentificationFigures | None
    further: Further | None = None


def write_report(
    lists: Lists,
    about: About,
    figures: Mapping[Convention, Figures],
    folder: Path,
    asked: Asked,
    others: Sequence[Kept],
) -> str:
    """Write <prefix>.json, the pictures and the file for comparisons into the folder; return the
    table to print. others: results to compare with."""
    path = folder / f"{lists.prefix}.json"
    notes = [*lists.notes, *_notes(lists, next(iter(figures.values())))]
    further = {short_name(c): found.further for c, found in figures.items()}
    drawn = {name: each.drawn for name, each in further.items()}
    more, tables = _further_values(further, asked)
    if others:
        more["comparisons"], compared = compare_drawn(drawn, path, others)
        tables += compared
    if asked.thresholds:
        about.warnings.extend(warn_of_another_network(asked.thresholds, about.checkpoint))
    values = {
        "benchmark": lists.title,
        **{name: value for name, value in asdict(about).items() if name != "compare"},
        "counts": {
            "images": len(lists.names),
            "templates": len(lists.template_ids),
            "pairs": len(lists.same),
            "genuine": int(lists.same.sum()),
        },
        "notes": notes,
        **more,
        "results": [
            {"convention": {**asdict(c), "names": list(c.names)}, **_values(found)}
            for c, found in figures.items()
        ],
    }
    values["scores"] = keep_drawn(path, about.compare, drawn)
    save_json(path, values)
    curves = {short_name(c): found.verification.corners for c, found in figures.items()}
    plot_roc(curves, folder / f"{lists.prefix}_roc.png", f"{lists.title} 1:1")
    plot_det(curves, folder / f"{lists.prefix}_det.png", f"{lists.title} 1:1")
    draw_quality(more, folder / lists.prefix, lists.title)
    return "\n\n".join([_table(values, lists, about, figures), *tables])


def _further_values(
    further: Mapping[str, Further], asked: Asked
) -> tuple[dict[str, Any], list[str]]:
    """(more keys of the results file, their tables), by convention."""
    values: dict[str, Any] = {}
    tables = []
    if asked.thresholds:
        rates = {name: each.at_thresholds for name, each in further.items()}
        values["at_thresholds"] = {**asked.thresholds.about(), "results": rates}
        tables.append(thresholds_table(values["at_thresholds"], unit="cosine"))
    if asked.quality:
        curves = {name: each.quality for name, each in further.items()}
        values["quality"] = {"by": asked.quality[0], "results": curves}
        tables.append(discard_table(values["quality"]))
    return values, tables


def _values(found: Figures) -> dict[str, Any]:
    """Plain values; thresholds that are not finite are None."""
    verification = {
        "auc": found.verification.auc,
        **{
            rule: {f"{p.target:g}": _point(p) for p in getattr(found.verification, rule)}
            for rule in ("exact", "nearest", "nearest_no_drop")
        },
    }
    searches = found.identification
    further = {"intervals": found.further.drawn.intervals()}
    if searches is None:
        return {"verification": verification, "identification": None, **further}
    return {
        "verification": verification,
        **further,
        "identification": {
            "galleries": [_gallery(gallery) for gallery in searches.galleries],
            "rank": _by(RANKS, searches.ranks),
            "exact": _by(FPIRS, searches.exact),
            "ijb_evals": _by(FPIRS, searches.ijb_evals),
            "joint": {
                "rank": _by(RANKS, searches.joint_ranks),
                "rate": _by(FPIRS, searches.joint_rates),
            },
        },
    }


def _point(point: Any) -> dict[str, Any]:
    values = {name: value for name, value in asdict(point).items() if name != "target"}
    return values | {"threshold": point.threshold if np.isfinite(point.threshold) else None}


def _gallery(gallery: GalleryFigures) -> dict[str, Any]:
    rules = {"exact": gallery.exact, "ijb_evals": gallery.ijb_evals}
    return {
        "name": gallery.name,
        "templates": gallery.templates,
        "mated": gallery.mated,
        "unmated": gallery.unmated,
        "found": _by(RANKS, gallery.found),
        **{rule: {f"{p.target:g}": _point(p) for p in points} for rule, points in rules.items()},
    }


def _by(keys: tuple[float, ...], values: tuple[float, ...]) -> dict[str, float]:
    """Rates by what they belong to; empty where there are none."""
    return {f"{key:g}": value for key, value in zip(keys, values, strict=False)}


def _table(
    values: dict[str, Any], lists: Lists, about: About, figures: Mapping[Convention, Figures]
) -> str:
    counts = values["counts"]
    heading = [["data", about.data], ["images", about.images], ["checkpoint", about.checkpoint]]
    heading += [["network", about.network]]
    lines = [
        f"{format_warnings(about.warnings)}{lists.title}: {counts['images']:,} images, "
        f"{counts['templates']:,} templates, {counts['pairs']:,} pairs",
        format_table(heading, "<<", indent=2),
    ]
    if len(figures) == 1:
        (convention, found), *_ = figures.items()
        lines += ["", f"Convention: {convention.describe()}", "", *_in_full(lists, found)]
    else:
        lines += _side_by_side(figures)
    return "\n".join([*lines, "", *(f"- {note}." for note in values["notes"])])


def _in_full(lists: Lists, found: Figures) -> list[str]:
    verification = found.verification
    intervals = found.further.drawn.intervals()
    ranges = {name: show_range(ends) for name, ends in intervals["figures"].items()}
    heads = ["FAR", "TAR exact", "95 % interval", "FAR reached", "threshold", "TAR nearest"]
    rows = [[*heads, "FAR reached"]]
    for exact, near in zip(verification.exact, verification.nearest, strict=True):
        ends = ranges[f"TAR@FAR={exact.target:g}"]
        rows.append([f"{exact.target:g}", percent(exact.tar), ends, f"{exact.far:.3g}"])
        rows[-1] += [_threshold(exact), percent(near.tar), f"{near.far:.3g}"]
    genuine = int(lists.same.sum())
    impostor = len(lists.same) - genuine
    lines = [
        f"1:1, {genuine:,} genuine and {impostor:,} impostor pairs, AUC {verification.auc:.5f}",
        format_table(rows, ">" * len(rows[0]), indent=2),
        f"  The intervals are over {intervals['subjects']:,} subjects.",
    ]
    searches = found.identification
    if searches is None:
        return lines
    heads = ["gallery", "people", "searches", *(f"rank-{rank}" for rank in RANKS)]
    heads += [head for rate in FPIRS[1:] for head in (f"TPIR@{rate:g} exact", "ijb_evals")]
    rows = [heads]
    for gallery in searches.galleries:
        shares = [n / gallery.mated if gallery.mated else None for n in gallery.found]
        tpirs = [[point.tpir for point in rule] for rule in (gallery.exact, gallery.ijb_evals)]
        rows.append([gallery.name, f"{gallery.templates:,}", f"{gallery.mated:,}"])
        rows[-1] += [*map(percent, shares), *_open_set(*tpirs)]
    mated = sum(gallery.mated for gallery in searches.galleries)
    rows.append(["mean", "", f"{mated:,}", *map(percent, searches.ranks)])
    rows[-1] += _open_set(searches.exact, searches.ijb_evals)
    rows.append(["95 % interval", "", "", *(ranges[f"rank-{rank}"] for rank in RANKS)])
    for rate in FPIRS[1:]:
        rows[-1] += [ranges.get(f"TPIR@FPIR={rate:g}", ""), ""]
    people = sum(gallery.templates for gallery in searches.galleries)
    joint = [*map(percent, searches.joint_ranks)]
    joint += [cell for rate in searches.joint_rates[1:] for cell in ("", percent(rate))]
    rows.append(["joint", f"{people:,}", f"{mated:,}", *joint])
    return [*lines, "", "1:N", format_table(rows, "<" + ">" * (len(heads) - 1), indent=2)]


def _open_set(exact: Any, ijb_evals: Any) -> list[str]:
    pairs = list(zip(exact, ijb_evals, strict=True)) or [(None, None)] * len(FPIRS)
    return [cell for row in pairs[1:] for cell in map(percent, row)]


def _side_by_side(figures: Mapping[Convention, Figures]) -> list[str]:
    lines = []
    for rule in ("exact", "nearest"):
        rows = [["", *(f"FAR {far:g}" for far in FARS)]]
        for convention, found in figures.items():
            points = getattr(found.verification, rule)
            rows.append([convention.describe(), *(percent(point.tar) for point in points)])
        lines += ["", f"1:1, TAR, rule: {rule}", format_table(rows, "<" + ">" * len(FARS), 2)]
    if all(found.identification for found in figures.values()):
        heads = [*(f"rank-{rank}" for rank in RANKS), *(f"TPIR@{rate:g}" for rate in FPIRS[1:])]
        heads.append("joint rank-1")
        rows = [["", *heads]]
        for convention, found in figures.items():
            each = found.identification
            rates = [*each.ranks, *(each.exact[1:] or [None] * len(FPIRS[1:]))]
            rows.append([convention.describe(), *map(percent, [*rates, each.joint_ranks[0]])])
        lines += ["", "1:N, mean of the galleries, TPIR exact"]
        lines += [format_table(rows, "<" + ">" * len(heads), 2)]
    return lines


def _notes(lists: Lists, found: Figures) -> list[str]:
    notes = [
        "exact: the highest TAR with a FAR of at most the target. nearest: as insightface's script "
        "reads it off, at the corner of the curve whose FAR is nearest, even if it is above; "
        "published figures are these"
    ]
    searches = found.identification
    if searches:
        notes.append(
            "1:N: each gallery is searched alone; TPIR needs the mate first and above the "
            "threshold, which searches without a mate set. exact: FPIR of at most the target; "
            "ijb_evals: insightface's rule, mostly one search stricter"
        )
        notes.append(
            "joint, only to compare with older tables: both galleries as one, and thresholds from "
            "all scores pooled, which is no FPIR"
        )
        without = len(lists.probes.templates) - sum(g.mated for g in searches.galleries)
        if without:
            notes.append(f"{without:,} probes have no mate in either gallery")
    return notes


def short_name(convention: Convention) -> str:
    """One project's name for it, or a description."""
    return convention.names[0] if convention.names else convention.describe()


def _threshold(point: OperatingPoint) -> str:
    return f"{point.threshold:.4f}" if np.isfinite(point.threshold) else "none"
