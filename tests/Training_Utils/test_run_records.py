"""What a run writes about itself: its log and its figures, whole after names and kills."""

import io
import os
import sys

import pytest

from Utils.Training_Utils.reports.figures import Metrics
from Utils.Training_Utils.reports.progress import close_log, open_log


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_name_that_no_encoding_can_say_is_logged_as_an_escape(
    tmp_path, monkeypatch, capsys, encoding
):
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", screen)
    name = os.fsdecode(b"caf\xe9 \xc3\xa9.jpg")
    log = open_log(tmp_path / "train.log")
    log.info(f"{name} is left out")
    close_log(log)
    screen.flush()
    shown = screen.buffer.getvalue().decode(encoding)
    accent = "\u00e9" if encoding == "utf-8" else r"\xe9"
    assert shown.splitlines() == [rf"caf\udce9 {accent}.jpg is left out"]
    text = (tmp_path / "train.log").read_text(encoding="utf-8")
    assert text.endswith("caf\\udce9 \u00e9.jpg is left out\n")
    assert capsys.readouterr().err == ""  # where logging complains of its own failures


@pytest.mark.parametrize("cut", [1, 3, 30])
def test_a_row_cut_short_by_a_kill_is_dropped(tmp_path, cut):
    path = tmp_path / "metrics.csv"
    first = Metrics(path, ["LFW"])
    first.start()
    rows = [{"iteration": i, "epoch": 0, "loss": i / 8, "accuracy": 0.5} for i in (100, 200, 300)]
    rows.append({"iteration": 300, "LFW": 97.5})
    for row in rows:
        first.add(row)
    whole = path.read_bytes()
    again = Metrics(path, ["LFW"])
    again.start(300)
    assert again.rows == rows
    # One byte, and the line has no end; three, and 97.5 is 97; 30, and the row before is cut.
    path.write_bytes(whole[:-cut])
    again = Metrics(path, ["LFW"])
    again.start(300)
    assert again.rows == rows[: 2 if cut == 30 else 3]
    assert path.read_bytes() == b"".join(whole.splitlines(True)[: 1 + len(again.rows)])
