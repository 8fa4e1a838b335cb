"""api: what the people's REST API answers, over TLS, on the machine it shares with its askers.

One real hub process on a private PostgreSQL, seeded with jobs, rounds and model versions.

    cached_rps         lists and metrics, answered from the snapshot (hub/rest/snapshot), every
                       request with a token that is checked anew
    uncached_rps       a piece of a model's frame: read from PostgreSQL, with its audit line
                       durable in PostgreSQL before the first byte
    subscribers_p95_s  from an event's time stamp to each of 1,000 open live streams

The load comes from wrk (C, keep-alive, TLS), which takes its share of the same two cores: its
CPU seconds, and those of the hub, per request stand beside the rates, as other work on the
machine moves the rates and hardly those.
"""

import asyncio
import json
import re
import resource
import shutil
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil

from bench import postgres
from bench.seed import Seeded, seed
from consilia.sdk.client import Client

CONNECTIONS = 32
_RATE = re.compile(r"Requests/sec:\s+([0-9.]+)")
_COUNT = re.compile(r"([0-9]+) requests in")
_BAD = re.compile(r"Non-2xx or 3xx responses: ([0-9]+)|Socket errors: (.*)")
SCRIPT = """
local paths = {%(paths)s}
local n = 0
wrk.headers["Authorization"] = "Bearer %(token)s"
%(more)s
request = function()
  n = n + 1
  return wrk.format("GET", paths[n %% #paths + 1])
end
"""


def measure(root: Path, seconds: float, subscribers: int, jobs: int) -> dict[str, Any]:
    """Measure for `seconds` each; `jobs` are seeded."""
    if shutil.which("wrk") is None:
        raise SystemExit("this benchmark needs wrk: apt-get install wrk")
    with postgres.cluster() as (database, server):
        seeded = seed(root / "hub", database, jobs)
        hub = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "consilia.cli.main",
                "hub",
                "serve",
                "--dir",
                str(seeded.directory),
            ],
            stdout=subprocess.DEVNULL,
        )
        try:
            address = hub_address(seeded.directory, hub)
            load = Load(root, address, seeded.token, seconds, hub.pid, server)
            cached = load.run(seeded.kept, "")
            uncached = load.run((seeded.frame,), 'wrk.headers["Range"] = "bytes=0-1023"')
            delays = asyncio.run(_subscribers(seeded, address, subscribers))
        finally:
            hub.terminate()
            hub.wait(20)
    return {
        "cached_rps": cached["rps"],
        "cached_hub_cpu_us": cached["hub_cpu_us"],
        "cached_wrk_cpu_us": cached["wrk_cpu_us"],
        "uncached_rps": uncached["rps"],
        "uncached_hub_cpu_us": uncached["hub_cpu_us"],
        "uncached_wrk_cpu_us": uncached["wrk_cpu_us"],
        "uncached_postgres_cpu_us": uncached["postgres_cpu_us"],
        "subscribers": subscribers,
        "subscribers_p95_s": round(statistics.quantiles(delays, n=20)[-1], 4),
        "correct": not cached["bad"] and not uncached["bad"] and bool(delays),
        "bad": [cached["bad"], uncached["bad"]],
    }


def hub_address(directory: Path, hub: "subprocess.Popen[bytes]", which: str = "people") -> str:
    """Return where a hub that has just been started listens, once it does."""
    deadline = time.monotonic() + 60
    path = directory / "run" / "addresses.json"
    while not path.exists():
        if hub.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the hub did not start")
        time.sleep(0.05)
    return str(json.loads(path.read_text())[which])


class Load:
    """wrk against one hub."""

    def __init__(  # noqa: PLR0917 - what it needs to know
        self, root: Path, address: str, token: str, seconds: float, hub: int, server: int
    ) -> None:
        self._root, self._address, self._token = root, address, token
        self._seconds = seconds
        self._hub, self._server = psutil.Process(hub), psutil.Process(server)

    def run(self, paths: tuple[str, ...], more: str) -> dict[str, Any]:
        """Ask for `paths` in turn; return the rate, and CPU microseconds per request."""
        script = self._root / "load.lua"
        quoted = ",".join(f'"{path}"' for path in paths)
        script.write_text(SCRIPT % {"paths": quoted, "token": self._token, "more": more})
        self._wrk(script, 1.0)  # connections, caches
        hub, server, own = _cpu(self._hub), _tree_cpu(self._server), _ended()
        said = self._wrk(script, self._seconds)
        hub, server = _cpu(self._hub) - hub, _tree_cpu(self._server) - server
        rate, count = float(_found(_RATE, said)), int(_found(_COUNT, said))
        bad = _BAD.search(said)
        return {
            "rps": round(rate),
            "hub_cpu_us": round(hub / count * 1e6, 1),
            "wrk_cpu_us": round((_ended() - own) / count * 1e6, 1),
            "postgres_cpu_us": round(server / count * 1e6, 1),
            "bad": bad[0] if bad else "",
        }

    def _wrk(self, script: Path, seconds: float) -> str:
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s"]
        command += ["--timeout", "10s", "-s", str(script), self._address]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _found(pattern: "re.Pattern[str]", text: str) -> str:
    found = pattern.search(text)
    if found is None:
        raise RuntimeError(f"wrk said something else:\n{text}")
    return found[1]


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _ended() -> float:
    """CPU seconds of the child processes that have ended: wrk's."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _tree_cpu(process: psutil.Process) -> float:
    return sum(map(_cpu, (process, *process.children(recursive=True))))


# ---- live streams ---------------------------------------------------------------------------


async def _subscribers(
    seeded: Seeded, address: str, count: int, events: int = 20
) -> list[float]:
    """Open `count` streams of a waiting job, let events happen, return every delay in s."""
    context = ssl.create_default_context(cadata=seeded.ca)
    host, _, port = address.removeprefix("https://").rpartition(":")
    delays: list[float] = []
    lines = []
    for begin in range(0, count, 50):
        lines += await asyncio.gather(
            *(
                asyncio.open_connection(host, int(port), ssl=context)
                for _ in range(begin, min(begin + 50, count))
            )
        )
    ask = f"GET /api/v1/jobs/{seeded.job}/stream HTTP/1.1\r\nHost: {host}\r\n"
    heard = [
        asyncio.create_task(_listen(reader, delays.append, time.time)) for reader, _ in lines
    ]
    for (_, writer), token in zip(lines, cycle(seeded.watchers), strict=False):
        writer.write(f"{ask}Authorization: Bearer {token}\r\n\r\n".encode())
    await asyncio.sleep(3)
    delays.clear()  # what had happened before
    await asyncio.to_thread(_events, seeded, address, events)
    until = time.monotonic() + 30
    while len(delays) < events * count and time.monotonic() < until:
        await asyncio.sleep(0.1)
    for task in heard:
        task.cancel()
    for _, writer in lines:
        writer.transport.abort()
    await asyncio.gather(*heard, return_exceptions=True)
    if len(delays) != events * count:
        raise RuntimeError(f"{len(delays)} events arrived, {events * count} were expected")
    return delays


async def _listen(
    reader: asyncio.StreamReader, heard: Callable[[float], None], now: Callable[[], float]
) -> None:
    async for line in reader:
        if line.startswith(b"data: "):
            heard(now() - json.loads(line[6:])["at"])


def _events(seeded: Seeded, address: str, count: int) -> None:
    with Client(address, seeded.token, seeded.ca, environ={}) as client:
        for n in range(count):
            client.change_arguments(seeded.job, {"lr": 0.1 + n})
            time.sleep(0.25)
