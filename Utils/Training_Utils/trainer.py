"""Training: set up from the settings, then a loop in which the order is the explanation."""

import json
import math
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from Config import Config, validate
from Utils.devices import choose_amp_dtype, choose_device, spread_over_gpus
from Utils.errors import RunError
from Utils.memory import describe_memory
from Utils.Training_Utils import checkpoint as checkpoints
from Utils.Training_Utils.curves import draw_curves
from Utils.Training_Utils.description import describe_run
from Utils.Training_Utils.fine_tuning import set_frozen
from Utils.Training_Utils.loader import Batch, TrainingLoader
from Utils.Training_Utils.log import close_log, open_log
from Utils.Training_Utils.loss_meter import LossMeter
from Utils.Training_Utils.megaface_test import MegaFaceTest
from Utils.Training_Utils.metrics import Metrics
from Utils.Training_Utils.opening import open_training_data
from Utils.Training_Utils.profiling import StepProfile
from Utils.Training_Utils.progress import Progress
from Utils.Training_Utils.results import TrainingResult, write_results
from Utils.Training_Utils.run_folder import (
    RunFolder,
    check_writable,
    create_run,
    find_checkpoint,
    run_name,
    run_to_continue,
)
from Utils.Training_Utils.state import Best, build_state
from Utils.Training_Utils.step import TrainingStep
from Utils.Training_Utils.test_sets import TestSets
from Utils.Training_Utils.visdom_curves import VisdomCurves

MEAN = "mean"


