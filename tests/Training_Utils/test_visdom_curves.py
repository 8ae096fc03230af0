"""Live curves in a real Visdom server: they arrive, and a dead server does not disturb a run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.processes import start_script
from Utils.Training_Utils.reports.curves import VisdomCurves
from Utils.Training_Utils.reports.figures import Metrics
from Utils.Training_Utils.reports.progress import open_log

# base_url as visdom's own command line gives it.
SERVER = """
from visdom.server.run_server import start_server
start_server({port}, base_url="", env_path={path!r})
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ask(port: int, window: str, environment: str) -> dict | None:
    """The data of a window as the server holds it; None where it has none."""
    body = json.dumps({"win": window, "eid": environment}).encode()
    url = f"http://localhost:{port}/win_data"
    try:
        with urllib.request.urlopen(url, data=body, timeout=5) as answer:
            return json.loads(answer.read()) or None
    except (OSError, ValueError):
        return None


def wait_for(what, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := what():
            return value
        time.sleep(0.1)
    raise AssertionError("it did not happen")


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
        wait_for(lambda: _listens(port))
        return process

    yield go
    for process in started:
        process.kill()
        process.wait()


def _listens(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


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


def test_every_curve_arrives_and_grows(start):
    port = free_port()
    start(port)
    metrics = metrics_of_a_run()
    curves = VisdomCurves("http://localhost", port, "a_run", metrics, open_log(None))
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
    curves = VisdomCurves("http://localhost", port, "late", metrics, open_log(None))
    for _ in range(3):
        curves.update()
        time.sleep(0.3)
    start(port)
    curves.update()
    curves.close()
    assert curve(port, "loss", "late", "loss") == ([1, 2], [10.0, 5.0])
    assert capsys.readouterr().out.count(f"python -m visdom.server -port {port}") == 1


def test_killing_the_server_in_mid_training_does_not_disturb_the_run(start, tiny_faces, tmp_path):
    port = free_port()
    server = start(port)
    flags = [*tiny_faces.flags, "--use_visdom", "--visdom_port", port, "--save_dir", tmp_path]
    # Long enough for the server to die in the middle of it.
    flags += ["--total_epoch", "40", "--milestones=", "--test_freq", "1000", "--save_freq", "1000"]
    run = start_script("Train.py", *flags)
    (folder,) = wait_for(lambda: list(tmp_path.glob("MobileFaceNet*")))
    environment = folder.name.replace("_", "-")
    wait_for(lambda: curve(port, "loss", environment, "loss"))
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    assert run.poll() is None, "training was over before the server died"
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    assert "Traceback" not in out + err
    assert out.count("python -m visdom.server") == 1
    assert "Trained 120 iterations" in out


def test_a_bug_in_the_figures_is_not_taken_for_a_server_that_is_away():
    metrics = metrics_of_a_run()
    del metrics.rows[0]["iteration"]
    curves = VisdomCurves("http://localhost", free_port(), "bug", metrics, open_log(None))
    with pytest.raises(KeyError, match="iteration"):
        curves.update()
