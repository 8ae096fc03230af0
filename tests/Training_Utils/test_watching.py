"""Watching a run in a real Visdom server, TensorBoard and W&B: figures arrive, once each, and a
place that is away or dies does not disturb the run."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from Config import Config
from tests.browser import free_port, listens, wait_for
from tests.conftest import assert_one_paragraph
from tests.processes import run_script, start_script
from Utils.run_folder import RunFolder
from Utils.Training_Utils.reports import places
from Utils.Training_Utils.reports.figures import Metrics, read_rows, series
from Utils.Training_Utils.reports.places import EventFiles, VisdomServer
from Utils.Training_Utils.reports.progress import open_log
from Utils.Training_Utils.reports.watchers import Watcher, Watchers

# base_url as visdom's own command line gives it.
SERVER = """
from visdom.server.run_server import start_server
start_server({port}, base_url="", env_path={path!r})
"""


def ask(port: int, window: str, environment: str) -> dict | None:
    """The data of a window as the server holds it; None where it has none."""
    body = json.dumps({"win": window, "eid": environment}).encode()
    url = f"http://localhost:{port}/win_data"
    try:
        with urllib.request.urlopen(url, data=body, timeout=5) as answer:
            return json.loads(answer.read()) or None
    except (OSError, ValueError):
        return None


@pytest.fixture
def start(tmp_path):
    """Starts a server on a port, and ends it with the test."""
    started = []

    def go(port):
        code = SERVER.format(port=port, path=str(tmp_path / "visdom"))
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        started.append(process)
        wait_for(lambda: listens(port))
        return process

    yield go
    for process in started:
        process.kill()
        process.wait()


def curve(port, window, environment, name):
    data = ask(port, window, environment)
    traces = data["content"]["data"] if data else []
    return next(((t["x"], t["y"]) for t in traces if t.get("name") == name), None)


def metrics_of_a_run():
    metrics = Metrics(None, ["LFW", "CFP-FP"])
    for i in (1, 2):
        metrics.add({"iteration": i, "loss": 10.0 / i, "accuracy": 0.1, "learning_rate": 0.1})
    metrics.add({"iteration": 2, "LFW": 0.9, "CFP-FP": 0.8})
    return metrics


def watch_in_visdom(port: int, name: str, metrics: Metrics) -> Watcher:
    return Watcher(VisdomServer("http://localhost", port, name), metrics, open_log(None))


def test_every_curve_arrives_and_grows(start):
    port = free_port()
    start(port)
    metrics = metrics_of_a_run()
    curves = watch_in_visdom(port, "a_run", metrics)
    curves.update()
    wait_for(lambda: curve(port, "test_accuracy", "a-run", "CFP-FP"))
    assert curve(port, "loss", "a-run", "loss") == ([1, 2], [10.0, 5.0])
    assert curve(port, "test_accuracy", "a-run", "LFW") == ([2], [0.9])
    assert curve(port, "test_accuracy", "a-run", "CFP-FP") == ([2], [0.8])
    metrics.add({"iteration": 3, "loss": 2.0, "accuracy": 0.5, "learning_rate": 0.01})
    curves.update()
    curves.close()
    assert curve(port, "loss", "a-run", "loss") == ([1, 2, 3], [10.0, 5.0, 2.0])
    assert curve(port, "accuracy", "a-run", "accuracy") == ([1, 2, 3], [0.1, 0.1, 0.5])
    assert curve(port, "learning_rate", "a-run", "learning_rate") == ([1, 2, 3], [0.1, 0.1, 0.01])


def test_a_server_started_late_gets_everything_and_the_log_said_how_once(start, capsys):
    port = free_port()
    metrics = metrics_of_a_run()
    curves = watch_in_visdom(port, "late", metrics)
    for _ in range(3):
        curves.update()
        time.sleep(0.3)
    start(port)
    curves.update()
    curves.close()
    assert curve(port, "loss", "late", "loss") == ([1, 2], [10.0, 5.0])
    said = capsys.readouterr().out
    assert said.count(f"python -m visdom.server -port {port}") == 1
    assert "first start downloads" in said  # which it can't everywhere
    assert said.count("--use_tensorboard") == said.count("--use_wandb") == 1


def test_killing_the_server_in_mid_training_does_not_disturb_the_run(start, tiny_faces, tmp_path):
    port = free_port()
    server = start(port)
    flags = [*tiny_faces.flags, "--use_visdom", "--visdom_port", port, "--save_dir", tmp_path]
    # Long enough for the server to die in the middle of it.
    flags += ["--total_epoch", "120", "--milestones=", "--test_freq", "1000", "--save_freq", "1000"]
    run = start_script("Train.py", *flags)
    (folder,) = wait_for(lambda: list(tmp_path.glob("SmallNet*")))
    environment = folder.name.replace("_", "-")
    wait_for(lambda: curve(port, "loss", environment, "loss"))
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    assert run.poll() is None, "training was over before the server died"
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    assert "Traceback" not in out + err
    assert out.count("python -m visdom.server") == 1
    assert "Trained 360 iterations" in out


def test_a_bug_in_the_figures_is_not_taken_for_a_server_that_is_away():
    metrics = metrics_of_a_run()
    del metrics.rows[0]["iteration"]
    curves = watch_in_visdom(free_port(), "bug", metrics)
    with pytest.raises(KeyError, match="iteration"):
        curves.update()


class Hangs(BaseHTTPRequestHandler):
    """A server that does not answer its first request; then it takes figures, as Visdom does."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        if len(self.server.asked) == 1:
            self.server.end.wait()
            return
        answer = body.get("win", "").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass


