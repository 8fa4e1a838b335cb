"""Researcher code that asks the kernel for more than training needs.

Each request is made in a sandbox whose other layers stand but which has no filter of system
calls, then in a whole one. Numbers of system calls are x86_64's.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from errno import EACCES, EAFNOSUPPORT, EINVAL, ENOMEM, ENOSYS, EPERM
from pathlib import Path

import pytest

from consilia.node import landlock
from consilia.node.launcher import Bubblewrap, Launcher, PlainProcess
from sandboxkit import CALL, HONEST, broken, escaped, honest, needs_bubblewrap
from workkit import plan, site, table

pytestmark = [
    needs_bubblewrap,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64"),
]

# what is tried (Python, after sandboxkit.CALL), and the answer that is right
_BUFFER = "ctypes.create_string_buffer(256)"
_IOVEC = "ctypes.create_string_buffer(struct.pack('QQ', ctypes.addressof(word), 8))"
REFUSED: Mapping[str, tuple[str, int]] = {
    # other processes
    "ptrace": ("call(101, 0, 0, 0, 0)", ENOSYS),
    "process_vm_readv": (
        f"call(310, os.getpid(), {_IOVEC}, 1, {_IOVEC}, 1, 0)",
        ENOSYS,
    ),
    "process_vm_writev": (
        f"call(311, os.getpid(), {_IOVEC}, 1, {_IOVEC}, 1, 0)",
        ENOSYS,
    ),
    "kcmp": ("call(312, os.getpid(), os.getpid(), 0, 0, 1)", ENOSYS),
    "pidfd_open": ("call(434, os.getpid(), 0)", ENOSYS),
    "pidfd_getfd": ("call(438, 0, 0, 0)", ENOSYS),
    "limits of another": (f"call(302, 1, 7, 0, {_BUFFER})", EPERM),
    # namespaces and mounts
    "unshare": ("call(272, 0x400)", ENOSYS),
    "setns": ("call(308, os.open('/proc/self/ns/uts', 0), 0)", ENOSYS),
    "clone with a user namespace": ("call(56, 0x10000011, 0, 0, 0, 0)", EPERM),
    "clone with a network": ("call(56, 0x40000011, 0, 0, 0, 0)", EPERM),
    "clone3": ("call(435, 0, 0)", ENOSYS),
    "mount": ("call(165, b'none', b'/tmp', b'tmpfs', 0, 0)", ENOSYS),
    "umount": ("call(166, b'/tmp', 2)", ENOSYS),
    "open_tree": ("call(428, -100, b'/tmp', 0)", ENOSYS),
    "fsopen": ("call(430, b'tmpfs', 0)", ENOSYS),
    "pivot_root": ("call(155, b'/tmp', b'/tmp')", ENOSYS),
    "chroot": ("call(161, b'/tmp')", ENOSYS),
    # doors that were used to break out of containers
    "io_uring": (f"call(425, 4, {_BUFFER})", ENOSYS),
    "userfaultfd": ("call(323, 1)", ENOSYS),
    "bpf": (f"call(321, 0, {_BUFFER}, 72)", ENOSYS),
    "perf_event_open": (f"call(298, {_BUFFER}, 0, -1, -1, 0)", ENOSYS),
    "add_key": ("call(248, b'user', b'k', b'v', 1, -4)", ENOSYS),
    "request_key": ("call(249, b'user', b'k', 0, 0)", ENOSYS),
    "keyctl": ("call(250, 0, -4, 1)", EPERM),
    "name_to_handle_at": (
        "call(303, -100, b'/tmp', struct_handle, ctypes.create_string_buffer(8), 0)",
        ENOSYS,
    ),
    "open_by_handle_at": (f"call(304, 3, {_BUFFER}, 0)", ENOSYS),
    "splice": ("call(275, pipe[0], 0, pipe[1], 0, 0, 0)", ENOSYS),
    "vmsplice": (f"call(278, pipe[1], {_IOVEC}, 1, 0)", ENOSYS),
    "personality": ("call(135, 0x0040000)", EPERM),
    "modify_ldt": (f"call(154, 0, {_BUFFER}, 256)", ENOSYS),
    "fanotify": ("call(300, 0, 0)", ENOSYS),
    "inotify": ("call(294, 0)", ENOSYS),
    "typing into a terminal": ("call(16, 0, 0x5412, b'x')", EPERM),
    "typing, upper half set": ("call(16, 0, 0xffffffff00005412, b'x')", EPERM),
    "a call of the future": ("call(4000)", ENOSYS),
    # the machine
    "kexec_load": ("call(246, 0, 0, 0, 0)", ENOSYS),
    "init_module": ("call(175, 0, 0, b'')", ENOSYS),
    "reboot": ("call(169, 0, 0, 0, 0)", ENOSYS),
    "swapon": ("call(167, b'/tmp', 0)", ENOSYS),
    "syslog": (f"call(103, 3, {_BUFFER}, 10)", ENOSYS),
    "settimeofday": (f"call(164, {_BUFFER}, 0)", ENOSYS),
    "sethostname": ("call(170, b'x', 1)", ENOSYS),
    "setuid": ("call(105, 65534)", ENOSYS),
    "iopl": ("call(172, 3)", ENOSYS),
    "sync": ("call(162)", ENOSYS),
    # memory that belongs to nobody who is looked at
    "memfd_create": ("call(319, b'x', 0)", ENOSYS),
    "memfd_secret": ("call(447, 0)", ENOSYS),
    "System V memory": ("call(29, 0, 4096, 0o1600)", ENOSYS),
    "System V messages": ("call(68, 0, 0o1600)", ENOSYS),
    "POSIX messages": ("call(240, b'x', 0o102, 0o600, 0)", ENOSYS),
    "shared anonymous memory": ("mmap.mmap(-1, 4096)", EPERM),
    "huge pages": ("mmap.mmap(-1, 2 << 20, flags=0x40022)", ENOMEM),
    "a writable /dev/zero": ("os.open('/dev/zero', os.O_RDWR)", EACCES),
    # loosening the sandbox itself
    "seccomp": (f"call(317, 1, 0, {_BUFFER})", ENOSYS),
    "another filter": ("prctl(22, 2, 0)", EINVAL),
    "hiding from the agent": ("prctl(4, 0)", EINVAL),
    **{
        f"socket {family} of type {kind}": (f"socket.socket({family}, {kind})", EAFNOSUPPORT)
        for family, kind in (
            (2, 1),
            (2, 2),
            (2, 3),
            (10, 1),
            (16, 3),
            (17, 3),
            (38, 5),
            (40, 1),
        )
    },
}
# these do work without the filter, on any kernel that has them: the requests are well made
WORK_WITHOUT = (
    "ptrace",
    "process_vm_readv",
    "pidfd_open",
    "unshare",
    "open_tree",
    "io_uring",
    "add_key",
    "name_to_handle_at",
    "vmsplice",
    "personality",
    "inotify",
    "memfd_create",
    "System V memory",
    "System V messages",
    "shared anonymous memory",
    "hiding from the agent",
    "socket 2 of type 1",
    "socket 2 of type 2",
    "socket 10 of type 1",
    "socket 16 of type 3",
)

TRY = (
    CALL
    + """
