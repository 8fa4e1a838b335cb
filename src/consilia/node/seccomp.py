"""Which system calls researcher code may make: a filter for the kernel, made here.

The filter is classic BPF (seccomp(2)): a decision tree over the call's number, with a look at
the arguments of the few calls whose danger lies in them. It is an allow-list. What training
needs is in it; any other call, those of future kernels too, answers ENOSYS, which libraries
take as an older kernel. The wrong processor mode (32-bit calls on a 64-bit machine, x32) kills.
docs/adr/0010-seccomp-allow-list.md gives the reasons.

Two filters: one for bubblewrap, where namespaces already hide files, processes and network,
and a narrower one (`alone`) for the container launcher, which has no namespaces: one process,
no new programs, no sockets, no change to a file's owner, mode or times.

Pointers cannot be looked at, so no rule depends on a path or an address. Arguments that the
kernel takes as 32 bits are compared as 32 bits: their upper halves carry nothing.

Sources: seccomp(2); linux/filter.h; linux/audit.h; Docker's and Flatpak's published filters
for which calls have been used to break out of containers.
"""

import struct
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from consilia.node.syscalls import NUMBERS

Code = tuple[tuple[int, int, int, int], ...]  # instructions: code, jump if true, if false, k

ALLOW = 0x7FFF0000
KILL = 0x80000000  # the whole process, by SIGSYS
_ERRNO = 0x00050000
_EPERM, _ENOMEM, _EINVAL, _ENOSYS, _EAFNOSUPPORT = 1, 12, 22, 38, 97

_LOAD, _AND, _RETURN, _JUMP = 0x20, 0x54, 0x06, 0x05
_EQUAL, _AT_LEAST, _ANY_BIT = 0x15, 0x35, 0x45
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_FARTHEST = 255  # instructions that a conditional jump can skip

_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000  # x86_64 numbers from here on are of the x32 mode

_FILES = """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 open openat
    openat2 creat close close_range dup dup2 dup3 fcntl lseek fsync fdatasync ftruncate
    truncate fallocate fadvise64 readahead sendfile copy_file_range flock stat lstat fstat
    newfstatat statx statfs fstatfs access faccessat faccessat2 getcwd chdir fchdir getdents
    getdents64 readlink readlinkat umask mkdir mkdirat rmdir rename renameat renameat2 link
    linkat symlink symlinkat unlink unlinkat mknod mknodat getxattr lgetxattr fgetxattr
    listxattr llistxattr flistxattr sync_file_range
"""
_OWNERSHIP = """
    chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes futimesat
    utimensat
"""
_MEMORY = """
    munmap mprotect mremap madvise msync mincore brk mlock mlock2 munlock mlockall munlockall
    membarrier get_mempolicy set_mempolicy mbind
"""
_THREADS = """
    futex futex_waitv set_robust_list get_robust_list set_tid_address rseq sched_yield
    sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max
    sched_get_priority_min sched_rr_get_interval getcpu gettid arch_prctl
"""
_PROCESS = """
    wait4 waitid exit exit_group getpid getppid getpgrp getpgid getsid setpgid setsid getuid
    geteuid getgid getegid getresuid getresgid getgroups capget getpriority ioprio_get
    getrlimit setrlimit getrusage times uname sysinfo restart_syscall
"""
_SIGNALS = """
    rt_sigaction rt_sigprocmask rt_sigpending rt_sigreturn rt_sigsuspend rt_sigtimedwait
    sigaltstack pause alarm signalfd signalfd4
"""
_TIME = """
    time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep getitimer setitimer
    timer_create timer_settime timer_gettime timer_getoverrun timer_delete timerfd_create
    timerfd_settime timerfd_gettime getrandom
"""
_WAITING = """
    pipe pipe2 poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait
    epoll_pwait epoll_pwait2 eventfd eventfd2
"""
_CONNECTED = """
    getsockname getpeername sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown
    setsockopt getsockopt
"""
_ALWAYS = (_FILES, _MEMORY, _THREADS, _PROCESS, _SIGNALS, _TIME, _WAITING, _CONNECTED)
# only where namespaces hold: other processes are not there, and neither are others' sockets
_IN_NAMESPACES = """
    fork vfork execve kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo setpriority
    sched_setaffinity bind connect listen accept accept4
    landlock_create_ruleset landlock_add_rule landlock_restrict_self
"""