def test_a_server_that_hung_is_told_once_and_gets_everything_later(capsys, monkeypatch):
    monkeypatch.setattr(places, "_PATIENCE", 0.3)
    with ThreadingHTTPServer(("localhost", 0), Hangs) as server:
        server.asked, server.end = [], threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        watcher = watch_in_visdom(server.server_port, "hung", metrics_of_a_run())
        watcher.update()
        wait_for(lambda: "can't be reached" in capsys.readouterr().out)
        watcher.update()
        watcher.close()
        server.end.set()
        server.shutdown()
    windows = {body["win"] for body in server.asked if "win" in body}
    assert windows == {"loss", "accuracy", "learning_rate", "test_accuracy"}
    assert not capsys.readouterr().out


def test_a_place_that_hangs_does_not_hold_up_the_run_and_the_end_says_so(capsys):
    class Hanging(VisdomServer):
        seconds = 0.1

        def send(self, windows, tests):
            threading.Event().wait()

    place = Hanging("http://localhost", 8097, "hangs")
    watcher = Watcher(place, metrics_of_a_run(), open_log(None))
    watcher.update()
    watcher.update()
    assert not capsys.readouterr().out
    watcher.close()
    text = "Visdom at http://localhost:8097 did not take the last figures within 0.1 s"
    assert capsys.readouterr().out.count(text) == 1


def test_para_adj_mode_writes_nothing_to_watch_and_says_so(capsys):
    config = Config(use_visdom=False, use_tensorboard=True, use_wandb=True)
    watchers = Watchers(config, None, metrics_of_a_run(), 0, open_log(None))
    watchers.update()
    watchers.close()
    said = capsys.readouterr().out
    for switch in ("use_tensorboard", "use_wandb"):
        assert f"{switch} has no effect: para_adj_mode writes no files" in said


def needs_tensorboard() -> None:
    pytest.importorskip("tensorboard", reason="make extras installs TensorBoard")