class Trainer:
    """One run. Making it opens the data, builds the networks and, to resume, restores them.

    Raises ConfigError, DataError, CheckpointError or RunError before anything is trained.
    """

    def __init__(self, config: Config) -> None:
        validate(config, torch.cuda.device_count())
        self.config = config
        self.device = choose_device(config)
        self.amp_dtype = choose_amp_dtype(config, self.device)
        # All batches have one size, so the search for the fastest convolution pays off.
        torch.backends.cudnn.benchmark = self.device.type == "cuda"
        resumed = find_checkpoint(config.resume, config.save_dir) if config.resume else None
        if not config.para_adj_mode:
            check_writable(config.save_dir)
        self.data = open_training_data(config)
        self.test_sets = TestSets(config, self.device)
        classes = self.data.num_classes
        saved = checkpoints.read_run(resumed) if resumed else None
        if saved:
            checkpoints.check_fits(saved, resumed, config, classes, len(self.data))
        batches = len(self.data) // config.batch_size
        self.state = build_state(config, classes, batches, self.device, self.amp_dtype, saved)
        if saved:
            self.state.restore(saved)
        self.run_folder = self._open_run(resumed)
        self.log = open_log(self.run_folder.log if self.run_folder else None)
        self.megaface = (
            MegaFaceTest(config, self.device, self.log) if config.test_on_megaface else None
        )
        self.metrics = Metrics(
            self.run_folder.metrics if self.run_folder else None, self.test_sets.names
        )
        backbone, where = spread_over_gpus(self.state.backbone, config, self.device)
        self.step = TrainingStep(
            self.state, backbone, self.device, self.amp_dtype, config.clip_norm
        )
        self.loader = TrainingLoader(
            self.data,
            config.batch_size,
            config.input_size,
            config.seed,
            config.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        lines = describe_run(
            *(config, self.data, self.test_sets.descriptions, self.state, where),
            *(self.amp_dtype, self.run_folder, resumed),
        )
        for line in lines:
            self.log.info(line)
        self.log.debug(f"settings {json.dumps(config.to_dict())}")
        folder = self.run_folder.path if self.run_folder else None
        self.profile = StepProfile(config.profile, self.device, folder, self.log)
        self._unreadable: set[str] = set()
        self.loss = LossMeter()
        self._accuracy: Tensor | None = None

    def run(self) -> TrainingResult:
        """Train to the last epoch, and say how it went.

        Raises RunError for a loss that is not finite; the last checkpoint is older and sound.
        """
        state = self.state
        self.metrics.start(state.iteration)
        with ExitStack() as stack:
            stack.callback(close_log, self.log)
            curves = self._open_visdom()
            total = state.iteration + self._iterations_left()
            self.progress = Progress(self.log, self.metrics, curves, total, state.iteration)
            stack.callback(self.progress.close)
            try:
                last = self._train_epochs()
            except KeyboardInterrupt:
                self.log.info(f"stopped at iteration {state.iteration}. {self._last_saved()}")
                raise
            if self.megaface:
                self.megaface.judge(state.backbone, self.run_folder and self.run_folder.path)
            self.log.info(describe_memory(self.device))
            return self._finish(last)

    def _train_epochs(self) -> dict[str, float]:
        """Train what is left; returns the accuracies at the end."""
        config, state = self.config, self.state
        last = {}
        while state.epoch < config.total_epoch:
            self._train_epoch()
            state.epoch, state.batch = state.epoch + 1, 0
            self._save()  # before the test, which may take long or fail
            if state.epoch == config.total_epoch or state.iteration % config.test_freq == 0:
                last = self._test()
        self._save()  # again, with the best accuracies
        return last

    def _train_epoch(self) -> None:
        config, state = self.config, self.state
        set_frozen(state.backbone, state.epoch < config.freeze_backbone_epochs)
        first_batch, trained = state.batch, 0
        for batch in self.profile.watch(self.loader.epoch(state.epoch, state.batch)):
            report_due = (
                state.iteration + 1
            ) % config.log_freq == 0 or self._iterations_left() == 1
            trained += self._learn(batch, with_accuracy=report_due)
            state.batch += 1
            state.iteration += 1
            if report_due:
                self._report()
            if state.batch == self.loader.batches_per_epoch:
                break  # what is due now comes with the epoch's end
            if state.iteration % config.test_freq == 0:
                self._test()
            if state.iteration % config.save_freq == 0:
                self._save()
        if trained == 0 and first_batch == 0:
            raise RunError(f"no image of epoch {state.epoch + 1} could be read; see the log.")

    def _learn(self, batch: Batch, with_accuracy: bool) -> int:
        """One iteration, in which nothing waits for the device; returns the number of images."""
        self._log_unreadable(batch)
        if len(batch.labels) < 2:  # BatchNorm can't take the variance of one
            return 0
        result = self.step(batch)
        self.loss.add(result.loss)
        if with_accuracy:
            self._accuracy = result.correct.float().mean()
        self.progress.step(len(batch.labels))
        return len(batch.labels)

    def _report(self) -> None:
        loss = self._checked_loss()
        accuracy = self._accuracy.item() if self._accuracy is not None else 0.0
        rate = self.state.optimizer.param_groups[0]["lr"]
        self.progress.report(self.state.iteration, self._epoch_shown(), loss, accuracy, rate)
        self.loss.restart()

    def _test(self) -> dict[str, float]:
        """Judge the test sets; remember the best, and keep the weights of the best mean."""
        self._check_sound()
        state = self.state
        try:
            accuracies = self.test_sets.judge(state.backbone)
        except ValueError as error:  # a photo that can't be read is no reason to end a long run
            self.log.info(f"iteration {state.iteration}  test sets not judged: {error}")
            return {}
        if not accuracies:
            return accuracies
        self.progress.report_tests(state.iteration, self._epoch_shown(), accuracies)
        mean = sum(accuracies.values()) / len(accuracies)
        for name, accuracy in {**accuracies, MEAN: mean}.items():
            if accuracy > state.best.setdefault(name, Best()).accuracy:
                state.best[name] = Best(accuracy, state.iteration)
        if self.run_folder and state.best[MEAN].iteration == state.iteration:
            checkpoints.save_best(self.run_folder, state.checkpoint(self.config, len(self.data)))
        return accuracies

    def _save(self) -> None:
        self._check_sound()
        if self.run_folder:
            checkpoints.save(
                self.run_folder,
                self.state.checkpoint(self.config, len(self.data)),
                self.state.iteration,
            )

    def _finish(self, last: dict[str, float]) -> TrainingResult:
        result = TrainingResult(
            run=self.run_folder.path if self.run_folder else None,
            iterations=self.state.iteration,
            elapsed=self.progress.elapsed(),
            loss=self.loss.mean(),
            last=last,
            best=self.state.best,
        )
        if self.run_folder:
            draw_curves(self.metrics, self.run_folder.curves, self.run_folder.name)
            write_results(result, self.run_folder.results)
        return result

    def _iterations_left(self) -> int:
        state, batches = self.state, self.loader.batches_per_epoch
        return (self.config.total_epoch - state.epoch) * batches - state.batch

    def _epoch_shown(self) -> int:
        """The epoch under way, or the one just finished; from 1."""
        return self.state.epoch + (self.state.batch > 0)

    def _checked_loss(self) -> float:
        """The mean loss since the last report. Raises RunError where it is not finite."""
        loss = self.loss.mean()
        if not math.isfinite(loss):
            raise RunError(self._lost(f"the loss is {loss}"))
        return loss

    def _check_sound(self) -> None:
        """Raise RunError before weights that are not numbers are judged or saved.

        The loss alone does not tell: it is that of the weights before the last step.
        """
        self._checked_loss()
        if not self.state.is_finite():
            raise RunError(self._lost("the weights are not finite"))

    def _lost(self, what: str) -> str:
        return (
            f"{what} by iteration {self.state.iteration}. {self._last_saved()} A lower initial_lr "
            f"({self.config.initial_lr} now), a smaller scale_size or margin_size, or bf16 in "
            f"place of fp16 usually helps."
        )

    def _last_saved(self) -> str:
        path = self.run_folder.last if self.run_folder else None
        return f"The last checkpoint is {path}." if path and path.exists() else "Nothing is saved."

    def _log_unreadable(self, batch: Batch) -> None:
        for reason in batch.unreadable:
            if reason not in self._unreadable:
                self._unreadable.add(reason)
                self.log.info(f"image left out: {reason}")

    def _open_run(self, resumed: Path | None) -> RunFolder | None:
        """The folder of the run, made: a new one, or to go on from a run's end, that run's."""
        if self.config.para_adj_mode:
            return None
        run = run_to_continue(resumed) if resumed else None
        if run is None:
            return create_run(self.config)
        run.create(self.config)
        return run

    def _open_visdom(self) -> VisdomCurves | None:
        config = self.config
        if not config.use_visdom:
            return None
        name = self.run_folder.name if self.run_folder else run_name(config)
        return VisdomCurves(config.visdom_server, config.visdom_port, name, self.metrics, self.log)
