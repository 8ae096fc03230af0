"""Training: set up from the settings, then a loop in which the order is the explanation."""

import json
import math
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from Config import Config, training_paths, validate
from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.demo_sets import ensure_demo_sets
from Utils.devices import choose_amp_dtype, choose_device, spread_over_gpus
from Utils.errors import RunError
from Utils.Training_Utils import checkpoint as checkpoints
from Utils.Training_Utils.curves import draw_curves
from Utils.Training_Utils.fine_tuning import set_frozen
from Utils.Training_Utils.loader import Batch, TrainingLoader
from Utils.Training_Utils.log import close_log, open_log
from Utils.Training_Utils.loss_meter import LossMeter
from Utils.Training_Utils.megaface_test import MegaFaceTest
from Utils.Training_Utils.metrics import Metrics
from Utils.Training_Utils.progress import Progress
from Utils.Training_Utils.results import TrainingResult, write_results
from Utils.Training_Utils.run_folder import (
    RunFolder,
    check_writable,
    find_checkpoint,
    new_run,
    run_of,
)
from Utils.Training_Utils.state import Best, build_state
from Utils.Training_Utils.test_sets import TestSets
from Utils.Training_Utils.visdom_curves import VisdomCurves

MEAN = "mean"


def open_training_data(config: Config) -> torch.utils.data.Dataset:
    """The training set that `train_dataset` and its paths mean; the demo's is drawn if need be."""
    if config.train_dataset == "Demo":
        demo = ensure_demo_sets(Path(config.demo_dataset_path))
        return open_training_set(demo.train_images, demo.train_list)
    path, file_list = training_paths(config)
    return open_training_set(path, file_list or None)


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
        self._check_batch_size()
        classes = self.data.num_classes
        saved = checkpoints.read_run(resumed) if resumed else None
        if saved:
            checkpoints.check_fits(saved, resumed, config, classes, len(self.data))
        self.state = build_state(config, classes, self.device, self.amp_dtype, saved)
        if saved:
            self.state.restore(saved, config)
        self.run_folder = self._open_run(resumed)
        self.log = open_log(self.run_folder.log if self.run_folder else None)
        self.megaface = (
            MegaFaceTest(config, self.device, self.log) if config.test_on_megaface else None
        )
        self.metrics = Metrics(
            self.run_folder.metrics if self.run_folder else None, self.test_sets.names
        )
        self.backbone, where = spread_over_gpus(self.state.backbone, config, self.device)
        self.loader = TrainingLoader(
            self.data,
            config.batch_size,
            config.input_size,
            config.seed,
            config.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        self._describe(where, resumed)
        self._unreadable: set[str] = set()
        self.loss = LossMeter()
        self._accuracy: Tensor | None = None

    def run(self) -> TrainingResult:
        """Train to the last epoch, and say how it went.

        Raises RunError for a loss that is not finite; the last checkpoint is older and sound.
        """
        config, state = self.config, self.state
        total = config.total_epoch * self.loader.batches_per_epoch
        self.metrics.start(state.iteration)
        with ExitStack() as stack:
            stack.callback(close_log, self.log)
            curves = self._open_visdom()
            self.progress = Progress(self.log, self.metrics, curves, total, state.iteration)
            stack.callback(self.progress.close)
            while state.epoch < config.total_epoch:
                self._train_epoch()
                state.scheduler.step()
                state.epoch, state.batch = state.epoch + 1, 0
                if state.epoch < config.total_epoch:
                    self._save()
            last = self._test()
            self._save()
            if self.megaface:
                self.megaface.judge(state.backbone, self.run_folder and self.run_folder.path)
            return self._finish(last)

    def _train_epoch(self) -> None:
        config, state = self.config, self.state
        set_frozen(state.backbone, state.epoch < config.freeze_backbone_epochs)
        trained = 0
        for batch in self.loader.epoch(state.epoch, state.batch):
            report_due = (state.iteration + 1) % config.log_freq == 0
            trained += self._step(batch, with_accuracy=report_due)
            state.batch += 1
            state.iteration += 1
            if report_due:
                self._report()
            if state.iteration % config.test_freq == 0 and not self._at_the_end():
                self._test()
            if state.iteration % config.save_freq == 0 and state.batch < self._batches():
                self._save()
        if trained == 0 and self._unreadable:
            raise RunError(f"no image of epoch {state.epoch + 1} could be read; see the log.")

    def _step(self, batch: Batch, with_accuracy: bool) -> int:
        """One iteration, in which nothing waits for the device; returns the number of images."""
        state = self.state
        self._log_unreadable(batch)
        if len(batch.labels) < 2:  # BatchNorm can't take the variance of one
            return 0
        images = batch.images.to(self.device, non_blocking=True)
        labels = batch.labels.to(self.device, non_blocking=True)
        flip = torch.rand(len(labels), generator=state.flip_generator, device=self.device) < 0.5
        pixels = state.backbone.preprocessing(images, flip)  # N×3×H×W

        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            embeddings = self.backbone(pixels)  # N×D
        logits = state.head(embeddings, labels)  # N×C
        loss = F.cross_entropy(logits, labels)

        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()

        self.loss.add(loss)
        if with_accuracy:  # a pass over N×C, so only where it is shown
            self._accuracy = (logits.detach().argmax(1) == labels).float().mean()
        self.progress.step(len(labels))
        return len(labels)

    def _report(self) -> None:
        loss = self._checked_loss()
        accuracy = self._accuracy.item() if self._accuracy is not None else 0.0
        rate = self.state.optimizer.param_groups[0]["lr"]
        self.progress.report(self.state.iteration, self.state.epoch + 1, loss, accuracy, rate)
        self.loss.restart()

    def _test(self) -> dict[str, float]:
        """Judge the test sets; remember the best, and keep the weights of the best mean."""
        self._checked_loss()
        state = self.state
        accuracies = self.test_sets.judge(state.backbone)
        if not accuracies:
            return accuracies
        self.progress.report_tests(
            state.iteration, min(state.epoch + 1, self.config.total_epoch), accuracies
        )
        mean = sum(accuracies.values()) / len(accuracies)
        for name, accuracy in {**accuracies, MEAN: mean}.items():
            if accuracy > state.best.setdefault(name, Best()).accuracy:
                state.best[name] = Best(accuracy, state.iteration)
        if self.run_folder and state.best[MEAN].iteration == state.iteration:
            checkpoints.save_best(self.run_folder, state.checkpoint(self.config, len(self.data)))
        return accuracies

    def _save(self) -> None:
        self._checked_loss()  # never a checkpoint of weights that are not numbers
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

    def _at_the_end(self) -> bool:
        """Whether this was the last iteration of all, after which the sets are judged anyway."""
        state = self.state
        return state.epoch + 1 == self.config.total_epoch and state.batch == self._batches()

    def _batches(self) -> int:
        return self.loader.batches_per_epoch

    def _checked_loss(self) -> float:
        """The mean loss since the last report. Raises RunError where it is not finite."""
        loss = self.loss.mean()
        if not math.isfinite(loss):
            raise RunError(self._lost(loss))
        return loss

    def _lost(self, loss: float) -> str:
        saved = self.run_folder.checkpoints / checkpoints.LAST if self.run_folder else None
        where = f"The last sound checkpoint is {saved}. " if saved and saved.exists() else ""
        return (
            f"the loss is {loss} by iteration {self.state.iteration}. {where}A lower initial_lr "
            f"({self.config.initial_lr} now), a smaller scale_size or margin_size, or bf16 in "
            f"place of fp16 usually helps."
        )

    def _log_unreadable(self, batch: Batch) -> None:
        for reason in batch.unreadable:
            if reason not in self._unreadable:
                self._unreadable.add(reason)
                self.log.info(f"image left out: {reason}")

    def _check_batch_size(self) -> None:
        if len(self.data) < self.config.batch_size:
            raise RunError(
                f"batch_size is {self.config.batch_size}, but the training set has only "
                f"{len(self.data)} images; set a batch_size of at most that."
            )

    def _open_run(self, resumed: Path | None) -> RunFolder | None:
        """The folder of the run, made; that of the resumed run where the checkpoint lies in one."""
        if self.config.para_adj_mode:
            return None
        run = (run_of(resumed) if resumed else None) or new_run(self.config)
        run.create(self.config)
        return run

    def _open_visdom(self) -> VisdomCurves | None:
        config = self.config
        if not config.use_visdom:
            return None
        name = self.run_folder.name if self.run_folder else new_run(config).name
        return VisdomCurves(config.visdom_server, config.visdom_port, name, self.metrics, self.log)

    def _describe(self, where: str, resumed: Path | None) -> None:
        config, data = self.config, self.data
        precision = (
            f", {str(self.amp_dtype).removeprefix('torch.')} in the backbone"
            if self.amp_dtype
            else ""
        )
        folder = self.run_folder.path if self.run_folder else "nowhere: para_adj_mode is on"
        self.log.info(
            f"{config.train_dataset}: {len(data):,} images, {data.num_classes:,} identities"
        )
        for line in (*self.test_sets.descriptions, *self.state.start):
            self.log.info(line)
        self.log.info(f"{config.backbone} with {config.margin}, {where}{precision}")
        self.log.info(f"saving to {folder}")
        if resumed:
            position = self.state.iteration
            self.log.info(f"continuing after iteration {position} from {resumed}")
        self.log.debug(f"settings {json.dumps(config.to_dict())}")


def saved_settings(resume: str, save_dir: str) -> dict:
    """The settings inside the checkpoint that `resume` means; for `Config.read_config`."""
    return checkpoints.read_run(find_checkpoint(resume, save_dir))["settings"]
