"""Learning rates by hand-worked numbers, the head's own optimiser, clipping, the shared scale."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR

from Config import Config
from Config.checks import ConfigError, validate
from tests.processes import in_processes
from tests.scripts.test_training import only_run, tiny_config  # noqa: F401
from Utils.Training_Utils.optimization import (
    Schedule,
    build_optimizer,
    build_scaler,
    clip_gradients,
    describe_rates,
    restore_optimizer,
    scaled_rate,
)
from Utils.Training_Utils.state import set_frozen
from Utils.Training_Utils.trainer import Trainer

CPU = torch.device("cpu")


def rates(initial, batches, **settings):
    """The rate of every iteration of a run."""
    config = Config(**{"milestones": (), **settings})
    schedule = Schedule.from_config(config, batches)
    return [
        schedule.rate(initial, epoch, batch)
        for epoch in range(config.total_epoch)
        for batch in range(batches)
    ]


def test_milestones_have_the_last_digit_of_the_runs_before():
    for initial in (0.1, 0.05, 0.3, 0.7):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=initial)
        old = MultiStepLR(optimizer, [1, 3, 4, 6], gamma=0.1)
        for rate in rates(initial, 1, total_epoch=8, milestones=(1, 3, 4, 6)):
            assert rate == optimizer.param_groups[0]["lr"]
            optimizer.step()
            old.step()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # 4 iterations an epoch; the warm-up's first has a quarter of the rate.
        ({"milestones": (2,)}, [0.05, 0.1, 0.15, 0.2] + [0.2] * 4 + [0.02] * 4),
        (
            {"schedule": "polynomial"},  # 0.2·(k/8)² for k from 8 down to 1
            [0.05, 0.1, 0.15, 0.2]
            + [0.2, 0.153125, 0.1125, 0.078125, 0.05, 0.028125, 0.0125, 0.003125],
        ),
        (
            {"schedule": "cosine"},  # 0.1·(1 + cos kπ/8) for k from 0 to 7
            [0.05, 0.1, 0.15, 0.2]
            + [0.2, 0.1923880, 0.1707107, 0.1382683, 0.1, 0.0617317, 0.0292893, 0.0076120],
        ),
    ],
)
def test_rates_of_a_run_with_an_epoch_of_warm_up(settings, expected):
    found = rates(0.2, 4, total_epoch=3, warmup_epochs=1.0, **settings)
    assert found == pytest.approx(expected, abs=5e-8)


def test_half_an_epoch_of_warm_up_crosses_a_milestone():
    found = rates(0.4, 2, total_epoch=3, warmup_epochs=1.5, milestones=(1,))
    assert found == pytest.approx([0.4 / 3, 0.8 / 3, 0.04, 0.04, 0.04, 0.04])


def test_the_rate_grows_with_the_batch_only_by_the_rule_and_the_log_says_so():
    config = Config(initial_lr=0.05, batch_size=1024, milestones=(), head_lr=0.01)
    assert scaled_rate(0.05, config) == 0.05
    assert describe_rates(config) == "learning rate 0.05, head 0.01"
    config = dataclasses.replace(config, lr_scaling="linear", warmup_epochs=2, schedule="cosine")
    assert scaled_rate(0.05, config) == 0.2
    assert describe_rates(config) == (
        "learning rate 0.2 = initial_lr 0.05 × batch_size 1024 / lr_reference_batch 256, head 0.04,"
        " after 2 epochs of warm-up, cosine decay to the end"
    )
    optimizer = build_optimizer(nn.Linear(2, 2), nn.Linear(2, 3), config, CPU)
    Schedule.from_config(config, 5).apply(optimizer, 1, 4)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.04]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"warmup_epochs": 4.0}, "warmup_epochs is 4.0: it must end before"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"head_optimizer": "adam"}, "did you mean 'adamw'"),
        ({"head_lr": 0.0}, "head_lr is 0.0: it must be above 0"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0"),
    ],
)
def test_settings_that_cannot_be_used_are_named(settings, said):
    with pytest.raises(ConfigError, match=said):
        validate(Config(**settings))


def test_the_heads_own_adamw_goes_on_where_it_was_saved(tiny_config, tmp_path):  # noqa: F811
    config = dataclasses.replace(
        tiny_config,
        **{"head_optimizer": "adamw", "head_lr": 1e-3, "head_weight_decay": 0.1},
        **{"schedule": "polynomial", "warmup_epochs": 1.0, "clip_norm": 1.0},
    )
    result = Trainer(config).run()
    saved = torch.load(result.run / "checkpoints" / "last.pt", weights_only=True)["optimizer"]
    *backbone, head = (saved["state"][key] for key in sorted(saved["state"]))
    assert all(state.keys() == {"momentum_buffer"} for state in backbone)
    assert head.keys() == {"step", "exp_avg", "exp_avg_sq"}
    start = str(result.run / "checkpoints" / "iteration_00000004.pt")
    again = tmp_path / "again"
    Trainer(dataclasses.replace(config, resume=start, save_dir=str(again))).run()
    ours, theirs = (run / "checkpoints" / "last.pt" for run in (only_run(again), result.run))
    ours, theirs = (torch.load(path, weights_only=True) for path in (ours, theirs))
    torch.testing.assert_close(ours["backbone"], theirs["backbone"], rtol=0, atol=0)
    torch.testing.assert_close(ours["head"], theirs["head"], rtol=0, atol=0)
    torch.testing.assert_close(ours["optimizer"], theirs["optimizer"], rtol=0, atol=0)


def test_momenta_of_one_group_go_to_the_groups_of_today():
    def networks():
        torch.manual_seed(3)
        return nn.Linear(4, 3), nn.Linear(3, 5)

    backbone, head = networks()
    old = torch.optim.SGD(
        [*backbone.parameters(), *head.parameters()], lr=0.5, momentum=0.9, nesterov=True
    )
    head(backbone(torch.randn(2, 4))).square().sum().backward()
    old.step()
    config = Config(initial_lr=0.25, head_weight_decay=0.0)
    new = build_optimizer(*networks(), config, CPU)
    restore_optimizer(new, old.state_dict())
    assert [group["initial_lr"] for group in new.param_groups] == [0.25, 0.25]
    assert [group["weight_decay"] for group in new.param_groups] == [5e-4, 0.0]
    for ours, theirs in zip(
        (p for group in new.param_groups for p in group["params"]),
        old.param_groups[0]["params"],
        strict=True,
    ):
        assert torch.equal(new.state[ours]["momentum_buffer"], old.state[theirs]["momentum_buffer"])


@pytest.fixture
def nan_in_new_memory():
    """Where a tensor is only allocated, it is filled with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def scaled_steps(frozen, device, **settings):
    """Weights after six steps of fp16's scaler, of which the first and the fifth overflow; the
    backbone is frozen in as many as `frozen` says. device: "cuda" is for the fused optimisers,
    which exist on the CPU, too."""
    torch.manual_seed(0)
    backbone, head = nn.Linear(4, 3), nn.Linear(3, 5)
    config = Config(weight_decay=0.01, **settings)
    optimizer = build_optimizer(backbone, head, config, torch.device(device))
    scaler = build_scaler(CPU, torch.float16)
    for step in range(6):
        set_frozen(backbone, step < frozen)
        optimizer.zero_grad()
        loss = head(backbone(torch.randn(2, 4))).square().mean()
        scaler.scale(loss * (math.inf if step in (0, 4) else 1)).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return [*backbone.parameters(), *head.parameters()]


