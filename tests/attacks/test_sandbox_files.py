"""Researcher code that tries to read or change files that are not its own."""

from pathlib import Path

import pytest

from consilia.node.launcher import Bubblewrap, PlainProcess
from sandboxkit import MIB, escaped, needs_bubblewrap, only_without_sandbox
from workkit import table

pytestmark = needs_bubblewrap


READ = """
def escape(path):
    return open(path, "rb").read(1)
"""


async def test_the_nodes_database_and_secrets(tmp_path: Path) -> None:
    secret = tmp_path / "node.sqlite"
    secret.write_text("approvals")
    await only_without_sandbox(tmp_path, READ, str(secret))


async def test_another_datasets_file(tmp_path: Path) -> None:
    """The folder of the registered file is not shown, only the file."""
    table(tmp_path / "neighbour.csv")
    await only_without_sandbox(tmp_path, READ, str(tmp_path / "neighbour.csv"))
    body = """
import glob
def escape(_):
    return len(glob.glob("/data/*")) != 1
"""
    assert not await escaped(tmp_path, Bubblewrap(), body)


async def test_another_jobs_models(tmp_path: Path) -> None:
    body = """
import glob
def escape(jobs):
    return len(glob.glob("/models/*")) > 1 or glob.glob(jobs + "/*")
"""
    for launcher, expected in ((PlainProcess(), True), (Bubblewrap(), False)):
        jobs = str(tmp_path / f"node-{launcher.name}" / "jobs")
        assert await escaped(tmp_path, launcher, body, jobs) is expected


@pytest.mark.parametrize(
    "path", ["/etc/shadow", "/etc/passwd", "/root", "/home", "/var", "/sys"]
)
async def test_the_systems_own_files(tmp_path: Path, path: str) -> None:
    """Parents of the Python installation may exist, but hold nothing but the way to it."""
    body = """
import os, sys
def escape(path):
    if not os.path.isdir(path):
        return open(path).read(1)
    ways = (sys.prefix, sys.base_prefix, sys.modules["consilia"].__file__)
    found = [os.path.join(path, name) for name in os.listdir(path)]
    return [f for f in found if not any(w.startswith(f) for w in ways)]
"""
    assert not await escaped(tmp_path, Bubblewrap(), body, path)


async def test_symlinks_lead_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    body = """
import os
def escape(path):
    link = f"/tmp/link-{os.getpid()}"
    os.symlink(path, link)
    try:
        return open(link).read()
    finally:
        os.unlink(link)
"""
    await only_without_sandbox(tmp_path, body, str(secret))


async def test_writing_the_dataset(tmp_path: Path) -> None:
    body = """
import glob, os
def escape(path):
    for name in glob.glob("/data/*") or [path]:
        os.chmod(name, 0o600)
        open(name, "a").write("9,1\\n")
    return True
"""
    file = tmp_path / "cohort.csv"
    await only_without_sandbox(tmp_path, body, str(file))
    table(file)
    before = file.read_bytes()
    assert not await escaped(tmp_path, Bubblewrap(), body, str(file))
    assert file.read_bytes() == before


async def test_writing_anything_but_scratch(tmp_path: Path) -> None:
    body = """
import glob, os, sys
def escape(_):
    places = ["/", "/usr", "/models", "/data", "/dev", "/etc", "/proc/sys/kernel", sys.prefix,
              os.path.dirname(sys.modules["consilia"].__file__)]
    written = []
    for place in places:
        try:
            open(os.path.join(place, "evil"), "w").close()
            written.append(place)
        except OSError:
            pass
    for name in glob.glob("/models/*"):
        try:
            open(name, "r+b").write(b"x")
            written.append(name)
        except OSError:
            pass
    print(written)
    open("/tmp/scratch", "w").close()
    return written
"""
    assert not await escaped(tmp_path, Bubblewrap(), body)
