"""Training: set up from the settings, then a loop in which the order is the explanation."""

import json
import math
from contextlib import ExitStack

import torch
from torch import Tensor

from Config import Config, validate
from Utils.cpu import describe_memory
from Utils.devices import choose_amp_dtype, choose_device
from Utils.errors import RunError, UserError
from Utils.processes import ALONE, LOST, Processes, is_lost_connection
from Utils.run_folder import check_writable, run_name
from Utils.Training_Utils.augmentation import build_augmentation
from Utils.Training_Utils.beginning import begin_state, checkpoint_to_resume, open_run
from Utils.Training_Utils.checkpoints.writer import CheckpointWriter, saves_folders
from Utils.Training_Utils.data import (
    Batch,
    UnreadableImages,
    build_loader,
    fingerprint,
    open_training_data,
)
from Utils.Training_Utils.description import describe_run
from Utils.Training_Utils.evaluation import MegaFaceTest, TestSets
from Utils.Training_Utils.fine_tuning import set_frozen
from Utils.Training_Utils.networks import Networks
from Utils.Training_Utils.profiling import StepProfile
from Utils.Training_Utils.reports.curves import VisdomCurves, draw_curves
from Utils.Training_Utils.reports.metrics import Metrics
from Utils.Training_Utils.reports.progress import LossMeter, Progress, close_log, open_log
from Utils.Training_Utils.reports.results import MEAN, TrainingResult, mean_accuracy, write_results
from Utils.Training_Utils.restarts import forget_run
from Utils.Training_Utils.state import Best
from Utils.Training_Utils.step import TrainingStep
from Utils.Training_Utils.stopping import StopRequest