@pytest.mark.parametrize("frozen", [0, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "head_lr": 0.2},
        {"optimizer": "adamw"},
        {"optimizer": "sgd", "head_optimizer": "adamw"},
    ],
)
def test_fused_optimisers_skip_steps_and_thaw_like_the_others(settings, frozen, nan_in_new_memory):
    fused = scaled_steps(frozen, "cuda", **settings)
    for ours, theirs in zip(fused, scaled_steps(frozen, "cpu", **settings), strict=True):
        assert theirs.isfinite().all()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


@pytest.mark.parametrize("settings", [{}, {"head_lr": 0.01}])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_run_saved_with_a_frozen_backbone_and_no_momenta_of_it_thaws(device, settings):
    """As PyTorch's own SGD does, which has saved no momentum for weights without a gradient."""

    def networks():
        torch.manual_seed(3)
        return nn.Linear(4, 3), nn.Linear(3, 5)

    def steps(backbone, head, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            head(backbone(torch.ones(2, 4))).square().sum().backward()
            optimizer.step()
        return [*backbone.parameters(), *head.parameters()]

    config = Config(initial_lr=0.01, weight_decay=0.01, **settings)
    plain = networks()
    weights = [weight for network in plain for weight in network.parameters()]
    old = torch.optim.SGD(weights, lr=0.01, momentum=0.9, weight_decay=0.01, nesterov=True)
    plain[0].requires_grad_(False)
    steps(*plain, old, 2)
    saved = copy.deepcopy(old.state_dict())
    assert len(saved["state"]) == 2
    resumed = networks()
    for ours, theirs in zip(resumed, plain, strict=True):
        ours.load_state_dict(theirs.state_dict())
    new = build_optimizer(*resumed, config, torch.device(device))
    restore_optimizer(new, saved)
    plain[0].requires_grad_(True)
    rtol = 0 if device == "cpu" else 1e-6  # bit for bit; fused multiply-adds round once
    for ours, theirs in zip(steps(*resumed, new, 3), steps(*plain, old, 3), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=0)


def clipped(group):
    """Gradients (3, 4) everywhere and 12 in the second shard alone: a norm of 13."""
    common, shard = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    common.grad, shard.grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0 * group.rank()])
    norm = clip_gradients(torch.optim.SGD([common, shard]), 6.5, shard, group)
    return norm, common.grad, shard.grad


def test_the_norm_that_is_clipped_is_that_of_all_shards(tmp_path):
    for rank, (norm, common, shard) in enumerate(in_processes(2, tmp_path, clipped)):
        assert norm.item() == 13
        torch.testing.assert_close(common, torch.tensor([1.5, 2.0]), rtol=1e-6, atol=0)
        torch.testing.assert_close(shard, torch.tensor([6.0 * rank]), rtol=1e-6, atol=0)


def overflown(group, fused):
    """Of three steps, the second process's gradient overflows in the first, both in the second."""
    scaler = build_scaler(CPU, torch.float16, group)
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0, fused=fused)
    seen = []
    for step in range(3):
        weight.grad = scaler.scale(torch.ones(1))
        if step + group.rank() in (1, 2) and step < 2:
            weight.grad.fill_(math.inf)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        seen.append((weight.item(), scaler.get_scale()))
    return seen


@pytest.mark.parametrize("fused", [False, True])
def test_shards_that_overflow_hold_all_back(tmp_path, fused):
    for seen in in_processes(2, tmp_path, overflown, fused):
        assert seen == [(0.0, 32768.0), (0.0, 16384.0), (-1.0, 16384.0)]
