"""MegaFace's results file and the printed table, with notes on what the figures mean."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from Config import Config
from Utils.Datasets_Utils.text import first_few
from Utils.Evaluation_Utils.analysis.bootstrap import share_draws
from Utils.Evaluation_Utils.analysis.drawn import Drawn
from Utils.Evaluation_Utils.analysis.intervals import show_range
from Utils.Evaluation_Utils.features import list_digest
from Utils.Evaluation_Utils.identification import IdentificationResult
from Utils.Evaluation_Utils.identification.figures import Verification, allowed
from Utils.Evaluation_Utils.megaface.data import MegaFaceData
from Utils.Evaluation_Utils.megaface.noise import CLEANED, RAW, TrialSet
from Utils.tables import format_table, format_warnings

FILE_NAME = "megaface"


@dataclass(frozen=True, eq=False)
class MegaFaceResult:
    """results: by (label of the distractor set, "as listed" or "cleaned"). data and trials: what
    the rows in the results refer to. left_out: what is wrong with distractors that were left out.
    flaws: what is wrong with photos that were read all the same. warnings: of photos that look
    unaligned or swapped in colour."""

    results: dict[tuple[str, str], IdentificationResult]
    data: MegaFaceData
    trials: TrialSet
    left_out: Sequence[str] = ()
    flaws: Sequence[str] = ()
    warnings: Sequence[str] = ()


def values_of(
    config: Config,
    result: MegaFaceResult,
    name: str,
    weights: str | None,
    drawn: Mapping[str, Drawn],
) -> dict[str, Any]:
    """The content of megaface.json, plain values. name, weights: of the network, and the digest of
    its weights; None for features of other origin. drawn: of `drawn_of`."""
    data = result.data
    return {
        "benchmark": "MegaFace",
        "judged": name,
        "weights": weights,
        "probes": data.probes.listed.source,
        "distractors": data.distractors.listed.source,
        "feature_flip": config.feature_flip,
        "ties": config.ties,
        "noise": config.noise if _has_noise(result) else None,
        "warnings": list(result.warnings),
        "notes": _notes(config, result),
        "left_out": list(result.left_out),
        "flaws": list(result.flaws),
        "results": [
            {
                "distractor_set": label,
                "photos": photos,
                **_result_values(found),
                "intervals": own.intervals(),
            }
            for ((label, photos), found), own in zip(
                result.results.items(), drawn.values(), strict=True
            )
        ],
    }


def compared_by(config: Config, data: MegaFaceData) -> dict[str, str]:
    """What must be the same in two results that are compared."""
    found = hashlib.sha256()
    for source in (data.probes, data.distractors):
        found.update(list_digest(source.listed).encode())
    for noisy in (data.noisy_probes, data.noisy_distractors):
        found.update(b"none" if noisy is None else np.ascontiguousarray(noisy))
    rules = {"ties": config.ties, "noise": config.noise}
    return {"benchmark": "MegaFace", "lists": found.hexdigest(), **rules}


def drawn_of(result: MegaFaceResult) -> dict[str, Drawn]:
    """The figures of each set in draws over the probes' people. Thresholds are kept. A rate
    of less than one negative or search was not measured, and is not drawn."""
    found = {}
    for (label, photos), each in result.results.items():
        counts = each.by_person.items()
        below = {
            f"TPR@{point.target:g} {kind}"
            for kind, own in each.verification.items()
            for point in own.points
            if not allowed(point.target, own.negatives)
        }
        below |= {f"FNIR@{p.target:g}" for p in each.open_set if not allowed(p.target, each.probes)}
        # With the number too: those that can't be read are left out.
        found[f"{label} of {each.distractors:,}, {photos}"] = Drawn(
            each.identities,
            {name: float(sums.sum() / trials.sum()) for name, (sums, trials) in counts},
            {
                name: None if name in below else share_draws(sums[:, None], trials)[0]
                for name, (sums, trials) in counts
            },
        )
    return found


def _result_values(result: IdentificationResult) -> dict[str, Any]:
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


def table(values: dict[str, Any], results: dict[tuple[str, str], IdentificationResult]) -> str:
    """The figures for printing: a line for each set size and one for its intervals, then the
    thresholds of the largest. values: of megaface.json."""
    first = next(iter(results.values()))
    keys = {"probes": "probes", "distractors": "distractors", "network": "judged"}
    about = [(title, str(values[key])) for title, key in keys.items()]
    lowest = min(point.target for point in first.verification["all"].points)
    heads = ["distractors", "photos", *(f"rank-{rank}" for rank in first.rank_rates)]
    heads += [f"TPR@{lowest:g} {name}" for name in first.verification]
    heads += [f"FNIR@{point.target:g}" for point in first.open_set]
    rows = [heads]
    for ((_, photos), result), own in zip(results.items(), values["results"], strict=True):
        rates = [*result.rank_rates.values()]
        rates += [_tpr_at(found, lowest) for found in result.verification.values()]
        rates += [point.fnir for point in result.open_set]
        rows.append([f"{result.distractors:,}", photos, *(f"{100 * r:.2f} %" for r in rates)])
        ranges = own["intervals"]["figures"]
        rows.append(["", "95 % interval", *(show_range(ranges[head]) for head in heads[2:])])
    lines = [
        f"{format_warnings(values['warnings'])}MegaFace: {first.probes:,} probes of "
        f"{first.identities:,} people, {first.searches:,} searches",
        format_table(about, "<<", indent=2),
        "",
        format_table(rows, "><" + ">" * (len(heads) - 2)),
    ]
    for photos in (RAW, CLEANED):
        chosen = [result for (_, kind), result in results.items() if kind == photos]
        if chosen:
            largest = max(chosen, key=lambda result: result.distractors)
            lines += ["", f"Verification, {largest.distractors:,} distractors, {photos}"]
            lines += map(_verification_lines, largest.verification, largest.verification.values())
    return "\n".join([*lines, "", *(f"- {note}" for note in values["notes"])])


def _tpr_at(found: Verification, fpr: float) -> float:
    return next(point.tar for point in found.points if point.target == fpr)


def _verification_lines(kind: str, found: Verification) -> str:
    rows = []
    for point in found.points:
        reached = f"threshold {point.threshold:.7f}, FPR reached {point.far:.3g}"
        if not np.isfinite(point.threshold):
            reached = "no threshold accepts any pair at that FPR"
        rows.append(
            (f"FPR {point.target:g}", "TPR", f"{100 * point.tar:.3f} %", reached),
        )
    counts = f"{found.positives:,} positives, {found.negatives:,} negatives"
    return f"  {kind}: {counts}\n" + format_table(rows, "<<><", indent=4)


def _has_noise(result: MegaFaceResult) -> bool:
    return any(photos == CLEANED for _, photos in result.results)


def _notes(config: Config, result: MegaFaceResult) -> list[str]:
    first = next(iter(result.results.values()))
    tie = {
        "mate": "a distractor with the mate's very score does not beat it, as in the devkit",
        "against": "a distractor with the mate's very score beats it; the devkit says it does not",
    }
    notes = [
        f"Rank: distractors that score higher than the mate; ties: {tie[config.ties]}.",
        "The intervals are over the probes' people; thresholds are kept, and the distractors stay.",
        "TPR@x: share of same-person pairs that score higher than the first negative too many for "
        "FPR x; the threshold is the lowest of their scores. Nothing is interpolated.",
        "FNIR@x: share of searches that do not return the mate first and above the threshold, at "
        "which no more than x of the probes return a distractor while their mates are away.",
        "all: negatives are all probes with all distractors. devkit: those of the first "
        f"{first.devkit_probes} probes of the list only, as the devkit's tool counts them. "
        "Published TPRs are read off a curve that keeps a point only where TPR rose by more than "
        "0.01: differences below about one point mean nothing there.",
    ]
    exact = min(
        found.curve.exact_up_to
        for each in result.results.values()
        for found in each.verification.values()
    )
    if exact < 1:
        notes.append(
            f"ROC curves are exact up to FPR {exact:.1e} at least; beyond what is exact they are "
            f"counted in a histogram, and dotted in the picture. The TPRs above are always exact."
        )
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
    if _has_noise(result):
        notes.append(_noise_note(config, result))
    for source in (result.data.probes, result.data.distractors):
        if source.listed.note:
            notes.append(f"{source.name}: {source.listed.note}.")
    if result.left_out:
        notes.append(
            f"{len(result.left_out):,} distractors are missing or unreadable and left out; "
            f"{FILE_NAME}.json lists them: {first_few(result.left_out)}. Once they are mended, "
            f"delete the features of the distractors to have them embedded."
        )
    if result.flaws:
        notes.append(
            f"{len(result.flaws):,} photos were read in spite of a flaw; {FILE_NAME}.json lists "
            f"them: {first_few(result.flaws)}."
        )
    for label, why in result.trials.skipped.items():
        notes.append(f"{label} distractors, cleaned: not evaluated, {why}.")
    return notes


def _noise_note(config: Config, result: MegaFaceResult) -> str:
    data = result.data
    probes = 0 if data.noisy_probes is None else int(data.noisy_probes.sum())
    distractors = 0 if data.noisy_distractors is None else int(data.noisy_distractors.sum())
    how = {
        "drop": "left out",
        "insightface": "treated as insightface does: a probe is replaced by the centre of its "
        "person's clean ones, which lifts the figures; a distractor is moved far away, but counts",
    }
    return (
        f"cleaned: {probes} noisy probes and {distractors} noisy distractors {how[config.noise]}."
    )