def read_events(run: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = {"scalars": 0, "histograms": 0, "images": 0}
    return EventAccumulator(str(run), everything).Reload()


def scalars(run: Path, tag: str) -> tuple[list, list]:
    events = read_events(run).Scalars(tag)
    return [event.step for event in events], [event.value for event in events]


def test_tensorboard_gets_the_figures_of_metrics_csv_and_the_scores(tiny_faces, tmp_path):
    needs_tensorboard()
    flags = (*tiny_faces.flags, "--use_tensorboard", "--save_dir", tmp_path)
    run_script("Train.py", *flags, check=True, painted=True)
    (run,) = tmp_path.iterdir()
    rows = read_rows(run / "metrics.csv")
    for name in ("loss", "accuracy", "learning_rate", "test_accuracy_LFW"):
        iterations, values = series(rows, name.removeprefix("test_accuracy_"))
        assert scalars(run, f"curves/{name}") == (iterations, pytest.approx(values))
    events = read_events(run)
    for kind in ("matched", "mismatched"):
        last = events.Histograms(f"scores/LFW_{kind}")[-1]
        assert last.step == 9
        assert last.histogram_value.num == 6  # of the 12 pairs
        assert -1 <= last.histogram_value.min <= last.histogram_value.max <= 1
    for picture in ("scores", "worst_pairs"):
        last = events.Images(f"pictures/LFW_{picture}")[-1]
        assert (last.step, last.encoded_image_string[1:4]) == (9, b"PNG")


def test_a_resumed_run_continues_its_event_files_without_doubled_points(tmp_path):
    needs_tensorboard()
    run = RunFolder(tmp_path)

    def train(start: int, end: int, loss: float, metrics: Metrics) -> None:
        watcher = Watcher(EventFiles(run, Config(), metrics, start), metrics, open_log(None))
        for iteration in range(start + 1, end + 1):
            metrics.add({"iteration": iteration, "loss": loss})
            watcher.update()
        watcher.close()

    metrics = Metrics(run.metrics, [])
    metrics.start()
    train(0, 6, 2.0, metrics)
    resumed = Metrics(run.metrics, [])
    resumed.start(4)  # the last checkpoint: iterations 5 and 6 are trained again
    train(4, 5, 1.0, resumed)
    assert scalars(tmp_path, "curves/loss") == ([1, 2, 3, 4, 5], [2, 2, 2, 2, 1])


def test_event_files_that_cannot_be_written_do_not_end_the_run(tmp_path, capsys):
    needs_tensorboard()
    run = RunFolder(tmp_path / "run")
    run.path.write_text("a file where the run's folder should be")
    metrics = metrics_of_a_run()
    watcher = Watcher(EventFiles(run, Config(), metrics, 0), metrics, open_log(None))
    watcher.update()
    watcher.close()
    assert capsys.readouterr().out.count("event files can't be written") == 1


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_before_training(package, tmp_path):
    (tmp_path / package).mkdir()  # as W&B makes where it runs; it is not the package
    program = f"""
import sys
from Config import Config, validate
from Utils.errors import run_script
sys.path[:] = [{str(tmp_path)!r}]
run_script(lambda: validate(Config(use_{package}=True)))
"""
    done = run_script("-c", program)
    assert_one_paragraph(done, f"use_{package}", f"python -m pip install {package}", "make extras")


def test_wandb_offline_has_the_figures_of_metrics_csv(tiny_faces, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="make extras installs W&B")
    program = """
import os, runpy, sys
os.environ |= {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
sys.argv = ["Train.py", *sys.argv[1:]]
runpy.run_path("Train.py", run_name="__main__")
"""
    flags = [*tiny_faces.flags, "--use_wandb", "--save_dir", tmp_path]
    run_script("-c", program, *flags, check=True, painted=True)
    (run,) = tmp_path.iterdir()
    (record,) = run.glob("wandb/offline-run-*/*.wandb")
    history = {}
    for row in wandb_history(record):
        history |= {(row["_step"], name): value for name, value in row.items()}
    rows = read_rows(run / "metrics.csv")
    for column, name in {"loss": "curves/loss", "LFW": "curves/test_accuracy_LFW"}.items():
        written = {step: value for (step, of), value in history.items() if of == name}
        iterations, values = series(rows, column)
        assert written == dict(zip(iterations, values, strict=True))
    assert list(run.glob("wandb/offline-run-*/files/media/images/pictures/LFW_worst_pairs_*.png"))


def wandb_history(path: Path):
    """The rows of a .wandb file: seven bytes, then LevelDB's log format of Record messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, block, place, message = path.read_bytes(), 32768, 7, b""
    while place + 7 <= len(data):
        left = block - place % block
        if left < 7:  # no header fits into the rest of the block
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        message += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record, message = Record.FromString(message), b""
            yield from [items_of(record.history)] if record.HasField("history") else []


def items_of(history) -> dict:
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in history.item
    }
