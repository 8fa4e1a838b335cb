"""The section `console` of node.yaml: where it listens, for whom, which folders it shows."""

import ipaddress
from collections.abc import Iterator
from pathlib import Path

import msgspec

from consilia.accounts import directory
from consilia.accounts.directory import SignInBy
from consilia.errors import ConfigError
from consilia.wire.console import ROLES

LISTEN = "127.0.0.1:8445"


class Database(msgspec.Struct, frozen=True):
    """A database that data managers may ask; `duckdb` or `postgresql`, one of the two."""

    duckdb: str = ""  # path of a DuckDB file
    postgresql: str = ""  # libpq's parameters without a password
    password_file: str = ""  # of PostgreSQL; mode 600, the password in its first line


class Console(msgspec.Struct, frozen=True):
    """How the console is served. Relative paths are relative to the node's directory."""

    listen: str = LISTEN  # host:port
    beyond_this_machine: bool = False  # may `listen` be another address than loopback
    certificate: str = ""  # PEM file with its chain; "" for none: loopback only
    key: str = ""  # PEM file of mode 600
    names: tuple[str, ...] = ()  # host names under which browsers reach it, besides its address
    data_roots: tuple[str, ...] = ()  # folders that a data manager may look into
    databases: dict[str, Database] = {}  # that a data manager may ask, by a name for people
    sign_in: SignInBy = SignInBy()  # by the hospital's own directory
    second_factor: bool = False  # must every account have one
    idle_minutes: float = 30.0  # without a request a session ends
    session_hours: float = 12.0  # a session ends then at the latest


def address(settings: Console) -> tuple[str, int]:
    """Return host and port; raise ConfigError."""
    host, colon, port = settings.listen.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 <= int(port) < 65536:
        raise ConfigError(f"listen: found {settings.listen!r}, needed HOST:PORT, as {LISTEN}")
    return host.strip("[]"), int(port)


def loopback(host: str) -> bool:
    """Tell whether an address reaches this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def origins(settings: Console, port: int) -> frozenset[str]:
    """Return the origins (scheme://host:port) under which browsers may reach the console."""
    host, _ = address(settings)
    names = {*settings.names, f"[{host}]" if ":" in host else host}
    if loopback(host):
        names |= {"localhost", "127.0.0.1", "[::1]"}
    scheme = "https" if settings.certificate else "http"
    usual = {"https": 443, "http": 80}[scheme]
    return frozenset(
        f"{scheme}://{name.lower()}{end}"
        for name in names
        for end in ((f":{port}", "") if port == usual else (f":{port}",))
    )


def problems(settings: Console) -> Iterator[str]:
    """Yield what is wrong with the section."""
    try:
        host, _ = address(settings)
    except ConfigError as e:
        yield f"console.{e}"
        return
    if not loopback(host):
        if not settings.beyond_this_machine:
            yield (
                f"console.listen: {host} can be reached from other machines; to want that, set "
                "console.beyond_this_machine: true and give a certificate, or listen on "
                f"{LISTEN}"
            )
        elif not settings.certificate:
            yield (
                f"console.listen: {host} can be reached from other machines, and nothing goes "
                "there without TLS; set console.certificate and console.key (PEM files)"
            )
    if bool(settings.certificate) != bool(settings.key):
        yield "console: certificate and key go together; one of them is missing"
    for root in settings.data_roots:
        if not Path(root).is_absolute():
            yield f"console.data_roots: found {root!r}, needed an absolute path"
    yield from _database_problems(settings)
    for name in settings.names:
        if not name or any(c in name for c in "/:@ *"):
            yield f"console.names: found {name!r}, needed a host name without scheme and port"
    yield from (f"console.sign_in.{p}" for p in directory.problems(settings.sign_in, ROLES))
    for key, value, most in (
        ("idle_minutes", settings.idle_minutes, 24 * 60.0),
        ("session_hours", settings.session_hours, 7 * 24.0),
    ):
        if not 0 < value <= most:
            yield f"console.{key}: found {value:g}, needed more than 0 and at most {most:g}"


def _database_problems(settings: Console) -> Iterator[str]:
    for name, database in settings.databases.items():
        if not name or name.startswith("/") or not name.isprintable():
            yield f"console.databases: found the name {name!r}, needed a word for people"
        if bool(database.duckdb) == bool(database.postgresql):
            yield f"console.databases.{name}: needed one of duckdb and postgresql"
        if database.duckdb and database.password_file:
            yield f"console.databases.{name}.password_file: a DuckDB file has no password"
