"""Version 1 of every message between hub, node and researcher, as frozen records.

Rules of the wire (docs/reference/wire.md is the law, tests/vectors its golden bytes):

- Bodies are msgpack of exactly one of these records. Within v1 a field may be added only
  with a default; none is renamed, retyped, reordered or removed. Decoders ignore fields they
  do not know and refuse everything else that does not fit.
- Times between machines are durations in seconds, never clock readings: a node whose clock
  is an hour wrong works.
- What a party must be able to prove later (a report, an acceptance) travels in a `Sealed`
  envelope (wire.seal): the exact bytes that were signed, never a re-encoding.
- Tensors never travel in messages; a message names a tensor frame (wire.frames) by digest.
"""

import hashlib
from typing import Literal, TypeVar

import msgspec

from consilia.errors import WireError

MAX_MESSAGE = 4 << 20  # bytes of any control message
MAX_PLAN = 1 << 20  # bytes of all files of a training plan
MAX_METRICS = 64  # named numbers in one report
MAX_METRIC_NAME = 64  # characters
MAX_ARGUMENTS = 64
MAX_MOCK = 128 << 10  # bytes of a dataset's mock twin

Scalar = bool | int | float | str
Metrics = dict[str, float]
Arguments = dict[str, Scalar]

T = TypeVar("T")


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of all wire records: immutable, compared by value."""


# ---- what people write: plans and studies, named by digest ---------------------------------


class Plan(Record, frozen=True):
    """A training plan: the reviewed source that workers run. Named by `plan_digest`."""

    name: str
    files: dict[str, str]  # relative path -> source text; MAX_PLAN in all
    entry: str  # "module:ATTRIBUTE", a module of `files`
    requirements: tuple[str, ...] = ()  # PEP 508, what the plan imports beyond Consilia
    description: str = ""


class Study(Record, frozen=True):
    """A governed project, locked when submitted. Named by `study_digest`."""

    name: str
    purpose: str
    sites: tuple[str, ...]  # invited sites, sorted
    tags: tuple[str, ...]  # a site's dataset must carry all of these
    controller: str = ""
    legal_basis: str = ""
    ethics: str = ""
    until: str = ""  # last day, ISO date; "" for none
    min_records: int = 0  # the study may only raise a site's own minimum
    retention_days: int = 0  # a site keeps what the study left no longer after its end; 0: free
    residency: str = ""  # region that data and what is made of them here must stay in
    data_centre: str = ""  # of `sites`, the one that holds copies of what others pool; "": none
    pooled: tuple[str, ...] = ()  # of `sites`, those asked to pool at the data centre, sorted
    statistics: bool = False  # sums over the sites' records may be asked for, beside models

    @property
    def hospitals(self) -> tuple[str, ...]:
        """The sites whose own records the study is about: all but the data centre."""
        return tuple(site for site in self.sites if site != self.data_centre)


# Of Study: not in the digest where they say nothing.
_LATER = ("retention_days", "residency", "data_centre", "pooled", "statistics")


def plan_digest(plan: Plan) -> str:
    """Digest of source, requirements and entry point; name and description are free."""
    body = (1, plan.entry, sorted(plan.requirements), sorted(plan.files.items()))
    return _sha256(b"consilia plan\0", body)


def study_digest(study: Study) -> str:
    """Digest of every field of a submitted study.

    Fields that came later count where they differ from their default: studies from before keep
    their digest, and a node that does not know such a field finds another digest than the hub
    and runs nothing of a study that says more than the node can read.
    """
    names = (f for f in study.__struct_fields__ if f not in _LATER or getattr(study, f))
    fields = [(f, getattr(study, f)) for f in sorted(names)]
    return _sha256(b"consilia study\0", (1, fields))


def _sha256(domain: bytes, body: object) -> str:
    return "sha256:" + hashlib.sha256(domain + msgspec.msgpack.encode(body)).hexdigest()


# ---- how a model is evaluated --------------------------------------------------------------

Predicts = Literal["probability", "margin", "classes", "number", "risk", "mask"]


class Subgroups(Record, frozen=True):
    """Records told apart by one column: by the levels named, or between cut points.

    The names are chosen before any record is looked at; what else a column holds is not told.
    """

    column: str
    levels: tuple[str, ...] = ()  # values as text
    cuts: tuple[float, ...] = ()  # rising; a value on a cut point counts above it


class Evaluation(Record, frozen=True):
    """What an evaluation asks of a site, of its own hold-out."""

    subgroups: tuple[Subgroups, ...] = ()
    local: int = 0  # rounds the site trains alone, to compare its model with; 0: it does not
    bins: int = 0  # of the grid of stats.summedscores; 0: each site's metrics, no sums


class Measure(Record, frozen=True):
    """One metric: its value and its standard error, on so many records."""

    value: float
    error: float
    records: int


class CalibrationBin(Record, frozen=True):
    """Records whose predicted probability lies from `low` up to `high`."""

    low: float
    high: float
    predicted: float  # mean probability
    observed: float  # share of cases
    records: int


class Subgroup(Record, frozen=True):
    """What was measured on the records of one level, or between two cut points."""

    column: str
    level: str
    records: int
    measures: dict[str, Measure]


class Evaluated(Record, frozen=True):
    """What a site tells of a model on its hold-out, under its own disclosure rules."""

    predicts: Predicts
    records: int
    measures: dict[str, Measure]
    calibration: tuple[CalibrationBin, ...] = ()
    subgroups: tuple[Subgroup, ...] = ()
    local: dict[str, Measure] = {}  # of the model that the site has trained alone
    gain: dict[str, Measure] = {}  # how much better the model is than the site's own


# ---- which sums are asked for ---------------------------------------------------------------

Moment = Literal["count", "missing", "mean", "sd", "quantiles"]


class Numbers(Record, frozen=True):
    """A column of numbers: which of its sums are asked for, and the bins they are counted in.

    Values below the second edge are in the first bin, from the last but one in the last.
    Sums are of (value - centre) / unit: a public range that lets them fit the masked sum.
    """

    column: str
    what: tuple[Moment, ...] = ("count",)
    edges: tuple[float, ...] = ()  # rising; three or more, none for no histogram
    centre: float = 0.0
    unit: float = 1.0


class Statistics(Record, frozen=True):
    """Sums that every site is asked for, of its own records; its layout is in stats.sums."""

    numbers: tuple[Numbers, ...] = ()
    levels: tuple[Subgroups, ...] = ()  # columns of which the levels are counted
    tables: tuple[tuple[Subgroups, Subgroups], ...] = ()  # crosstabs: rows, columns
    by: Subgroups | None = None  # each of `numbers` and `levels` for each of these groups
    where: str = ""  # data.loading.expression over a record; "" for every record


# ---- how an update is protected ------------------------------------------------------------


class Adaptive(Record, frozen=True):
    """Let the clip of client level follow a quantile of the updates' norms, round by round."""

    quantile: float = 0.5  # share of the sites whose update is to be within the clip
    rate: float = 0.2  # how fast: the clip moves by exp(-rate (share within - quantile))
    share: float = 0.05  # of the privacy that is spent on counting who is within


