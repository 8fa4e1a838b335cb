"""What all suites share: the order in which files are run, a private PostgreSQL, a bucket."""

import gc
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from pgkit import Postgres
from s3kit import s3_server

# A machine that is busy must not fail a property: no test asserts on time.
settings.register_profile(
    "consilia", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("consilia")

SLOW = 10.0  # seconds that a test marked slow takes, where its mark does not say more


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where tests run side by side, begin with the files that take longest by their marks.

    A file stays with one process (--dist loadfile): what its tests share is made once. Whoever
    is done takes the next file, so the small ones at the end fill up what the long ones left.
    """
    if not hasattr(config, "workerinput"):
        return
    seconds: dict[Path, float] = {}
    for item in items:
        for mark in item.iter_markers("slow"):
            took = float(mark.args[0]) if mark.args else SLOW
            seconds[item.path] = seconds.get(item.path, 0.0) + took
    items.sort(key=lambda item: -seconds.get(item.path, 0.0))


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of collections: each would take half a second."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter's end collect all of it: libraries tell what they find left."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def s3_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 server that only this test session knows."""
    with s3_server(tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A private cluster on a unix socket, run as `postgres` when the tests run as root."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (extra: postgres)")
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    user = "postgres" if os.geteuid() == 0 else None
    directory = Path(tempfile.mkdtemp(prefix="consilia-pg-", dir="/tmp"))
    try:
        if user:
            account = pwd.getpwnam(user)
            os.chown(directory, account.pw_uid, account.pw_gid)
        data = directory / "data"
        subprocess.run(
            [
                binaries / "initdb",
                "-D",
                data,
                "-U",
                "postgres",
                "-A",
                "trust",
                "-N",
                "-E",
                "UTF8",
            ],
            check=True,
            capture_output=True,
            user=user,
            cwd=directory,
        )
        options = ("listen_addresses=", f"unix_socket_directories={directory}", "fsync=off")
        server = subprocess.Popen(
            [binaries / "postgres", "-D", data, *(p for o in options for p in ("-c", o))],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=user,
            group=user,
            extra_groups=[] if user else None,
            cwd=directory,
        )
        try:
            cluster = Postgres(directory)
            _wait(server, cluster)
            yield cluster
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(60)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _binaries() -> Path | None:
    if found := shutil.which("initdb"):
        return Path(found).parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return debian[-1].parent if debian else None


def _wait(server: "subprocess.Popen[bytes]", cluster: Postgres) -> None:
    import psycopg  # noqa: PLC0415 - as above

    deadline = time.monotonic() + 120
    while True:
        try:
            psycopg.connect(cluster.url("postgres")).close()
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
