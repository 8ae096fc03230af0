"""From images to a table of features: embeddings of each image and of its mirror image.

`embed` makes the table; `embed_batches` feeds the network; `fold` makes the faster network that
is used for it, with each BatchNorm folded into the layer before it.
"""

import copy
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils.data import Dataset
from tqdm import tqdm

from Backbone.kprpe import mirrored
from Utils.cpu import lone_threads
from Utils.Datasets_Utils.images import ImageError, fit_image, fit_points, noting_flaws
from Utils.devices import full_precision
from Utils.processes import ALONE, Processes
from Utils.workers import SteadyLoader, WorkerError, shared


class _Batch(NamedTuple):
    """images: uint8 N×H×W×3. keypoints: float32 N×5×2 in 0..1; None: the network takes none."""

    images: torch.Tensor
    keypoints: torch.Tensor | None

    def split(self, rows: int) -> list["_Batch"]:
        images = self.images.split(rows)
        points = [None] * len(images) if self.keypoints is None else self.keypoints.split(rows)
        return [_Batch(*both) for both in zip(images, points, strict=True)]


Work = Callable[[_Batch], torch.Tensor]

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
    processes: Processes = ALONE,
    flaws: list[str] | None = None,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Embed images with a backbone that is on `device`, in evaluation mode.

    images: N of uint8 H×W×3 RGB, any size; scaled and cropped to the backbone's input size. It may
        have `keypoints(index)`, the five points of an image in its pixels, 5×2, or None, for
        networks with KP-RPE; they take the template's points where there are none.
    progress: label of a progress bar; None shows none.
    dtype: in which the network computes, one of EVAL_DTYPES.
    processes: share the work, batch by batch, with the same result as one process; all call this.
    flaws: takes what is wrong with images that were read all the same.

    Returns float32 N×D of the images and N×D of their mirror images, not normalised, in the main
    process and None in the others. The backbone itself is not changed. Raises, in all processes,
    ImageError, naming the file, if an image can't be read; WorkerError if a worker has ended.
    """
    starts = range(0, len(images), batch_size)
    first, last = (
        len(starts) * rank // processes.world_size for rank in (processes.rank, processes.rank + 1)
    )
    batches = [range(start, min(start + batch_size, len(images))) for start in starts[first:last]]
    features = np.empty((2, sum(map(len, batches)), backbone.feature_dim), np.float32)
    done = 0
    failure: ImageError | WorkerError | None = None
    own_flaws: list[str] = []
    with (
        full_precision(),
        tqdm(total=len(images), desc=progress, unit="image", disable=progress is None) as bar,
    ):
        try:
            parts = embed_batches(
                backbone, images, device, batches, num_workers, dtype, flaws=own_flaws
            )
            for both in parts:
                features[:, done : done + both.shape[1]] = both
                done += both.shape[1]
                bar.update(both.shape[1])
        except (ImageError, WorkerError) as error:
            failure = error
    for of_process in processes.gather(failure):
        if of_process is not None:
            raise of_process
    if flaws is not None:
        flaws.extend(chain(*processes.gather(own_flaws)))
    collected = processes.collect(features)
    if not processes.is_main:
        return None
    straight, mirrored = features if len(collected) == 1 else np.concatenate(collected, axis=1)
    return straight, mirrored


def embed_batches(
    backbone: nn.Module,
    images: Sequence[np.ndarray],
    device: torch.device,
    batches: Sequence[Sequence[int]],
    num_workers: int = 0,
    dtype: torch.dtype = torch.float32,
    skip_unreadable: bool = False,
    flaws: list[str] | None = None,
) -> Iterator[np.ndarray]:
    """As `embed`, for batches of chosen images (their indices): yields float32 2×n×D for each.

    A caller who wants all of float32's precision on CUDA iterates in `full_precision`.

    skip_unreadable: give an image that can't be read an embedding of zeros; no ImageError.
    flaws: takes what is wrong with images that were read all the same.
    """
    preprocessing = backbone.preprocessing
    loader = SteadyLoader(
        _Images(images, preprocessing.input_size, _usual_points(backbone)),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_stack,
        pin_memory=device.type == "cuda",
        # Its own generator: an evaluation during training must not advance the global one.
        generator=torch.Generator(),
    )
    network = fold(backbone, dtype)
    unreadable: deque[list[bool]] = deque()  # of the batches that are being computed

    def readable() -> Iterator[_Batch]:
        for batch, errors, flawed in loader:
            if flaws is not None:
                flaws.extend(flawed)
            if any(errors) and not skip_unreadable:
                raise ImageError(next(filter(None, errors)))
            unreadable.append([error != "" for error in errors])
            yield batch

    @torch.inference_mode()
    def embed_both(batch: _Batch) -> torch.Tensor:
        """float32 2×N×D, of the images and of their mirror images."""
        images = batch.images.to(device, non_blocking=True)
        inputs = [preprocessing(torch.cat((images, images.flip(2)))).to(dtype)]  # 2N×3×H×W
        if batch.keypoints is not None:
            points = batch.keypoints.to(device, non_blocking=True)
            inputs.append(torch.cat((points, mirrored(points))))
        return network(*inputs).float().unflatten(0, (2, -1))

    in_turn = _in_threads if device.type == "cpu" else _one_ahead
    for both in in_turn(embed_both, readable()):
        embeddings = both.numpy()
        embeddings[:, unreadable.popleft()] = 0
        yield embeddings


def _usual_points(backbone: nn.Module) -> np.ndarray | None:
    """float32 5×2 in 0..1: the template's points; None if the network takes none."""
    takes = getattr(backbone, "takes_keypoints", False)
    return backbone.keypoint_encoding.template.float().cpu().numpy() if takes else None