class Dp(Record, frozen=True):
    """Differential privacy of one round at one site: what the ledger reserves and charges."""

    level: Literal["record", "patient", "client"]  # whose presence is hidden
    noise_multiplier: float  # standard deviation of the noise over the sensitivity
    clip: float  # L2 norm of one record's, one patient's or the site's contribution
    sampling: float = 1.0  # Poisson rate of a step, of records or patients; 1 at client level
    steps: int = 1  # noisy steps of a round; 1 at client level
    delta: float = 1e-5
    distributed: bool = False  # each site adds a share of the noise, inside the masked sum
    colluding: int = 1  # survivors whose shares of the noise do not count
    adaptive: Adaptive | None = None  # None: the clip stays


class Compression(Record, frozen=True):
    """How an unmasked update is made smaller; what is computed is told in algo.compress."""

    bits: Literal[8, 16, 32] = 8  # of a value; 32 leaves it as float32
    keep: float = 1.0  # share of the values that is sent, the largest ones
    final: bool = False  # the last round that is planned: nothing need be kept for another


class Privacy(Record, frozen=True):
    """How the updates of a job are protected; a site's policy may ask for more."""

    aggregation: Literal["plain", "secure", "ckks"] = "plain"
    bits: Literal[8, 16, 32] = 32  # of a masked coordinate; 8 keeps what it leaves out
    range: float = 8.0  # largest change of a weight in a round that masking can carry
    clip: float = 0.0  # L2 norm of an update, 0: unbounded
    dp: Dp | None = None
    compression: Compression | None = None  # of an update as it leaves; None: whole
    final: bool = False  # the last round that is planned: what 8 bits leave out is not kept
    evaluation: Evaluation | None = None  # of kind evaluate: numbers leave, and no update
    statistics: Statistics | None = None  # of kind statistics: sums leave, and no update
    fold: int = 0  # of the dataset's folds, the one kept from training; 0: none of them


# ---- hub -> node ---------------------------------------------------------------------------


