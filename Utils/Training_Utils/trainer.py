"""Training: a loop in which the order is the explanation. `start.py` says how a run begins."""

import json
import math
import time
from collections.abc import Callable

from Config import Config
from Utils.cpu import describe_memory
from Utils.devices import training_precision
from Utils.errors import DataError, RunError, UserError
from Utils.processes import ALONE, Processes, is_lost_connection, lost_connection
from Utils.run_folder import forget_launch
from Utils.Training_Utils.checkpoints.run_checkpoints import CheckpointWriter, saves_folders
from Utils.Training_Utils.data import build_loader, fingerprint
from Utils.Training_Utils.evaluation import MegaFaceTest
from Utils.Training_Utils.networks import Networks
from Utils.Training_Utils.reports.figures import MEAN, TrainingResult, mean_accuracy, write_results
from Utils.Training_Utils.reports.progress import Progress, open_log
from Utils.Training_Utils.start import begin_run
from Utils.Training_Utils.state import set_frozen
from Utils.Training_Utils.step import TrainingStep
from Utils.Training_Utils.stopping import StopRequest
from Utils.workers import WorkerError

# At the end of a run, what can't be written is tried again for an hour: days of work are in memory.
_TRIES, _PAUSE = 360, 10.0  # seconds
# The scale is halved when a gradient overflows, which at this one takes gradients beyond 1e9.
_LEAST_SCALE = 2.0**-14


