"""The log of a run: lines on the screen, between the progress bar's redraws, and in train.log.

What can't be written in the encoding of either, such as a file name that is not UTF-8, is written
as an escape like \\udce9.
"""

import logging
import sys
from pathlib import Path

from tqdm import tqdm


class _Screen(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        tqdm.write(record.getMessage().encode(encoding, "backslashreplace").decode(encoding))


def open_log(path: Path | None, screen: bool = True) -> logging.Logger:
    """A logger to the screen, if wanted, and, unless path is None, to the end of a file.

    `info` goes to both, `debug` to the file alone. Each run has its own, outside logging's global
    registry: two runs in one process do not write into each other's file.
    """
    log = logging.Logger("training", logging.DEBUG)
    if screen:
        log.addHandler(_Screen(logging.INFO))
    if path is not None:
        file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(file)
    return log


def close_log(log: logging.Logger) -> None:
    """Close the log's file."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
