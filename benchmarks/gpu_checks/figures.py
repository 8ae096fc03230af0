"""Evaluation on the device against the CPU: accuracies, embeddings, and MegaFace digit by digit."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from Backbone import build_backbone
from benchmarks.gpu_checks.check import Check, Place, Row, Rows, attempt, row
from benchmarks.gpu_checks.runs import trained_weights
from Utils.Evaluation_Utils.all_pairs.figures import evaluate as evaluate_all_pairs
from Utils.Evaluation_Utils.embedding import EVAL_DTYPES, embed
from Utils.Evaluation_Utils.identification.evaluation import IdentificationResult, evaluate
from Utils.Evaluation_Utils.identification.scoring import ScoringSettings
from Utils.Evaluation_Utils.inputs import BENCHMARKS, Benchmark, open_benchmark
from Utils.Evaluation_Utils.report import evaluate_pairs
from Utils.Pretrained_Utils import load_backbone

CPU = torch.device("cpu")
_POINTS = {"fp32": 0.0035, "bf16": 0.01, "fp16": 0.01}  # of accuracy, 0..1, that may differ


def verification(place: Place) -> Rows:
    """The three test sets with the network of `train_fp32`, or with a fresh one without it."""
    weights = trained_weights(place)
    torch.set_num_threads(max(torch.get_num_threads(), (os.cpu_count() or 1) // 2))
    torch.manual_seed(0)
    if weights:
        backbone = load_backbone(weights)
    else:
        side = place.size(112, 32)
        backbone = build_backbone("MobileFaceNet", 128, (side, side)).eval()
    about = "network of train_fp32" if weights else "fresh network, as train_fp32 has left none"
    for benchmark in BENCHMARKS:
        yield from _set(place, benchmark, backbone, about)


def _set(place: Place, benchmark: Benchmark, backbone: torch.nn.Module, about: str) -> Rows:
    data, _ = open_benchmark(place.config(with_data=True), benchmark)

    def embedded(device: torch.device, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        network = backbone.to(device, memory_format=torch.channels_last)
        return embed(network, data.images, device, 64, 2, dtype=EVAL_DTYPES[dtype])

    reference = embedded(CPU, "fp32")
    accuracy = evaluate_pairs(data, reference, ["cosine"])["cosine"].accuracy
    for dtype, most in _POINTS.items():
        name = f"{benchmark.title} {dtype}, {place.device.type} against the CPU"

        def compared(dtype: str = dtype, most: float = most, name: str = name) -> Row:
            # As training leaves them: evaluation must be exact by itself.
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
            found = embedded(place.device, dtype)
            apart = abs(evaluate_pairs(data, found, ["cosine"])["cosine"].accuracy - accuracy)
            cosine = 1 - min(map(_lowest_cosine, found, reference))
            # Few pairs, or a network that separates nobody: a rounding is many points.
            near = place.quick or trained_weights(place) is None or apart <= most
            right = near and cosine < (1e-5 if dtype == "fp32" else 0.05)
            text = f"{100 * apart:.2f} points of {accuracy:.1%}, 1 - cosine {cosine:.1e}"
            return row(name, right, text, about)

        yield attempt(name, compared)


def _lowest_cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def megaface(place: Place) -> Rows:
    """All figures of identification and of every pair of images, equal to the last digit whatever
    computes the products."""
    rng = np.random.default_rng(0)
    probes_count, people = place.size(1000, 60), place.size(100, 12)
    count, dim = place.size(200_000, 3000), place.size(512, 64)
    centres = rng.standard_normal((people, dim), np.float32)
    ids = np.arange(probes_count) % people
    probes = centres[ids] + 0.9 * rng.standard_normal((probes_count, dim), np.float32)
    distractors = rng.standard_normal((count, dim), np.float32)
    near = np.arange(0, count, 50)
    distractors[near] += 0.6 * centres[rng.integers(0, people, len(near))]
    distractors[5] = distractors[6]  # a tie

    def figures(settings: ScoringSettings) -> dict[str, object]:
        fprs = (1e-3, 1e-4, 1e-6)
        return _figures(evaluate(probes, ids, distractors, fprs=fprs, settings=settings))

    reference = figures(ScoringSettings())
    on_device = ScoringSettings(device=place.device)
    size = f"{probes_count:,} × {count:,} × {dim}"
    for dtype in EVAL_DTYPES:
        name = f"MegaFace {dtype} scores, {place.device.type} against the CPU"

        def compared(dtype: str = dtype, name: str = name) -> Row:
            torch.backends.cuda.matmul.allow_tf32 = True  # switched off inside, and restored
            found = figures(replace(on_device, score_dtype=dtype))
            others = [figure for figure, value in found.items() if value != reference[figure]]
            restored = torch.backends.cuda.matmul.allow_tf32
            text = f"differ: {', '.join(others)}" if others else "all figures equal"
            note = size if restored else "allow_tf32 was not restored"
            return row(name, not others and restored, text, note)

        yield attempt(name, compared)
    strangers = distractors[: place.size(20_000, 500)]
    name = f"every pair of images, {place.device.type} against the CPU"
    images = np.concatenate([probes, strangers])
    people = np.concatenate([ids, people + np.arange(len(strangers))])
    yield attempt(name, partial(_every_pair, place, name, images, people))


def _every_pair(place: Place, name: str, features: np.ndarray, ids: np.ndarray) -> Row:
    results = (evaluate_all_pairs(features, ids, device=device) for device in (place.device, CPU))
    found, expected = ((r.every, r.found_first.tolist(), r.hits.tolist()) for r in results)
    text = "all figures equal" if found == expected else "figures differ"
    return row(name, found == expected, text, f"{len(ids):,} images")


def _figures(result: IdentificationResult) -> dict[str, object]:
    points = {
        kind: (found.points, found.positives, found.negatives)
        for kind, found in result.verification.items()
    }
    return {
        "rank rates": result.rank_rates,
        "beats": result.beats.tolist(),
        "TPR": points,
        "open set": result.open_set,
        "confusions": result.confusions,
    }


CHECKS = (
    Check("verification", 100, verification, after=("faces", "train_fp32")),
    Check("megaface", 100, megaface),
)
