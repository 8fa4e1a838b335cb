"""What an operator can observe: JSON log lines and Prometheus metrics.

Both are objects handed to whoever needs them; nothing is registered globally, so several
hubs live in one process (simulation, tests). Log lines hold who, what and on what; never
records, tokens or keys. Every line is one JSON object with `at` (ISO 8601, UTC), `level` and
`event`.
"""

import asyncio
import logging
import os
import re
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

Log = structlog.typing.FilteringBoundLogger

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_SECRET = re.compile(r"(cst_|consilia-join-1\.)[A-Za-z0-9_\-=.]+")
_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
_FSYNC = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2)


def make_log(stream: TextIO, level: str = "info") -> Log:
    """Return a logger that writes JSON lines to `stream`; `level` as in hub.yaml."""
    log: Log = structlog.wrap_logger(
        structlog.WriteLogger(stream),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.format_exc_info,
            _render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        cache_logger_on_first_use=True,
    )
    return log


def _render(logger: object, method: str, line: MutableMapping[str, Any]) -> str:
    """Write one line. Last fence: no token gets into a log, wherever it slipped in."""
    text = structlog.processors.JSONRenderer()(logger, method, line)
    return _SECRET.sub(r"\1[redacted]", text if isinstance(text, str) else text.decode())


class ForwardToLog(logging.Handler):
    """Takes what libraries log through the standard `logging` into our JSON lines."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one library record as one line."""
        trouble = record.exc_info if record.exc_info and record.exc_info[0] else None
        write = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        write(
            "library message", logger=record.name, message=record.getMessage(), exc_info=trouble
        )


class Metrics:
    """The hub's figures, in a registry of its own. Any thread may record."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self._rounds = Counter("consilia_rounds", "Rounds closed", registry=r)
        self._round_seconds = Histogram(
            "consilia_round_seconds", "Open to closed", registry=r, buckets=_BUCKETS
        )
        self._updates = Counter(
            "consilia_updates", "Ends of leases by outcome", ["outcome"], registry=r
        )
        self._bytes = Counter(
            "consilia_bytes", "Tensor frame bytes, seen from the hub", ["direction"], registry=r
        )
        self._commit = Histogram(
            "consilia_journal_fsync_seconds",
            "Durable group commits",
            registry=r,
            buckets=_FSYNC,
        )
        self._lag = Histogram(
            "consilia_event_loop_lag_seconds", "Late wake-ups", registry=r, buckets=_FSYNC
        )
        self._requests = Counter(
            "consilia_http_requests", "Requests of people", ["method", "status"], registry=r
        )
        self._by_answer: dict[tuple[str, int], Counter] = {}  # looked up without their locks
        memory = Gauge("consilia_resident_bytes", "Resident set size of the hub", registry=r)
        memory.set_function(resident_bytes)

    def round_closed(self, seconds: float) -> None:
        """Count a closed round that was open for `seconds`."""
        self._rounds.inc()
        self._round_seconds.observe(seconds)

    def update(self, outcome: str) -> None:
        """Count the end of a lease: accepted, rejected, failed or declined."""
        self._updates.labels(outcome).inc()

    def moved(self, direction: str, count: int) -> None:
        """Count `count` bytes of frames that went "in" or "out"."""
        self._bytes.labels(direction).inc(count)

    def committed(self, seconds: float) -> None:
        """Record how long one durable commit took."""
        self._commit.observe(seconds)

    def lagged(self, seconds: float) -> None:
        """Record by how much the event loop was late."""
        self._lag.observe(seconds)

    def request(self, method: str, status: int) -> None:
        """Count one answered request of the people listener."""
        answers = self._by_answer.get((method, status))
        if answers is None:
            answers = self._requests.labels(method, str(status))
            self._by_answer[method, status] = answers
        answers.inc()

    def watch(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Add a gauge `consilia_<name>` that is read when somebody asks."""
        Gauge(f"consilia_{name}", help_text, registry=self.registry).set_function(read)

    def render(self) -> tuple[bytes, str]:
        """Return the exposition text and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


def resident_bytes() -> float:
    """Resident set size of this process; 0 where /proc does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except OSError:
        return 0.0
    return float(pages * os.sysconf("SC_PAGESIZE"))


async def measure_lag(metrics: Metrics, every: float = 1.0) -> None:
    """Record, until cancelled, how late the event loop wakes a sleeper."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + every
        await asyncio.sleep(every)
        metrics.lagged(max(0.0, loop.time() - due))
