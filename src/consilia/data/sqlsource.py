"""A query's answer as a Parquet file, from a DuckDB file or a PostgreSQL database.

A sandboxed worker has no network, so the node runs the query and tasks work on the snapshot,
which is replaced by command only. Nothing but one SELECT runs: DuckDB's own parser says what
the statement is, the file is opened read-only, and what the query may open is that file alone;
PostgreSQL prepares it as one statement and runs it inside COPY in a read-only transaction.

A password is read from a file that its owner alone may read, given to libpq, and kept nowhere.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from consilia.data.registry import Origin
from consilia.errors import ConfigError, DataError
from consilia.files import first_line

if TYPE_CHECKING:
    import psycopg

MAX_QUERY = 100_000  # characters
_LOCAL = ("", "localhost", "127.0.0.1", "::1")
_CONNECT_SECONDS = 10
# object id of a type of PostgreSQL -> what DuckDB reads it as
_TYPES: Mapping[int, str] = MappingProxyType(
    {
        16: "BOOLEAN", 21: "SMALLINT", 23: "INTEGER", 20: "BIGINT", 700: "FLOAT",
        701: "DOUBLE", 1700: "DOUBLE", 25: "VARCHAR", 1043: "VARCHAR", 1042: "VARCHAR",
        19: "VARCHAR", 18: "VARCHAR", 2950: "VARCHAR", 1082: "DATE", 1114: "TIMESTAMP",
        1184: "TIMESTAMP",
    }
)  # fmt: skip


def origin(kind: str, database: str, query: str, password_file: str = "") -> Origin:
    """Return where a query's answer comes from, checked but not asked yet.

    `database` is the path of a DuckDB file, or libpq's parameters or URL without a password.
    Raises ConfigError.
    """
    query = query.strip().rstrip(";").rstrip()
    if not 0 < len(query) <= MAX_QUERY:
        raise ConfigError(f"a query of {len(query)} characters; needed 1 to {MAX_QUERY}")
    if kind == "duckdb":
        if password_file:
            raise ConfigError("a DuckDB file has no password; leave the password file out")
        return Origin(kind, str(Path(database).expanduser().resolve()), query)
    if kind != "postgresql":
        raise ConfigError(f"a database of kind {kind!r}; needed duckdb or postgresql")
    given = _parameters(database)
    if "service" in given:
        raise ConfigError(
            f"service={given['service']} keeps to itself which machine is asked, and whether "
            "over TLS; name host and dbname instead"
        )
    if "sslpassword" in given:
        raise ConfigError(
            "an sslpassword in the database's address is seen by every user of this machine, "
            "and kept; use a TLS key without one, in a file that only you can read"
        )
    if "password" in given:
        raise ConfigError(
            "a password in the database's address is seen by every user of this machine, and "
            "kept; put it into a file that only you can read, and name that file"
        )
    file = str(Path(password_file).expanduser().resolve()) if password_file else ""
    return Origin(kind, database, query, file)


def snapshot(source: Origin, target: Path) -> None:
    """Run the query and put its answer to `target` (Parquet, 0600), whole or not at all.

    Raises DataError for what the database says, ConfigError for a password file.
    """
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.new")
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    try:
        if source.kind == "duckdb":
            _from_duckdb(source, draft)
        else:
            _from_postgresql(source, draft)
        draft.chmod(0o600)
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


# ---- DuckDB ---------------------------------------------------------------------------------


def _from_duckdb(source: Origin, draft: Path) -> None:
    import duckdb  # noqa: PLC0415  60 MB that most processes never need

    path = Path(source.database)
    if not path.is_file():
        raise DataError(f"{path}: no such file; needed a DuckDB database")
    try:
        with duckdb.connect(path, read_only=True, config=dict(_SHUT)) as connection:
            _shut_in(connection, draft)
            found = connection.extract_statements(source.query)
            kinds = [statement.type.name for statement in found]
            if kinds != ["SELECT"]:
                raise DataError(
                    f"the query is {' and '.join(kinds) or 'empty'}; needed one SELECT"
                )
            _copy(connection, source.query, draft)
    except duckdb.Error as error:
        raise DataError(f"{path.name}: {_first_line(error)}") from None


_SHUT = MappingProxyType(
    {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
)


def _shut_in(connection: Any, *files: Path) -> None:
    """Let a connection open these files and nothing else, from now on."""
    paths = ", ".join(_text(str(file)) for file in files)
    for statement in (
        f"SET allowed_paths = [{paths}]",
        "SET temp_directory = ''",
        "SET enable_external_access = false",
        "SET lock_configuration = true",
    ):
        connection.execute(statement)


def _copy(connection: Any, query: str, draft: Path) -> None:
    # on lines of its own: a comment at its end must not swallow ours
    how = "FORMAT parquet, COMPRESSION zstd, USE_TMP_FILE false"
    connection.execute(f"COPY (\n{query}\n) TO {_text(str(draft))} ({how})")


# ---- PostgreSQL -----------------------------------------------------------------------------


def _from_postgresql(source: Origin, draft: Path) -> None:
    import duckdb  # noqa: PLC0415

    psycopg = _psycopg()
    texts = draft.with_suffix(".csv")
    try:
        columns = _copied(psycopg, source, texts)
        types = ", ".join(f"{_text(n)}: {_text(t)}" for n, t in columns.items())
        with duckdb.connect(":memory:", config=dict(_SHUT)) as connection:
            _shut_in(connection, draft, texts)
            _copy(
                connection,
                f"SELECT * FROM read_csv({_text(str(texts))}, header=false, "  # noqa: S608
                "auto_detect=false, delim=',', quote='\"', escape='\"', nullstr='', "
                f"allow_quoted_nulls=false, max_line_size=16777216, columns={{{types}}})",
                draft,
            )
    except psycopg.Error as error:
        raise DataError(f"PostgreSQL: {_first_line(error)}") from None
    except duckdb.Error as error:
        raise DataError(f"the answer cannot be kept: {_first_line(error)}") from None
    finally:
        texts.unlink(missing_ok=True)


def _copied(psycopg: Any, source: Origin, texts: Path) -> dict[str, str]:
    """Write the answer as CSV; return column -> DuckDB's type."""
    with psycopg.connect(**libpq(source)) as connection:
        connection.read_only = True
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SET LOCAL TIME ZONE 'UTC'")  # opens the transaction
        columns = _described(psycopg, connection, source.query)
        fd = os.open(texts, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "wb") as out, connection.cursor() as cursor:
            # prepared above, so it is one whole statement and closes no bracket of ours
            query = f"COPY (\n{source.query}\n) TO STDOUT (FORMAT csv)"
            with cursor.copy(query.encode()) as answer:
                for piece in answer:
                    out.write(piece)
        connection.rollback()
        return columns


