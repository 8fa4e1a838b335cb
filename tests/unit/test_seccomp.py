"""The filter of system calls, run by a second implementation of its machine."""

import os
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.node import seccomp
from consilia.node.syscalls import NUMBERS

ALLOW, KILL = 0x7FFF0000, 0x80000000
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PROGRAMS = {
    (machine, alone, cuda): seccomp.program(machine, alone=7 if alone else None, cuda=cuda)
    for machine in MACHINES
    for alone in (False, True)
    for cuda in (False, True)
}
EPERM, ENOMEM, EINVAL, ENOSYS, EAFNOSUPPORT = 1, 12, 22, 38, 97


def verdict(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """Run classic BPF over struct seccomp_data, as the kernel does; ERRNO as a plain number."""
    padded = [a & (1 << 64) - 1 for a in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, arch, 0, *padded)
    steps: list[tuple[int, int, int, int]] = list(struct.iter_unpack("=HBBI", program))
    at = loaded = 0
    while True:
        code, yes, no, k = steps[at]
        at += 1
        match code:
            case 0x20:
                (loaded,) = struct.unpack_from("<I", data, k)
            case 0x54:
                loaded &= k
            case 0x05:
                at += k
            case 0x15:
                at += yes if loaded == k else no
            case 0x35:
                at += yes if loaded >= k else no
            case 0x45:
                at += yes if loaded & k else no
            case 0x06:
                return k & 0xFFFF if k & 0xFFFF0000 == 0x00050000 else k
            case _:
                raise AssertionError(f"instruction {code:#x}")


def ask(
    machine: str, name: str, *arguments: int, alone: bool = False, cuda: bool = False
) -> int:
    program = PROGRAMS[machine, alone, cuda]
    return verdict(program, MACHINES[machine], NUMBERS[machine][name], *arguments)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("alone", [False, True])
def test_every_number_has_an_answer(machine: str, alone: bool) -> None:
    """Walks all jumps: none leaves the program, and what is not listed is unknown."""
    program = PROGRAMS[machine, alone, False]
    assert len(program) // 8 < 4096, "the kernel's limit"
    listed = {number: name for name, number in NUMBERS[machine].items()}
    for number in range(1024):
        answer = verdict(program, MACHINES[machine], number)
        if number not in listed:
            assert answer == ENOSYS, number
        else:
            assert answer in (ALLOW, EPERM, EINVAL, ENOSYS, EAFNOSUPPORT), listed[number]


@given(
    st.sampled_from(sorted(PROGRAMS)),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6),
)
def test_another_machines_calls_kill(
    chosen: tuple[str, bool, bool], arch: int, number: int, arguments: list[int]
) -> None:
    program, own = PROGRAMS[chosen], MACHINES[chosen[0]]
    answer = verdict(program, arch, number, *arguments)
    if arch != own:
        assert answer == KILL
    answer = verdict(program, own, number, *arguments)
    if chosen[0] == "x86_64" and number >= 0x40000000:
        assert answer == KILL
    elif number >= 1024:
        assert answer == ENOSYS


@given(st.integers(0, 2**64 - 1))
def test_no_thread_or_process_gets_a_namespace(flags: int) -> None:
    """For any flags: CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET."""
    namespaces = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000
    namespaces |= 0x10000000 | 0x20000000 | 0x40000000
    for machine in MACHINES:
        assert ask(machine, "clone", flags) == (EPERM if flags & namespaces else ALLOW)
        thread = ALLOW if flags & 0x10000 else EPERM
        assert ask(machine, "clone", flags, alone=True) == thread


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_sockets(family: int, kind: int, upper: int) -> None:
    """The upper half of an int argument is not looked at, by the kernel neither."""
    unix = family == 1
    high = family | upper << 32
    for machine in MACHINES:
        for name in ("socket", "socketpair"):
            assert ask(machine, name, high, kind) == (ALLOW if unix else EAFNOSUPPORT)
        assert ask(machine, "socket", high, kind, alone=True) == ENOSYS
        stream = ALLOW if kind & 0xF == 1 else EPERM
        pair = ask(machine, "socketpair", high, kind, alone=True)
        assert pair == (stream if unix else EAFNOSUPPORT)