_AF_UNIX, _SOCK_STREAM = 1, 1
_NEW_NAMESPACE = 0x7E020000  # clone(2): user, pid, net, ipc, uts, cgroup and mount namespaces
_CLONE_THREAD = 0x00010000
_SHARED_ANONYMOUS = 0x21  # MAP_SHARED (or _VALIDATE) and MAP_ANONYMOUS
_MAP_HUGETLB = 0x40000
_TERMINAL_INPUT = (0x5412, 0x541C)  # ioctl TIOCSTI and TIOCLINUX, which type for the user
_JOIN_SESSION_KEYRING = 1
_ASK = 0xFFFFFFFF  # personality(2): only tell
# prctl: parent-death signal get, dumpable get, keep-caps get, name set and get, seccomp get,
# bounding set read, timer slack set and get, no-new-privs set and get, huge pages set and get,
# naming of memory areas. Not: dumpable set, further filters, tracers, memory layout.
_PRCTL = (2, 3, 7, 15, 16, 21, 23, 29, 30, 38, 39, 41, 42, 0x53564D41)
_SET_PARENT_DEATH_SIGNAL = 1


def machine_supported(machine: str) -> bool:
    """Say whether there is a table of system calls for this kind of processor."""
    return machine in NUMBERS and sys.byteorder == "little"


def missing(machine: str, proc: Path = Path("/proc")) -> str | None:
    """Say why no filter can be used on this kernel and processor, or None."""
    if not machine_supported(machine):
        known = " and ".join(sorted(NUMBERS))
        return f"no filter for {machine}: the system calls of {known} are known"
    try:
        actions = (proc / "sys/kernel/seccomp/actions_avail").read_text()
    except OSError:
        return "the kernel offers no seccomp filters (CONFIG_SECCOMP_FILTER)"
    if not {"kill_process", "errno", "allow"} <= set(actions.split()):
        return f"the kernel's seccomp filters lack an action; it offers {actions.strip()}"
    return None


def program(machine: str, *, alone: int | None = None, cuda: bool = False) -> bytes:
    """Return the filter as an array of struct sock_filter, native byte order.

    `alone` is the process id of the only process that the narrower filter is for. `cuda`
    allows shared anonymous memory, in which the driver keeps pinned buffers.
    """
    numbers = NUMBERS[machine]
    rules = {
        numbers[name]: code for name, code in _rules(alone, cuda).items() if name in numbers
    }
    tree = _tree(sorted(_ranges(rules, machine == "x86_64")))
    whole = (
        (_LOAD, 0, 0, _MACHINE),
        *_when(_EQUAL, _AUDIT[machine], ((_LOAD, 0, 0, _NUMBER), *tree), _end(KILL)),
    )
    return b"".join(struct.pack("=HBBI", *step) for step in whole)


