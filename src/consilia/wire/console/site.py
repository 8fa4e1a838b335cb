"""How a site is and what it decides by: its home page, policy, trails and health."""

from typing import Any, Literal

from consilia.wire.console import Request, View

# ---- home ------------------------------------------------------------------------------------


class Waiting(View, frozen=True):
    """Something that waits for a person. `link` is the console page it is decided on."""

    kind: Literal["study", "plan", "dataset", "budget", "hub", "health", "ledger"]
    subject: str  # digest or name
    title: str
    detail: str
    since: float
    link: str
    yours: bool = True  # whether the person who asks may decide it


class HomeView(View, frozen=True):
    """What waits for a decision, and how the node is."""

    site: str
    hub: str
    agent_runs: bool
    connected: bool
    contact: float | None
    problem: str
    tasks: int
    waiting: tuple[Waiting, ...]


# ---- policy ----------------------------------------------------------------------------------


class PolicyView(View, frozen=True):
    """The site's policy (node.yaml) as written and as values, defaults filled in."""

    yaml: str
    values: dict[str, Any]
    digest: str  # of the file: send it with a change


class PolicyDraft(Request, frozen=True):
    """A policy as YAML. `digest` is of the version that it was made from."""

    yaml: str
    digest: str = ""


class PolicyChange(View, frozen=True):
    """One key that a draft changes; values as JSON."""

    key: str
    before: str
    after: str
    restart: bool  # holds only from the agent's next start


class DecisionChange(View, frozen=True):
    """Requests of one kind, on one day, that the draft would have decided otherwise."""

    day: str
    kind: str
    study: str
    plan: str  # digest
    count: int
    allowed: bool  # by the draft
    reasons: tuple[str, ...]  # of whichever refuses


class PolicyCheckView(View, frozen=True):
    """What a draft would change."""

    problem: str  # "" when the draft is valid
    changes: tuple[PolicyChange, ...]
    days: int  # looked back
    requests: int  # recorded in that time
    decisions: tuple[DecisionChange, ...]


# ---- privacy ledger --------------------------------------------------------------------------


class AccountStanding(View, frozen=True):
    """One account of the privacy ledger."""

    kind: str  # universe dataset study researcher
    name: str
    epsilon: float
    delta: float
    cap: float | None
    used: float | None  # part of the cap, 0 to 1
    open: int  # tasks not settled


class LedgerEntry(View, frozen=True):
    """One line of the ledger."""

    seq: int
    at: float
    kind: str
    lease: str
    job: str
    universe: str
    dataset: str
    study: str
    researcher: str
    level: str
    epsilon: float
    delta: float
    actor: str
    detail: str


class CapProposal(View, frozen=True):
    """A higher cap that waits for a second person; `epsilon` None: the default again."""

    kind: str
    name: str
    epsilon: float | None
    delta: float | None
    by: str
    at: float
    reason: str


class RestoreAsked(View, frozen=True):
    """One person wants to go on with an older ledger; a second one has to agree."""

    by: str
    at: float
    reason: str


class LedgerView(View, frozen=True):
    """How the accounts stand. `held` says why every charge is refused, "" for not."""

    accounts: tuple[AccountStanding, ...]
    entries: int
    head: str
    held: str
    proposals: tuple[CapProposal, ...] = ()
    two_people: bool = False  # whether a higher cap needs a second person
    names: dict[str, tuple[str, ...]] = {}  # by kind: what can be capped
    restore: RestoreAsked | None = None  # one person's word on what is `held`


class WithdrawProposal(Request, frozen=True):
    """Forget a higher cap that waits; the cap in force stays."""

    kind: Literal["universe", "dataset", "study", "researcher"]
    name: str


class LedgerEntriesView(View, frozen=True):
    """Entries, newest first."""

    entries: tuple[LedgerEntry, ...]
    next: int | None


class SetCap(Request, frozen=True):
    """Cap an account for good; it wins over the default of node.yaml."""

    kind: Literal["universe", "dataset", "study", "researcher"]
    name: str
    epsilon: float
    reason: str
    delta: float = 1e-5


class DropCap(Request, frozen=True):
    """Take a cap back; the default of node.yaml holds again."""

    kind: Literal["universe", "dataset", "study", "researcher"]
    name: str
    reason: str


class VerifiedView(View, frozen=True):
    """Whether a chain is whole; `seq` is its length, or the first broken line."""

    whole: bool
    seq: int
    text: str  # the head, or the reason


# ---- audit -----------------------------------------------------------------------------------


class AuditLine(View, frozen=True):
    """One audit event."""

    seq: int
    at: float
    actor: str
    action: str
    subject: str
    outcome: str
    detail: str
    digest: str


class AuditView(View, frozen=True):
    """A page of the trail, newest first. `next`: give it as `before` for the page after."""

    lines: tuple[AuditLine, ...]
    next: int | None
    actions: tuple[str, ...]  # that occur in the trail, for a filter
    total: int


# ---- health ----------------------------------------------------------------------------------


class HealthFinding(View, frozen=True):
    """One check of the doctor."""

    check: str
    ok: bool
    found: str
    advice: str
    keys: tuple[str, ...] = ()  # of check, found and advice, for pages in other languages
    values: dict[str, str | int | float] = {}  # that these sentences are filled with


class HealthView(View, frozen=True):
    """What the doctor found."""

    site: str
    hub: str
    version: str
    sandbox: str
    certificate_expires: float
    findings: tuple[HealthFinding, ...]
