"""Embeddings of images and of their mirror images, each image once.

A copy of a network for judging alone: each BatchNorm folded into the layer before it.

In evaluation BatchNorm is y = (x - mean) / sqrt(var + eps) · weight + bias with fixed numbers, an
affine map of each channel; after a convolution or a linear layer it is a change of that layer's
weights and bias. https://arxiv.org/abs/1712.05877, section 3.2.
"""

import copy
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from Utils.cpu import lone_threads
from Utils.Datasets_Utils.images import ImageError, fit_image
from Utils.processes import Processes

Work = Callable[[torch.Tensor], torch.Tensor]


EVAL_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Rows of a forward pass on a CPU, images and mirror images: more do not make it faster, but their
# activations leave the caches. GPUs get whole batches.
_CPU_ROWS = 16


def embed(
    backbone: nn.Module,
    images: Sequence[np.ndarray],
    device: torch.device,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[np.ndarray, np.ndarray]:
    """Embed images with a backbone that is on `device`, in evaluation mode.

    images: N of uint8 H×W×3 RGB, any size; scaled and cut to the backbone's input size.
    progress: label of a progress bar; None shows none.
    dtype: the number format in which the network computes, one of EVAL_DTYPES.

    Returns float32 N×D of the images and N×D of their mirror images, not normalised. The
    backbone itself is not touched. Raises ImageError, naming the file, where an image can't be
    read.
    """
    starts = range(0, len(images), batch_size)
    batches = [range(start, min(start + batch_size, len(images))) for start in starts]
    features = np.empty((2, len(images), backbone.feature_dim), np.float32)
    done = 0
    with tqdm(total=len(images), desc=progress, unit="image", disable=progress is None) as bar:
        for both in embed_batches(backbone, images, device, batches, num_workers, dtype):
            features[:, done : done + both.shape[1]] = both
            done += both.shape[1]
            bar.update(both.shape[1])
    return features[0], features[1]


def embed_together(
    backbone: nn.Module,
    images: Sequence[np.ndarray],
    device: torch.device,
    batch_size: int,
    num_workers: int,
    processes: Processes,
    dtype: torch.dtype = torch.float32,
) -> tuple[np.ndarray, np.ndarray] | None:
    """As `embed`, by all processes together, in the same batches: so with the same result.

    Returns it in the first process, and None in the others. Raises ImageError in all of them.
    """
    starts = range(0, len(images), batch_size)
    rank, world_size = processes.rank, processes.world_size
    first, last = (len(starts) * n // world_size for n in (rank, rank + 1))
    batches = [range(s, min(s + batch_size, len(images))) for s in starts[first:last]]
    parts, unreadable = [np.empty((2, 0, backbone.feature_dim), np.float32)], None
    try:
        parts += embed_batches(backbone, images, device, batches, num_workers, dtype)
    except ImageError as error:
        unreadable = str(error)
    found = [text for text in processes.gather(unreadable) if text]
    if found:
        raise ImageError(found[0])
    collected = processes.collect(np.concatenate(parts, 1))
    return tuple(np.concatenate(collected, 1)) if processes.is_main else None


def embed_batches(
    backbone: nn.Module,
    images: Sequence[np.ndarray],
    device: torch.device,
    batches: Sequence[Sequence[int]],
    num_workers: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[np.ndarray]:
    """As `embed`, for batches of chosen images: yields float32 2×n×D for each, in their order."""
    preprocessing = backbone.preprocessing
    loader = DataLoader(
        _Images(images, preprocessing.input_size),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_stack,
        pin_memory=device.type == "cuda",
        # Its own generator, so that judging in the middle of training does not move the global one.
        generator=torch.Generator(),
    )
    network = fold(backbone, dtype)

    @torch.inference_mode()
    def embed_both(images: torch.Tensor) -> torch.Tensor:
        """uint8 N×H×W×3 -> float32 2×N×D, of the images and of their mirror images."""
        images = images.to(device, non_blocking=True)
        pixels = preprocessing(torch.cat((images, images.flip(2)))).to(dtype)  # 2N×3×H×W
        return network(pixels).float().unflatten(0, (2, -1))

    in_turn = _in_threads if device.type == "cpu" else _one_ahead
    for both in in_turn(embed_both, _readable(loader)):
        yield both.cpu().numpy()


def _readable(batches: Iterable[torch.Tensor | str]) -> Iterator[torch.Tensor]:
    for batch in batches:
        if isinstance(batch, str):
            raise ImageError(batch)
        yield batch


def _in_threads(work: Work, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Work on small parts of batches side by side, each in one thread; gives the results of whole
    batches in order.

    One part in several threads has other roundings for each number of them: so, embeddings are
    the same to the last bit in however many threads and processes they are made.
    """
    waiting: deque[list[Future[torch.Tensor]]] = deque()
    with lone_threads() as threads:
        for batch in batches:
            waiting.append([threads.submit(work, part) for part in batch.split(_CPU_ROWS // 2)])
            # A batch may have one part: so many batches keep all threads busy in any case.
            if len(waiting) > threads.count:
                yield _joined(waiting.popleft())
        while waiting:
            yield _joined(waiting.popleft())


def _joined(parts: list[Future[torch.Tensor]]) -> torch.Tensor:
    return torch.cat([part.result() for part in parts], 1)


def _one_ahead(work: Work, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Give each result when the next batch's work has been launched, so that a device which works
    by itself does not wait while results are fetched from it."""
    before = None
    for batch in batches:
        result = work(batch)
        if before is not None:
            yield before
        before = result
    if before is not None:
        yield before


class _Images(Dataset):
    def __init__(self, images: Sequence[np.ndarray], input_size: tuple[int, int]) -> None:
        self.images = images
        self.input_size = input_size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray | str:
        try:
            return fit_image(self.images[index], self.input_size)
        except ImageError as error:
            # As text: an exception would come out of the worker wrapped in its traceback.
            return str(error)


def _stack(images: list[np.ndarray | str]) -> torch.Tensor | str:
    """N×H×W×3, or why an image can't be read."""
    unreadable = next((image for image in images if isinstance(image, str)), None)
    return unreadable or torch.from_numpy(np.stack(images))


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