class Task(Record, frozen=True):
    """What one node is asked to run. The node's policy decides on these facts alone."""

    kind: Literal["init", "train", "evaluate", "statistics"]
    job: str
    round: int  # 0 is the init round
    study: str  # digest
    study_name: str
    plan: str  # digest
    arguments: Arguments
    tags: tuple[str, ...]
    model: str | None  # frame digest of the model to start from; None for init
    seed: int  # for this site and round; all randomness of the task derives from it
    deterministic: bool = False
    privacy: Privacy = Privacy()
    cohort: tuple[str, ...] = ()  # sites of a masked round, sorted; empty when not masked
    researcher: str = ""  # who started the job, as the hub says
    total: int = 0  # records the cohort advertises: a masked update weighs its share of them

    @property
    def evaluation(self) -> Evaluation | None:
        """What an evaluation asks; it travels in `privacy`, for this record is full."""
        return self.privacy.evaluation


class Word(Record, frozen=True):
    """What the hub passes on to a masked round's node; `body` is a record of wire.masks."""

    lease: str
    step: Literal["roster", "inbox", "survivors", "consents"]
    body: bytes


class Lease(Record, frozen=True):
    """A task given to one node. Delivered again until the node reports on it."""

    id: str
    task: Task
    timeout: float  # seconds from delivery


class Orders(Record, frozen=True):
    """The hub's answer to a poll: reconcile to exactly this."""

    leases: tuple[Lease, ...] = ()  # assigned to the node and not in Poll.running
    cancel: tuple[str, ...] = ()  # in Poll.running and no longer assigned
    catalogue: int = 0  # version of the catalogue; fetch it when it differs
    words: tuple[Word, ...] = ()  # of running leases, and not in Poll.heard


class Catalogue(Record, frozen=True):
    """Studies that invite the site and plans submitted to them. Advice: the node decides."""

    version: int
    studies: tuple[Study, ...] = ()
    plans: tuple["PlanEntry", ...] = ()
    keys: dict[str, bytes] = {}  # enrolled sites of these studies -> Ed25519 public key
    mirror: "Sealed | None" = None  # the site's last advertisement that told its ledger's head
    head: "Sealed | None" = None  # AuditHead of the hub's own trail, signed by the hub
    ended: tuple[str, ...] = ()  # digests of terms closed, or replaced by changed ones


class PlanEntry(Record, frozen=True):
    """A plan on offer; its source is fetched by digest."""

    digest: str
    name: str
    study: str  # name
    author: str = ""


class SiteOffer(Record, frozen=True):
    """A dataset that a site offers to a study it has accepted."""

    site: str
    dataset: "OfferedDataset"


class SiteOffers(Record, frozen=True):
    """What the sites of a study offer it, for a site that the study invites."""

    offers: tuple[SiteOffer, ...] = ()


class Verdict(Record, frozen=True):
    """The hub's answer to a report. `accepted` is durable when it is sent."""

    accepted: bool
    reason: str = ""


# ---- node -> hub ---------------------------------------------------------------------------


class Enrol(Record, frozen=True):
    """First contact: a one-time secret, a certificate request and the node's signing key."""

    site: str
    secret: str
    csr: bytes  # PKCS#10 DER, key made at the site
    signing_key: bytes  # Ed25519 public key, 32 bytes

    def __repr__(self) -> str:
        """Name the request without its secret, so that no log shows it."""
        return f"Enrol(site={self.site!r}, secret=hidden)"


class Enrolled(Record, frozen=True):
    """The node's certificate chain and the hub's own signing key."""

    certificate: bytes  # PEM
    ca: bytes  # PEM
    hub_key: bytes  # Ed25519 public key, 32 bytes


class Renew(Record, frozen=True):
    """Ask for a new certificate over the old one's connection."""

    csr: bytes


class Poll(Record, frozen=True):
    """Wait for orders. `wait` is the longest the node will hold the line, seconds."""

    session: str  # new at every agent start
    running: tuple[str, ...] = ()  # lease ids the node works on
    catalogue: int = 0
    wait: float = 25.0
    heard: dict[str, str] = {}  # running lease -> the last step whose word has arrived


class MockColumn(Record, frozen=True):
    """One column of a mock twin: rounded counts of records over levels or bins, or nothing.

    Bins have one width and begin at `start`; of dates and times both are in days, from
    1970-01-01. Levels are told that k patients or more have; bins are multiples of a round
    width that no single record decides.
    """

    name: str
    type: str
    unit: str = ""
    code_system: str = ""
    role: str = "feature"
    levels: dict[str, int] = {}
    start: float = 0.0
    width: float = 0.0  # 0: no bins
    counts: tuple[int, ...] = ()
    absent: int = 0  # records without a value