import json, mmap, socket, struct
word = ctypes.create_string_buffer(8)
struct_handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128), 136)
pipe = os.pipe()
os.write(pipe[1], b"x")
def prctl(option, *arguments):
    if libc.prctl(option, *map(ctypes.c_ulong, arguments), 0, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def train(weights, data, args, context):
    found = {}
    for name, request in json.loads(args["s"]).items():
        child = os.fork()  # a request that works may change the process that made it
        if child == 0:
            try:
                eval(request)
                code = 0
            except OSError as error:
                code = error.errno
            os._exit(code)
        found[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("ANSWERS", json.dumps(found))
    return {"tried": len(found)}
"""
)


async def answers(directory: Path, launcher: Launcher) -> dict[str, int]:
    """Make every request in a sandbox of `launcher`; return the errors, 0 for success."""
    directory.mkdir()
    async with site(directory / "node", launcher) as here:
        dataset = table(directory / "cohort.csv")
        model = await here.init(HONEST, job="honest")
        requests = json.dumps({name: request for name, (request, _) in REFUSED.items()})
        done, _ = await here.train(
            plan(TRY), dataset, model, arguments={"s": requests}, job="attack"
        )
        assert done.metrics == {"tried": len(REFUSED)}
        await honest(here, directory, model)
    log = (directory / "node" / "log" / "jobs" / "attack.log").read_text()
    said = next(line for line in log.splitlines() if " plan: ANSWERS " in line)
    found: dict[str, int] = json.loads(said.partition("ANSWERS ")[2])
    return found


async def test_every_request_is_refused(tmp_path: Path) -> None:
    found = await answers(tmp_path / "whole", Bubblewrap())
    expected = {name: error for name, (_, error) in REFUSED.items()}
    if not landlock.version():
        expected["a writable /dev/zero"] = 0  # Landlock's part
    assert found == expected


async def test_the_requests_are_well_made(tmp_path: Path) -> None:
    found = await answers(tmp_path / "open", Bubblewrap(filtered=False, landlocked=False))
    assert [name for name in WORK_WITHOUT if found[name] not in (0, ENOSYS)] == []
    assert sum(found[name] == 0 for name in WORK_WITHOUT) > len(WORK_WITHOUT) // 2


@pytest.mark.parametrize(
    "request_",
    [
        "call(0x40000000 + 39)",  # getpid of x32
        "ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(old))()",  # getpid of i386
    ],
)
async def test_another_mode_of_the_processor_kills(tmp_path: Path, request_: str) -> None:
    """System calls have other numbers there: a filter that let them by would be none."""
    body = (
        CALL
        + f"""
import mmap, signal
page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
page.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20; int 0x80; ret
old = ctypes.c_char.from_buffer(page)
def train(weights, data, args, context):
    child = os.fork()
    if child == 0:
        try:
            {request_}
        except OSError as error:  # a kernel without this mode
            print(error)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != -signal.SIGSYS:
        return {{"status": status}}
    {request_}
"""
    )
    cause, _ = await broken(tmp_path, body)
    assert cause == "crashed"
    async with site(tmp_path / "open", Bubblewrap(filtered=False)) as here:
        dataset = table(tmp_path / "cohort.csv")
        model = await here.init(HONEST)
        done, _ = await here.train(plan(body), dataset, model)
        assert done.metrics["status"] in (0, -signal.SIGSEGV)  # or a kernel without the mode


@pytest.fixture
def ticket() -> Iterator[str]:
    """A key in the session keyring of this process, as a login's ticket lies there."""
    kernel, session = ctypes.CDLL(None), ctypes.c_int(-3)
    key = kernel.syscall(248, b"user", b"consilia-test", b"ticket", 6, session)
    if key < 0:
        pytest.skip("no keyrings here")
    yield "consilia-test"
    found = kernel.syscall(250, 10, session, b"user", b"consilia-test", 0)
    kernel.syscall(250, 9, key, session)
    assert found == key, "the agent lost its own keyring"


async def test_keys_of_the_agents_session(tmp_path: Path, ticket: str) -> None:
    """Session keyrings pass through namespaces: a login's tickets must not reach a worker.

    The filter forbids to look; without it there is nothing to be seen.
    """
    body = """
import ctypes
def escape(name):
    return ctypes.CDLL(None).syscall(250, 10, ctypes.c_int(-3), b"user", name.encode(), 0) > 0
"""
    inherits = [sys.executable, "-c", f"{body}\nprint(escape('{ticket}'))"]
    assert subprocess.check_output(inherits) == b"True\n", "the attack itself is wrong"
    for launcher in (PlainProcess(), Bubblewrap(filtered=False), Bubblewrap()):
        assert not await escaped(tmp_path, launcher, body, ticket)