def _rules(alone: int | None, cuda: bool) -> dict[str, Code]:
    """Return what to do with each system call that is not refused outright."""
    allow = _end(ALLOW)
    names = " ".join(_ALWAYS)
    if alone is None:
        names += _OWNERSHIP + _IN_NAMESPACES
    rules = dict.fromkeys(names.split(), allow)
    rules["mmap"] = _mmap(cuda)
    rules["ioctl"] = _unless_one_of(1, _TERMINAL_INPUT, _EPERM)
    rules["personality"] = _only(0, (_ASK,), _EPERM)
    rules["prlimit64"] = _only(0, (0,), _EPERM)  # 0 is oneself
    rules["keyctl"] = _only(0, (_JOIN_SESSION_KEYRING,), _EPERM)
    if alone is None:
        rules["clone"] = _unless_any_bit(0, _NEW_NAMESPACE, _EPERM)
        rules["socket"] = rules["socketpair"] = _only(0, (_AF_UNIX,), _EAFNOSUPPORT)
        rules["prctl"] = _only(0, (*_PRCTL, _SET_PARENT_DEATH_SIGNAL), _EINVAL)
        return rules
    rules["clone"] = (_argument(0), *_when(_ANY_BIT, _CLONE_THREAD, allow, _refuse(_EPERM)))
    # a datagram socket could send to an address; a connected stream cannot
    stream = (
        _argument(1),
        (_AND, 0, 0, 0xF),
        *_choose((_SOCK_STREAM,), allow, _refuse(_EPERM)),
    )
    family = _choose((_AF_UNIX,), stream, _refuse(_EAFNOSUPPORT))
    rules["socketpair"] = (_argument(0), *family)
    rules["prctl"] = _only(0, _PRCTL, _EINVAL)
    rules["tgkill"] = _only(0, (alone,), _EPERM)  # abort(3)
    rules["sched_setaffinity"] = _only(0, (0,), _EPERM)
    return rules


def _mmap(cuda: bool) -> Code:
    """Memory that could be kept after it was unmapped cannot be counted: refuse such.

    A shared anonymous mapping outlives all but one of its pages' unmapping, and huge pages of
    the reserve are not part of a process's resident memory.
    """
    huge = _when(_ANY_BIT, _MAP_HUGETLB, _refuse(_ENOMEM), _end(ALLOW))
    if cuda:
        return (_argument(3), *huge)
    both = _choose((_SHARED_ANONYMOUS,), _refuse(_EPERM), (_argument(3), *huge))
    return (_argument(3), (_AND, 0, 0, _SHARED_ANONYMOUS), *both)


# ---- pieces of a tree; each ends in a return on every path -----------------------------------


def _end(action: int) -> Code:
    return ((_RETURN, 0, 0, action),)


def _refuse(error: int) -> Code:
    return _end(_ERRNO | error)


def _argument(index: int) -> tuple[int, int, int, int]:
    """Load the lower half of an argument: the first of its words on these machines."""
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * index)


def _when(test: int, value: int, then: Code, otherwise: Code) -> Code:
    """Compare what is loaded with `value`, then go one way or the other."""
    if len(then) <= _FARTHEST:
        return ((test, 0, len(then), value), *then, *otherwise)
    return ((test, 1, 0, value), (_JUMP, 0, 0, len(then)), *then, *otherwise)


def _choose(values: Iterable[int], then: Code, otherwise: Code) -> Code:
    """Go to `then` when what is loaded equals one of `values`."""
    code = otherwise
    for value in reversed(tuple(values)):
        code = _when(_EQUAL, value, then, code)
    return code


def _only(index: int, values: Iterable[int], error: int) -> Code:
    return (_argument(index), *_choose(values, _end(ALLOW), _refuse(error)))


def _unless_one_of(index: int, values: Iterable[int], error: int) -> Code:
    return (_argument(index), *_choose(values, _refuse(error), _end(ALLOW)))


def _unless_any_bit(index: int, bits: int, error: int) -> Code:
    return (_argument(index), *_when(_ANY_BIT, bits, _refuse(error), _end(ALLOW)))


def _ranges(rules: Mapping[int, Code], x32: bool) -> Iterable[tuple[int, Code]]:
    """Yield where a range of numbers begins, and what to do with a call of that range.

    Numbers that no rule names lie in ranges that answer ENOSYS.
    """
    unknown = _refuse(_ENOSYS)
    last: Code | None = None
    for number in sorted({0, *rules, *(n + 1 for n in rules)}):
        code = rules.get(number, unknown)
        if code != last:
            yield number, code
        last = code
    if x32:
        yield _X32, _end(KILL)


def _tree(ranges: list[tuple[int, Code]]) -> Code:
    """Return a balanced search for the range that the loaded number lies in."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    start = ranges[middle][0]
    return _when(_AT_LEAST, start, _tree(ranges[middle:]), _tree(ranges[:middle]))
