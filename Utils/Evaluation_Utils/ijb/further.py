"""What IJB's figures get beside them: intervals over subjects, thresholds of another set, and error
versus discard.

The subject of a template is that of the galleries and probes; templates of a genuine pair have one
subject too, and any other template is a subject of its own. A genuine pair and a search have their
subject's weight, an impostor pair the mean of its two (see analysis/bootstrap.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from Utils.Evaluation_Utils.analysis.bootstrap import SubjectDraws
from Utils.Evaluation_Utils.analysis.drawn import Drawn
from Utils.Evaluation_Utils.analysis.many_pairs import DRAWS, open_set_draws, tar_draws
from Utils.Evaluation_Utils.analysis.quality import DETECTOR, NORM, curves_at, read_quality
from Utils.Evaluation_Utils.analysis.thresholds import Thresholds, rates_at, read_thresholds
from Utils.Evaluation_Utils.ijb.identification import FPIRS, RANKS, IdentificationFigures
from Utils.Evaluation_Utils.ijb.lists import Lists
from Utils.Evaluation_Utils.ijb.templates import Convention, pool_images
from Utils.Evaluation_Utils.ijb.verification import FARS, VerificationFigures


@dataclass(frozen=True, eq=False)
class Asked:
    """What the settings ask for. thresholds: of another set. quality: what it is by, and of each
    template (None: the lengths of their features)."""

    thresholds: Thresholds | None = None
    quality: tuple[str, np.ndarray | None] | None = None


def read_asked(lists: Lists, threshold_from: str, quality: str) -> Asked:
    """Read the files that are named, before the work. Raises DataError if one can't be used."""
    thresholds = read_thresholds(threshold_from, ["cosine"]) if threshold_from else None
    if quality in ("", NORM):
        return Asked(thresholds, (NORM, None) if quality else None)
    images = lists.detector if quality == DETECTOR else read_quality(quality, lists.names)
    of_templates = np.bincount(lists.template, images) / np.bincount(lists.template)
    return Asked(thresholds, (quality, of_templates))


@dataclass(frozen=True, eq=False)
class Further:
    """Of one convention. at_thresholds: as of `rates_at`; quality: as of `curves_at`; None where
    not asked for."""

    drawn: Drawn
    at_thresholds: list[dict[str, Any]] | None
    quality: dict[str, Any] | None


class FurtherFigures:
    """Makes them for each convention, in the same draws."""

    def __init__(self, lists: Lists, asked: Asked) -> None:
        self._lists, self._asked = lists, asked
        self._subject = subjects_of(lists)
        self._draws = SubjectDraws(int(self._subject.max()) + 1, DRAWS)

    def of(
        self,
        features: np.ndarray,
        convention: Convention,
        scores: np.ndarray,
        verification: VerificationFigures,
        identification: IdentificationFigures | None,
    ) -> Further:
        """features: N×2D, as for `make_templates`; scores: P, of the pairs."""
        lists, thresholds = self._lists, self._asked.thresholds
        at_thresholds = quality = None
        if thresholds:
            at_thresholds = rates_at(scores, lists.same, thresholds.points["cosine"])
        if self._asked.quality:
            of_templates = self._asked.quality[1]
            if of_templates is None:
                of_templates = np.linalg.norm(pool_images(features, lists, convention), axis=1)
            pairs = np.minimum(of_templates[lists.first], of_templates[lists.second])
            quality = curves_at(scores, lists.same, pairs)
        drawn = self._drawn(scores, verification, identification)
        return Further(drawn, at_thresholds, quality)

    def _drawn(
        self,
        scores: np.ndarray,
        verification: VerificationFigures,
        identification: IdentificationFigures | None,
    ) -> Drawn:
        lists, subject = self._lists, self._subject.astype(np.int32)
        sides = subject[lists.first], subject[lists.second]
        tars = tar_draws(self._draws, scores, lists.same, *sides, FARS)
        impostors = int(np.sum(~lists.same))
        figures = {f"TAR@FAR={point.target:g}": point.tar for point in verification.exact}
        draws = {
            name: tar if impostors * far >= 1 else None
            for name, tar, far in zip(figures, tars, FARS, strict=True)
        }
        if identification:
            found, whose = identification.searches, self._subject[lists.probes.templates]
            mated = found.gallery >= 0
            counts = np.bincount(whose[mated], minlength=self._draws.own.shape[1])
            for rank, rate in zip(RANKS, identification.ranks, strict=True):
                hits = found.rank[mated] <= rank
                sums = np.bincount(whose[mated], hits, len(counts))
                figures[f"rank-{rank}"] = rate
                draws[f"rank-{rank}"] = self._draws.mean(sums, counts) if mated.any() else None
            rates = zip(FPIRS, identification.exact, self._open_set(identification), strict=False)
            for fpir, rate, drawn in rates:
                figures[f"TPIR@FPIR={fpir:g}"] = rate
                least = min(gallery.unmated for gallery in identification.galleries)
                draws[f"TPIR@FPIR={fpir:g}"] = drawn if least * fpir >= 1 else None
        return Drawn(self._draws.own.shape[1], figures, draws)

    def _open_set(self, identification: IdentificationFigures) -> np.ndarray:
        """F×2×B: the mean TPIR of the galleries; empty without searches of both kinds."""
        if not identification.exact:
            return np.empty(0)
        found, whose = identification.searches, self._subject[self._lists.probes.templates]
        each = []
        for number in range(len(identification.galleries)):
            mated, best = found.gallery == number, found.best[:, number]
            first = np.where(found.mate > best, found.mate, -np.inf)[mated]
            alone = best[~mated], whose[~mated]
            each.append(open_set_draws(self._draws, first, whose[mated], *alone, FPIRS))
        return np.mean(each, axis=0)


def subjects_of(lists: Lists) -> np.ndarray:
    """int64 T: the subject of each template, from 0."""
    ends = [(lists.first[lists.same], lists.second[lists.same])]
    searched = [*lists.galleries, *([lists.probes] if lists.probes else [])]
    if searched:
        templates = np.concatenate([each.templates for each in searched])
        people = np.concatenate([each.subjects for each in searched])
        _, first, person = np.unique(people, return_index=True, return_inverse=True)
        ends.append((templates, templates[first[person]]))
    left, right = (np.concatenate(side) for side in zip(*ends, strict=True))
    # Templates that are joined take the lowest number among them, until nothing changes.
    subject = np.arange(len(lists.template_ids))
    while True:
        before = subject.copy()
        lowest = np.minimum(subject[left], subject[right])
        np.minimum.at(subject, left, lowest)
        np.minimum.at(subject, right, lowest)
        subject = subject[subject]
        if np.array_equal(subject, before):
            return np.unique(subject, return_inverse=True)[1]


def lists_digest(lists: Lists) -> str:
    """SHA-256 of what is compared with what."""
    found = hashlib.sha256("\n".join(lists.names).encode("utf-8", "surrogateescape"))
    searched = [*lists.galleries, *([lists.probes] if lists.probes else [])]
    arrays = [
        lists.template_ids,
        lists.template,
        lists.media,
        lists.first,
        lists.second,
        lists.same,
    ]
    for array in [*arrays, *(part for g in searched for part in (g.templates, g.subjects))]:
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()
