"""The node's logs: JSON lines in DIR/log/agent.log, plain lines on stderr for people.

They hold what happened and why, tracebacks included: they stay at the site. No secret and no
record's value is ever handed to them.
"""

import contextlib
import json
import logging
import sys
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

_FILES = 4  # rotated ones included
STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "fields"}


class Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        out: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(
                timespec="milliseconds"
            ),
            "level": record.levelname.lower(),
            "from": record.name,
            "what": record.getMessage(),
            **{k: v for k, v in record.__dict__.items() if k not in STANDARD},
        }
        if record.exc_info:
            out["error"] = self.formatException(record.exc_info)
        return json.dumps(out, default=str, ensure_ascii=False)


class Plain(logging.Formatter):
    """Time, level and words."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, a traceback below it.

        What a plan or the hub has put into it (an error's text) cannot steer the terminal.
        """
        extra = " ".join(f"{k}={v}" for k, v in record.__dict__.items() if k not in STANDARD)
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        at = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        line = f"{at} {level}{record.getMessage()}{' ' if extra else ''}{extra}"
        error = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        shown = (c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in line + error)
        return "".join(shown)


def start(
    folder: Path,
    level: str,
    total_bytes: int,
    people: TextIO | None = None,
    name: str = "agent.log",
) -> None:
    """Send everything at `level` and above to `folder`/`name` and to `people` (stderr).

    Each program has a file of its own: two that turn one over would lose lines.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = RotatingFileHandler(
        folder / name,
        maxBytes=max(total_bytes // _FILES, 1 << 16),
        backupCount=_FILES - 1,
        encoding="utf-8",
    )
    file.setFormatter(Json())
    stream = logging.StreamHandler(people or sys.stderr)
    stream.setFormatter(Plain())
    root = logging.getLogger("consilia")
    for old in root.handlers:
        old.close()
    root.handlers = [file, stream]
    root.setLevel(level.upper())
    root.propagate = False


def stop() -> None:
    """Close the log files."""
    root = logging.getLogger("consilia")
    for handler in root.handlers:
        with contextlib.suppress(OSError):  # a full disk takes the last lines, not the end
            handler.close()
    root.handlers = []
