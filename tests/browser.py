"""Servers and their pages in headless Chromium, for tests; and the files of Visdom's page.

Chromium is asked through its DevTools protocol, which is JSON over a WebSocket.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import websocket

# The files that `python -m visdom.server` downloads, by package of the npm registry: in the
# package, and in Visdom's folder `static`. visdom/server/build.py has their versions.
_GLYPHS = "fonts/glyphicons-halflings-regular"
_MATHJAX = (
    *("MathJax.js", "config/Safe.js", "config/TeX-AMS-MML_HTMLorMML.js", "extensions/Safe.js"),
    *("jax/output/SVG/jax.js", "jax/output/SVG/config.js"),
    *(f"jax/output/SVG/fonts/TeX/{name}" for name in ("fontdata.js", "Size1/Regular/Main.js")),
)
VISDOM_FILES = {
    "jquery@3.1.1": {"dist/jquery.min.js": "js/jquery.min.js"},
    "bootstrap@3.3.7": {
        "dist/js/bootstrap.min.js": "js/bootstrap.min.js",
        "dist/css/bootstrap.min.css": "css/bootstrap.min.css",
        **{f"dist/{_GLYPHS}.{end}": f"{_GLYPHS}.{end}" for end in ("eot", "woff2", "woff", "ttf")},
        f"dist/{_GLYPHS}.svg": f"{_GLYPHS}.svg#glyphicons_halflingsregular",
    },
    "react@16.2.0": {"umd/react.production.min.js": "js/react-react.min.js"},
    "react-dom@16.2.0": {"umd/react-dom.production.min.js": "js/react-dom.min.js"},
    "react-modal@3.1.10": {"dist/react-modal.min.js": "js/react-modal.min.js"},
    "plotly.js-dist-min@2.11.1": {"plotly.min.js": "js/plotly-plotly.min.js"},
    "sjcl@1.0.7": {"sjcl.js": "js/sjcl.js"},
    "layout-bin-packer@1.4.0": {
        "dist/layout-bin-packer.js": "js/layout_bin_packer.js",
        "dist/layout-bin-packer.js.map": "js/layout-bin-packer.js.map",
    },
    "d3@3.5.17": {"d3.min.js": "js/d3.v3.min.js"},
    "d3-selection-multi@1.0.1": {"build/d3-selection-multi.js": "js/d3-selection-multi.v1.js"},
    "save-svg-as-png@1.4.17": {"lib/saveSvgAsPng.js": "js/saveSvgAsPng.js"},
    "react-resizable@1.4.6": {"css/styles.css": "css/react-resizable-styles.css"},
    "react-grid-layout@0.16.3": {"css/styles.css": "css/react-grid-layout-styles.css"},
    "classnames@2.2.5": {"index.js": "fonts/classnames"},
    "mathjax@2.7.5": {name: f"js/mathjax/2.7.5/{name}" for name in _MATHJAX},
}


def lay_visdom_files(static: Path, work: Path) -> None:
    """Put the files of Visdom's page into its folder `static`; skips the test where npm can't.

    work: a folder for the packages.
    """
    if not shutil.which("npm"):
        pytest.skip("npm is not installed; it brings the files of Visdom's page")
    command = ["npm", "pack", "--silent", "--ignore-scripts", "--prefer-offline", *VISDOM_FILES]
    packed = subprocess.run(command, cwd=work, capture_output=True, text=True)
    if packed.returncode:
        pytest.skip(f"npm can't bring the files of Visdom's page: {packed.stderr.strip()}")
    for package, files in VISDOM_FILES.items():
        with tarfile.open(work / f"{package.replace('@', '-')}.tgz") as archive:
            for inside, outside in files.items():
                path = static / outside
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.extractfile(f"package/{inside}").read())


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    """The first value of what() that is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := what():
            return value
        time.sleep(0.1)
    raise AssertionError("it did not happen")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def listens(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


class Browser:
    """Headless Chromium with one page. folder: a new one, for its files. height: in pixels; what
    is below may not be drawn. Skips the test where Chromium is missing."""

    def __init__(self, folder: Path, height: int = 1100) -> None:
        program = shutil.which("chromium") or shutil.which("chromium-browser")
        if not program:
            pytest.skip("Chromium is not installed; the page is looked at in it")
        flags = (
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            "--disable-3d-apis",  # then TensorBoard draws lines as elements of the page
            *("--remote-debugging-port=0", f"--window-size=1500,{height}"),
            f"--user-data-dir={folder}",
        )
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([program, *flags, "about:blank"], **silent)
        address = folder / "DevToolsActivePort"
        port = wait_for(lambda: address.exists() and address.read_text()).splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            (page,) = [found for found in json.load(answer) if found["type"] == "page"]
        url = page["webSocketDebuggerUrl"]
        self._socket = websocket.create_connection(url, timeout=60, suppress_origin=True)
        self._asked = 0

    def open(self, url: str) -> None:
        self._ask("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; None where it fails."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        """The texts of the elements of a CSS selector, in their order."""
        found = f"[...document.querySelectorAll({selector!r})]"
        return self.value(f"{found}.map(element => element.textContent.trim())") or []

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._asked += 1
        question = {"id": self._asked, "method": method, "params": params}
        self._socket.send(json.dumps(question))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._asked:
                return answer["result"]
