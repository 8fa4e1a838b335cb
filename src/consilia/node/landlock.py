"""Landlock: a process gives up, for good, what it does not need of files, TCP and signals.

The kernel's own list of what may be opened below which folder, set by a process for itself
and all it will start; no privilege is needed. It knows nothing of metadata: what a path's
size and dates are can still be asked. Called by system call number, which is the same on all
processors; the C library wraps none of these.

Source: the kernel's Documentation/userspace-api/landlock.rst.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Mapping

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_MAKE_SOCK, _MAKE_FIFO, _MAKE_SYM, _REFER = 1 << 9, 1 << 10, 1 << 12, 1 << 13
_FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

READ = READ_FILE | READ_DIR
RUN = READ | EXECUTE
DEVICE = READ_FILE | WRITE_FILE | IOCTL_DEV
# everything but programs, devices and device files
SCRATCH = (
    READ | WRITE_FILE | TRUNCATE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG
    | _MAKE_SOCK | _MAKE_FIFO | _MAKE_SYM | _REFER
)  # fmt: skip

# what each version of the interface added: rights on files, size of the attributes, and the
# kernel that brought it. A right that the kernel does not know is neither asked nor refused.
_FILES = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}
_TCP = 0b11  # bind and connect, from version 4
_SCOPES = 0b11  # abstract unix sockets and signals, from version 6
_ADDED = {
    3: "cutting files short (Linux 6.2)",
    4: "TCP (Linux 6.7)",
    5: "device controls (Linux 6.10)",
    6: "signals and abstract sockets (Linux 6.12)",
}
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_ASK_VERSION = 1
_PATH_BENEATH = 1
_NO_NEW_PRIVILEGES = 38  # prctl(2)


def version() -> int:
    """Return the version of Landlock that this kernel offers, 0 when it offers none."""
    try:
        return _call(_CREATE, None, 0, _ASK_VERSION)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            return 0  # not built in, switched off at boot, forbidden by a container's filter
        raise


def gaps(found: int) -> str:
    """Say what version `found` cannot restrict, "" when it covers all we ask for."""
    return ", ".join(text for since, text in _ADDED.items() if found < since)


def restrict(allowed: Mapping[str, int], found: int) -> None:
    """Give up all access to files but `allowed` (path to rights), TCP, and foreign signals.

    `found` is what `version` said. Paths that do not exist are passed over. The calling
    thread must be the process's only one: others would keep all their rights. Raises OSError.
    """
    if (threads := len(os.listdir("/proc/self/task"))) != 1:  # noqa: PTH208  names are enough
        raise OSError(errno.EBUSY, f"{threads} threads run; Landlock would bind only one")
    handled = _FILES[min(found, max(_FILES))]
    attributes = struct.pack("=Q", handled)
    if found >= 4:
        attributes += struct.pack("=Q", _TCP)
    if found >= 6:
        attributes += struct.pack("=Q", _SCOPES)
    ruleset = _call(_CREATE, attributes, len(attributes), 0)
    try:
        for path, rights in allowed.items():
            _allow(ruleset, path, rights & handled)
        _prctl(_NO_NEW_PRIVILEGES, 1)
        _call(_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if not os.path.isdir(path):  # noqa: PTH112  a descriptor's path, not a Path
            rights &= _FILE_RIGHTS
        rule = struct.pack("=Qi", rights, fd)
        _call(_ADD, ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(fd)


def _call(number: int, *arguments: int | bytes | None) -> int:
    """Make a system call; raise OSError when it fails."""
    kernel = ctypes.CDLL(None, use_errno=True)
    kernel.syscall.restype = ctypes.c_long
    wide = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    result: int = kernel.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _prctl(option: int, value: int) -> None:
    kernel = ctypes.CDLL(None, use_errno=True)
    if kernel.prctl(option, ctypes.c_ulong(value), *(ctypes.c_ulong(0),) * 3) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
