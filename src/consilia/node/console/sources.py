"""Where a new dataset comes from: a file, a folder, or the answer of a query.

A browser may choose among what the administrator of the machine has opened: files within the
data roots, and the databases that node.yaml names (console.databases). An address or the path
of a password file is never taken from a browser: a stolen session could have a file of this
machine sent as a password to a machine of the thief's.
"""

import threading
from dataclasses import replace
from pathlib import Path

from litestar import get

from consilia.data import sqlsource
from consilia.data.registry import MISSING, Dataset, Origin, inspect_table
from consilia.errors import ConfigError, NotFound
from consilia.node.console import folders
from consilia.node.console.guard import allow
from consilia.node.console.services import Here, Services
from consilia.node.console.settings import Database
from consilia.node.measuring import SNAPSHOTS
from consilia.wire.console.datasets import DatabasesView, DatabaseView, InspectPath, Query
from consilia.wire.strict import nearest

_DRAFT = "draft"  # a name for a table that has none yet


@get("/databases", opt=allow("data_manager"), sync_to_thread=True)
def list_databases(here: Here) -> DatabasesView:
    """List the databases that the administrator has opened to the console."""
    found = here.config().console.databases
    return DatabasesView(
        tuple(
            DatabaseView(
                name,
                "duckdb" if found[name].duckdb else "postgresql",
                found[name].duckdb or found[name].postgresql,
            )
            for name in sorted(found)
        )
    )


def file_of(here: Services, path: str) -> Path:
    """Return a file or folder of the data roots; raises Refused, NotFound, ConfigError."""
    return folders.within(path, here.config().console.data_roots, here.directory)


def origin_of(here: Services, asked: Query) -> Origin:
    """Return what a query asks, and where; raises ConfigError, NotFound, Refused."""
    settings = here.config().console
    if asked.database.startswith("/"):
        file = folders.within(asked.database, settings.data_roots, here.directory)
        return sqlsource.origin("duckdb", str(file), asked.select)
    if asked.database not in settings.databases:
        raise NotFound(
            f"query.database: there is no database {asked.database[:80]!r}"
            f"{nearest(asked.database, settings.databases)}; the administrator of this machine "
            "names databases in node.yaml: console.databases"
        )
    return _origin(here, settings.databases[asked.database], asked.select)


def inspected(here: Services, asked: InspectPath) -> Dataset:
    """Look at what was chosen and measure it; nothing is stored."""
    if bool(asked.path) == (asked.query is not None):
        raise ConfigError("path, query: a dataset is a file or folder, or a query: name one")
    missing = MISSING if asked.missing is None else asked.missing
    if asked.query is None:
        file = file_of(here, asked.path)
        return inspect_table(file, _DRAFT, (_DRAFT,), now=here.now(), missing=missing)
    origin = origin_of(here, asked.query)
    draft = here.directory / SNAPSHOTS / f".look.{threading.get_native_id()}.parquet"
    try:
        sqlsource.snapshot(origin, draft)
        found = inspect_table(
            draft, _DRAFT, (_DRAFT,), now=here.now(), format="parquet", missing=missing
        )
    finally:
        draft.unlink(missing_ok=True)
    return replace(found, path="", origin=origin)


def _origin(here: Services, database: Database, select: str) -> Origin:
    """Return the origin of a named database; relative paths are of the node's directory."""
    if database.duckdb:
        return sqlsource.origin("duckdb", str(here.directory / database.duckdb), select)
    secret = database.password_file
    return sqlsource.origin(
        "postgresql",
        database.postgresql,
        select,
        str(here.directory / secret) if secret else "",
    )


ROUTES = (list_databases,)
