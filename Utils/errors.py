"""Exceptions for the user's mistakes, and `run_script`, which prints them as one paragraph."""

import errno
import io
import os
import re
import sys
import textwrap
from collections.abc import Callable

import torch

from Config.errors import UserError
from Utils.cpu import keep_freed_memory


class DataError(UserError, ValueError):
    """A data set, list or image that can't be used; the text names the file and the place in it."""


class CheckpointError(UserError, ValueError):
    """A checkpoint that can't be read, or that does not fit the run."""


class RunError(UserError, RuntimeError):
    """A run that can't start or continue: its folder can't be written, the loss is not finite."""


def first_line(error: BaseException) -> str:
    """An error's first line, at most 200 characters; its class's name where it has no text."""
    lines = str(error).strip().splitlines()
    return textwrap.shorten(lines[0], 200, placeholder=" ...") if lines else type(error).__name__


# A disk is full, a quota used up, a disk can't be written, or fails: never a bug of the program.
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


def run_script(main: Callable[[], None], keep_memory: bool = True) -> None:
    """Run a script's main and exit: a `UserError` is printed as one paragraph, without a traceback.

    Any other exception is a bug and keeps its traceback. Exit status: 0; 1 for an error; 130 after
    Ctrl-C. keep_memory: whether the process keeps the memory that it frees for its own next use,
    see `Utils.cpu`.
    """
    if keep_memory:
        keep_freed_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):
        if sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may not be UTF-8
        write = sys.stdout.write
        sys.stdout.write = lambda text: write(_printable(text))
    try:
        main()
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in _OF_DISKS:
            raise
        _fail(
            f"{error.filename or 'A file'} can't be written or read: {error.strerror}. What is "
            f"finished is kept: make space, or mend the disk, and give the same command again."
        )
    except torch.OutOfMemoryError as error:
        _fail(f"The device ran out of memory; a smaller batch_size needs less. ({error})")
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        sys.exit(130)


def _printable(text: str) -> str:
    """A text without control codes: names from a file may have those of a terminal."""
    if text.isprintable():
        return text
    # Blanks of any width, and bytes that are not UTF-8, which are printed as their numbers.
    return "".join(
        c
        for c in text
        if c.isprintable()
        or c in "\t\n\r\xa0"
        or "\u2000" <= c <= "\u200a"
        or c == "\u3000"
        or "\ud800" <= c <= "\udfff"
    )


def _fail(message: str) -> None:
    print_error(message)
    sys.exit(1)


def print_error(message: str) -> None:
    """Print what is said to the user as one paragraph."""
    message = _printable(message)
    # A command, between backquotes, stays in one line, to be copied.
    message = re.sub(r"`[^`]*`", lambda command: command[0].replace(" ", "\0"), message)
    paragraph = textwrap.fill(
        f"Error: {message}", width=100, break_long_words=False, break_on_hyphens=False
    ).replace("\0", " ")
    # Under torchrun the first process's progress bar may be in this line.
    begin = "\n" if int(os.environ.get("RANK", "0")) > 0 else ""
    print(f"{begin}{paragraph}", file=sys.stderr, flush=True)
