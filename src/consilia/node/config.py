"""What the site's administrator decides: DIR/node.yaml as one frozen record.

Every key has a default but `site` and `hub`; an unknown key is an error that names the
nearest valid one. docs/reference/node-config.md explains each key to its reader. Sizes are
bytes, durations seconds. The file is read when the agent starts.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import yaml

from consilia.core import ids
from consilia.errors import ConfigError, NotFound
from consilia.files import first_line, write_whole
from consilia.node import hours
from consilia.node.arguments import Interval, allowed_values
from consilia.node.console import settings as console_settings
from consilia.node.console.settings import Console
from consilia.node.line import parse_proxy, with_password
from consilia.node.policy import ConsortiumReview, Terms, Told
from consilia.privacy.ledger import Cap, check_cap
from consilia.wire import strict
from consilia.wire.token import split_url
from consilia.wire.v1 import Scalar

FILE = "node.yaml"
GIB = 1 << 30
MAX_REVIEWERS = 20
MAX_RETENTION = 36_500  # days
MAX_REGION = 80  # characters
# required: bubblewrap; container: where that cannot work, fewer walls; off: none
Sandbox = Literal["required", "container", "off"]


class Limits(msgspec.Struct, frozen=True):
    """What one worker may use, and how many work at once."""

    memory_bytes: int = 8 * GIB
    seconds: float = 3600.0  # of one task; a shorter limit of the job holds as well
    threads: int = 0  # of a task's computation; 0: OMP_NUM_THREADS, or all cores
    processes: int = 128  # processes and threads a worker may have beside its libraries' pools
    tasks: int = 2  # tasks of different jobs at the same time
    idle_seconds: float = 300.0  # a worker without a task is closed after this
    update_bytes: int = 8 * GIB  # of one update, init included


class Budgets(msgspec.Struct, frozen=True):
    """How much the ledger lets be spent, for ever, where no command set another cap."""

    universe: Cap = Cap(10.0)  # of all that is released about one set of patients
    dataset: Cap | None = None  # within it; None: no cap of its own
    study: Cap | None = None
    researcher: Cap | None = None
    universes: dict[str, str] = {}  # dataset -> whose data it has, if not the site's patients


class Disclosure(msgspec.Struct, frozen=True):
    """Which numbers about the site's records may leave it (privacy.disclosure)."""

    k: int = 5  # fewest records that a number is about; a study can only raise it
    counts: Literal["rounded", "exact"] = "rounded"  # to multiples of 5
    metrics: Literal["none", "summed", "rounded", "all"] = "rounded"  # summed: masked only
    metric_digits: int = 3  # significant digits of a rounded metric
    metrics_per_day: int = 1000  # tasks of one dataset whose metrics leave; then none do
    progress_metrics: bool = False  # let metrics leave while a task runs
    progress_per_task: int = 20  # messages with metrics, where they may
    categories: int = 50  # levels of one table
    answers: int = 256  # different groups of records asked about, for ever, per universe


class NodeConfig(msgspec.Struct, frozen=True):
    """The content of node.yaml. Nothing in it lets a plan run: approvals do."""

    site: str
    hub: str  # https://host:port of the node listener
    proxy: str = ""  # http://[user@]host:port of an HTTP CONNECT proxy; "" for none
    proxy_password_file: str = ""  # of that user; relative to the node's directory
    sandbox: Sandbox = "required"
    cuda: bool = False
    limits: Limits = Limits()
    cache_bytes: int = 20 * GIB
    min_records: int = 100  # no task on fewer records; a study can only raise it
    clip_norm: float = 0.0  # largest L2 norm of an update (new minus old model); 0: no limit
    arguments: dict[str, list[Scalar]] = {}
    disclose_reasons: bool = False
    disclosure: Disclosure = Disclosure()
    privacy: Budgets = Budgets()
    plain_updates: bool = False  # may updates leave unmasked where three sites take part
    dp_required: bool = False  # refuse training without differential privacy
    compressed_updates: bool = True  # may unmasked updates be compressed, with a memory here
    failures_per_day: int = 50  # of one plan; then its tasks are refused until the next day
    permitted_studies: list[str] = []  # names; empty: any that is accepted here
    terms: Terms = Terms()  # what a study must say of itself
    regions: list[str] = []  # that this site is in, as studies name them: DE, EU
    statistics: Told = "study"  # sums over records: for studies that say so, all, or none
    hours: list[str] = []  # when tasks may run, as "mon-fri 19:00-07:00"; empty: at any time
    reviewers_needed: int = 1  # different people who must approve a plan
    consortium_review: ConsortiumReview | None = None  # other sites' reviewers who suffice
    retention_days: int = 0  # what an ended study left is purged after this; 0: by hand only
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_bytes: int = 64 << 20  # of the log files together
    console: Console = Console()


def load(directory: Path) -> NodeConfig:
    """Read DIR/node.yaml; raise NotFound when there is none, ConfigError for what is wrong."""
    path = directory / FILE
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise NotFound(
            f"{directory} is not a node's directory: it has no {FILE}. Name one with --dir or "
            "CONSILIA_NODE, or join a hub first: consilia node join TOKEN --dir DIR"
        ) from None
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} cannot be read: {e}") from None
    return parse(text, str(path))


def parse(text: str, source: str = FILE) -> NodeConfig:
    """Return the configuration that `text` (YAML) holds."""
    config = strict.from_yaml(text or "{}", NodeConfig, source)
    check(config, source)
    return config


