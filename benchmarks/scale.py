"""The sizes of the jobs."""

from __future__ import annotations

from dataclasses import dataclass, field

LFW_PAIRS, LFW_PHOTOS = 6000, 7701


@dataclass(frozen=True)
class Scale:
    """The sizes of the jobs: image files to read, seconds of a measurement, and counts."""

    files: list[str]
    seconds: float = 3.0
    classes: int = 85_742
    batch: int = 256
    pairs: dict[str, int] = field(default_factory=lambda: {"MobileFaceNet": 480, "ResNet50_IR": 62})
    distractors: int = 1_000_000
    listed: int = 4_000_000
    evaluated: int = LFW_PAIRS
