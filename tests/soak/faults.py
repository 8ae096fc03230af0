"""System calls that fail as those of a full disk, or of a strange file system, do.

A process asks the kernel to have some of its system calls decided by its parent (seccomp user
notification, `man 2 seccomp_unotify`): the parent lets them happen, or has them return an error.
That reaches every library, needs no rights, no compiler and no mount; Linux 5.5 or later.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import select
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

# Numbers of system calls: x86-64, arm64 (-1: it has none).
_NUMBERS = {
    "read": (0, 63),
    "pread64": (17, 67),
    "write": (1, 64),
    "pwrite64": (18, 68),
    "writev": (20, 66),
    "ftruncate": (77, 46),
    "fallocate": (285, 47),
    "sendfile": (40, 71),
    "copy_file_range": (326, 285),
    "fsync": (74, 82),
    "open": (2, -1),
    "openat": (257, 56),
    "mkdir": (83, -1),
    "mkdirat": (258, 34),
    "rename": (82, -1),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "link": (86, -1),
    "linkat": (265, 37),
    "symlink": (88, -1),
    "symlinkat": (266, 36),
}
READS = ("read", "pread64")
# What a full disk refuses: bytes, and new files and folders.
WRITES = ("write", "pwrite64", "writev", "fallocate", "sendfile", "copy_file_range")
MAKES = (*WRITES, "open", "openat", "mkdir", "mkdirat")
RENAMES = ("rename", "renameat", "renameat2")
LINKS = ("link", "linkat")
SYMLINKS = ("symlink", "symlinkat")

# Where the path is among the arguments of a call that takes one; a file descriptor is the first
# argument of the others, but of sendfile and copy_file_range.
_PATH_AT = {
    **{"open": 0, "openat": 1, "mkdir": 0, "mkdirat": 1, "rename": 1, "renameat": 3},
    **{"renameat2": 3, "link": 1, "linkat": 3, "symlink": 1, "symlinkat": 2},
}
_OPEN_AT = {"open": 1, "openat": 2}  # where the flags are
_TARGET_AT = {"copy_file_range": 2}

_MACHINES = {"x86_64": (0, 317), "aarch64": (1, 277)}  # column of _NUMBERS; number of seccomp
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTICE = struct.Struct("<QIIiIQ6Q")  # id, pid, flags, number, machine, place, arguments
_ANSWER = struct.Struct("<QqiI")  # id, value, error, flags
_GO_ON = 1


@dataclass(frozen=True)
class Fault:
    """Which calls fail, and how.

    calls: names in _NUMBERS. under: only for files whose path begins with this. error: the name of
    the errno. first: the number, from 1, of the first call that fails; 0: none does. times: how
    many fail from there on, -1: all of them. existing: only where the path exists, as renames fail
    on some file systems.
    """

    calls: tuple[str, ...] = ()
    under: str = ""
    error: str = "ENOSPC"
    first: int = 0
    times: int = -1
    existing: bool = False


# Memory that a broken process shares with its parent: the number of the fault, the calls counted
# since it was set, the length of its JSON, the JSON.
_HEAD = struct.Struct("<QQQ")
_shared: list[mmap.mmap] = []


def set_fault(fault: Fault) -> None:
    """In a broken process: from now on, this fault."""
    text = json.dumps(asdict(fault)).encode()
    number, _, _ = _HEAD.unpack_from(_shared[0])
    _shared[0][_HEAD.size : _HEAD.size + len(text)] = text
    _HEAD.pack_into(_shared[0], 0, number + 1, 0, len(text))


def counted() -> int:
    """In a broken process: how many calls the fault was about since it was set."""
    return _HEAD.unpack_from(_shared[0])[1]


def can_break() -> bool:
    """Whether this system can do it."""
    return sys.platform == "linux" and platform.machine() in _MACHINES


def broken(work: Callable[[], None], calls: Sequence[str]) -> None:
    """Do the work in a process of its own, which may `set_fault` for these calls, and decide them
    here; ends this process as that one does."""
    _shared[:] = [mmap.mmap(-1, 1 << 16)]
    set_fault(Fault())
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        handle = _install([_number(name) for name in calls if _number(name) >= 0])
        socket.send_fds(theirs, [b"x"], [handle])
        os.close(handle)
        work()
        return
    theirs.close()
    _, handles, _, _ = socket.recv_fds(ours, 1, 1)
    _decide(handles[0], {_number(name): name for name in calls})
    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)


def _number(name: str) -> int:
    return _NUMBERS[name][_MACHINES[platform.machine()][0]]


class _Step(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_ushort),
        ("yes", ctypes.c_ubyte),
        ("no", ctypes.c_ubyte),
        ("value", ctypes.c_uint),
    ]


class _Filter(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("steps", ctypes.POINTER(_Step))]


def _install(numbers: list[int]) -> int:
    """Have these calls of this process, and of those that it starts, decided by whoever reads from
    the file descriptor that is returned."""
    libc = ctypes.CDLL(None, use_errno=True)
    load, equal, end = 0x20, 0x15, 0x06
    steps = [_Step(load, 0, 0, 0)]
    steps += [_Step(equal, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    steps += [_Step(end, 0, 0, 0x7FFF0000), _Step(end, 0, 0, 0x7FC00000)]  # allow; ask
    held = (_Step * len(steps))(*steps)
    no_new_rights, set_filter, new_listener = 38, 1, 8
    if libc.prctl(no_new_rights, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    seccomp = _MACHINES[platform.machine()][1]
    about = ctypes.byref(_Filter(len(steps), held))
    handle = libc.syscall(seccomp, set_filter, new_listener, about)
    if handle < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return handle


def _decide(handle: int, names: dict[int, str]) -> None:
    """Answer all calls until the last process has ended."""
    number, fault = 0, Fault()
    while True:
        notice = bytearray(_NOTICE.size)
        try:
            fcntl.ioctl(handle, _RECEIVE, notice)
        except OSError as error:
            if error.errno != errno.EINTR and _ended(handle):
                return
            continue
        now, count, length = _HEAD.unpack_from(_shared[0])
        if now != number:
            values = json.loads(_shared[0][_HEAD.size : _HEAD.size + length])
            number, fault = now, Fault(**{**values, "calls": tuple(values["calls"])})
        id_, pid, _, call, _, _, *arguments = _NOTICE.unpack(notice)
        fails = names[call] in fault.calls and _is_meant(pid, names[call], arguments, fault)
        if fails:
            count += 1
            _HEAD.pack_into(_shared[0], 0, number, count, length)
            last = fault.first + fault.times if fault.times >= 0 else count + 1
            fails = 0 < fault.first <= count < last
        answer = (-getattr(errno, fault.error), 0) if fails else (0, _GO_ON)
        with suppress(OSError):  # the process may have been killed meanwhile
            fcntl.ioctl(handle, _SEND, bytearray(_ANSWER.pack(id_, 0, *answer)))


def _ended(handle: int) -> bool:
    """Whether no process has the filter any more."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def _is_meant(pid: int, name: str, arguments: list[int], fault: Fault) -> bool:
    try:
        if name in _OPEN_AT:
            flags = arguments[_OPEN_AT[name]]
            wants = flags & (os.O_WRONLY | os.O_RDWR)
            if bool(wants) == bool(READS[0] in fault.calls):
                return False
        if name in _PATH_AT:
            path = _path(pid, arguments[_PATH_AT[name]])
        else:
            path = os.readlink(f"/proc/{pid}/fd/{arguments[_TARGET_AT.get(name, 0)]}")
    except (OSError, ValueError):
        return False
    return path.startswith(fault.under) and (not fault.existing or os.path.lexists(path))


def _path(pid: int, place: int) -> str:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(place)
        found = memory.read(4096 - place % 4096)
        if b"\0" not in found:
            found += memory.read(4096)
    path = os.fsdecode(found.partition(b"\0")[0])
    return os.path.join(os.readlink(f"/proc/{pid}/cwd"), path)
