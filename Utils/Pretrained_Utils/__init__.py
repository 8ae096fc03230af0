"""Weights: reading a network from a file."""

from Utils.Pretrained_Utils.files import find_weights
from Utils.Pretrained_Utils.load import load_backbone

__all__ = ["find_weights", "load_backbone"]