class Trainer:
    """One run. Making it opens the data, builds the networks and, to resume, restores them.

    processes: those that train together; each makes a Trainer with the same settings and runs it.
    All of them save, judge and stop at the same iterations; the first one writes and talks.

    Raises ConfigError, DataError, CheckpointError or RunError before anything is trained.
    """

    def __init__(self, config: Config, processes: Processes = ALONE) -> None:
        validate(config, torch.cuda.device_count(), processes=processes.world_size)
        self.config = config
        self.processes = processes
        self.device = choose_device(config, processes)
        self.amp_dtype = choose_amp_dtype(config, self.device)
        # All batches have one size, so the search for the fastest convolution pays off.
        torch.backends.cudnn.benchmark = self.device.type == "cuda"
        resumed = checkpoint_to_resume(config, processes)
        if not config.para_adj_mode:
            check_writable(config.save_dir)
        self.data = processes.one_by_one(lambda: open_training_data(config))
        self.test_sets = processes.one_by_one(lambda: TestSets(config, self.device, processes))
        self.state = begin_state(
            *(config, self.data, self.device, self.amp_dtype, resumed, processes)
        )
        self.run_folder = open_run(config, resumed, processes)
        self._open_records()
        networks = Networks(self.state.backbone, self.state.head, config, self.device, processes)
        self.networks = networks
        self.step = TrainingStep(
            *(self.state, networks, self.device, self.amp_dtype, processes),
            *(build_augmentation(config), config.seed),
            *(config.accumulate_steps, config.clip_norm),
        )
        self.loader = build_loader(config, self.data, self.device, processes)
        lines = describe_run(
            *(config, self.data, self.test_sets.descriptions, self.state, networks.where),
            *(self.amp_dtype, self.run_folder, resumed),
        )
        for line in lines:
            self.log.info(line)
        self.log.debug(f"settings {json.dumps(config.to_dict())}")
        folder = self.run_folder.path if self.run_folder else None
        self.profile = StepProfile(config.profile, self.device, folder, self.log)
        self.unreadable = UnreadableImages(self.log, processes)
        self._accuracy: Tensor | None = None
        self._stopping = False

    def run(self) -> TrainingResult:
        """Train to the last epoch, or until SIGTERM asks to stop, and say how it went.

        Raises RunError for a loss that is not finite, or where another process has ended; the last
        checkpoint is older and sound.
        """
        state = self.state
        self.metrics.start(state.iteration)
        _, losses = self.metrics.series("loss")  # of earlier work on the run
        self.loss = LossMeter(self.processes, losses[-1] if losses else 0.0)
        with ExitStack() as stack:
            stack.callback(close_log, self.log)
            curves = self._open_visdom()
            total = state.iteration + self._iterations_left()
            self.progress = Progress(
                *(self.log, self.metrics, curves, total, state.iteration),
                bar=self.processes.is_main,
            )
            stack.callback(self.progress.close)
            try:
                with StopRequest(self.processes) as self.stop:
                    last = self._train_epochs()
                if self.writer:
                    self.writer.close()
            except KeyboardInterrupt:
                self.log.info(f"stopped at iteration {state.iteration}. {self._last_saved()}")
                raise
            except RuntimeError as error:
                if is_lost_connection(error):
                    raise RunError(f"{LOST} {self._last_saved()}") from None
                raise
            result = self._finish(last)  # before MegaFace, which takes long and may fail
            if self._stopping:
                self.log.info(f"asked to stop after iteration {state.iteration}. {self._go_on()}")
            elif self.megaface:
                self.networks.broadcast_statistics(state.averaged)
                self.megaface.evaluate(state.result, self.run_folder and self.run_folder.path)
            self.log.info(describe_memory(self.device))
            return result

    def _train_epochs(self) -> dict[str, float]:
        """Train what is left, or until asked to stop; returns the accuracies at the end."""
        config, state = self.config, self.state
        last = {}
        if self._iterations_left() == 0:  # killed when all was trained, but before its results
            last = self._test()
        while state.epoch < config.total_epoch and not self._stopping:
            self._train_epoch()
            if state.batch == self.loader.batches_per_epoch:
                state.epoch, state.batch = state.epoch + 1, 0
            self._save()  # before the test, which may take long or fail
            self._stopping = self._stopping and state.epoch < config.total_epoch
            if self._stopping:
                return last
            if state.epoch == config.total_epoch or state.iteration % config.test_freq == 0:
                last = self._test()
        self._save()  # again, with the best accuracies
        return last

    def _train_epoch(self) -> None:
        """Train to the end of the epoch, or until asked to stop."""
        config, state = self.config, self.state
        set_frozen(state.backbone, state.epoch < config.freeze_backbone_epochs)
        for batch in self.profile.watch(self.loader.epoch(state.epoch, state.batch)):
            report_due = (
                state.iteration + 1
            ) % config.log_freq == 0 or self._iterations_left() == 1
            self._learn(batch, with_accuracy=report_due)
            state.batch += 1
            state.iteration += 1
            if report_due:
                self._report()
            self._stopping = self.stop.due()
            if self._stopping or state.batch == self.loader.batches_per_epoch:
                break  # what is due now comes after it
            if state.iteration % config.test_freq == 0:
                self._test()
            if state.iteration % config.save_freq == 0:
                self._save()

    def _learn(self, batch: Batch, with_accuracy: bool) -> None:
        """One iteration, in which nothing waits for the device."""
        self.unreadable.add(batch.unreadable)
        if len(batch.labels) == 0:
            raise RunError(
                f"too many images in a row can't be read to take others in their place, the last: "
                f"{batch.unreadable[-1]}"
            )
        result = self.step(batch)
        self.loss.add(result.loss)
        if with_accuracy:
            self._accuracy = result.correct.float().mean()
        self.progress.step(self.config.batch_size)

    def _report(self) -> None:
        self.unreadable.report()
        loss = self._checked_loss()
        accuracy = self.processes.mean(self._accuracy.item())
        rate = self.state.optimizer.param_groups[0]["lr"]
        self.progress.report(self.state.iteration, self._epoch_shown(), loss, accuracy, rate)
        self.loss.restart()

    def _test(self) -> dict[str, float]:
        """Judge the test sets; remember the best, and keep the weights of the best mean."""
        self._check_sound()
        state = self.state
        self.networks.broadcast_statistics(state.averaged)
        try:
            accuracies = self.test_sets.evaluate(state.backbone, state.averaged)
        except UserError as error:  # a photo that can't be read is no reason to end a long run
            self.log.info(f"iteration {state.iteration}  test sets not judged: {error}")
            return {}
        if not accuracies:
            return accuracies
        self.progress.report_tests(state.iteration, self._epoch_shown(), accuracies)
        for name, accuracy in {**accuracies, MEAN: mean_accuracy(accuracies)}.items():
            if accuracy > state.best.setdefault(name, Best()).accuracy:
                state.best[name] = Best(accuracy, state.iteration)
        if state.best[MEAN].iteration == state.iteration:
            self._save(best=True)
        return accuracies

    def _save(self, best: bool = False) -> None:
        self._check_sound()
        if self.writer:
            saved = self.state.checkpoint(self.config, len(self.data), self.processes)
            self.writer.save(*saved, self.state.iteration, best)

    def _finish(self, last: dict[str, float]) -> TrainingResult:
        result = TrainingResult(
            run=self.run_folder.path if self.run_folder else None,
            iterations=self.state.iteration,
            elapsed=self.progress.elapsed(),
            loss=self.loss.mean(),
            last=last,
            best=self.state.best,
            stopped=self._stopping,
            data=fingerprint(self.data),
        )
        if self.run_folder and self.processes.is_main and not self._stopping:
            forget_run(self.config)
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
        if not all(self.processes.gather(self.state.is_finite())):
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

    def _go_on(self) -> str:
        return f"{self._last_saved()} To go on from it: --resume last." if self.run_folder else ""

    def _open_records(self) -> None:
        """Log, figures and checkpoints; in all processes but the first only the last of these."""
        config, run, first = self.config, self.run_folder, self.processes.is_main
        self.log = open_log(run.log if run and first else None, screen=first)
        names = self.test_sets.columns(averaged=self.state.averaged is not None)
        self.metrics = Metrics(run.metrics if run and first else None, names)
        self.writer = None
        if run:
            sharded = self.state.head.group is not None
            folders = saves_folders(config, sharded)
            self.writer = CheckpointWriter(run, folders, self.processes)
        self.megaface = None
        if config.test_on_megaface:
            self.megaface = self.processes.one_by_one(
                lambda: MegaFaceTest(config, self.device, self.log, self.processes)
            )

    def _open_visdom(self) -> VisdomCurves | None:
        config = self.config
        if not (config.use_visdom and self.processes.is_main):
            return None
        name = self.run_folder.name if self.run_folder else run_name(config)
        return VisdomCurves(config.visdom_server, config.visdom_port, name, self.metrics, self.log)
