"""Compiling a network with torch.compile, and saying early where that can't be done."""

import importlib.util
import os
import shutil

import torch
from torch import nn

from Utils.errors import RunError

_CPP_COMPILERS = ("g++", "clang++")


def compiled(network: nn.Module, device: torch.device) -> nn.Module:
    """The network as one that is compiled when it is first called; it shares its weights.

    Raises RunError where the machine lacks what compiled code is made with.
    """
    if device.type == "cpu":
        named = os.environ.get("CXX")
        names = (named,) if named else _CPP_COMPILERS
        if not any(map(shutil.which, names)):
            raise RunError(
                f"compile is on, but there is no C++ compiler ({' or '.join(names)}); install one, "
                f"or leave --compile out."
            )
    elif importlib.util.find_spec("triton") is None:
        raise RunError(
            "compile is on, but the package triton, which PyTorch's builds for CUDA on Linux come "
            "with, is not installed; install it, or leave --compile out."
        )
    # All batches of a run have one size: code for any size would be slower.
    return torch.compile(network, dynamic=False)
