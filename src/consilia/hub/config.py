"""hub.yaml: everything an operator may set, as one frozen record, and `init`, which writes it.

Unknown keys are errors that name the nearest valid key and the line. Relative paths are
relative to the hub's directory. Secrets never stand in the file: a database password is
named by file or by environment variable.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit

import msgspec

from consilia.accounts import directory
from consilia.accounts.directory import SignInBy
from consilia.core import ids
from consilia.errors import ConfigError, Conflict, StorageError
from consilia.hub.people.roles import ROLES
from consilia.wire import strict

FILE = "hub.yaml"
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9a-fA-F:]*:[0-9a-fA-F:]*")


class Limits(msgspec.Struct, frozen=True):
    """What one party may ask of the hub."""

    init_frame_bytes: int = 2 << 30  # of an uploaded base model, and of what an init task sends
    enrol_attempts: int = 10  # failed enrolments per minute and address
    poll_wait: float = 25.0  # seconds a person's long poll is held at most
    people_connections: int = 512  # open at the people listener


class PeopleRules(msgspec.Struct, frozen=True):
    """How people sign in, and how much each may ask."""

    idle_minutes: float = 30.0  # without a refresh after which a session ends
    session_hours: float = 12.0  # that a session lasts at most
    second_factor: tuple[str, ...] = ()  # who has one of these roles must use a second factor
    requests_per_second: float = 200.0  # of one person, and of one address unknown; 0: any
    requests_at_once: int = 1000  # that may come in a burst
    sign_ins_per_minute: float = 60.0  # from one address, right or wrong
    address_failures: int = 20  # wrong passwords in a row from one address before it rests


class Retention(msgspec.Struct, frozen=True):
    """Which frames stay. A frame that a job started from, or can go on from, always does."""

    versions: Literal["all"] | int = "all"  # the newest of each job, as many as this
    best: str = "loss"  # and its best by this metric; "" for none
    best_is: Literal["lowest", "highest"] = "lowest"
    upload_days: float = 30.0  # that an uploaded base frame stays while no job uses it
    upload_bytes: int = 20 << 30  # of uploaded base frames of one person


class S3(msgspec.Struct, frozen=True):
    """The bucket that frames are kept in, where the disk is only their cache."""

    bucket: str
    prefix: str = ""  # of every object's name
    endpoint: str = ""  # https://host:port of an S3-compatible service; "": Amazon's
    region: str = ""  # "": as AWS_REGION says, else us-east-1
    credentials_file: str = ""  # two lines: key id, secret; "": the environment, or the role
    cache_bytes: int = 50 << 30  # of frames kept on this machine


class Replica(msgspec.Struct, frozen=True):
    """This hub among several over one PostgreSQL and one bucket; see hub.replica."""

    name: str  # of this one; each has another
    people: str  # host:port where the other hubs reach this one's people_listen
    nodes: str  # and its node_listen
    lease_seconds: float = 10.0  # after which a dead hub's work is taken over


class HubConfig(msgspec.Struct, frozen=True):
    """The operator's settings; defaults suit one machine."""

    name: str = "hub"
    people_listen: str = "127.0.0.1:8443"
    node_listen: str = "0.0.0.0:8444"
    hosts: tuple[str, ...] = ("localhost",)  # names and addresses others reach this hub by
    database: str = "sqlite"  # or postgresql://user@host:port/name
    database_password_file: str = ""
    database_password_env: str = ""
    blobs: str = "."  # the directory of the folders blobs/ and spool/, one file system
    frames_key: str = ""  # file of the keys that frames are sealed with; "": they are not
    s3: S3 | None = None  # keep the frames in a bucket; `blobs` is then their cache
    replica: Replica | None = None  # stand in for another hub, and it for this one
    limits: Limits = Limits()
    retention: Retention = Retention()
    people: PeopleRules = PeopleRules()
    sign_in: SignInBy = SignInBy()  # by the directory of the people's own institution
    presence_seconds: float = 15.0  # without a poll after which a site counts as away
    log_level: Literal["debug", "info", "warning", "error"] = "info"


