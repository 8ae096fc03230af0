"""Weights from files: this project's, and those of the code bases it descends from or knows.

Files, in the order to read them:

load.py       a file to a backbone: `load_backbone`
files.py      weights files on disk: found, read without running anything in them, written
stand_ins.py  what files name beside tensors, and TorchScript programs, without running them
foreign.py    the files of other code bases: which network they hold, and whose
contents.py   where in a file the network is
lineages/     the known code bases, and how a network of theirs is recognised
onnx_files.py, onnx_network.py
              networks in ONNX files: what a graph says of its input; a module that computes it
hub/          folders of the Hugging Face hub, read and written; `hf:USER/NAME`
heads.py      class weights that come with a network
convert.py    the command that writes weights for another program
export.py     the command that writes a network as ONNX or as PyTorch's exported program
"""

from Utils.Pretrained_Utils.files import find_weights
from Utils.Pretrained_Utils.load import load_backbone

__all__ = ["find_weights", "load_backbone"]
