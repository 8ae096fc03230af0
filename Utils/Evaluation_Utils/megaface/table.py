"""MegaFace's table, and the notes that say what its figures mean."""

from typing import Any

import numpy as np

from Config import Config
from Utils.Evaluation_Utils.identification import IdentificationResult
from Utils.Evaluation_Utils.identification.figures import Verification
from Utils.Evaluation_Utils.megaface.noise import CLEANED, RAW
from Utils.Evaluation_Utils.megaface.run import MegaFaceResult


def table(head: dict[str, Any], results: dict[tuple[str, str], IdentificationResult]) -> str:
    """The figures for printing: one line for each set size, then the thresholds of the largest."""
    first = next(iter(results.values()))
    lines = [
        f"MegaFace: {first.probes:,} probes of {first.identities:,} people, "
        f"{first.searches:,} searches",
        f"  probes       {head['probes']}",
        f"  distractors  {head['distractors']}",
        f"  judged       {head['judged']}",
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
    return "\n".join([*lines, "", *(f"- {note}" for note in head["notes"])])


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


def about(config: Config, judged: MegaFaceResult, judged_name: str) -> dict[str, Any]:
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
    exact = min(
        found.curve.exact_up_to
        for result in judged.results.values()
        for found in result.verification.values()
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
    if _has_noise(judged):
        notes.append(_noise_note(config, judged))
    for label, why in judged.trials.skipped.items():
        notes.append(f"{label} distractors, cleaned: not judged, {why}.")
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
