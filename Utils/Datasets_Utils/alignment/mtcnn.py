"""MTCNN: three small networks, each of which looks more closely at what the one before proposes.

Zhang, Zhang, Li, Qiao: "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional
Networks" (2016). The weights are those of the package facenet-pytorch, and the arithmetic is the
one that they are used with there.
"""

from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from Utils.Datasets_Utils.alignment.faces import Faces, no_faces
from Utils.errors import DataError
from Utils.files import read_tensors

FOLDER = Path("Pretrained")
FILES = ("pnet.pt", "rnet.pt", "onet.pt")
_PACKAGE = "facenet_pytorch"
_LONGER_SIDE = 1280  # pixels; larger photographs are shrunk, as the time grows with the area
_SMALLEST = 20  # pixels: the least side of a face in the shrunken photograph
_CELL, _STRIDE = 12, 2  # pixels: the square that the first network looks at, and the next one
_FACTOR = 0.709  # from one size of the photograph to the next: half the area
_LEAST_PROBABILITIES = (0.6, 0.7, 0.7)  # of a face, for each network
_BATCH = 512


class Network(nn.Module):
    """Layers in their order. Each of those with "_" in its name gives an output."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Of RGB N×3×H×W, 0 to 255: the probability of a face N, how far each side of its box is
        moved N×4, and from the last network the points N×10; of the first network N×h×w and
        N×4×h×w."""
        features, outputs = (pixels - 127.5) / 128, []
        for name, layer in self.named_children():
            if "_" in name:
                outputs.append(layer(features))
            else:
                features = layer(features)
        return [outputs[0].softmax(dim=1)[:, 1], *outputs[1:]]


class Flatten(nn.Module):
    """N×C×H×W to N×WHC, the order of the MATLAB program that the weights come from."""

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        return features.permute(0, 3, 2, 1).flatten(1)


def _pool(side: int) -> nn.Module:
    return nn.MaxPool2d(side, stride=2, ceil_mode=True)


def proposal_network() -> Network:
    """P-Net: a map of the 12×12 squares of a picture of any size."""
    return Network(
        conv1=nn.Conv2d(3, 10, 3),
        prelu1=nn.PReLU(10),
        pool1=_pool(2),
        conv2=nn.Conv2d(10, 16, 3),
        prelu2=nn.PReLU(16),
        conv3=nn.Conv2d(16, 32, 3),
        prelu3=nn.PReLU(32),
        conv4_1=nn.Conv2d(32, 2, 1),
        conv4_2=nn.Conv2d(32, 4, 1),
    )


def refinement_network() -> Network:
    """R-Net: pictures of 24×24."""
    return Network(
        conv1=nn.Conv2d(3, 28, 3),
        prelu1=nn.PReLU(28),
        pool1=_pool(3),
        conv2=nn.Conv2d(28, 48, 3),
        prelu2=nn.PReLU(48),
        pool2=_pool(3),
        conv3=nn.Conv2d(48, 64, 2),
        prelu3=nn.PReLU(64),
        flatten=Flatten(),
        dense4=nn.Linear(576, 128),
        prelu4=nn.PReLU(128),
        dense5_1=nn.Linear(128, 2),
        dense5_2=nn.Linear(128, 4),
    )


def output_network() -> Network:
    """O-Net: pictures of 48×48; gives the five points too."""
    return Network(
        conv1=nn.Conv2d(3, 32, 3),
        prelu1=nn.PReLU(32),
        pool1=_pool(3),
        conv2=nn.Conv2d(32, 64, 3),
        prelu2=nn.PReLU(64),
        pool2=_pool(3),
        conv3=nn.Conv2d(64, 64, 3),
        prelu3=nn.PReLU(64),
        pool3=_pool(2),
        conv4=nn.Conv2d(64, 128, 2),
        prelu4=nn.PReLU(128),
        flatten=Flatten(),
        dense5=nn.Linear(1152, 256),
        prelu5=nn.PReLU(256),
        dense6_1=nn.Linear(256, 2),
        dense6_2=nn.Linear(256, 4),
        dense6_3=nn.Linear(256, 10),
    )


