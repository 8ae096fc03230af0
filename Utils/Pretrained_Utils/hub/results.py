"""Figures of one network from the JSON files that evaluation scripts write, for its model card."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from Config import Config
from Utils.errors import DataError
from Utils.files import reading
from Utils.tables import percent

_TARS = ("0.001", "0.0001", "1e-05", "1e-06")  # FARs of which IJB's rates are shown
_RANKS = ("1", "5", "10")
DEMO = "drawn faces of the demo"


@dataclass(frozen=True)
class Figure:
    """One number. benchmark: its name. metric: what it is. value: a share of 0..1. spread: further
    words, such as an interval; "" for none."""

    benchmark: str
    metric: str
    value: float
    spread: str = ""


@dataclass(frozen=True)
class Network:
    """What a file of results says of its network, to tell whether it is this one.

    digest: of `load.weights_digest`. line: of `load.describe`. checkpoint: its file, as given.
    """

    digest: str
    line: str
    checkpoint: str


def figures_of(
    places: Iterable[Path], network: Network, asked: bool
) -> tuple[list[Figure], list[str]]:
    """(figures of the results files at these places, a line for each file that was left out).

    places: files, or folders with some. asked: whether the user named them: then none at all, and a
    file that is of another network, is an error. Raises DataError.
    """
    figures, left_out = [], []
    for path in _files(places, asked):
        values = _read(path)
        if values is None:
            if asked and path in places:
                raise DataError(f"{path} is no file of results that an evaluation script writes.")
            continue
        if not _is_of(values, network):
            why = f"{path} has results of another network ({values.get('network')})"
            if asked:
                raise DataError(f"{why}, or of other weights of it; leave it out of --results.")
            left_out.append(why)
            continue
        try:
            found = list(_figures(_benchmark(values), values["results"]))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path} is no whole file of results ({error!r}).") from None
        figures += found
    if asked and not figures:
        raise DataError(f"there are no results at {', '.join(map(str, places))}.")
    return figures, left_out


def _files(places: Iterable[Path], asked: bool) -> list[Path]:
    found = []
    for place in places:
        with reading(place, "results file"):
            if asked and not place.exists():
                raise DataError(f"the results {place} do not exist; give JSON files or folders.")
            found += sorted(place.glob("*.json")) if place.is_dir() else [place] * place.is_file()
    return list(dict.fromkeys(found))


def _read(path: Path) -> dict[str, Any] | None:
    """The values in a file of results; None for any other file."""
    with reading(path, "results file"):
        content = path.read_bytes()
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return None
    known = isinstance(values, dict) and "benchmark" in values and "results" in values
    return values if known else None


def _is_of(values: dict[str, Any], network: Network) -> bool:
    """Older files have no digest of the weights: there the file and the line must be the same."""
    if "weights" in values:
        return values["weights"] == network.digest
    line, file = values.get("network"), values.get("checkpoint", values.get("judged"))
    same_file = file is not None and Path(str(file)).resolve() == Path(network.checkpoint).resolve()
    return same_file and line in (None, network.line)


def _benchmark(values: dict[str, Any]) -> str:
    """The name of a benchmark with its number of pairs; the demo's sets are not what they are
    modelled on, and say so."""
    name, pairs = str(values["benchmark"]), values.get("pairs")
    if isinstance(pairs, int):
        name = f"{name}, {pairs:,} pairs"
    demo = Path(Config().demo_dataset_path).parts
    data = Path(str(values.get("data", values.get("probes", "")))).parts
    drawn = any(data[at : at + len(demo)] == demo for at in range(len(data)))
    return f"{DEMO}, as {name}" if drawn else name


def _figures(benchmark: str, results: Any) -> Iterator[Figure]:
    """The figures of a benchmark, by the form of its results."""
    if isinstance(results, dict) and "mAP" in results:  # TinyFace
        yield Figure(benchmark, "mAP", float(results["mAP"]))
        for rank in _RANKS:
            if rank in results["rank_rates"]:
                yield Figure(benchmark, f"rank-{rank}", float(results["rank_rates"][rank]))
    elif isinstance(results, dict):  # pairs, under each protocol
        for protocol, found in results.items():
            yield from _pair_figures(benchmark, protocol, found)
    elif results and "distractor_set" in results[0]:
        for found in results:
            name = f"{benchmark}, {found['distractors']:,} distractors, {found['photos']}"
            yield Figure(name, "rank-1", float(found["rank1"]))
    else:  # IJB, under each convention
        for found in results:
            names = found["convention"]["names"]
            name = f"{benchmark}, {names[0]}" if names else benchmark
            rates = found["verification"]["exact"]
            for far in _TARS:
                if far in rates:
                    yield Figure(name, f"TAR@FAR={far}", float(rates[far]["tar"]))


def _pair_figures(benchmark: str, protocol: str, found: dict[str, Any]) -> Iterator[Figure]:
    if found.get("accuracy") is not None:
        spread = f"± {100 * found['std']:.2f}"
        if ends := found.get("intervals", {}).get("accuracy"):
            spread += f", 95 % interval {100 * ends[0]:.2f} to {100 * ends[1]:.2f}"
        yield Figure(benchmark, f"accuracy ({protocol})", float(found["accuracy"]), spread)
    for far, rate in found.get("tar_at_far", {}).items():
        if rate is not None:
            yield Figure(benchmark, f"TAR@FAR={far} ({protocol})", float(rate))
    for name in ("auc", "eer"):
        if found.get(name) is not None:
            yield Figure(benchmark, f"{name.upper()} ({protocol})", float(found[name]))


def results_table(figures: Sequence[Figure]) -> str:
    """The figures as a table in Markdown."""
    lines = ["| benchmark | figure | value |", "|---|---|---|"]
    for figure in figures:
        value = f"{percent(figure.value)} {figure.spread}".strip()
        cells = (figure.benchmark, figure.metric, value)
        lines.append(f"| {' | '.join(cell.replace('|', ' ') for cell in cells)} |")
    return "\n".join(lines)
