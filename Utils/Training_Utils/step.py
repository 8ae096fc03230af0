"""One training iteration: from a batch of images to changed weights."""

from contextlib import nullcontext

import torch
from torch import Tensor

from Config import Config
from Utils.devices import CopyStream
from Utils.processes import ALONE, Processes
from Utils.Training_Utils.augmentation import build_augmentation, generator_of
from Utils.Training_Utils.data import Batch
from Utils.Training_Utils.distillation.teacher import Teacher
from Utils.Training_Utils.networks import Networks
from Utils.Training_Utils.optimization import clip_gradients
from Utils.Training_Utils.reports.means import StepResult
from Utils.Training_Utils.state import TrainingState


class TrainingStep:
    """Called with a batch, changes the weights of a run. Nothing in it waits for the device.

    networks: calls the state's backbone and head. config: the step uses the settings of
    augmentation, `seed`, `clip_norm`, the weights of the losses, and `accumulate_steps`, the number
    of micro-batches whose gradients are summed. teacher: whose embeddings are learnt, too.
    """

    def __init__(
        self,
        config: Config,
        state: TrainingState,
        networks: Networks,
        processes: Processes = ALONE,
        teacher: Teacher | None = None,
    ) -> None:
        self._config = config
        self._state = state
        self._networks = networks
        self._processes = processes
        self._teacher = teacher
        self._augmentation = build_augmentation(config)
        self._copies = CopyStream(state.device)

    def __call__(self, batch: Batch) -> StepResult:
        """Train on N images, this process's share of a batch.

        Returns their mean loss; if the classes are split over processes, the mean over the images
        of all processes.
        """
        state, networks = self._state, self._networks
        images, labels, known = self._copies.to_device(  # uint8 N×H×W×3, N, N×2×T
            batch.images, batch.labels, batch.known
        )
        state.head.sample(labels, state.iteration)
        images, flips = self._augment(images)

        state.optimizer.zero_grad(set_to_none=True)
        tensors = (images, labels, flips, known)
        chunks = (tensor.chunk(self._config.accumulate_steps) for tensor in tensors)
        micro_batches = list(zip(*chunks, strict=True))
        results = []
        for number, (images, labels, flips, known) in enumerate(micro_batches, 1):
            # DDP averages gradients over the processes in the last backward pass only.
            with nullcontext() if number == len(micro_batches) else networks.no_sync():
                targets = self._teacher(images, flips, known) if self._teacher else None  # N×T
                pixels = state.backbone.preprocessing(images, flips)  # float N×3×H×W
                embeddings = networks.embed(pixels)  # N×D
                result = StepResult(*networks.loss(embeddings, labels))
                if targets is not None:
                    distillation = networks.distillation(embeddings, targets)
                    result = result._replace(distillation=distillation)
                state.scaler.scale(self._total(result) / len(micro_batches)).backward()
            results.append(result)
        self._update()
        return _joined(results)

    def _total(self, result: StepResult) -> Tensor:
        """The loss that is trained: with a teacher, the weighted sum of both."""
        if result.distillation is None:
            return result.loss
        margin, teacher = self._config.margin_weight, self._config.teacher_weight
        return margin * result.loss + teacher * result.distillation

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


def _joined(results: list[StepResult]) -> StepResult:
    """The result of a step, from those of its micro-batches."""

    def mean(losses: list[Tensor]) -> Tensor:
        return torch.stack([loss.detach() for loss in losses]).mean()

    has_teacher = results[0].distillation is not None
    return StepResult(
        loss=mean([result.loss for result in results]),
        correct=torch.cat([result.correct for result in results]),
        nearest=torch.cat([result.nearest for result in results]),
        distillation=mean([result.distillation for result in results]) if has_teacher else None,
    )
