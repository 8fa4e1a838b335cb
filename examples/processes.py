"""Start programs that never outlive this one, and stop them all."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time

CONSILIA = (sys.executable, "-m", "consilia.cli.main")
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class Processes:
    """The demo's long-lived processes, each in a process group of its own, by name."""

    def __init__(self, environment):
        """`environment` is what every process gets."""
        self._environment = environment
        self._running = {}

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _leave)
        return self

    def __exit__(self, *_):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the cleaning up is not interrupted
        self.stop()

    def start(self, name, arguments, log):
        """Start `consilia ARGUMENTS` with its output appended to the file `log`.

        Call it from the main thread: a child ends with the thread that made it.
        """
        with log.open("ab") as out:
            self._running[name] = subprocess.Popen(
                [*CONSILIA, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  # one system call, no lock
            )

    def ended(self):
        """Return {name: exit status} of the processes that are no longer running."""
        found = {name: process.poll() for name, process in self._running.items()}
        return {name: status for name, status in found.items() if status is not None}

    def kill(self, name):
        """Kill a process and its whole group at once, as a power cut would."""
        process = self._running.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self, patience=5.0):
        """Ask all to end, wait `patience` seconds, then kill what is left."""
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + patience
        for process in self._running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        for name in list(self._running):
            self.kill(name)


def _die_with_parent():
    # Runs in the child before the program starts. If the demo itself is killed, the kernel
    # ends its children; they end their workers the same way.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _leave(number, _frame):
    sys.exit(128 + number)
