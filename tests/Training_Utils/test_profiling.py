"""`--profile N`, and peak memory in the log."""

import json
import logging
import re
import time

import pytest
import torch

from tests.conftest import run_script
from Utils.Training_Utils.profiling import StepProfile

CPU = torch.device("cpu")


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def watched(steps: int, batches: int, wait: float, tmp_path) -> list[str]:
    log, lines = logging.Logger("test"), Lines()
    log.addHandler(lines)
    profile = StepProfile(steps, CPU, tmp_path, log)
    x = torch.randn(200, 200)

    def slow():
        for number in range(batches):
            time.sleep(wait)
            yield number

    for _ in range(2):  # epochs
        seen = []
        for batch in profile.watch(slow()):
            seen.append(batch)
            time.sleep(0.01)
            x @ x
        assert seen == list(range(batches))
    return lines.lines


def test_every_batch_comes_through_and_n_steps_are_described_once(tmp_path):
    lines = watched(3, 8, 0.03, tmp_path)
    table = [line for line in lines if line.startswith("aten::")]
    assert any(re.match(r"aten::mm +3 ", line) for line in table)
    assert len(table) <= 10
    (share,) = (line for line in lines if "waiting for data" in line)
    assert share.startswith("3 steps in")
    assert 55 < float(re.search(r"([\d.]+) % of it", share)[1]) < 95  # 0.03 of 0.04 s a step
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::mm" for event in events) == 3


@pytest.mark.parametrize("batches", [1, 4])
def test_an_epoch_that_ends_early_ends_the_profile(batches, tmp_path):
    lines = watched(5, batches, 0.0, tmp_path)
    assert sum("waiting for data" in line for line in lines) == 1


def test_nothing_is_profiled_unless_asked_for(tmp_path):
    assert watched(0, 3, 0.0, tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_a_run_writes_its_trace_and_logs_its_memory(tiny_faces, tmp_path):
    flags = [*tiny_faces.flags, "--total_epoch", "2", "--milestones=", "--save_dir", tmp_path]
    run = run_script("Train.py", *flags, "--profile", "1", check=True)
    (trace,) = tmp_path.glob("*/trace.json")
    assert str(trace) in run.stdout
    assert "1 steps in" in run.stdout
    assert float(re.search(r"peak memory ([\d,]+) MiB", run.stdout)[1].replace(",", "")) > 100
    (log,) = tmp_path.glob("*/train.log")
    assert "peak memory" in log.read_text()
