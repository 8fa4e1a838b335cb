"""Machines where bubblewrap cannot work: what the node says, and that nothing runs unseen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from consilia.errors import ConfigError
from consilia.node.launcher import Bubblewrap, Container
from consilia.node.layers import why_no_namespaces
from consilia.node.runner import choose_launcher

SCRIPT = """
import asyncio, sys
from pathlib import Path
from consilia.errors import ConfigError
from consilia.node.config import Limits
from consilia.node.launcher import Bubblewrap, Container
from consilia.node.runner import choose_launcher
from workkit import plan, site, table

WORK = plan("def train(w, data, a, c):\\n    w['w'] += 1\\n    return {'n': data.records}\\n")

async def work(launcher, directory):
    async with site(directory / "node", launcher) as here:
        model = await here.init(WORK)
        done, _ = await here.train(WORK, table(directory / "t.csv"), model)
        print("DONE", done.metrics["n"])

try:
    choose_launcher("required")
    print("CHOSEN")
except ConfigError as error:
    print("REFUSED", error)
print("OTHER", Container().available())
if Container().available() is None:
    asyncio.run(work(choose_launcher("container"), Path(sys.argv[1])))
"""


def fake(directory: Path, script: str) -> str:
    """A program called bwrap that does what `script` does."""
    path = directory / "bwrap"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'bwrap: No permissions to create new namespace' >&2; exit 1", "No permissions"),
        ("exit 3", "exit 3"),
        ("kill -9 $$", "exit -9"),
    ],
)
def test_a_bubblewrap_that_fails(tmp_path: Path, script: str, said: str) -> None:
    launcher = Bubblewrap(fake(tmp_path, script))
    assert said in (launcher.available() or "")
    with pytest.raises(ConfigError, match="may only run in a sandbox, and there is none") as e:
        choose_launcher("required", launcher)
    assert "sandbox: container" in str(e.value)
    assert "docs/how-to/sandbox.md" in str(e.value)


def test_a_path_without_bubblewrap(tmp_path: Path) -> None:
    program = "from consilia.node.launcher import Bubblewrap; print(Bubblewrap().available())"
    environment = {"PATH": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    said = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
    assert "not installed: apt-get install bubblewrap" in said


def test_no_launcher_stands_in_for_another() -> None:
    """A site that asked for bubblewrap never gets less by itself."""
    with pytest.raises(ConfigError):
        choose_launcher("required", Bubblewrap("no-such-bwrap"))
    if Container().available() is None:
        assert choose_launcher("container").name == "container"


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a user namespace that denies others")
def test_where_user_namespaces_are_used_up(tmp_path: Path) -> None:
    """A real kernel's refusal: as in a container that may make no namespace."""
    kit = Path(__file__).parent.parent
    deny = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount-proc", "--pid", "--fork"]
    command += ["/bin/sh", "-c", deny, "sh", sys.executable, "-c", SCRIPT, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{kit}:{kit.parent / 'src'}"}
    done = subprocess.run(
        command, check=False, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    assert "CHOSEN" not in done.stdout
    assert "max_user_namespaces is 0" in lines["REFUSED"]
    if lines["OTHER"] == "None":
        assert lines["DONE"] == "60.0"
        assert "in a container without namespaces" in done.stderr, "every run says so"


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("proc/sys/user/max_user_namespaces", "0\n", "max_user_namespaces=10000"),
        ("proc/sys/kernel/unprivileged_userns_clone", "0\n", "unprivileged_userns_clone=1"),
        (
            "proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1\n",
            "deploy/apparmor/consilia-bwrap",
        ),
        (".dockerenv", "", "this is a container"),
        ("nothing", "", "user namespaces may be denied"),
    ],
)
def test_the_reason_is_looked_for(tmp_path: Path, setting: str, value: str, said: str) -> None:
    path = tmp_path / setting
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value)
    found = why_no_namespaces(tmp_path)
    assert said in found
    assert "docs/how-to/sandbox.md" in found
