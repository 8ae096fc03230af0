"""YuNet, a detector of 75,000 parameters, through OpenCV's FaceDetectorYN.

Wu, Peng, Yu: "YuNet: A Tiny Millisecond-level Face Detector" (2023). The weights are in one ONNX
file, which Pretrained/README.md names. It was trained with faces of 10 to 300 pixels, so that
photographs are shrunk for it.
"""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
from torch.utils.data import get_worker_info

from Utils.Datasets_Utils.alignment.faces import Faces, no_faces
from Utils.errors import DataError

FOLDER = Path("Pretrained")
FILES = ("face_detection_yunet_2023mar.onnx", "yunet_n_640_640.onnx")
_LEAST_SCORE = 0.6  # of a face, as in OpenCV's example
_OVERLAP, _MOST = 0.3, 5000  # OpenCV's: of two boxes of one face; faces before they are compared
# Pixels of the longer side: first for small faces, then for those that fill the picture. From
# _LARGE pixels in the first on, the second's points are better; both are asked around that size.
_SIDES = (960, 320)
_LARGE, _AROUND = 300, 1.25
# Reads the file and looks at a picture. OpenCV does not check that a tensor has the values that its
# sizes say; a damaged file ends the process that reads it.
_TRY = (
    "import sys; import cv2; import numpy as np; "
    "cv2.FaceDetectorYN.create(sys.argv[1], '', (32, 32)).detect(np.zeros((32, 32, 3), np.uint8))"
)
_PATIENCE = 60  # seconds for that


class YuNet:
    """The detector. Raises DataError if OpenCV can't read the file."""

    def __init__(self, file: Path) -> None:
        self.files = [file]
        try:
            self.network = cv2.FaceDetectorYN.create(
                str(file), "", (320, 320), _LEAST_SCORE, _OVERLAP, _MOST
            )
            self.detect(np.zeros((32, 32, 3), np.uint8))
        except cv2.error as error:
            raise DataError(
                f"{file} can't be read as YuNet's ONNX file: {error.err or error}. "
                f"Pretrained/README.md says which file is expected."
            ) from None

    def detect(self, image: np.ndarray) -> Faces:
        """As in `Detector`."""
        first, second = (min(1.0, side / max(image.shape[:2])) for side in _SIDES)
        small = self._detect(image, first)
        if first == second:
            return small
        large = self._detect(image, second)
        found = _join(
            _rows(small, _heights(small) * first < _LARGE * _AROUND),
            _rows(large, _heights(large) * first > _LARGE / _AROUND),
        )
        corner_and_size = found.boxes.copy()
        corner_and_size[:, 2:] -= found.boxes[:, :2]
        kept = cv2.dnn.NMSBoxes(corner_and_size.tolist(), found.scores.tolist(), 0.0, _OVERLAP)
        return _rows(found, np.array(kept, int).reshape(-1))

    def _detect(self, image: np.ndarray, scale: float) -> Faces:
        height, width = image.shape[:2]
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        if size != (width, height):
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        self.network.setInputSize(size)
        _, rows = self.network.detect(np.ascontiguousarray(image[..., ::-1]))
        if rows is None:
            return no_faces()
        rows = rows.astype(np.float64)
        scales = np.array((width / size[0], height / size[1]))
        points = rows[:, 4:14].reshape(-1, 5, 2) * scales
        corners = np.concatenate((rows[:, :2], rows[:, :2] + rows[:, 2:4]), axis=1)
        return Faces(corners * np.tile(scales, 2), points, rows[:, 14])


def _heights(faces: Faces) -> np.ndarray:
    return faces.boxes[:, 3] - faces.boxes[:, 1]


def _rows(faces: Faces, rows: np.ndarray) -> Faces:
    return Faces(faces.boxes[rows], faces.points[rows], faces.scores[rows])


def _join(*parts: Faces) -> Faces:
    return Faces(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.points for part in parts]),
        np.concatenate([part.scores for part in parts]),
    )


def open_yunet(file: Path | None = None) -> YuNet:
    """YuNet with the weights in a file, or in the first of FILES in Pretrained/.

    Raises DataError if there is none, or it can't be read. Outside of a loader's workers, another
    process tries the file first.
    """
    if file is None:
        file = next((FOLDER / name for name in FILES if (FOLDER / name).is_file()), None)
    if file is None or not file.is_file():
        raise DataError(
            f"there is no file of YuNet: {file or FOLDER / FILES[0]} does not exist. "
            f"Pretrained/README.md says where it is published; put it there, or name it with "
            f"--detector_file."
        )
    if get_worker_info() is None and not _can_be_read(file):
        raise DataError(
            f"{file} can't be read as YuNet's ONNX file: OpenCV crashes, or does not finish. "
            f"Pretrained/README.md says which file is expected."
        )
    return YuNet(file)


def _can_be_read(file: Path) -> bool:
    """Whether a process that reads the file ends by itself, with or without an error."""
    words = [sys.executable, "-c", _TRY, str(file.absolute())]
    try:
        return subprocess.run(words, capture_output=True, timeout=_PATIENCE).returncode >= 0
    except subprocess.TimeoutExpired:
        return False
