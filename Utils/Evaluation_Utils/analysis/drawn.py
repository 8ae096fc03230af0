"""Figures in draws over subjects, kept in <benchmark>_scores.npz beside <benchmark>.json.

Of benchmarks that are no list of pairs this is what a comparison needs: the draws' weights belong
to the subjects, not to a network, so that two results in the same draws can be subtracted.

    about                a JSON text: what must be the same in two results, and the sections with
                         their figures
    <section>/<figure>   2×B float64, as `SubjectDraws.share`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from Utils.errors import DataError
from Utils.Evaluation_Utils.analysis.bootstrap import LEVEL, SubjectDraws, interval, share_draws
from Utils.Evaluation_Utils.analysis.intervals import compared_figure, comparison_table
from Utils.Evaluation_Utils.analysis.kept_scores import read_columns, scores_path
from Utils.files import atomic_path, read_json


@dataclass(frozen=True, eq=False)
class Drawn:
    """A table's figures (0..1) by name, and each in B draws over S subjects: 2×B, as
    `SubjectDraws.share`; None for a figure that was not measured, such as TAR at a FAR below one
    pair."""

    subjects: int
    figures: dict[str, float]
    draws: dict[str, np.ndarray | None]

    def intervals(self) -> dict[str, Any]:
        """JSON-ready: {"level", "over", "subjects", "draws", "figures": {name: [low, high]}}."""
        ranges = {
            name: None if drawn is None else list(interval(drawn[0], self.figures[name]))
            for name, drawn in self.draws.items()
        }
        return {**self.about(), "figures": ranges}

    def about(self) -> dict[str, Any]:
        """What the draws are."""
        count = max((d.shape[1] for d in self.draws.values() if d is not None), default=0)
        return {"level": LEVEL, "over": "subjects", "subjects": self.subjects, "draws": count}


@dataclass(frozen=True)
class Kept:
    """What a file holds. path: of the results. about: what must be the same in two results."""

    path: str
    checkpoint: str
    about: dict[str, str]
    sections: dict[str, Drawn]


def keep_drawn(results: Path, about: dict[str, str], sections: Mapping[str, Drawn]) -> str:
    """Write the file that belongs to the results file; returns what the results file has to hold as
    "scores", so that the two are known to belong together."""
    described = {
        name: {"subjects": drawn.subjects, "figures": drawn.figures}
        for name, drawn in sections.items()
    }
    text = json.dumps({"same": {**about, **_weights()}, "sections": described})
    columns = {
        f"{section}/{name}": values
        for section, drawn in sections.items()
        for name, values in drawn.draws.items()
        if values is not None
    }
    with atomic_path(scores_path(results)) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, about=np.array(text), **columns)
    return _digest(sections)


def load_drawn(results: str | Path, here: Path) -> Kept:
    """The file of a results file, to compare with the results `here`. Raises DataError, naming the
    file, if it can't be read."""
    values = read_json(results, "results file that compare names,")
    if not isinstance(values, dict):
        raise DataError(f"{results} is not the JSON file that an evaluation writes.")
    columns = read_columns(results)
    try:
        told = json.loads(str(columns.pop("about")))
        sections = {
            section: Drawn(
                each["subjects"],
                each["figures"],
                {name: columns.get(f"{section}/{name}") for name in each["figures"]},
            )
            for section, each in told["sections"].items()
        }
        about = dict(told["same"])
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        path = scores_path(results)
        raise DataError(
            f"{results} and {here} can't be compared: {path} holds no figures of such a benchmark. "
            f"Give a results file of the same one."
        ) from None
    if values.get("scores") != _digest(sections):
        raise DataError(
            f"{results} and {scores_path(results)} are not of one evaluation. Evaluate the "
            f"checkpoint again."
        )
    return Kept(str(results), str(values.get("checkpoint", values.get("judged"))), about, sections)


def open_compared(
    files: str, here: Path, about: dict[str, str], sections: Sequence[str] = ()
) -> list[Kept]:
    """The results that the setting `compare` names. here: the results file to be written, about:
    what must be the same, sections: those of which one must be in common, where they are known.
    Raises DataError, naming both files, for a result of something else."""
    found = [load_drawn(path, here) for path in filter(None, map(str.strip, files.split(",")))]
    for other in found:
        if other.about.keys() != {*about, *_weights()}:
            raise DataError(f"{other.path} and {here} are results of different benchmarks.")
        for name, value in {**about, **_weights()}.items():
            theirs = other.about[name]
            if theirs != value:
                told = (
                    f": {theirs} there, {value} here" if max(len(theirs), len(value)) < 64 else ""
                )
                raise DataError(
                    f"{other.path} and {here} can't be compared, as they differ in the "
                    f"{name}{told}. "
                    "Compare results of one set, made in one way and with one version of NumPy."
                )
        if sections and not set(sections) & other.sections.keys():
            raise _nothing_in_common(other, here, sections)
    return found


def compare_drawn(
    sections: Mapping[str, Drawn], here: Path, others: Sequence[Kept]
) -> tuple[list[dict[str, Any]], list[str]]:
    """(for the JSON file, a list of {"file", "checkpoint", "results": {section: {...}}}; tables).

    Raises DataError, naming both files, if they have no section in common."""
    values, tables = [], []
    for other in others:
        results = {}
        for section, drawn in sections.items():
            if section not in other.sections:
                continue
            theirs = other.sections[section]
            results[section] = {
                **drawn.about(),
                "figures": {
                    name: compared_figure(
                        figure,
                        theirs.figures[name],
                        None if drawn.draws[name] is None else drawn.draws[name][0],
                        None if theirs.draws[name] is None else theirs.draws[name][1],
                    )
                    for name, figure in drawn.figures.items()
                    if name in theirs.figures
                },
            }
        if not results:
            raise _nothing_in_common(other, here, sections)
        values.append({"file": other.path, "checkpoint": other.checkpoint, "results": results})
        entries = {section: found["figures"] for section, found in results.items()}
        tables.append(comparison_table(entries, "subjects", f"{other.path} ({other.checkpoint})"))
    return values, tables


def _digest(sections: Mapping[str, Drawn]) -> str:
    found = hashlib.sha256()
    for section, drawn in sections.items():
        for name in drawn.figures:
            values = drawn.draws[name]
            found.update(f"{section}/{name}".encode())
            found.update(b"" if values is None else np.ascontiguousarray(values))
    return found.hexdigest()


def _nothing_in_common(other: Kept, here: Path, sections: Iterable[str]) -> DataError:
    return DataError(
        f"{other.path} and {here} can't be compared: {'; '.join(other.sections)} there, "
        f"{'; '.join(sections)} here."
    )


def _weights() -> dict[str, str]:
    """What tells whether two results have the same draws: another NumPy may draw others."""
    sample = SubjectDraws(3, draws=2)
    drawn = sample.own, sample.drawn, sample.halves, share_draws(np.ones((3, 1)), np.ones(3))
    # Rounded, as the last digits differ between processors.
    text = b"".join(np.round(each, 4).tobytes() for each in drawn)
    return {"random weights": hashlib.sha256(text).hexdigest()[:16]}
