"""One training iteration: a batch of images in, a change of the weights out."""

import torch
from torch import nn

from Head.classifier import HeadLoss
from Utils.Training_Utils.augmentation import Augmentation, generator_of
from Utils.Training_Utils.loader import Batch
from Utils.Training_Utils.optimization import clip_gradients
from Utils.Training_Utils.state import TrainingState


class TrainingStep:
    """Called with a batch, changes the weights of a run. Nothing in it waits for the device.

    state: networks and optimiser. backbone: the state's, wrapped for several GPUs or not.
    amp_dtype: the backbone's number format; None leaves it. augmentation: what is done to the
    images, with draws that follow from the seed and the iteration. clip_norm: the longest gradient,
    of all weights together; 0: any.
    """

    def __init__(
        self,
        state: TrainingState,
        backbone: nn.Module,
        device: torch.device,
        amp_dtype: torch.dtype | None,
        augmentation: Augmentation,
        seed: int,
        clip_norm: float = 0.0,
    ) -> None:
        self._state = state
        self._backbone = backbone
        self._device = device
        self._amp_dtype = amp_dtype
        self._augmentation = augmentation
        self._seed = seed
        self._clip_norm = clip_norm

    def __call__(self, batch: Batch) -> HeadLoss:
        """Learn from N images; returns their loss, which carries no gradient any more."""
        images = batch.images.to(self._device, non_blocking=True)
        labels = batch.labels.to(self._device, non_blocking=True)
        self._state.head.sample(labels, self._state.iteration)
        result = self._loss(images, labels)
        self._backward(result.loss)
        self._update()
        return HeadLoss(result.loss.detach(), result.correct)

    def _loss(self, images: torch.Tensor, labels: torch.Tensor) -> HeadLoss:
        state = self._state
        flip = self._augmentation.flips(len(labels), state.flip_generator)
        images = self._augmentation(images, generator_of(self._seed, state.iteration))
        pixels = state.backbone.preprocessing(images, flip)  # N×3×H×W
        amp = self._amp_dtype
        with torch.autocast(self._device.type, amp, enabled=amp is not None):
            embeddings = self._backbone(pixels)  # N×D
        return state.head.loss(embeddings, labels)

    def _backward(self, loss: torch.Tensor) -> None:
        self._state.optimizer.zero_grad(set_to_none=True)
        self._state.scaler.scale(loss).backward()

    def _update(self) -> None:
        state, optimizer = self._state, self._state.optimizer
        state.schedule.apply(optimizer, state.epoch, state.batch)
        with state.head.stepping(optimizer) as rows:
            # Before the step, not in it: only here do processes agree on whether to skip it.
            state.scaler.unscale_(optimizer)
            if self._clip_norm:
                clip_gradients(optimizer, self._clip_norm, rows, state.head.group)
            state.scaler.step(optimizer)
        state.scaler.update()
        if state.average:
            state.average.update(state.backbone)
