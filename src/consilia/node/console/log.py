"""The console's logger: structlog's way of saying things, into the node's own log files.

The agent does without structlog: it takes a fifth of the time of its start.
"""

import logging
from collections.abc import MutableMapping
from typing import Any

import structlog

from consilia.node.logs import STANDARD


def logger() -> structlog.typing.FilteringBoundLogger:
    """Return the logger that `handlers` and routes use; `node.logs.start` gave it its files."""
    made: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        logging.getLogger("consilia.node.console"),
        processors=[structlog.stdlib.filter_by_level, _to_stdlib],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return made


def _to_stdlib(_: Any, __: str, event: MutableMapping[str, Any]) -> tuple[tuple[Any], Any]:
    """Hand a structlog event over as a standard record with extra fields."""
    words = event.pop("event")
    info = event.pop("exc_info", None)
    extra = {f"{k}_" if k in STANDARD else k: v for k, v in event.items()}
    return (words,), {"extra": extra, "exc_info": info}