class MTCNN:
    """The detector. folder: has FILES.

    Raises CheckpointError for a file that is missing or can't be read, DataError for other weights.
    """

    def __init__(self, folder: Path) -> None:
        made = (proposal_network(), refinement_network(), output_network())
        self.files = [folder / name for name in FILES]
        self.networks = [_filled(net, file) for net, file in zip(made, self.files, strict=True)]

    @torch.inference_mode()
    def detect(self, image: np.ndarray) -> Faces:
        """As in `Detector`."""
        height, width = image.shape[:2]
        scale = min(1.0, _LONGER_SIDE / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        if size != (width, height):
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
        boxes = self._proposed(pixels)
        boxes = self._refined(pixels, boxes)
        faces = self._faces(pixels, boxes)
        scales = np.array((width, height)) / size
        corners = (faces.boxes.reshape(-1, 2, 2) + 0.5) * scales - 0.5
        points = (faces.points + 0.5) * scales - 0.5
        return Faces(corners.reshape(-1, 4), points, faces.scores)

    # Inside, boxes are float32 N×4 (left, top, right, bottom), and pixels are counted from 1.

    def _proposed(self, pixels: Tensor) -> Tensor:
        """Squares in which there may be faces, of all sizes."""
        height, width = pixels.shape[2:]
        boxes, moves, scores = [torch.empty(0, 4)], [torch.empty(0, 4)], [torch.empty(0)]
        scale = _CELL / _SMALLEST
        while min(height, width) * scale >= _CELL:
            smaller = _resized(pixels, (int(height * scale + 1), int(width * scale + 1)))
            face, move = self.networks[0](smaller)
            row, column = (face[0] >= _LEAST_PROBABILITIES[0]).nonzero(as_tuple=True)
            corner = _STRIDE * torch.stack((column, row), dim=1)
            box = (torch.cat((corner + 1, corner + _CELL), dim=1) / scale).floor()
            score = face[0, row, column]
            kept = _without_overlap(box, score, 0.5)
            boxes.append(box[kept])
            scores.append(score[kept])
            moves.append(move[0, :, row, column].T[kept])
            scale *= _FACTOR
        box, move, score = torch.cat(boxes), torch.cat(moves), torch.cat(scores)
        kept = _without_overlap(box, score, 0.7)
        # Unlike the later networks, the first was trained with sides that lack the last pixel.
        return _square(_moved(box[kept], move[kept], last=0))

    def _refined(self, pixels: Tensor, boxes: Tensor) -> Tensor:
        boxes, (score, move) = self._seen(1, pixels, boxes, side=24)
        kept = _without_overlap(boxes, score, 0.7)
        return _square(_moved(boxes[kept], move[kept]))

    def _faces(self, pixels: Tensor, boxes: Tensor) -> Faces:
        boxes, (score, move, places) = self._seen(2, pixels, boxes, side=48)
        if not len(boxes):
            return no_faces()
        sides = boxes[:, 2:] - boxes[:, :2] + 1
        points = boxes[:, None, :2] + sides[:, None] * places.view(-1, 2, 5).transpose(1, 2)
        boxes = _moved(boxes, move)
        kept = _without_overlap(boxes, score, 0.7, of_the_smaller=True)
        found = (boxes[kept] - 1, points[kept] - 1, score[kept])  # counted from 0
        return Faces(*(value.double().numpy() for value in found))

    def _seen(
        self, which: int, pixels: Tensor, boxes: Tensor, side: int
    ) -> tuple[Tensor, list[Tensor]]:
        """The boxes in which a network sees a face, and its outputs for them."""
        height, width = pixels.shape[2:]
        corner = boxes[:, :2].long().clamp(min=1) - 1
        end = torch.minimum(boxes[:, 2:].long(), torch.tensor((width, height)))
        inside = (end > corner).all(dim=1)
        edges = torch.cat((corner, end), dim=1)[inside].tolist()
        crops = [_resized(pixels[:, :, y:y2, x:x2], (side, side)) for x, y, x2, y2 in edges]
        crops = torch.cat([pixels.new_empty(0, 3, side, side), *crops])
        results = [self.networks[which](part) for part in crops.split(_BATCH)]
        outputs = [torch.cat(parts) for parts in zip(*results, strict=True)]
        kept = outputs[0] > _LEAST_PROBABILITIES[which]
        return boxes[inside][kept], [output[kept] for output in outputs]


def _resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(pixels, size, mode="area")


def _moved(boxes: Tensor, moves: Tensor, last: int = 1) -> Tensor:
    """Boxes whose sides are moved by shares of the width and the height."""
    sides = boxes[:, 2:] - boxes[:, :2] + last
    return boxes + moves * sides.repeat(1, 2)


def _square(boxes: Tensor) -> Tensor:
    """The squares around the same centres that have the boxes' longer sides."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longer = sides.amax(dim=1, keepdim=True)
    corner = boxes[:, :2] + sides * 0.5 - longer * 0.5
    return torch.cat((corner, corner + longer), dim=1)


def _without_overlap(
    boxes: Tensor, scores: Tensor, most: float, of_the_smaller: bool = False
) -> Tensor:
    """The rows of boxes of which no box with a higher score covers more than a share.

    most: the share; of what both cover together, or of_the_smaller of the two.
    """
    corners = boxes.double().numpy()
    last = int(of_the_smaller)  # the package counts the last pixel in this case alone
    areas = (corners[:, 2:] - corners[:, :2] + last).prod(axis=1)
    order, kept = np.argsort(-scores.numpy(), kind="stable"), []
    while len(order):
        first, order = order[0], order[1:]
        kept.append(first)
        upper = np.maximum(corners[first, :2], corners[order, :2])
        lower = np.minimum(corners[first, 2:], corners[order, 2:])
        common = (lower - upper + last).clip(0).prod(axis=1)
        smaller = np.minimum(areas[first], areas[order])
        whole = smaller if of_the_smaller else areas[first] + areas[order] - common
        order = order[common <= most * whole]
    return torch.from_numpy(np.array(kept, dtype=np.int64))


def _filled(network: Network, file: Path) -> Network:
    state = read_tensors(file)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file} does not hold this network of MTCNN: {error}. The files {', '.join(FILES)} of "
            f"the package facenet-pytorch do."
        ) from None
    return network.eval()


def open_mtcnn(file: Path | None = None) -> MTCNN:
    """MTCNN with the weights in a folder (or beside a file), in Pretrained/, or in the package
    facenet-pytorch where it is installed; the package is not imported.

    Raises DataError if there are none, CheckpointError if they can't be read.
    """
    if file is None:
        package = find_spec(_PACKAGE)
        installed = package.submodule_search_locations if package else ()
        places = [FOLDER, *(Path(place, "data") for place in installed)]
        file = next((place for place in places if (place / FILES[0]).is_file()), None)
    if file is None or not file.exists():
        raise DataError(
            f"there are no weights of MTCNN{f': {file} does not exist' if file else ''}. Install "
            f"the package that has them (python -m pip install --no-deps facenet-pytorch), or put "
            f"its files {', '.join(FILES)} into {FOLDER}/, or name their folder with "
            f"--detector_file."
        )
    return MTCNN(file if file.is_dir() else file.parent)