def _described(
    psycopg: Any, connection: "psycopg.Connection[Any]", query: str
) -> dict[str, str]:
    """Have the server parse the query as one statement; return its columns' types."""
    encoding = connection.info.encoding
    prepared = connection.pgconn.prepare(b"", query.encode(encoding))
    described = connection.pgconn.describe_prepared(b"")
    for answer in (prepared, described):
        if answer.status != psycopg.pq.ExecStatus.COMMAND_OK:
            raise DataError(f"PostgreSQL: {answer.get_error_message(encoding)}")
    if described.nparams or not described.nfields:
        raise DataError("the query gives no columns, or has parameters; needed one SELECT")
    columns: dict[str, str] = {}
    for i in range(described.nfields):
        name, kind = (described.fname(i) or b"").decode(encoding), described.ftype(i)
        if name in columns:
            raise DataError(f"two columns are called {name!r}; name one with AS")
        columns[name] = _TYPES.get(kind) or _enum(connection, kind, name)
    return columns


def _enum(connection: "psycopg.Connection[Any]", kind: int, column: str) -> str:
    found = connection.execute(
        "SELECT typname, typtype FROM pg_type WHERE oid = %s", (kind,)
    ).fetchone()
    name, category = found or (str(kind), "")
    if category == "e":
        return "VARCHAR"
    raise DataError(
        f"column {column!r} holds {name}, which no column type fits; "
        f"cast it in the query, such as {column}::text AS {column}"
    )


def libpq(source: Origin) -> dict[str, Any]:
    """Return libpq's parameters: the password filled in, TLS to any other host."""
    given = _parameters(source.database)
    if source.password_file:
        given["password"] = first_line(Path(source.password_file), "password_file")
    # hostaddr wins over host, and both may name several, of which any may be the one
    hosts = str(given.get("hostaddr") or given.get("host") or "").split(",")
    if not all(host in _LOCAL or host.startswith("/") for host in hosts):
        given.setdefault("sslmode", "verify-full" if "sslrootcert" in given else "require")
    given.setdefault("connect_timeout", _CONNECT_SECONDS)
    return {**given, "application_name": "consilia"}


def _parameters(database: str) -> dict[str, Any]:
    psycopg = _psycopg()
    try:
        return dict(psycopg.conninfo.conninfo_to_dict(database))
    except psycopg.Error as error:
        raise ConfigError(
            f"the database's address cannot be read: {_first_line(error)}; needed such as "
            "'host=db.example.org dbname=cdw user=reader'"
        ) from None


def _psycopg() -> Any:
    try:
        import psycopg  # noqa: PLC0415  an extra
        import psycopg.conninfo  # noqa: PLC0415
    except ImportError:
        raise ConfigError(
            "PostgreSQL needs a package: pip install 'consilia[postgres]'"
        ) from None
    return psycopg


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