@given(st.integers(0, 2**64 - 1))
def test_memory(flags: int) -> None:
    shared = flags & 0x21 == 0x21
    huge = bool(flags & 0x40000)
    for machine in MACHINES:
        expected = EPERM if shared else ENOMEM if huge else ALLOW
        assert ask(machine, "mmap", 0, 1 << 20, 3, flags) == expected
        pinned = ask(machine, "mmap", 0, 1 << 20, 3, flags, cuda=True)
        assert pinned == (ENOMEM if huge else ALLOW)


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments_that_matter(machine: str) -> None:
    assert ask(machine, "prlimit64", 0, 7) == ALLOW
    assert ask(machine, "prlimit64", 1, 7) == EPERM
    assert ask(machine, "keyctl", 1, 0) == ALLOW
    assert ask(machine, "keyctl", 11, 0) == EPERM
    assert ask(machine, "personality", 0xFFFFFFFF) == ALLOW
    assert ask(machine, "personality", 0x0400000) == EPERM
    assert ask(machine, "ioctl", 0, 0x5401) == ALLOW
    assert ask(machine, "ioctl", 0, 0x5412) == EPERM
    assert ask(machine, "ioctl", 0, 0x5412 | 1 << 32) == EPERM
    assert ask(machine, "ioctl", 0, 0x541C) == EPERM
    assert ask(machine, "prctl", 15) == ALLOW  # a thread's name
    assert ask(machine, "prctl", 22, 2) == EINVAL  # seccomp
    assert ask(machine, "prctl", 4, 0) == EINVAL  # dumpable
    assert ask(machine, "prctl", 1, 9) == ALLOW
    assert ask(machine, "prctl", 1, 0, alone=True) == EINVAL
    assert ask(machine, "tgkill", 7, 8, 6, alone=True) == ALLOW
    assert ask(machine, "tgkill", 6, 6, 6, alone=True) == EPERM
    assert ask(machine, "sched_setaffinity", 5) == ALLOW
    assert ask(machine, "sched_setaffinity", 5, alone=True) == EPERM
    for name in ("execve", "connect", "kill", "fchmod", "setpriority", "bind"):
        assert ask(machine, name) == ALLOW
        assert ask(machine, name, alone=True) == ENOSYS


def test_numbers_are_the_kernels() -> None:
    """Against the C headers of this machine, where they are installed."""
    pattern = re.compile(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\b")
    headers = {
        "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        "aarch64": Path("/usr/include/asm-generic/unistd.h"),
    }
    found = {m: h for m, h in headers.items() if h.exists()}
    if not found:
        pytest.skip("no kernel headers here (Debian: linux-libc-dev)")
    for machine, header in found.items():
        known = {name: int(number) for name, number in pattern.findall(header.read_text())}
        known |= {"newfstatat": 79, "fstat": 80} if machine == "aarch64" else {}
        for name, number in NUMBERS[machine].items():
            assert known.get(name, number) == number, (machine, name)
        assert len(known.keys() & NUMBERS[machine].keys()) > 180


def test_numbers_are_unique() -> None:
    for numbers in NUMBERS.values():
        assert len(set(numbers.values())) == len(numbers)
    assert NUMBERS["aarch64"].keys() < NUMBERS["x86_64"].keys()


def test_a_machine_without_a_table_or_a_kernel_without_filters_says_so(tmp_path: Path) -> None:
    assert "system calls of aarch64 and x86_64 are known" in (seccomp.missing("riscv64") or "")
    assert "CONFIG_SECCOMP_FILTER" in (seccomp.missing("x86_64", tmp_path) or "")
    actions = tmp_path / "sys/kernel/seccomp/actions_avail"
    actions.parent.mkdir(parents=True)
    actions.write_text("kill_thread trap errno trace allow\n")
    assert "lack an action" in (seccomp.missing("x86_64", tmp_path) or "")
    if os.uname().machine in MACHINES:
        actions.write_text(Path("/proc/sys/kernel/seccomp/actions_avail").read_text())
        assert seccomp.missing("x86_64", tmp_path) is None
