"""A real S3 server in a process of its own, and buckets in it."""

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

from consilia.hub.s3blobs import Check, S3Blobs, bucket

KEY = ("key-of-a-test", "secret-of-a-test")
_numbers = itertools.count()


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Run moto's server and yield its address."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "moto.server",
        "-H",
        "127.0.0.1",
        "-p",
        "0",
    ]
    log = folder / "s3.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield _address(log, process)
    finally:
        process.terminate()
        process.wait(60)


def _address(log: Path, process: "subprocess.Popen[bytes]") -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        text = log.read_text()
        if "Running on http://" in text:
            return "http://" + text.partition("Running on http://")[2].split()[0]
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"the S3 server did not start:\n{log.read_text()}")


def s3_client(address: str) -> Any:
    """Another program's client of the same server."""
    return boto3.client(
        "s3",
        endpoint_url=address,
        region_name="us-east-1",
        aws_access_key_id=KEY[0],
        aws_secret_access_key=KEY[1],
    )


def new_bucket(address: str) -> str:
    """Make an empty bucket and return its name."""
    name = f"frames-{next(_numbers)}"
    s3_client(address).create_bucket(Bucket=name)
    return name


def s3_blobs(
    address: str,
    root: Path,
    *,
    name: str = "",
    cache_bytes: int = 1 << 30,
    check: Check = lambda fd, digest: None,
) -> S3Blobs:
    """Blobs in a bucket of the server (a new one, or `name`), cached under `root`."""
    store = bucket(name or new_bucket(address), endpoint=address, prefix="hub", key=KEY)
    return S3Blobs(store, root, cache_bytes=cache_bytes, check=check, reserve=0)
