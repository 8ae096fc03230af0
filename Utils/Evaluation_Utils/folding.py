"""A copy of a network for judging alone: each BatchNorm folded into the layer before it.

In evaluation BatchNorm is y = (x - mean) / sqrt(var + eps) · weight + bias with fixed numbers, an
affine map of each channel; after a convolution or a linear layer it is a change of that layer's
weights and bias. https://arxiv.org/abs/1712.05877, section 3.2.
"""

import copy
from collections import Counter

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

_FUSED = {
    nn.Conv2d: fuse_conv_bn_eval,
    nn.Linear: fuse_linear_bn_eval,
}


def fold(backbone: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The function that `backbone` computes in evaluation mode, in fewer steps.

    dtype: number format of layers and activations. A BatchNorm that is left (before a
    convolution, whose zero padding it does not shift) keeps its own numbers in float32.

    The module given is not changed. A network that can't be traced is only copied: folding goes
    by what feeds what, not by the order of layers in the source.
    """
    copied = copy.deepcopy(backbone).eval()
    try:
        copied = fx.symbolic_trace(copied)
    except fx.proxy.TraceError:  # its path hangs on values
        pass
    else:
        _fold_traced(copied)
    # Taken before: back from a shorter format, numbers would stay rounded, or infinite.
    left = [(m, m.state_dict()) for m in copied.modules() if isinstance(m, _BatchNorm)]
    copied = copied.to(dtype=dtype, memory_format=torch.channels_last)
    for norm, numbers in left:
        norm.float().load_state_dict(numbers)
    return copied


def _fold_traced(network: fx.GraphModule) -> None:
    modules = dict(network.named_modules())
    calls = [node for node in network.graph.nodes if node.op == "call_module"]
    times = Counter(node.target for node in calls)
    for node in calls:
        before = node.args[0]
        if before not in calls or len(before.users) > 1:
            continue
        if times[before.target] > 1 or times[node.target] > 1:
            continue
        layer, norm = modules[before.target], modules[node.target]
        fuse = _FUSED.get(type(layer))
        # PyTorch fuses no others. A SyncBatchNorm is in evaluation what the plain one is.
        if fuse is None or not (isinstance(norm, _BatchNorm) and norm.affine):
            continue
        network.set_submodule(before.target, fuse(layer, norm))
        node.replace_all_uses_with(before)
        network.graph.erase_node(node)
    network.delete_all_unused_submodules()
    network.recompile()