@dataclass(frozen=True, slots=True)
class Directory:
    """Where a hub keeps what: the layout under its directory."""

    root: Path

    @property
    def config(self) -> Path:
        """The settings file."""
        return self.root / FILE

    @property
    def secrets(self) -> Path:
        """Keys, certificates and the operator's token; mode 0700."""
        return self.root / "secrets"

    @property
    def operator_token(self) -> Path:
        """The first operator's API token; mode 0600."""
        return self.secrets / "operator.token"

    @property
    def spool(self) -> Path:
        """Frames on their way in."""
        return self.root / "spool"

    @property
    def run(self) -> Path:
        """Of the running process: lock and addresses."""
        return self.root / "run"

    @property
    def addresses(self) -> Path:
        """Where the running hub listens, as JSON; absent when it does not run."""
        return self.run / "addresses.json"

    @property
    def log(self) -> Path:
        """For whoever redirects the hub's log to a file."""
        return self.root / "log"


def load(directory: Path) -> HubConfig:
    """Read and check DIR/hub.yaml; raise ConfigError with the line and the remedy."""
    path = Directory(directory).config
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist; make a hub with: consilia hub init {directory}"
        ) from None
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} cannot be read: {e}") from None
    return check(strict.from_yaml(text, HubConfig, str(path)))


def check(config: HubConfig) -> HubConfig:
    """Return `config` when its values make sense together, else raise ConfigError."""
    ids.name(config.name, "hub")
    parse_listen(config.people_listen, "people_listen")
    parse_listen(config.node_listen, "node_listen")
    if not config.hosts:
        raise ConfigError("hosts is empty: name at least one host name or address of the hub")
    for host in config.hosts:
        if not _HOST.fullmatch(host) or len(host) > 253:
            raise ConfigError(
                f"hosts: {host!r} is no host name or IP address (no port, no URL)"
            )
    limits = config.limits
    for name, value, low, high in (
        ("limits.init_frame_bytes", limits.init_frame_bytes, 1024, 1 << 40),
        ("limits.enrol_attempts", limits.enrol_attempts, 1, 10_000),
        ("limits.poll_wait", limits.poll_wait, 1, 300),
        ("limits.people_connections", limits.people_connections, 8, 100_000),
        ("people.idle_minutes", config.people.idle_minutes, 11, 1440),
        ("people.session_hours", config.people.session_hours, 0.2, 720),
        ("people.requests_per_second", config.people.requests_per_second, 0, 1_000_000),
        ("people.requests_at_once", config.people.requests_at_once, 1, 1_000_000),
        ("people.address_failures", config.people.address_failures, 5, 1_000_000),
        ("people.sign_ins_per_minute", config.people.sign_ins_per_minute, 1, 10_000),
        ("presence_seconds", config.presence_seconds, 1, 3600),
        ("retention.versions", _count(config.retention.versions), 1, 1_000_000),
        ("retention.upload_days", config.retention.upload_days, 1, 36_500),
        ("s3.cache_bytes", config.s3.cache_bytes if config.s3 else 1 << 30, 1 << 20, 1 << 60),
        ("replica.lease_seconds", _lease(config), 2, 600),
        ("retention.upload_bytes", config.retention.upload_bytes, 0, 1 << 50),
    ):
        if not low <= value <= high:
            raise ConfigError(f"{name} is {value:g}, must be between {low} and {high}")
    _check_roles(config.people.second_factor)
    for problem in directory.problems(config.sign_in, ROLES):
        raise ConfigError(f"sign_in.{problem}")
    _check_database(config)
    _check_replica(config)
    return config


def _check_roles(roles: tuple[str, ...]) -> None:
    for role in roles:
        if role not in ROLES:
            raise ConfigError(
                f"people.second_factor: {role[:40]!r} is not a role"
                f"{strict.nearest(role, ROLES)}"
            )


def _lease(config: HubConfig) -> float:
    return config.replica.lease_seconds if config.replica else 10.0


def _count(versions: str | int) -> int:
    return versions if isinstance(versions, int) else 1


