"""One training iteration: a batch of images in, a change of the weights out."""

from contextlib import nullcontext

import torch
from torch import Tensor

from Head.classifier import HeadLoss
from Utils.processes import Processes
from Utils.Training_Utils.augmentation import Augmentation, generator_of
from Utils.Training_Utils.data import Batch
from Utils.Training_Utils.networks import Networks
from Utils.Training_Utils.optimization import clip_gradients
from Utils.Training_Utils.state import TrainingState


class TrainingStep:
    """Called with a batch, changes the weights of a run. Nothing in it waits for the device.

    state: networks and optimiser. networks: the state's, as they are to be called. amp_dtype: the
    backbone's number format; None leaves it. augmentation: what is done to the images, with draws
    that follow from the seed and the iteration. accumulate: equal parts that a batch is computed
    in, one after the other, before the weights change. clip_norm: the longest gradient, of all
    weights together; 0: any.
    """

    def __init__(
        self,
        state: TrainingState,
        networks: Networks,
        device: torch.device,
        amp_dtype: torch.dtype | None,
        processes: Processes,
        augmentation: Augmentation,
        seed: int,
        accumulate: int = 1,
        clip_norm: float = 0.0,
    ) -> None:
        self._state = state
        self._networks = networks
        self._device = device
        self._amp_dtype = amp_dtype
        self._processes = processes
        self._augmentation = augmentation
        self._seed = seed
        self._accumulate = accumulate
        self._clip_norm = clip_norm

    def __call__(self, batch: Batch) -> HeadLoss:
        """Learn from N images, this process's share; returns their mean loss, or everybody's where
        the classes are split over processes. It carries no gradient any more."""
        images = batch.images.to(self._device, non_blocking=True)
        labels = batch.labels.to(self._device, non_blocking=True)
        self._state.head.sample(labels, self._state.iteration)
        images, flips = self._changed(images)
        rows = (images, labels, flips)
        parts = list(zip(*(tensor.chunk(self._accumulate) for tensor in rows), strict=True))
        self._state.optimizer.zero_grad(set_to_none=True)
        results = []
        for number, part in enumerate(parts, 1):
            with nullcontext() if number == len(parts) else self._networks.no_sync():
                result = self._loss(*part)
                self._backward(result.loss / len(parts))
            results.append(result)
        self._update()
        loss = torch.stack([result.loss.detach() for result in results]).mean()
        correct = torch.cat([result.correct for result in results])
        return HeadLoss(loss, correct, torch.cat([result.nearest for result in results]))

    def _changed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """N augmented images, and which of them to mirror: this process's share of draws that are
        made for all, so that they do not depend on how many processes there are."""
        state, processes = self._state, self._processes
        count = len(images)
        total, first = count * processes.world_size, count * processes.rank
        flips = self._augmentation.flips(total, state.flip_generator)[first : first + count]
        generator = generator_of(self._seed, state.iteration)
        return self._augmentation(images, generator, first, total), flips

    def _loss(self, images: Tensor, labels: Tensor, flip: Tensor) -> HeadLoss:
        pixels = self._state.backbone.preprocessing(images, flip)  # N×3×H×W
        amp = self._amp_dtype
        with torch.autocast(self._device.type, amp, enabled=amp is not None):
            embeddings = self._networks.embed(pixels)  # N×D
        return self._networks.loss(embeddings, labels)

    def _backward(self, loss: Tensor) -> None:
        self._state.scaler.scale(loss).backward()

    def _update(self) -> None:
        state, optimizer = self._state, self._state.optimizer
        state.schedule.apply(optimizer, state.epoch, state.batch)
        with state.head.weight_to_update(optimizer) as rows:
            # Before the step, not in it: only here do processes agree on whether to skip it.
            state.scaler.unscale_(optimizer)
            if self._clip_norm:
                clip_gradients(optimizer, self._clip_norm, rows, state.head.group)
            state.scaler.step(optimizer)
        state.scaler.update()
        if state.average:
            state.average.update(state.backbone)
