"""Researcher code that tries to read or change files that are not its own."""

from pathlib import Path

import pytest

from consilia.node.launcher import Bubblewrap, PlainProcess
from sandboxkit import escaped, needs_bubblewrap, only_without_sandbox
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


async def test_device_nodes(tmp_path: Path) -> None:
    """None can be made, none of the machine's is there, and no terminal can be opened."""
    body = """
import os, stat
def escape(_):
    found = []
    for number in (os.makedev(1, 1), os.makedev(1, 11), os.makedev(254, 0)):
        for kind in (stat.S_IFCHR, stat.S_IFBLK):
            try:
                os.mknod("/tmp/device", kind | 0o600, number)
                found.append(number)
            except OSError:
                pass
    for path in ("/dev/mem", "/dev/kmsg", "/dev/vda", "/dev/sda", "/dev/fuse", "/dev/kvm",
                 "/dev/ptmx", "/dev/tty", "/dev/console"):
        try:
            os.close(os.open(path, os.O_RDWR))
            found.append(path)
        except OSError:
            pass
    print(found)
    return found
"""
    assert await escaped(tmp_path, Bubblewrap(landlocked=False), body), "a terminal, at least"
    assert not await escaped(tmp_path, Bubblewrap(), body)


async def test_programs_that_change_user(tmp_path: Path) -> None:
    """A set-user-id bit means nothing inside, for programs of the system and one's own."""
    body = """
import glob, os, shutil, stat, subprocess
def escape(_):
    shutil.copy("/usr/bin/id", "/tmp/id")
    os.chmod("/tmp/id", 0o6755)
    said = [subprocess.run([name, "-u"], capture_output=True, text=True).stdout.strip()
            for name in ("/usr/bin/id",)]
    try:
        said.append(subprocess.check_output(["/tmp/id", "-u"], text=True).strip())
    except OSError as error:
        print("own program:", error)
    marked = [p for d in ("/usr/bin", "/bin", "/usr/sbin") for p in glob.glob(d + "/*")
              if os.path.isfile(p) and os.stat(p).st_mode & stat.S_ISUID]
    for program in marked:
        status = os.statvfs(program)
        if not status.f_flag & os.ST_NOSUID:
            return True
    print(len(marked), said)
    return any(s != "65534" for s in said)
"""
    assert not await escaped(tmp_path, Bubblewrap(), body)


async def test_links_that_change_while_they_are_followed(tmp_path: Path) -> None:
    """A race between checking a path and using it: whoever wins, nothing is there."""
    secret = tmp_path / "secret"
    secret.write_text("patients")
    body = """
import ctypes, os, threading, time
def escape(path):
    os.makedirs("/tmp/race", exist_ok=True)
    place = "/tmp/race/link"
    open("/tmp/race/innocent", "w").write("innocent")
    until, seen = time.monotonic() + 1.0, []
    def swap():
        while time.monotonic() < until:
            for target in ("/tmp/race/innocent", path, "/proc/1/root" + path,
                           "/proc/self/cwd/../.." + path):
                os.symlink(target, place + ".new")
                os.replace(place + ".new", place)
    thread = threading.Thread(target=swap)
    thread.start()
    while time.monotonic() < until:
        try:
            seen.append(open(place).read() == "patients")
        except OSError:
            pass
    thread.join()
    print(len(seen), "reads")
    return any(seen)
"""
    await only_without_sandbox(tmp_path, body, str(secret))


async def test_ways_around_the_root(tmp_path: Path) -> None:
    """Through other processes' roots, through .., by a hard link, by the inode's number."""
    secret = tmp_path / "secret"
    secret.write_text("patients")
    body = """
import glob, os
def escape(path):
    roots = glob.glob("/proc/*/root") + glob.glob("/proc/*/cwd")
    roots += ["/..", "/proc/self/cwd/../../.."]
    for root in roots:
        try:
            if open(root + path).read() == "patients":
                return True
        except OSError:
            pass
    for name in glob.glob("/data/*") + glob.glob("/models/*"):
        try:
            os.link(name, "/tmp/linked")
            return True
        except OSError:
            pass
    return False
"""
    await only_without_sandbox(tmp_path, body, str(secret))


async def test_landlock_holds_where_the_mounts_would_not(tmp_path: Path) -> None:
    """The second layer by itself: what is mounted, but not needed, cannot be opened."""
    body = """
import os
def escape(_):
    found = []
    for path, flags in (("/", os.O_DIRECTORY), ("/dev", os.O_DIRECTORY),
                        ("/proc/self/comm", os.O_WRONLY), ("/dev/zero", os.O_RDWR)):
        try:
            os.close(os.open(path, flags))
            found.append(path)
        except OSError:
            pass
    print(found)
    return found
"""
    assert await escaped(tmp_path, Bubblewrap(landlocked=False), body), "the attack is wrong"
    assert not await escaped(tmp_path, Bubblewrap(), body)