def proxy_url(directory: Path, config: NodeConfig) -> str:
    """Return the proxy with its password filled in, "" for none. Never log it."""
    if not config.proxy_password_file:
        return config.proxy
    password = first_line(directory / config.proxy_password_file, "proxy_password_file")
    return with_password(config.proxy, password)


def check(config: NodeConfig, source: str) -> None:
    """Raise ConfigError for values that have the right type and make no sense."""
    for problem in _problems(config):
        raise ConfigError(f"{source}: {problem}")


def save(directory: Path, config: NodeConfig, comments: str = "") -> Path:
    """Write DIR/node.yaml (0600) in one step, keys with default values left out."""
    check(config, str(directory / FILE))
    plain = msgspec.to_builtins(config)
    defaults = msgspec.to_builtins(NodeConfig(site="", hub=""))
    kept = {k: v for k, v in plain.items() if v != defaults[k] or k in ("sandbox",)}
    text = comments + yaml.safe_dump(kept, sort_keys=False, default_flow_style=None)
    path = directory / FILE
    write_whole(path, text.encode())
    return path


def _problems(c: NodeConfig) -> Iterator[str]:
    """Yield what is wrong."""
    for name, check_text in (
        ("site", lambda: ids.name(c.site, "site")),
        ("hub", lambda: split_url(c.hub)),
        ("proxy", lambda: _check_proxy(c)),
    ):
        try:
            check_text()
        except ConfigError as e:
            yield f"{name}: {e}"
    numbers: dict[str, float] = {
        **{f"limits.{n}": getattr(c.limits, n) for n in c.limits.__struct_fields__},
        **{n: getattr(c, n) for n in ("cache_bytes", "log_bytes", "failures_per_day")},
        "min_records": c.min_records,
    }
    yield from _disclosure_problems(c.disclosure)
    for name, value in numbers.items():
        least = 0 if name == "limits.threads" else 1
        if not least <= value < math.inf:
            yield f"{name}: found {value}, needed at least {least}"
    if not 0 <= c.clip_norm < math.inf:
        yield f"clip_norm: found {c.clip_norm}, needed 0 (no limit) or more"
    yield from _budget_problems(c.privacy)
    yield from console_settings.problems(c.console)
    yield from _governance_problems(c)
    for name, values in c.arguments.items():
        if found := _values_problem(values):
            yield f"arguments.{name}: {found}"


def _governance_problems(c: NodeConfig) -> Iterator[str]:
    """Yield what is wrong with the keys about studies, reviewers, hours and retention."""
    for name in c.permitted_studies:
        try:
            ids.name(name, "study")
        except ConfigError as e:
            yield f"permitted_studies: {e}"
    for text in c.hours:
        try:
            hours.parse(text)
        except ConfigError as e:
            yield f"hours: {e}"
    if not 1 <= c.reviewers_needed <= MAX_REVIEWERS:
        yield f"reviewers_needed: found {c.reviewers_needed}, needed 1 to {MAX_REVIEWERS}"
    review = c.consortium_review
    if review and not 1 <= review.sites <= review.reviewers <= MAX_REVIEWERS:
        yield (
            f"consortium_review: found {review.reviewers} reviewers of {review.sites} sites, "
            f"needed 1 to {MAX_REVIEWERS} reviewers of at most as many sites"
        )
    for region in c.regions:
        if not (region.strip() and len(region) <= MAX_REGION and region.isprintable()):
            yield f"regions: found {region[:80]!r}, needed 1 to {MAX_REGION} printable letters"
    if not 0 <= c.retention_days <= MAX_RETENTION:
        yield f"retention_days: found {c.retention_days}, needed 0 (never) to {MAX_RETENTION}"


def _check_proxy(c: NodeConfig) -> None:
    parse_proxy(c.proxy)
    if c.proxy_password_file:
        with_password(c.proxy, "any")


def _budget_problems(budgets: Budgets) -> Iterator[str]:
    """Yield what is wrong with the section `privacy`."""
    for name in ("universe", "dataset", "study", "researcher"):
        cap = getattr(budgets, name)
        try:
            if cap is not None:
                check_cap(cap)
        except ConfigError as e:
            yield f"privacy.{name}.{e}"
    for dataset, universe in budgets.universes.items():
        try:
            ids.name(dataset, "dataset")
            ids.name(universe, "universe")
        except ConfigError as e:
            yield f"privacy.universes: {e}"


def _disclosure_problems(d: Disclosure) -> Iterator[str]:
    """Yield what is wrong with the section `disclosure`."""
    bounds = {
        "k": (3, 1000),
        "metric_digits": (1, 17),
        "metrics_per_day": (0, 1 << 31),
        "progress_per_task": (0, 1 << 31),
        "categories": (2, 1000),
        "answers": (0, 1024),
    }
    for name, (least, most) in bounds.items():
        if not least <= (value := getattr(d, name)) <= most:
            yield f"disclosure.{name}: found {value}, needed {least} to {most}"


def _values_problem(values: list[Scalar]) -> str | None:
    """Say why a list cannot be a range or a choice of values."""
    if not values:
        return "an empty list allows no value; leave the name out instead"
    if any(isinstance(v, float) and not math.isfinite(v) for v in values):
        return "NaN and infinity bound nothing; write numbers"
    allowed = allowed_values(values)
    if isinstance(allowed, Interval) and allowed.least > allowed.greatest:
        return f"the range [{values[0]}, {values[1]}] is empty; write [least, greatest]"
    return None
