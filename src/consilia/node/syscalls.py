"""Numbers of the Linux system calls that researcher code may make, for each kind of processor.

From the kernel's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
Numbers never change. x86_64 has old calls that aarch64 never got, so a name may be missing
from one table. What is done with each call is decided in node.seccomp.
"""

from collections.abc import Mapping

_X86_64 = """
read 0, write 1, readv 19, writev 20, pread64 17, pwrite64 18, preadv 295, pwritev 296,
preadv2 327, pwritev2 328, open 2, openat 257, openat2 437, creat 85, close 3, close_range
436, dup 32, dup2 33, dup3 292, fcntl 72, lseek 8, fsync 74, fdatasync 75, ftruncate 77,
truncate 76, fallocate 285, fadvise64 221, readahead 187, sendfile 40, copy_file_range 326,
flock 73, stat 4, lstat 6, fstat 5, newfstatat 262, statx 332, statfs 137, fstatfs 138, access
21, faccessat 269, faccessat2 439, getcwd 79, chdir 80, fchdir 81, getdents 78, getdents64
217, readlink 89, readlinkat 267, umask 95, mkdir 83, mkdirat 258, rmdir 84, rename 82,
renameat 264, renameat2 316, link 86, linkat 265, symlink 88, symlinkat 266, unlink 87,
unlinkat 263, mknod 133, mknodat 259, getxattr 191, lgetxattr 192, fgetxattr 193, listxattr
194, llistxattr 195, flistxattr 196, fchmod 91, ioctl 16, sync_file_range 277, chmod 90,
fchmodat 268, fchmodat2 452, chown 92, fchown 93, lchown 94, fchownat 260, utime 132, utimes
235, futimesat 261, utimensat 280, mmap 9, munmap 11, mprotect 10, mremap 25, madvise 28,
msync 26, mincore 27, brk 12, mlock 149, mlock2 325, munlock 150, mlockall 151, munlockall
152, membarrier 324, get_mempolicy 239, set_mempolicy 238, mbind 237, futex 202, futex_waitv
449, set_robust_list 273, get_robust_list 274, set_tid_address 218, rseq 334, sched_yield 24,
sched_getaffinity 204, sched_getparam 143, sched_getscheduler 145, sched_get_priority_max 146,
sched_get_priority_min 147, sched_rr_get_interval 148, sched_setaffinity 203, getcpu 309,
gettid 186, arch_prctl 158, prctl 157, clone 56, fork 57, vfork 58, execve 59, wait4 61,
waitid 247, exit 60, exit_group 231, getpid 39, getppid 110, getpgrp 111, getpgid 121, getsid
124, setpgid 109, setsid 112, getuid 102, geteuid 107, getgid 104, getegid 108, getresuid 118,
getresgid 120, getgroups 115, capget 125, getpriority 140, setpriority 141, ioprio_get 252,
getrlimit 97, setrlimit 160, prlimit64 302, getrusage 98, times 100, uname 63, sysinfo 99,
personality 135, restart_syscall 219, rt_sigaction 13, rt_sigprocmask 14, rt_sigpending 127,
rt_sigreturn 15, rt_sigsuspend 130, rt_sigtimedwait 128, sigaltstack 131, rt_sigqueueinfo 129,
rt_tgsigqueueinfo 297, kill 62, tkill 200, tgkill 234, pause 34, alarm 37, signalfd 282,
signalfd4 289, time 201, gettimeofday 96, clock_gettime 228, clock_getres 229, clock_nanosleep
230, nanosleep 35, getitimer 36, setitimer 38, timer_create 222, timer_settime 223,
timer_gettime 224, timer_getoverrun 225, timer_delete 226, timerfd_create 283, timerfd_settime
286, timerfd_gettime 287, getrandom 318, pipe 22, pipe2 293, poll 7, ppoll 271, select 23,
pselect6 270, epoll_create 213, epoll_create1 291, epoll_ctl 233, epoll_wait 232, epoll_pwait
281, epoll_pwait2 441, eventfd 284, eventfd2 290, socket 41, socketpair 53, bind 49, connect
42, listen 50, accept 43, accept4 288, getsockname 51, getpeername 52, sendto 44, recvfrom 45,
sendmsg 46, recvmsg 47, sendmmsg 307, recvmmsg 299, shutdown 48, setsockopt 54, getsockopt 55,
keyctl 250, landlock_create_ruleset 444, landlock_add_rule 445, landlock_restrict_self 446
"""
_AARCH64 = """
read 63, write 64, readv 65, writev 66, pread64 67, pwrite64 68, preadv 69, pwritev 70,
preadv2 286, pwritev2 287, openat 56, openat2 437, close 57, close_range 436, dup 23, dup3 24,
fcntl 25, lseek 62, fsync 82, fdatasync 83, ftruncate 46, truncate 45, fallocate 47, fadvise64
223, readahead 213, sendfile 71, copy_file_range 285, flock 32, fstat 80, newfstatat 79, statx
291, statfs 43, fstatfs 44, faccessat 48, faccessat2 439, getcwd 17, chdir 49, fchdir 50,
getdents64 61, readlinkat 78, umask 166, mkdirat 34, renameat 38, renameat2 276, linkat 37,
symlinkat 36, unlinkat 35, mknodat 33, getxattr 8, lgetxattr 9, fgetxattr 10, listxattr 11,
llistxattr 12, flistxattr 13, fchmod 52, ioctl 29, sync_file_range 84, fchmodat 53, fchmodat2
452, fchown 55, fchownat 54, utimensat 88, mmap 222, munmap 215, mprotect 226, mremap 216,
madvise 233, msync 227, mincore 232, brk 214, mlock 228, mlock2 284, munlock 229, mlockall
230, munlockall 231, membarrier 283, get_mempolicy 236, set_mempolicy 237, mbind 235, futex
98, futex_waitv 449, set_robust_list 99, get_robust_list 100, set_tid_address 96, rseq 293,
sched_yield 124, sched_getaffinity 123, sched_getparam 121, sched_getscheduler 120,
sched_get_priority_max 125, sched_get_priority_min 126, sched_rr_get_interval 127,
sched_setaffinity 122, getcpu 168, gettid 178, prctl 167, clone 220, execve 221, wait4 260,
waitid 95, exit 93, exit_group 94, getpid 172, getppid 173, getpgid 155, getsid 156, setpgid
154, setsid 157, getuid 174, geteuid 175, getgid 176, getegid 177, getresuid 148, getresgid
150, getgroups 158, capget 90, getpriority 141, setpriority 140, ioprio_get 31, getrlimit 163,
setrlimit 164, prlimit64 261, getrusage 165, times 153, uname 160, sysinfo 179, personality
92, restart_syscall 128, rt_sigaction 134, rt_sigprocmask 135, rt_sigpending 136, rt_sigreturn
139, rt_sigsuspend 133, rt_sigtimedwait 137, sigaltstack 132, rt_sigqueueinfo 138,
rt_tgsigqueueinfo 240, kill 129, tkill 130, tgkill 131, signalfd4 74, gettimeofday 169,
clock_gettime 113, clock_getres 114, clock_nanosleep 115, nanosleep 101, getitimer 102,
setitimer 103, timer_create 107, timer_settime 110, timer_gettime 108, timer_getoverrun 109,
timer_delete 111, timerfd_create 85, timerfd_settime 86, timerfd_gettime 87, getrandom 278,
pipe2 59, ppoll 73, pselect6 72, epoll_create1 20, epoll_ctl 21, epoll_pwait 22, epoll_pwait2
441, eventfd2 19, socket 198, socketpair 199, bind 200, connect 203, listen 201, accept 202,
accept4 242, getsockname 204, getpeername 205, sendto 206, recvfrom 207, sendmsg 211, recvmsg
212, sendmmsg 269, recvmmsg 243, shutdown 210, setsockopt 208, getsockopt 209, keyctl 219,
landlock_create_ruleset 444, landlock_add_rule 445, landlock_restrict_self 446
"""


def _table(text: str) -> dict[str, int]:
    pairs = (entry.split() for entry in text.replace("\n", " ").split(","))
    return {name: int(number) for name, number in pairs}


NUMBERS: Mapping[str, Mapping[str, int]] = {
    "x86_64": _table(_X86_64),
    "aarch64": _table(_AARCH64),
}
