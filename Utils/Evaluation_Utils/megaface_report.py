"""MegaFace's table, results file and pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from Config import Config
from Utils.errors import DataError
from Utils.Evaluation_Utils.figures import Verification
from Utils.Evaluation_Utils.identification import Confusion, IdentificationResult
from Utils.Evaluation_Utils.megaface import MegaFaceResult
from Utils.Evaluation_Utils.megaface_data import Source
from Utils.Evaluation_Utils.megaface_plots import XY, plot_cmc, plot_megaface_roc, plot_sizes
from Utils.Evaluation_Utils.noise import CLEANED, RAW
from Utils.Evaluation_Utils.plots import SheetPair, contact_sheet
from Utils.files import atomic_path

FILE_NAME = "megaface"

_WORST_SHOWN = 20


def write_report(config: Config, judged: MegaFaceResult, judged_name: str, folder: Path) -> str:
    """Write megaface.json and the pictures into the folder, and return the table to print.

    judged_name: what was judged. Raises DataError for a `compare` file that is no megaface.json.
    """
    others = read_others(config.compare)
    about = _about(config, judged, judged_name)
    values = {
        **about,
        "results": [
            {"distractor_set": label, "photos": photos, **result_values(result)}
            for (label, photos), result in judged.results.items()
        ],
    }
    with atomic_path(folder / f"{FILE_NAME}.json") as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n")
    # The pictures are drawn from what the file holds, as those of other results are.
    draw(folder, {"": values, **others})
    _draw_confusions(judged, folder)
    return table(about, judged.results)


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


def read_others(files: str) -> dict[str, dict[str, Any]]:
    """The values of other megaface.json files, named with commas between, by a short label."""
    found = {}
    for name in filter(None, (part.strip() for part in files.split(","))):
        path = Path(name)
        try:
            values = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"compare names {path}, which can't be read: {error}.") from None
        if not (isinstance(values, dict) and values.get("benchmark") == "MegaFace"):
            raise DataError(f"compare names {path}, which is no megaface.json.")
        found[path.resolve().parent.name or name] = values
    return found


def draw(folder: Path, runs: dict[str, dict[str, Any]]) -> None:
    """Draw CMC, ROC and rank-1 over set sizes of one or several runs, by label, "" being ours."""
    cmcs: dict[str, XY] = {}
    rocs: dict[str, XY] = {}
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
                rocs[f"{label}, {name}"] = np.array(curve["fpr"]), np.array(curve["tpr"])
            if len(results) > 1:
                pairs = sorted((r["distractors"], r["rank1"]) for r in results)
                sizes[label] = tuple(np.array(pairs).T)
    ours = max(runs[""]["results"], key=lambda r: r["distractors"])
    title = f"MegaFace, {ours['distractors']:,} distractors"
    plot_cmc(cmcs, folder / f"{FILE_NAME}_cmc.png", title)
    plot_megaface_roc(rocs, folder / f"{FILE_NAME}_roc.png", title)
    if sizes:
        plot_sizes(sizes, folder / f"{FILE_NAME}_rank1.png", "MegaFace, rank-1")


def table(about: dict[str, Any], results: dict[tuple[str, str], IdentificationResult]) -> str:
    """The figures for printing: one line for each set size, then the thresholds of the largest."""
    first = next(iter(results.values()))
    lines = [
        f"MegaFace: {first.probes:,} probes of {first.identities:,} people, "
        f"{first.searches:,} searches",
        f"  probes       {about['probes']}",
        f"  distractors  {about['distractors']}",
        f"  judged       {about['judged']}",
        "",
    ]
    fprs = [point.target for point in first.verification["all"].points]
    lowest = min(fprs)
    heads = [f"rank-{rank}" for rank in first.rank_rates]
    heads += [f"TPR@{lowest:g} {name}" for name in first.verification]
    heads += [f"FNIR@{point.target:g}" for point in first.open_set]
    lines.append(
        f"{'distractors':>11}  {'photos':<9}" + "".join(f"{head:>{_width(head)}}" for head in heads)
    )
    for (_, photos), result in results.items():
        rates = [*result.rank_rates.values()]
        rates += [_at(found, lowest) for found in result.verification.values()]
        rates += [point.fnir for point in result.open_set]
        cells = "".join(
            f"{f'{100 * rate:.2f} %':>{_width(head)}}"
            for head, rate in zip(heads, rates, strict=True)
        )
        lines.append(f"{result.distractors:>11,}  {photos:<9}{cells}")
    for photos in (RAW, CLEANED):
        chosen = [result for (_, kind), result in results.items() if kind == photos]
        if chosen:
            lines += ["", *_verification_lines(max(chosen, key=lambda r: r.distractors), photos)]
    return "\n".join([*lines, "", *(f"- {note}" for note in about["notes"])])


def _width(head: str) -> int:
    return max(len(head), 8) + 2


def _at(found: Verification, fpr: float) -> float:
    return next(point.tar for point in found.points if point.target == fpr)


def _verification_lines(result: IdentificationResult, photos: str) -> list[str]:
    lines = [f"Verification, {result.distractors:,} distractors, {photos}"]
    for name, found in result.verification.items():
        lines.append(
            f"  {name + ':':<8} {found.positives:,} positives, {found.negatives:,} negatives"
        )
        for point in found.points:
            lines.append(
                f"    FPR {point.target:<8g} TPR {100 * point.tar:>7.3f} %   "
                + (
                    f"threshold {point.threshold:.7f}, FPR reached {point.far:.3g}"
                    if np.isfinite(point.threshold)
                    else "no threshold accepts any pair at that FPR"
                )
            )
    return lines


def _about(config: Config, judged: MegaFaceResult, judged_name: str) -> dict[str, Any]:
    data = judged.data
    return {
        "benchmark": "MegaFace",
        "judged": judged_name,
        "probes": data.probes.listed.source,
        "distractors": data.distractors.listed.source,
        "feature_flip": config.feature_flip,
        "ties": config.ties,
        "noise": config.noise if _has_noise(judged) else None,
        "notes": _notes(config, judged),
    }


def _has_noise(judged: MegaFaceResult) -> bool:
    return any(photos == CLEANED for _, photos in judged.results)


def _notes(config: Config, judged: MegaFaceResult) -> list[str]:
    first = next(iter(judged.results.values()))
    tie = {
        "mate": "a distractor with the mate's very score does not beat it, as in the devkit",
        "against": "a distractor with the mate's very score beats it; the devkit says it does not",
    }
    notes = [
        f"Rank: distractors that score higher than the mate; ties: {tie[config.ties]}.",
        "TPR@x: share of same-person pairs that score higher than the first negative too many for "
        "FPR x; the threshold is the lowest of their scores. Nothing is interpolated.",
        "FNIR@x: share of searches that do not return the mate first and above the threshold, at "
        "which no more than x of the probes return a distractor while their mates are away.",
        "all: negatives are all probes with all distractors. devkit: those of the first "
        f"{first.devkit_probes} probes of the list only, as the devkit's tool counts them. "
        "Published TPRs are read off a curve that keeps a point only where TPR rose by more than "
        "0.01: differences below about one point mean nothing there.",
    ]
    if first.devkit_probes < 100:
        notes.append("There are fewer than 100 probes; the devkit's tool would fail on them.")
    if first.alone:
        notes.append(
            f"{first.alone} probes are the only one of their person: they are in no pair, and "
            f"count among the negatives."
        )
    far = [r for r in first.rank_rates if r > first.distractors]
    if far:
        notes.append("A rank beyond the number of distractors is always reached.")
    if _has_noise(judged):
        notes.append(_noise_note(config, judged))
    return notes


def _noise_note(config: Config, judged: MegaFaceResult) -> str:
    data = judged.data
    probes = 0 if data.noisy_probes is None else int(data.noisy_probes.sum())
    distractors = 0 if data.noisy_distractors is None else int(data.noisy_distractors.sum())
    how = {
        "drop": "left out",
        "insightface": "treated as insightface does: a probe is replaced by the centre of its "
        "person's clean ones, which lifts the figures; a distractor lies far off, but counts",
    }
    return (
        f"cleaned: {probes} noisy probes and {distractors} noisy distractors {how[config.noise]}."
    )


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
            sections[heading] = [_pair(judged, c) for c in found[:_WORST_SHOWN]]
    title = "MegaFace: probe beside the distractor that beat its mate"
    contact_sheet(sections, folder / f"{FILE_NAME}_worst.png", title)


def _pair(judged: MegaFaceResult, confusion: Confusion) -> SheetPair:
    data, origin = judged.data, judged.trials.origin
    probe = int(origin[confusion.probe])
    names = [
        Path(data.probes.listed.names[probe]).name,
        Path(data.distractors.listed.names[confusion.distractor]).name,
    ]
    caption = (
        f"{confusion.distractor_score:.3f}, mate {confusion.mate_score:.3f} "
        f"at rank {confusion.beats + 1}\n{names[0]}\n{names[1]}"
    )
    left = data.probes.photos.images[_photo_row(data.probes, probe)]
    right = data.distractors.photos.images[_photo_row(data.distractors, confusion.distractor)]
    return left, right, caption


def _photo_row(source: Source, row: int) -> int:
    """Features given in place of photos may be in another order than these."""
    names = source.photos.listed.names
    return row if source.ready is None else list(names).index(source.listed.names[row])


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
