"""One training iteration: from a batch of images to changed weights."""

from contextlib import nullcontext

import torch
from torch import Tensor

from Config import Config
from Head.classifier import HeadLoss
from Utils.devices import CopyStream
from Utils.processes import ALONE, Processes
from Utils.Training_Utils.augmentation import build_augmentation, generator_of
from Utils.Training_Utils.data import Batch
from Utils.Training_Utils.networks import Networks
from Utils.Training_Utils.optimization import clip_gradients
from Utils.Training_Utils.state import TrainingState


class TrainingStep:
    """Called with a batch, changes the weights of a run. Nothing in it waits for the device.

    networks: calls the state's backbone and head. config: the step uses the settings of
    augmentation, `seed`, `clip_norm`, and `accumulate_steps`, the number of micro-batches whose
    gradients are summed.
    """

    def __init__(
        self,
        config: Config,
        state: TrainingState,
        networks: Networks,
        processes: Processes = ALONE,
    ) -> None:
        self._config = config
        self._state = state
        self._networks = networks
        self._processes = processes
        self._augmentation = build_augmentation(config)
        self._copies = CopyStream(state.device)

    def __call__(self, batch: Batch) -> HeadLoss:
        """Train on N images, this process's share of a batch.

        Returns their mean loss, without gradient; if the classes are split over processes, the
        mean over the images of all processes.
        """
        state, networks = self._state, self._networks
        images, labels = self._copies.to_device(batch.images, batch.labels)  # uint8 N×H×W×3, N
        state.head.sample(labels, state.iteration)
        images, flips = self._augment(images)

        state.optimizer.zero_grad(set_to_none=True)
        chunks = (tensor.chunk(self._config.accumulate_steps) for tensor in (images, labels, flips))
        micro_batches = list(zip(*chunks, strict=True))
        results = []
        for number, (images, labels, flips) in enumerate(micro_batches, 1):
            # DDP averages gradients over the processes in the last backward pass only.
            with nullcontext() if number == len(micro_batches) else networks.no_sync():
                pixels = state.backbone.preprocessing(images, flips)  # float N×3×H×W
                embeddings = networks.embed(pixels)  # N×D
                result = networks.loss(embeddings, labels)
                state.scaler.scale(result.loss / len(micro_batches)).backward()
            results.append(result)
        self._update()
        return HeadLoss(
            loss=torch.stack([result.loss.detach() for result in results]).mean(),
            correct=torch.cat([result.correct for result in results]),
            nearest=torch.cat([result.nearest for result in results]),
        )

    def _augment(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """N augmented images, and bool N: which of them to mirror.

        Random numbers are drawn for the whole batch, so that they do not depend on the number of
        processes; this one takes those of its own share.
        """
        state, count = self._state, len(images)
        total, first = count * self._processes.world_size, count * self._processes.rank
        flips = self._augmentation.flips(total, state.flip_generator)[first : first + count]
        generator = generator_of(self._config.seed, state.iteration)
        return self._augmentation(images, generator, first, total), flips

    def _update(self) -> None:
        """Clip the gradients, and change the weights and their average."""
        state, optimizer = self._state, self._state.optimizer
        state.schedule.apply(optimizer, state.epoch, state.batch)
        with state.head.weight_to_update(optimizer) as class_weights:
            # Unscaled before `step`, because only here do processes agree on whether to skip it.
            state.scaler.unscale_(optimizer)
            if self._config.clip_norm:
                clip_gradients(optimizer, self._config.clip_norm, class_weights, state.head.group)
            state.scaler.step(optimizer)
        state.scaler.update()
        if state.average:
            state.average.update(state.backbone)
