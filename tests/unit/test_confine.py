"""What a worker does to itself, in processes of their own."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.node import control, landlock
from consilia.node.confine import Confinement, alone_rules, namespace_rules, parse
from consilia.node.launcher import Container
from consilia.node.layers import layers

NUMBERS = st.integers(0, 1 << 50)
needs_landlock = pytest.mark.skipif(not landlock.version(), reason="no Landlock here")


@given(
    st.builds(
        Confinement,
        data=NUMBERS,
        file=NUMBERS,
        files=NUMBERS,
        processes=NUMBERS,
        landlock=st.integers(-1, 9),
        alone=st.booleans(),
        cuda=st.booleans(),
        show=st.lists(st.text(min_size=1), max_size=3).map(tuple),
    )
)
def test_options_survive_the_command_line(wanted: Confinement) -> None:
    assert parse(wanted.flags()) == wanted


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--show"],
        ["--data", "1", "--show"],
        [*Confinement().flags()[2:]],
        ["--data", "x", *Confinement().flags()[2:]],
        ["--evil", "1", *Confinement().flags()],
    ],
)
def test_anything_else_is_refused(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match=r"needed|not in list|invalid literal"):
        parse(arguments)


def run(code: str, *arguments: str) -> str:
    """Run Python code in a process that may give itself up; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
        env={"PYTHONPATH": os.pathsep.join(sys.path), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_landlock
def test_only_what_is_allowed_can_be_opened(tmp_path: Path) -> None:
    for name in ("read", "write", "none"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    code = """
import os, sys
from consilia.node import landlock
own = sys.argv[1]
landlock.restrict({
    own + "/read": landlock.READ,
    own + "/write": landlock.SCRATCH,
    own + "/nothing-here": landlock.READ,
    own + "/none/file": landlock.READ,
}, landlock.version())
def works(action):
    try:
        action()
    except OSError:
        return 0
    return 1
print(
    works(lambda: open(own + "/read/file").read()),
    works(lambda: os.listdir(own + "/read")),
    works(lambda: open(own + "/read/file", "w")),
    works(lambda: open(own + "/write/file", "w")),
    works(lambda: os.mkdir(own + "/write/folder")),
    works(lambda: os.mknod(own + "/write/device", 0o20600, os.makedev(1, 3))),
    works(lambda: os.execv("/bin/true", ["true"])),
    works(lambda: open(own + "/none/file").read()),
    works(lambda: os.listdir(own + "/none")),
    works(lambda: os.listdir(own)),
)
"""
    assert run(code, str(tmp_path)) == "1 1 0 1 1 0 0 1 0 0"


@needs_landlock
def test_a_process_with_threads_is_refused() -> None:
    """The others would keep their rights, silently."""
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        with pytest.raises(OSError, match="threads run; Landlock would bind only one"):
            landlock.restrict({}, landlock.version())
    finally:
        done.set()
        other.join()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (1, ["cutting files", "TCP", "device", "signals"]),
        (3, ["TCP", "device", "signals"]),
        (5, ["signals"]),
        (6, []),
        (9, []),
    ],
)
def test_what_a_kernel_lacks_is_named(found: int, said: list[str]) -> None:
    gaps = landlock.gaps(found)
    assert all(word in gaps for word in said)
    assert gaps.count("Linux") == len(said)


def test_a_kernel_with_less_than_is_needed_gets_no_worker() -> None:
    """It ends before it listens, instead of going on with less."""
    wanted = Confinement(landlock=99)
    done = subprocess.run(
        [sys.executable, "-m", "consilia.node.confine", *wanted.flags()],
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode != 0
    assert "Landlock 99 is needed" in done.stderr


def test_rules_name_what_a_worker_may_see() -> None:
    inside = namespace_rules(cuda=False)
    scratch = [Path(p).name for p, rights in inside.items() if rights == landlock.SCRATCH]
    assert scratch == ["tmp", "shm"]
    assert not inside["/data"] & landlock.WRITE_FILE
    assert "/" not in inside
    alone = alone_rules(Confinement(alone=True, show=("/srv/data.csv", "/srv/jobs/a")))
    assert alone["/srv/data.csv"] == landlock.READ
    writable = [p for p, rights in alone.items() if rights & landlock.WRITE_FILE]
    assert writable == ["/dev/null"]
    assert not any(p in alone for p in ("/dev", "/proc", "/sys", "/etc", "/"))


@pytest.mark.skipif(Container().available() is not None, reason="no Landlock 6 here")
def test_the_probe_finds_a_worker_that_is_not_confined() -> None:
    """Without it the trial of the container launcher could not fail."""
    probe = "from consilia.node.confine import probe; print(probe(('files', 'socket', 'fork')))"
    assert run(probe).splitlines()[-1] == "files, socket, fork"


def test_the_layers_say_what_to_do() -> None:
    found = layers(os.getpid())
    assert [layer.check for layer in found] == [
        "sandbox: system calls",
        "sandbox: Landlock",
        "sandbox: control group",
    ]
    assert all(layer.found for layer in found)
    assert all(layer.ok or layer.advice for layer in found)


def test_the_agents_process_is_found_by_its_socket(tmp_path: Path) -> None:
    assert control.running_pid(tmp_path) is None
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / control.NAME))
        server.listen()
        assert control.running_pid(tmp_path) == os.getpid()
    assert control.running_pid(tmp_path) is None
