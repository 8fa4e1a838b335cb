"""A private PostgreSQL cluster on a unix socket, durable as PostgreSQL is by default."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def cluster() -> Iterator[tuple[str, int]]:
    """Yield the URL of an empty database and the process id of its server."""
    binaries = _binaries()
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    directory = Path(tempfile.mkdtemp(prefix="consilia-pg-", dir="/tmp"))
    try:
        if user:
            account = pwd.getpwnam(user)
            os.chown(directory, account.pw_uid, account.pw_gid)
        data = directory / "data"
        make: list[str | Path] = [
            binaries / "initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
        ]
        subprocess.run(make, check=True, capture_output=True, user=user, cwd=directory)
        options = ("listen_addresses=", f"unix_socket_directories={directory}")
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
            url = f"postgresql://postgres@/postgres?host={directory}"
            _wait(server, url)
            yield url, server.pid
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(30)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _binaries() -> Path:
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not debian:
        raise SystemExit("this benchmark needs PostgreSQL: apt-get install postgresql")
    return debian[-1].parent


def _wait(server: "subprocess.Popen[bytes]", url: str) -> None:
    import psycopg  # noqa: PLC0415 - an optional extra

    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
