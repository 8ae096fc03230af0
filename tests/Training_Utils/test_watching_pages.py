"""The pages on which people watch a run, in a real browser: every curve, titled, with legends."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser import Browser, free_port, lay_visdom_files, listens, wait_for
from tests.processes import run_script
from Utils.Training_Utils.reports.figures import read_rows, series


def screenshot(page: Browser, name: str, folder: Path) -> None:
    """Keeps the picture where FACE_TEST_PICTURES names a folder, for people to look at."""
    path = Path(os.environ.get("FACE_TEST_PICTURES") or folder, name)
    page.screenshot(path)
    assert path.stat().st_size > 10_000


@pytest.fixture
def open_page(tmp_path):
    """Opens an address in a browser, which is closed with the test."""
    opened = []

    def go(url: str, height: int) -> Browser:
        opened.append(Browser(tmp_path / "chromium", height))
        opened[0].open(url)
        return opened[0]

    yield go
    for browser in opened:
        browser.close()


def start_server(*words: object, **environment: str) -> subprocess.Popen:
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-m", *map(str, words)]
    return subprocess.Popen(command, env={**os.environ, **environment}, **silent)


def test_the_page_of_visdom_shows_every_curve(tiny_faces, tmp_path, open_page):
    # Visdom as it is on a machine without internet, where its page's files were laid in place.
    package = Path(importlib.util.find_spec("visdom").origin).parent
    visdom = tmp_path / "packages/visdom"
    shutil.copytree(package, visdom)
    lay_visdom_files(visdom / "static", tmp_path)
    (visdom / "static/version.built").write_text((package / "VERSION").read_text().strip())
    port, nowhere = free_port(), "http://127.0.0.1:9"
    environment = {"PYTHONPATH": str(visdom.parent), "http_proxy": nowhere, "https_proxy": nowhere}
    words = ("visdom.server", "-port", port, "-env_path", tmp_path / "environments")
    server = start_server(*words, **environment)
    try:
        wait_for(lambda: listens(port))
        flags = (*tiny_faces.flags, "--use_visdom", "--visdom_port", port)
        run_script("Train.py", *flags, "--save_dir", tmp_path / "runs", check=True)
        (run,) = (tmp_path / "runs").iterdir()
        page = open_page(f"http://localhost:{port}/env/{run.name.replace('_', '-')}", 1000)
        wait_for(lambda: len(page.texts(".scatterlayer .trace")) == 4)
        screenshot(page, "visdom.png", tmp_path)
        plots = "[...document.querySelectorAll('.js-plotly-plot')]"
        top = "p.querySelector('.gtitle').getBoundingClientRect().top"
        bottom = "p.querySelector('.modebar').getBoundingClientRect().bottom"
        assert page.value(f"{plots}.map(p => {top} > {bottom})") == [True] * 4  # no title is hidden
    finally:
        server.kill()
        server.wait()
    titles = {"loss", "accuracy", "learning rate", "test accuracy"}
    assert set(page.texts(".gtitle")) == titles
    assert page.texts(".xtitle") == ["iteration"] * 4
    assert page.texts(".legendtext") == ["LFW"]
    drawn = page.value(f"{plots}.flatMap(p => p.data.map(d => [d.name, [d.x, d.y]]))")
    rows = read_rows(run / "metrics.csv")
    columns = ("loss", "accuracy", "learning_rate", "LFW")
    assert dict(drawn) == {name: list(series(rows, name)) for name in columns}


def test_the_page_of_tensorboard_shows_every_curve_and_picture(tiny_faces, tmp_path, open_page):
    pytest.importorskip("tensorboard", reason="make extras installs TensorBoard")
    runs = tmp_path / "runs"
    flags = (*tiny_faces.flags, "--use_tensorboard", "--save_dir", runs)
    run_script("Train.py", *flags, check=True, painted=True)
    port = free_port()
    words = ("--logdir", runs, "--port", port, "--load_fast", "false")
    server = start_server("tensorboard.main", *words)
    try:
        wait_for(lambda: listens(port))
        page = open_page(f"http://localhost:{port}/#timeseries", 1700)
        shown = {"curves/loss", "curves/accuracy", "curves/learning_rate"}
        shown |= {"curves/test_accuracy_LFW", "pictures/LFW_scores", "pictures/LFW_worst_pairs"}
        wait_for(lambda: set(page.texts("card-view .tag")) == shown)
        wait_for(lambda: len(page.texts("scalar-card tb-data-table")) == 4)
        # Two lines each, one of them smoothed, with a point for each row of metrics.csv.
        lines = "[...document.querySelectorAll('scalar-card .series-view svg path')]"
        points = f"{lines}.map(line => line.getAttribute('d').split('L').length)"
        wait_for(lambda: page.value(points) == [5, 5] * 3 + [3, 3])
        legends = page.texts("scalar-card tb-data-table")
        wait_for(lambda: page.value("document.querySelector('image-card img').naturalWidth"))
        screenshot(page, "tensorboard.png", tmp_path)
    finally:
        server.kill()
        server.wait()
    (run,) = runs.iterdir()
    assert all(run.name in legend for legend in legends)
