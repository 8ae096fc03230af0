"""How a run begins: from its settings to everything that the training loop needs.

Train.py reads the settings first; it calls `saved_settings` if they resume a run, and
`pretrained_settings` if they start from a weights file. `begin_run` then opens the data, builds the
networks or restores them from the checkpoint, and makes the run's folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from Backbone import ArchitectureError, build_backbone
from Config import Config, ConfigError, validate
from Head import build_head
from Head.classifier import MarginHead
from Utils.Datasets_Utils.text import quoted
from Utils.Datasets_Utils.training_set import TrainingSet
from Utils.devices import choose_amp_dtype, choose_device, describe_precision
from Utils.errors import CheckpointError
from Utils.Pretrained_Utils.files import check_whole
from Utils.Pretrained_Utils.heads import ClassWeights, find_class_weights
from Utils.Pretrained_Utils.load import (
    Weights,
    build,
    describe,
    override_preprocessing,
    own_weights,
    read_weights,
)
from Utils.processes import ALONE, Processes
from Utils.run_folder import (
    COMMON,
    RunFolder,
    RunLock,
    check_writable,
    create_run,
    find_checkpoint,
    forget_launch,
    is_restarted,
    note_launch,
    restarted_run,
    run_of,
    run_of_launch,
    run_to_continue,
)
from Utils.Training_Utils.checkpoints.checks import check_tensors
from Utils.Training_Utils.checkpoints.run_checkpoints import check_fits, read_run, remove_unfinished
from Utils.Training_Utils.checkpoints.table_files import check_safetensors
from Utils.Training_Utils.data import describe_training_data, open_training_data
from Utils.Training_Utils.distillation.loss import Distillation
from Utils.Training_Utils.distillation.teacher import Teacher, check_teacher, load_teacher
from Utils.Training_Utils.evaluation import TestSets
from Utils.Training_Utils.networks import splits_classes
from Utils.Training_Utils.optimization import (
    Schedule,
    build_optimizer,
    build_scaler,
    describe_rates,
)
from Utils.Training_Utils.reports.figures import has_results
from Utils.Training_Utils.state import TrainingState, WeightAverage, seed_process


@dataclass
class RunStart:
    """What a run begins with.

    amp_dtype: of the backbone under autocast; None is float32. teacher: None without one.
    folder: None in para_adj_mode. resumed: the checkpoint that the state was restored from.
    lock: the folder's, in the main process.
    """

    config: Config
    processes: Processes
    device: torch.device
    amp_dtype: torch.dtype | None
    data: TrainingSet
    test_sets: TestSets
    state: TrainingState
    teacher: Teacher | None
    folder: RunFolder | None
    resumed: Path | None
    lock: RunLock

    def describe(self, where: str) -> list[str]:
        """Lines for the log. where: on which devices, as `Networks` says."""
        config = self.config
        precision = describe_precision(config, self.device, self.amp_dtype)
        lines = [
            *describe_training_data(config, self.data),
            *self.test_sets.descriptions,
            *self.state.start,
            *(self.teacher.lines if self.teacher else ()),
            f"{config.backbone} with {config.margin}, {where}, {precision}",
            describe_rates(config),
            f"saving to {self.folder.path if self.folder else 'nowhere: para_adj_mode is on'}",
        ]
        if self.resumed:
            lines.append(f"continuing after iteration {self.state.iteration} from {self.resumed}")
        return lines


def saved_settings(resume: str, save_dir: str, processes: Processes = ALONE) -> dict[str, Any]:
    """The settings in the checkpoint that `resume` names, with its path as their `resume`.

    Where torchrun has restarted the processes, it is the last one of the run that this launch was
    training. The main process decides for all, which must all call this: by now `last` may be
    another one. Raises RunError if there is none, CheckpointError if it can't be read.
    """

    def find() -> Path:
        if not is_restarted():
            forget_launch(save_dir)  # it is of an earlier launch of the same name
        run = run_of_launch(save_dir)
        return run.last if run and run.last.exists() else find_checkpoint(resume, save_dir)

    path = processes.from_main(find)
    with _naming_another(path):
        settings = {**read_run(path, lazily=True)["settings"], "resume": str(path)}
    if resume == "last":
        settings["save_dir"] = save_dir  # the run may have been moved; it stays where it is now
    return settings


def pretrained_settings(config: Config) -> dict[str, Any]:
    """The settings of the network in the weights file that `pretrained` names."""
    weights = _pretrained(config)
    return _settings_of(weights.description.architecture)


def _pretrained(config: Config) -> Weights:
    lineage = config.lineage or None
    return read_weights(config.pretrained, lineage, config.weights, config.channel_order)


def begin_run(config: Config, processes: Processes) -> RunStart:
    """Set up a run, new or resumed. All processes must call this with the same settings.

    Raises ConfigError, DataError, CheckpointError or RunError before anything is written.
    """
    validate(config, torch.cuda.device_count(), processes=processes.world_size)
    device = choose_device(config, processes)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # else pinned memory would be that of device 0
    amp_dtype = choose_amp_dtype(config, device)
    resumed = checkpoint_to_resume(config, processes)
    if not config.para_adj_mode:
        check_writable(config.save_dir)
    data = processes.one_by_one(lambda: open_training_data(config))
    test_sets = processes.one_by_one(lambda: TestSets(config, device, processes))
    teacher = load_teacher(config, amp_dtype) if config.teacher else None
    saved = _read(resumed, processes) if resumed else None
    if saved:
        check_fits(saved, resumed, config, data.num_classes, len(data))
        check_teacher(saved, resumed, config, teacher)
        _check_not_over(saved["position"]["epoch"], resumed, config)
    batches_per_epoch = len(data) // config.batch_size
    state = build_state(
        config, data.num_classes, batches_per_epoch, device, amp_dtype, saved, processes, teacher
    )
    if saved:
        check_tensors(saved, resumed, state.head, state.optimizer)
        with _naming_another(resumed):
            state.restore(saved, config, processes)
        if not all(processes.gather(state.is_finite())):
            raise CheckpointError(
                f"checkpoint {resumed} has weights, averages or momenta that are not finite (NaN "
                f"or infinite), so nothing can be trained from it; resume from an older one."
            )
    if teacher:
        teacher.prepare(config, data, device, processes)
    folder, lock = None, RunLock()
    if not config.para_adj_mode:
        folder = processes.from_main(lambda: _make_folder(config, resumed, data.classes, lock))
    return RunStart(
        config=config,
        processes=processes,
        device=device,
        amp_dtype=amp_dtype,
        data=data,
        test_sets=test_sets,
        state=state,
        teacher=teacher,
        folder=folder,
        resumed=resumed,
        lock=lock,
    )


def _read(path: Path, processes: Processes) -> dict[str, Any]:
    with _naming_another(path):
        state = read_run(path, lazily=processes.world_size > 1)
        inside = path / COMMON if path.is_dir() else path
        processes.from_main(lambda: check_whole(inside))
    return state


@contextmanager
def _naming_another(path: Path) -> Iterator[None]:
    """Add to the error of a damaged checkpoint which other one of its run is the newest that can be
    read."""
    try:
        yield
    except CheckpointError as error:
        other = _whole_one_beside(path)
        if other is None:
            raise
        advice = f"An older one of this run is whole: --resume {quoted(other)}"
        raise CheckpointError(f"{error} {advice}") from None


def _whole_one_beside(path: Path) -> Path | None:
    run = run_of(path)
    numbered = sorted(run.checkpoints.glob("iteration_*"), reverse=True) if run else []
    for other in (*numbered, *([run.best] if run else [])):
        with suppress(CheckpointError, OSError, ValueError):
            if not other.samefile(path):
                read_run(other, lazily=True)
                check_whole(other / COMMON if other.is_dir() else other)
                for tables in other.glob("*.safetensors"):
                    check_safetensors(tables)
                return other
    return None


def checkpoint_to_resume(config: Config, processes: Processes) -> Path | None:
    """The checkpoint that `resume` names, or the last one of a run that torchrun has restarted;
    None for a new run. The main process decides for all, which must all call this.

    Raises RunError if `resume` names none. Train.py's `resume` is a path by now, see
    `saved_settings`.
    """

    def find() -> Path | None:
        if config.resume:
            return find_checkpoint(config.resume, config.save_dir)
        run = None if config.para_adj_mode else restarted_run(config)
        return run.last if run else None

    return processes.from_main(find)


def build_state(
    config: Config,
    num_classes: int,
    batches_per_epoch: int,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    saved: dict[str, Any] | None = None,
    processes: Processes = ALONE,
    teacher: Teacher | None = None,
) -> TrainingState:
    """The networks that a run begins with, on the device, with their optimiser.

    saved: the checkpoint to restore, which describes its backbone. The weights are the same in all
    processes, and for any number of processes; those of backbone and head, with any teacher.
    """
    torch.manual_seed(config.seed)
    backbone, class_weights, note = starting_backbone(config, saved)
    head = build_head(
        config.margin,
        config.feature_dim,
        num_classes,
        scale=config.scale_size,
        margin=config.margin_size,
        easy_margin=config.easy_margin,
        label_smoothing=config.label_smoothing,
        focal_gamma=config.focal_gamma,
        group=processes.device_group if splits_classes(config, num_classes, processes) else None,
        sample_rate=config.sample_rate,
        sample_seed=config.seed,
        combined_margin=config.combined_margin,
        sub_centers=config.sub_centers,
    )
    start = [note, take_class_weights(head, class_weights)] if class_weights else []
    backbone = backbone.to(device, memory_format=torch.channels_last)
    head = head.to(device)
    distillation = None
    if teacher:
        distillation = Distillation(
            config.teacher_loss, config.feature_dim, teacher.feature_dim, teacher.digest
        ).to(device)
    seed_process(processes, config.seed)
    return TrainingState(
        backbone=backbone,
        head=head,
        optimizer=build_optimizer(backbone, head, config, device, distillation),
        schedule=Schedule.from_config(config, batches_per_epoch),
        scaler=build_scaler(device, amp_dtype, head.group),
        flip_generator=torch.Generator(device).manual_seed(config.seed),
        average=WeightAverage(backbone, config.ema_decay) if config.ema_decay else None,
        distillation=distillation,
        start=start,
    )


def starting_backbone(
    config: Config, saved: dict[str, Any] | None
) -> tuple[nn.Module, ClassWeights | None, str]:
    """The backbone that a run begins with, on the CPU.

    saved: the checkpoint to restore; the weights file that its run began with is not needed then.

    Returns it, the class weights that came with a weights file, and a line for the log; None and
    an empty line without such a file.
    Raises CheckpointError for a weights file or checkpoint that can't be read or is damaged, or a
    file of another network than the settings name.
    """
    given = (config.channel_order, config.input_mean, config.input_scale)
    variant = {"drop_path": config.drop_path, "mask_ratio": config.mask_ratio}
    variant = {name: value for name, value in variant.items() if value is not None}
    if saved:
        weights = own_weights(Path(config.resume), saved, which="raw")
        weights.description.architecture["variant"] |= variant
        return build(weights, *given), None, ""
    if not config.pretrained:
        size = config.input_size
        try:
            backbone = build_backbone(config.backbone, config.feature_dim, size, **variant)
        except ArchitectureError as error:
            raise ConfigError("backbone", config.backbone, f"{error}.") from None
        backbone.preprocessing = override_preprocessing(backbone.preprocessing, *given)
        return backbone, None, ""
    weights = _pretrained(config)
    for name, value in _settings_of(weights.description.architecture).items():
        if getattr(config, name) != value:
            raise CheckpointError(
                f"pretrained {weights.path} has {name} {value}, the settings say "
                f"{getattr(config, name)}; set {value}, or leave it out."
            )
    weights.description.architecture["variant"] |= variant
    backbone = build(weights, *given)
    found = find_class_weights(
        weights.path, weights.head, backbone.feature_dim, weights.head_by_columns
    )
    return backbone, found, f"starting from {weights.path}: {describe(backbone)}"


def take_class_weights(head: MarginHead, found: ClassWeights) -> str:
    """Copy a file's class weights into the head where they fit; returns a line for the log.

    A head whose classes are split over processes takes the rows of this process's classes. Raises
    CheckpointError if they are not finite.
    """
    weights = found.weights
    if weights is None:
        return f"head: new weights; looked for class weights in {found.where}"
    shape = "×".join(map(str, weights.shape))
    centers, dim = head.sub_centers, head.weight.shape[1]
    needed = (head.num_classes * centers, dim)
    if weights.shape != needed:
        return (
            f"head: new weights; {found.where} has weights for other classes ({shape}, the "
            f"training set needs {needed[0]}×{needed[1]})"
        )
    if not weights.isfinite().all():
        raise CheckpointError(
            f"the class weights in {found.where} are not finite (NaN or infinite): take an older "
            f"checkpoint, or remove them, and the head begins with new ones."
        )
    with torch.no_grad():
        head.weight.copy_(weights[head.local_rows.start : head.local_rows.stop])
    return f"head: {shape} class weights taken from {found.where}"


def _settings_of(architecture: dict[str, Any]) -> dict[str, Any]:
    return {
        "backbone": architecture["name"],
        "feature_dim": architecture["feature_dim"],
        "input_size": tuple(architecture["input_size"]),
    }


def _check_not_over(epoch: int, path: Path, config: Config) -> None:
    """Raise CheckpointError if nothing is left to do. A run that was killed between its last
    checkpoint and its results has no iteration left, but its test sets to evaluate."""
    if epoch < config.total_epoch:
        return
    run = run_to_continue(path)
    if epoch == config.total_epoch and run is not None and not has_results(run):
        return
    raise CheckpointError(
        f"checkpoint {path} is the end of {epoch} epochs, and total_epoch is "
        f"{config.total_epoch}: give a larger --total_epoch to train on."
    )


def _make_folder(
    config: Config, resumed: Path | None, classes: Sequence[str] | None, lock: RunLock
) -> RunFolder:
    """The folder of a new run, or of the one that a checkpoint is the newest of; with the table of
    renumbered classes. Takes the lock of that run."""
    run = run_to_continue(resumed) if resumed else None
    if run is None:
        run = create_run(config)
        lock.take(run)
    else:
        lock.take(run)
        run.create(config)
        remove_unfinished(run)
        run.results.unlink(missing_ok=True)  # only a finished run has results
    if classes:
        run.save_classes(classes)
    note_launch(config.save_dir, run)
    return run