class Trainer:
    """One run. Constructing it opens the data, and builds the networks or restores them.

    processes: those that train together; each constructs a Trainer with the same settings and runs
    it. All of them save, test and stop at the same iterations; the main process writes files and
    prints.

    Raises ConfigError, DataError, CheckpointError or RunError before anything is trained.
    """

    def __init__(self, config: Config, processes: Processes = ALONE) -> None:
        start = begin_run(config, processes)
        state, device, run, is_main = start.state, start.device, start.folder, processes.is_main
        self.config = config
        self.processes = processes
        self.device = device
        self.amp_dtype = start.amp_dtype
        self.data = start.data
        self.test_sets = start.test_sets
        self.state = state
        self.run_folder = run
        self._lock = start.lock

        known = start.teacher.table if start.teacher else None
        self.loader = build_loader(config, self.data, device, processes, known)
        self.networks = Networks(
            backbone=state.backbone,
            head=state.head,
            config=config,
            device=device,
            processes=processes,
            amp_dtype=self.amp_dtype,
            iterations=config.total_epoch * self.loader.batches_per_epoch,
            distillation=state.distillation,
        )
        self.step = TrainingStep(config, state, self.networks, processes, start.teacher)

        self.writer = None
        if run:
            folders = saves_folders(config, sharded=state.head.group is not None)
            self.writer = CheckpointWriter(run, folders, processes, start.resumed)
        self.log = open_log(run.log if run and is_main else None, screen=is_main)
        self.megaface = None
        if config.test_on_megaface:
            self.megaface = processes.one_by_one(
                lambda: MegaFaceTest(config, device, self.log, processes)
            )
        for line in start.describe(self.networks.where):
            self.log.info(line)
        self.log.debug(f"settings {json.dumps(config.to_dict())}")
        left = (config.total_epoch - state.epoch) * self.loader.batches_per_epoch - state.batch
        names = self.test_sets.columns(averaged=state.averaged is not None)
        self.progress = Progress(
            config, state, run, state.iteration + left, len(self.data), names, self.log, processes
        )

    def run(self) -> TrainingResult:
        """Train to the last epoch, or until a signal asks to stop (see `StopSignals`); returns the
        figures.

        A checkpoint that can't be written is no reason to end: the next one may, and the older ones
        are sound. Raises RunError if the last one can't be written either, for a loss that is not
        finite, if another process has ended, or a worker of the loader; after the last, a single
        process has saved all its iterations. Raises KeyboardInterrupt if Ctrl-C ended it: pressed
        once, after it has saved.
        """
        try:
            return self._run()
        except UserError as error:
            self.log.debug(f"the run has ended: {error}")  # printed by whoever started it
            raise
        finally:
            self.progress.close()
            self._lock.release()

    def _run(self) -> TrainingResult:
        try:
            precision = training_precision(self.config, self.device)
            with precision, StopRequest(self.processes) as stop:
                last = self._train(stop)
                result = self._finish(last)  # before MegaFace, which takes long and may fail
                stop.settle()
            if result.stopped and stop.interrupted:
                raise KeyboardInterrupt
            if result.stopped:
                self.log.info(
                    f"asked to stop after iteration {result.iterations}. {self._how_to_continue()}"
                )
            elif self.megaface and stop.asked:
                self.log.info(
                    "asked to stop before MegaFace, which is not evaluated; "
                    "MegaFace_Evaluation.py does that. Everything else is finished."
                )
            elif self.megaface:
                self.networks.broadcast_statistics(self.state.averaged)
                self.megaface.evaluate(self.state.result, self.run_folder and self.run_folder.path)
            self.log.info(describe_memory(self.device))
            return result
        except KeyboardInterrupt:
            self.log.info(f"stopped at iteration {self.state.iteration}. {self._how_to_continue()}")
            raise
        except WorkerError as error:  # between two iterations
            if self.processes.group is None and self.state.iteration:
                self._save()
            raise RunError(f"{error} {self._how_to_continue()}") from None
        except DataError as error:  # a file of the training set has changed; between two iterations
            if self.processes.group is None:
                self._save()
            raise DataError(f"{error} {self._last_saved()}") from None
        except RuntimeError as error:
            if self.processes.group is not None and is_lost_connection(error):
                raise lost_connection(error, self._last_saved()) from None
            raise

    def _train(self, stop: StopRequest) -> dict[str, float] | None:
        """The loop. Returns the accuracies at the end; None if it was asked to stop."""
        config, state, batches = self.config, self.state, self.loader.batches_per_epoch

        def due(frequency: int) -> bool:
            return state.iteration % frequency == 0

        accuracies = {}
        if state.lacks_test(config):  # it was killed, or asked to stop, before or in that test
            accuracies = self._test()
        for epoch in range(state.epoch, config.total_epoch):
            set_frozen(state.backbone, epoch < config.freeze_backbone_epochs)
            for batch in self.progress.watch(self.loader.epoch(epoch, state.batch)):
                result = self.step(batch)  # nothing in it waits for the device
                state.advance(batches)
                self.progress.add(batch, result)
                finished = state.epoch == config.total_epoch
                if due(config.log_freq) or finished:  # this does wait
                    self._check_loss()
                    self.progress.report()
                if stop.due() and not finished:  # all processes agree on it
                    self._check_sound()
                    self._write_checkpoint()
                    return None
                if due(config.save_freq) or state.batch == 0:
                    self._save()  # before the test, which may take long or fail
                if due(config.test_freq) or finished:
                    accuracies = self._test()  # saves again where it is the best
        self._check_sound()
        self._keep_trying(self._write_checkpoint)  # with the best accuracies
        return accuracies

    def _test(self) -> dict[str, float]:
        """Evaluate the test sets; remember the best, and keep the weights of the best mean."""
        self._check_sound()
        state = self.state
        state.tested = state.iteration
        self.networks.broadcast_statistics(state.averaged)
        try:
            show = self.progress.show_test
            accuracies = self.test_sets.evaluate(state.backbone, state.averaged, show)
            self.progress.report_flaws(self.test_sets.flaws)
        except UserError as error:  # a photo that can't be read is no reason to end a long run
            self.log.info(f"iteration {state.iteration}  test sets not evaluated: {error}")
            return {}
        if accuracies:
            self.progress.report_tests(accuracies)
            before = state.best.copy()
            better = state.note_best({**accuracies, MEAN: mean_accuracy(accuracies)})
            if MEAN in better and not self._save(best=True):
                state.best = before  # of the weights in the best checkpoint
        return accuracies

    def _save(self, best: bool = False) -> bool:
        """Write a checkpoint; returns whether that could be done."""
        self._check_sound()
        try:
            self._write_checkpoint(best)
        except RunError as error:
            self.log.info(
                f"warning: iteration {self.state.iteration} is not saved: {error} "
                f"{self._last_saved()} Training goes on; the next checkpoint is tried as usual."
            )
            return False
        return True

    def _write_checkpoint(self, best: bool = False) -> None:
        if self.writer:
            self.writer.save(self.state, self.config, len(self.data), best)

    def _keep_trying(self, write: Callable[[], None]) -> None:
        """Write what a run ends with, which a user may have to make space for first.

        Raises RunError as `write` does, in all processes or in none.
        """
        for left in reversed(range(_TRIES)):
            try:
                write()
                return
            except RunError as error:
                if not left:
                    raise
                if left == _TRIES - 1:
                    self.log.info(
                        f"warning: {error} {self._last_saved()} All is trained; writing is tried "
                        f"again for {_TRIES * _PAUSE / 60:.0f} minutes. Please make space."
                    )
                time.sleep(_PAUSE)

    def _finish(self, last: dict[str, float] | None) -> TrainingResult:
        """The result of a run that ended, written to its folder unless it was asked to stop."""
        run = self.run_folder
        result = TrainingResult(
            run=run.path if run else None,
            iterations=self.state.iteration,
            elapsed=self.progress.elapsed(),
            loss=self.progress.means().loss,
            last=last or {},
            best=self.state.best,
            stopped=last is None,
            data=fingerprint(self.data),
        )
        if run and self.processes.is_main and not result.stopped:
            forget_launch(self.config.save_dir)
            self._keep_trying(lambda: self.progress.finish(run))
            self._keep_trying(lambda: write_results(result, run.results))
        return result

    def _check_loss(self) -> None:
        """Raise RunError if a mean loss since the last report is not finite, or if fp16 skips every
        step."""
        means = self.progress.means()
        for name, loss in (("loss", means.loss), ("distillation loss", means.distillation)):
            if not math.isfinite(loss):
                raise self._diverged(f"the {name} is {loss}")
        scale = self.state.scaler.get_scale()  # 1 without fp16
        if scale < _LEAST_SCALE:
            raise self._diverged(
                f"the gradients overflow in every step, so that none changes the weights (fp16's "
                f"loss scale has fallen to {scale:.0e}),"
            )

    def _check_sound(self) -> None:
        """Raise RunError before weights that are not finite are evaluated or saved.

        The loss alone does not tell: it is that of the weights before the last step.
        """
        self._check_loss()
        if not all(self.processes.gather(self.state.is_finite())):
            raise self._diverged("the weights are not finite")

    def _diverged(self, what: str) -> RunError:
        return RunError(
            f"{what} by iteration {self.state.iteration}. {self._last_saved()} A lower initial_lr "
            f"({self.config.initial_lr} now), a smaller scale_size or margin_size, or bf16 in "
            f"place of fp16 usually helps."
        )

    def _how_to_continue(self) -> str:
        resume = " To continue from it: --resume last." if self._has_checkpoint() else ""
        return f"{self._last_saved()}{resume}"

    def _last_saved(self) -> str:
        saved = self._has_checkpoint()
        return f"The last checkpoint is {self.run_folder.last}." if saved else "Nothing is saved."

    def _has_checkpoint(self) -> bool:
        return self.run_folder is not None and self.run_folder.last.exists()
