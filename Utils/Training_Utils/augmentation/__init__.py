"""Random changes of the training images, computed on the device.

changes.py   the changes, and how a batch's are drawn
resizing.py  crops and low resolution: many images resized at once
jpeg.py      what JPEG does to an image
"""

from Utils.Training_Utils.augmentation.changes import (
    Augmentation,
    build_augmentation,
    generator_of,
)

__all__ = ["Augmentation", "build_augmentation", "generator_of"]