# An image at the network's input size; its points; "", or the error if it can't be read: an
# exception would come out of a worker process wrapped in its traceback; its flaws.
_Item = tuple[np.ndarray, np.ndarray | None, str, list[str]]


class _Images(Dataset):
    """The images, each with what `_Item` says. usual_points: where an image has none of its own;
    None: the network takes none."""

    def __init__(
        self,
        images: Sequence[np.ndarray],
        input_size: tuple[int, int],
        usual_points: np.ndarray | None,
    ) -> None:
        self.images = images
        self.input_size = input_size
        self.usual_points = usual_points

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> _Item:
        try:
            with noting_flaws() as flaws:
                image = self.images[index]
        except ImageError as error:
            return np.zeros((*self.input_size, 3), np.uint8), self.usual_points, str(error), []
        return fit_image(image, self.input_size), self._points(index, image), "", flaws

    def _points(self, index: int, image: np.ndarray) -> np.ndarray | None:
        find = getattr(self.images, "keypoints", None)
        if self.usual_points is None or find is None or (points := find(index)) is None:
            return self.usual_points
        fitted = fit_points(points, image.shape[:2], self.input_size)
        return (fitted / self.input_size[::-1]).astype(np.float32)


def _stack(items: list[_Item]) -> tuple[_Batch, list[str], list[str]]:
    """(the batch, the errors of the N images, the flaws of some of them)."""
    images, points, errors, flaws = zip(*items, strict=True)
    stacked = None if points[0] is None else shared(torch.from_numpy(np.stack(points)))
    batch = _Batch(shared(torch.from_numpy(np.stack(images))), stacked)
    return batch, list(errors), [*chain(*flaws)]


def _in_threads(work: Work, batches: Iterable[_Batch]) -> Iterator[torch.Tensor]:
    """Compute slices of each batch in threads of their own; yields whole batches in order.

    A slice that several threads compute together is rounded differently for each number of
    threads. In one thread each, embeddings are equal to the last bit in any number of threads and
    processes.
    """
    waiting: deque[list[Future[torch.Tensor]]] = deque()
    with lone_threads() as threads:
        for batch in batches:
            waiting.append([threads.submit(work, rows) for rows in batch.split(_CPU_ROWS // 2)])
            # Even if a batch has only one slice, this number of batches keeps all threads busy.
            if len(waiting) > threads.count:
                yield _joined(waiting.popleft())
        while waiting:
            yield _joined(waiting.popleft())


def _joined(slices: list[Future[torch.Tensor]]) -> torch.Tensor:
    return torch.cat([future.result() for future in slices], 1)


def _one_ahead(work: Work, batches: Iterable[_Batch]) -> Iterator[torch.Tensor]:
    """Yield each result, on the CPU, after the next batch has been launched: an asynchronous device
    computes that one while the caller has the result.

    A result's copy is launched before the next batch, as a later one would wait for that batch.
    """
    before: tuple[torch.Tensor, torch.cuda.Event | None] | None = None
    for batch in batches:
        result = work(batch)
        copied = result.to("cpu", non_blocking=result.is_cuda)  # into pinned memory
        arrival = (
            torch.cuda.current_stream(result.device).record_event() if result.is_cuda else None
        )
        if before is not None:
            yield _arrived(*before)
        before = copied, arrival
    if before is not None:
        yield _arrived(*before)


def _arrived(copied: torch.Tensor, arrival: torch.cuda.Event | None) -> torch.Tensor:
    if arrival is not None:
        arrival.synchronize()  # until then the memory holds anything
    return copied


_FUSED = {
    nn.Conv2d: fuse_conv_bn_eval,
    nn.Linear: fuse_linear_bn_eval,
}


def fold(backbone: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy that computes what `backbone` does in evaluation mode, in fewer steps.

    In evaluation BatchNorm is y = (x - mean) / sqrt(var + eps) · weight + bias with constant
    statistics, an affine map of each channel; after a convolution or a linear layer it is a change
    of that layer's weights and bias. https://arxiv.org/abs/1712.05877, section 3.2.

    dtype: of layers and activations. A BatchNorm that can't be folded (before a convolution: the
    zero padding lies between them) keeps its own values in float32.

    A network that can't be traced is only copied: folding follows the data flow, not the order of
    layers in the source.
    """
    # A process group can't be copied, and is not used in evaluation mode.
    norms = (module for module in backbone.modules() if isinstance(module, nn.SyncBatchNorm))
    copied = copy.deepcopy(backbone, {id(norm.process_group): None for norm in norms}).eval()
    try:
        copied = fx.symbolic_trace(copied)
    except Exception:  # its own code raises any kind when it meets a stand-in for a tensor, as in
        pass  # int(x.shape[0]); where that is a bug, it is raised again when the network computes
    else:
        _fold_traced(copied)
    # Read before the conversion: converted back from a shorter dtype, they would stay rounded.
    left = [(m, m.state_dict()) for m in copied.modules() if isinstance(m, _BatchNorm)]
    copied = copied.to(dtype=dtype, memory_format=torch.channels_last)
    for norm, state in left:
        norm.float().load_state_dict(state)
    return copied


def _fold_traced(network: fx.GraphModule) -> None:
    """Fold each BatchNorm whose only input is the output of one layer that nothing else uses."""
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
        # PyTorch fuses no others. In evaluation a SyncBatchNorm is an ordinary BatchNorm.
        if fuse is None or not (isinstance(norm, _BatchNorm) and norm.affine):
            continue
        network.set_submodule(before.target, fuse(layer, norm))
        node.replace_all_uses_with(before)
        network.graph.erase_node(node)
    network.delete_all_unused_submodules()
    network.recompile()