def parse_listen(text: str, what: str) -> tuple[str, int]:
    """Split "host:port" ("[::1]:8443" for IPv6); port 0 lets the system choose."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{what}: {text!r} is not host:port, such as 0.0.0.0:8444")
    if not _HOST.fullmatch(host):
        raise ConfigError(f"{what}: {host!r} is no host name or IP address")
    return host, int(port)


def listen_text(host: str, port: int) -> str:
    """Return host and port as `parse_listen` reads them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_replica(config: HubConfig) -> None:
    if config.replica is None:
        return
    ids.name(config.replica.name, "replica")
    parse_listen(config.replica.people, "replica.people")
    parse_listen(config.replica.nodes, "replica.nodes")
    if config.database == "sqlite" or config.s3 is None:
        raise ConfigError(
            "replica is set: hubs that stand in for each other need one PostgreSQL (database: "
            "postgresql://user@host/name) and one bucket (s3), found database: "
            f"{'sqlite' if config.database == 'sqlite' else 'postgresql'} and "
            f"{'no s3' if config.s3 is None else 's3'}"
        )


def _check_database(config: HubConfig) -> None:
    if config.database_password_file and config.database_password_env:
        raise ConfigError("set database_password_file or database_password_env, not both")
    if config.database == "sqlite":
        return
    url = urlsplit(config.database)
    if url.scheme not in ("postgresql", "postgresql+psycopg"):
        raise ConfigError(
            f"database: {url.scheme or config.database} is not known; use sqlite "
            "or postgresql://user@host:port/name"
        )
    if url.password is not None:
        raise ConfigError(
            "database: a password must not stand in hub.yaml; put it into a file named by "
            "database_password_file, or a variable named by database_password_env"
        )


def database_url(
    directory: Path, config: HubConfig, environ: Mapping[str, str] = os.environ
) -> str:
    """Return the SQLAlchemy URL, with the password filled in. Never log it."""
    if config.database == "sqlite":
        return f"sqlite:///{(directory / 'hub.sqlite').resolve()}"
    url = urlsplit(config.database)
    netloc, password = url.netloc, _password(directory, config, environ)
    if password:
        user, at, host = netloc.rpartition("@")
        if not at:
            raise ConfigError("database: a password is set but no user: postgresql://USER@host")
        netloc = f"{user}:{quote(password, safe='')}@{host}"
    return url._replace(scheme="postgresql+psycopg", netloc=netloc).geturl()


def _password(directory: Path, config: HubConfig, environ: Mapping[str, str]) -> str:
    if name := config.database_password_env:
        try:
            return environ[name]
        except KeyError:
            raise ConfigError(f"database_password_env: variable {name} is not set") from None
    if config.database_password_file:
        path = directory / config.database_password_file
        try:
            return path.read_text("utf-8").strip()
        except OSError as e:
            raise ConfigError(f"database_password_file: {path} cannot be read: {e}") from None
    return ""


def s3_key(directory: Path, s3: S3) -> tuple[str, str] | None:
    """Return (access key id, secret) of the credentials file, None when none is named."""
    if not s3.credentials_file:
        return None
    path = directory / s3.credentials_file
    try:
        lines = path.read_text("utf-8").split()
        readable = path.stat().st_mode & 0o077
    except OSError as e:
        raise ConfigError(f"s3.credentials_file: {path} cannot be read: {e}") from None
    if readable:
        raise ConfigError(f"s3.credentials_file: others may read {path}: chmod 600 {path}")
    if len(lines) != 2:
        raise ConfigError(
            f"s3.credentials_file: {path} holds {len(lines)} words; needed two lines, the "
            "access key id and the secret"
        )
    return lines[0], lines[1]


def write(directory: Path, config: HubConfig) -> None:
    """Write DIR/hub.yaml and make the directories; raise Conflict when a hub is there."""
    import yaml  # noqa: PLC0415  # only `hub init` writes YAML

    check(config)
    layout = Directory(directory)
    if layout.config.exists() or layout.secrets.exists():
        raise Conflict(f"{directory} holds a hub already; choose another directory")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        layout.secrets.mkdir(mode=0o700)
        for path in (layout.run, layout.spool, layout.log, directory / config.blobs):
            path.mkdir(mode=0o750, parents=True, exist_ok=True)
        body = yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False)
        layout.config.write_text(_HEADER + body, "utf-8")
    except OSError as e:
        raise StorageError(f"a hub cannot be made in {directory}: {e}") from None


_HEADER = """\
# Settings of this Consilia hub. Every key is explained in docs/reference/hub-config.md;
# a key that does not exist is an error, not ignored. Restart the hub after a change.
"""
