"""The table of detectors.

A detector is a file of this package with a class that has `detect`, see `faces.Detector`, and a row
here. None of their weights is part of this project, and none is ever downloaded: the user names the
file, or puts it into Pretrained/, whose README.md says where it is published.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from Utils.Datasets_Utils.alignment.faces import Detector
from Utils.Datasets_Utils.alignment.mtcnn import open_mtcnn
from Utils.Datasets_Utils.alignment.yunet import open_yunet


@dataclass(frozen=True)
class DetectorKind:
    """One row. open: opens the detector with a file of weights, or with those it finds if it is
    None; raises DataError, which says what to do, without them, and for a file it can't read.
    doubtful: a face of a lower score is one to look at."""

    open: Callable[[Path | None], Detector]
    doubtful: float


DETECTORS = {
    "yunet": DetectorKind(open_yunet, doubtful=0.8),
    "mtcnn": DetectorKind(open_mtcnn, doubtful=0.95),
}