class MockTwin(Record, frozen=True):
    """What invented records are drawn from, column by column: marginals, never records."""

    columns: tuple[MockColumn, ...]


class LoadedTwin(Record, frozen=True):
    """The mock twin of a dataset as a data loading plan makes it."""

    study: str  # for which the plan is attached, "" for every study without one of its own
    twin: MockTwin


class OfferedDataset(Record, frozen=True):
    """What a site says of a dataset to the consortium: no value, a rounded count."""

    name: str
    tags: tuple[str, ...]
    records: (
        int  # rounded down to a multiple of 5; what an update may claim at most is this + 4
    )
    columns: dict[str, str] = {}  # name -> type
    mock: MockTwin | None = None  # where the site consents to one; of the table in the file
    loaded: tuple[LoadedTwin, ...] = ()  # where it consents to that too: as plans load it


class Advertisement(Record, frozen=True):
    """The site's public state, whole, sent at every connection and change."""

    version: str  # agent release
    datasets: tuple[OfferedDataset, ...] = ()
    studies: tuple[str, ...] = ()  # digests accepted and in force
    plans: tuple[str, ...] = ()  # digests approved and in force
    audit_head: str = ""  # digest of the node's last audit line
    audit_length: int = 0
    ledger_head: str = ""  # digest of the privacy ledger's last entry; "": not stated
    ledger_length: int = 0
    withdrawn: tuple[str, ...] = ()  # digests of studies that the site has left
    pool: tuple["Sealed", ...] = ()  # what it has said of pooled datasets (wire.pool)
    summed: bool = False  # what it finds of models leaves in masked sums only
    declined: tuple[str, ...] = ()  # digests of studies that the site has declined


class Progress(Record, frozen=True, tag="progress"):
    """Where a running task is. Not journalled."""

    lease: str
    fraction: float  # 0 to 1
    metrics: Metrics = {}


class Result(Record, frozen=True, tag="result"):
    """A finished task. `model` names the frame the node has uploaded for this lease."""

    lease: str
    job: str
    round: int
    model: str | None
    records: int  # the update was computed on; 0 for init; Task.total for a masked one
    metrics: Metrics = {}  # of a masked one the names only, each 0: the values are masked
    seconds: float = 0.0  # bucketed
    evaluated: Evaluated | None = None  # of an evaluation, which has no `model`
    sums: bytes = b""  # little-endian uint64, masked: stats.summedscores, or stats.sums


# Closed lists: a free text would be a channel out of the site.
FailureCause = Literal[
    "plan-error",  # the plan raised
    "plan-contract",  # the plan loaded or returned something else than its contract says
    "requirements",  # declared requirements are not installed at the site
    "data-error",  # the dataset could not be read as declared
    "not-finite",  # NaN or infinity in the update
    "crashed",  # the worker process died
    "timeout",
    "memory",
    "disk",
    "transfer",
    "stopped",  # by the site's staff
    "internal",
]


class Failed(Record, frozen=True, tag="failed"):
    """The task did not finish. The traceback stays at the site."""

    lease: str
    cause: FailureCause


class Declined(Record, frozen=True, tag="declined"):
    """The site's policy refused the task. `disclosed` is what the site chose to tell."""

    lease: str
    disclosed: str = ""


class Said(Record, frozen=True, tag="said"):
    """A node's own message of a masked round; `body` is a record of wire.masks."""

    lease: str
    step: Literal["keys", "shares", "consent", "unmask"]
    body: bytes


Report = Progress | Result | Failed | Declined | Said


class Sealed(Record, frozen=True):
    """Signed bytes: `context` says what for, so that no signature serves another purpose."""

    context: str
    site: str
    payload: bytes
    signature: bytes  # Ed25519 over wire.seal's framing of the three fields above


class AuditHead(Record, frozen=True):
    """Payload of a sealed "audit-head": how long an audit chain is, and its last digest."""

    length: int
    digest: str


class Problem(Record, frozen=True):
    """Body of every error answer on the node listener."""

    error: str  # class name in consilia.errors
    detail: str


def encode(record: object) -> bytes:
    """Encode one record."""
    return msgspec.msgpack.encode(record)


def decode(body: bytes, kind: type[T], limit: int = MAX_MESSAGE) -> T:
    """Decode one record of `kind`, or raise WireError saying what does not fit where."""
    if len(body) > limit:
        raise WireError(f"message of {len(body)} bytes is over the limit of {limit}")
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError, UnicodeError) as e:
        raise WireError(f"not a valid {getattr(kind, '__name__', kind)}: {e}") from None
