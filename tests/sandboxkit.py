"""How an attack from inside a sandbox is tried, and how it is judged.

Every escape is first shown to work where the wall it tests is missing (so a test that could
not fail is noticed), then shown to fail. After each attack the agent's side must still be
able to run an honest task.
"""

import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from consilia.errors import WorkerError
from consilia.node.config import Limits
from consilia.node.launcher import Bubblewrap, Launcher, PlainProcess
from consilia.wire.v1 import Plan
from workkit import Site, plan, site, table

MIB = 1 << 20
needs_bubblewrap = pytest.mark.skipif(
    (reason := Bubblewrap().available()) is not None, reason=f"no sandbox here: {reason}"
)
HONEST = plan("""
    def train(weights, data, args, context):
        weights["w"] += 1
        return {"ok": 1.0}
""")
# `call(number, ...)` for plans: a system call, or the OSError that it gave
CALL = """
import ctypes, ctypes.util, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *arguments):
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""


def attack(body: str) -> Plan:
    """Return a plan that reports escaped=1 when `escape(target)` of `body` returns true."""
    return plan(f"""
{body}

def train(weights, data, args, context):
    try:
        escaped = bool(escape(args["s"]))
    except Exception as error:
        print("attack failed:", type(error).__name__, error)
        escaped = False
    return {{"escaped": float(escaped)}}
""")


async def escaped(
    tmp_path: Path,
    launcher: Launcher,
    body: str,
    target: str = "",
    limits: Limits | None = None,
) -> bool:
    """Run an attack and then an honest task; return whether the attack says it worked."""
    async with site(tmp_path / f"node-{launcher.name}", launcher, limits) as here:
        dataset = table(tmp_path / "cohort.csv")
        model = await here.init(HONEST, job="honest")
        done, _ = await here.train(
            attack(body), dataset, model, arguments={"s": target}, job="attack"
        )
        await honest(here, tmp_path, model)
        return done.metrics["escaped"] == 1.0


async def honest(here: Site, tmp_path: Path, model: Path) -> None:
    """The agent's side is alive: another job trains."""
    dataset = table(tmp_path / "other.csv")
    done, weights = await here.train(HONEST, dataset, model, job="honest", timeout=120)
    assert done.metrics == {"ok": 1.0}
    assert (weights["w"] == 1).all()


async def only_without_sandbox(tmp_path: Path, body: str, target: str = "") -> None:
    """The attack works in a plain process and fails in bubblewrap."""
    assert await escaped(tmp_path, PlainProcess(), body, target), "the attack itself is wrong"
    assert not await escaped(tmp_path, Bubblewrap(), body, target)


async def broken(
    tmp_path: Path,
    body: str,
    limits: Limits | None = None,
    timeout: float = 120.0,
    launcher: Launcher | None = None,
) -> tuple[str, float]:
    """Run a plan that must fail; return the cause and the seconds it took."""
    async with site(tmp_path / "node", launcher or Bubblewrap(), limits) as here:
        dataset = table(tmp_path / "cohort.csv")
        model = await here.init(HONEST, job="honest")
        began = time.monotonic()
        with pytest.raises(WorkerError) as caught:
            await here.train(plan(body), dataset, model, job="attack", timeout=timeout)
        seconds = time.monotonic() - began
        await honest(here, tmp_path, model)
        return caught.value.cause, seconds


def as_nobody(directory: Path, script: str, files: dict[str, str]) -> str:
    """Run a Python script as the user nobody, in a folder of its own; return what it printed.

    Root only. Where the Python of these tests lies in a closed home, a mount namespace of its
    own shows that folder, and nothing else of the home, to the script.
    """
    kit = Path(__file__).parent
    place = Path(tempfile.mkdtemp(prefix="consilia-nobody-", dir="/var/tmp"))
    try:
        for name, text in {**files, "script.py": script}.items():
            (place / name).write_text(text)
        subprocess.run(["chown", "-R", "65534:65534", place], check=True)
        command = [
            *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"),
            *("env", "-i", f"PATH={PATH}", f"PYTHONPATH={kit}:{kit.parent / 'src'}"),
            *(sys.executable, str(place / "script.py"), str(place), str(kit)),
        ]
        shown = " && ".join((*_opened(sys.base_prefix), f"exec {shlex.join(command)}"))
        done = subprocess.run(
            ["unshare", "--mount", "/bin/sh", "-c", shown],
            check=False,
            capture_output=True,
            text=True,
            timeout=240,
            cwd="/",
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout
    finally:
        subprocess.run(["rm", "-rf", place], check=True)


PATH = "/usr/bin:/bin"


def _opened(prefix: str) -> list[str]:
    """Return shell commands that make `prefix` reachable for everybody, where it is not."""
    closed = [p for p in reversed(Path(prefix).parents) if not p.stat().st_mode & 0o001]
    if not closed:
        return []
    home, stash = shlex.quote(str(closed[0])), "/mnt"
    quoted = shlex.quote(prefix)
    return [
        f"mount -t tmpfs -o mode=755 none {stash}",
        f"mkdir {stash}/python",
        f"mount --bind {quoted} {stash}/python",
        f"mount -t tmpfs -o mode=755 none {home}",
        f"mkdir -p {quoted}",
        f"mount --bind {stash}/python {quoted}",
    ]
