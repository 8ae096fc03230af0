"""Weights: reading a network from a file."""

from Utils.Pretrained_Utils.load import load_backbone

__all__ = ["load_backbone"]
