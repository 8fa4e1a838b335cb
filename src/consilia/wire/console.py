"""What the node's console and a browser tell each other. JSON at `/api`, inside the hospital.

Nothing here leaves the site. Times are Unix seconds, days ISO dates ("" for none), digests
`sha256:<hex>`; lists are tuples. Requests refuse unknown keys (wire.strict), views may grow.
"""

from typing import Any, Literal

import msgspec

from consilia.wire.v1 import Scalar

Role = Literal["data_manager", "reviewer", "dpo", "administrator"]
ROLES: tuple[Role, ...] = ("data_manager", "reviewer", "dpo", "administrator")


class Request(msgspec.Struct, frozen=True):
    """A JSON body that a browser sends."""


class View(msgspec.Struct, frozen=True):
    """A JSON answer."""


# ---- session and accounts --------------------------------------------------------------------


class SignIn(Request, frozen=True):
    """Name and password, and the code of the second factor where the account has one."""

    name: str
    password: str
    code: str = ""  # six digits


class InvitationToken(Request, frozen=True):
    """The secret of an invitation link (behind its #)."""

    token: str


class AcceptInvitation(Request, frozen=True):
    """Make an account by invitation; the person chooses the password."""

    token: str
    name: str  # 1 to 63 of a-z 0-9 . _ -
    password: str  # at least 12 characters


class ChangePassword(Request, frozen=True):
    """Change one's own password; every other session of the account ends."""

    password: str
    new_password: str


class ConfirmCode(Request, frozen=True):
    """A code that proves the second factor works; or, with the password, that it may go."""

    code: str
    password: str = ""


class Invite(Request, frozen=True):
    """Invite a person to an account with these roles."""

    roles: tuple[Role, ...]
    hours: float = 72.0


class ChangeAccount(Request, frozen=True):
    """What is given changes; the rest stays. Its sessions end."""

    roles: tuple[Role, ...] | None = None
    disabled: bool | None = None
    unlock: bool = False  # forget failed attempts
    remove_second_factor: bool = False  # of a person who lost the device


class SessionView(View, frozen=True):
    """Who is signed in. `csrf` goes into the header X-CSRF-Token of every change."""

    site: str
    version: str
    signed_in: bool = False
    needs_code: bool = False  # the password was right: ask for the code, send all three
    name: str = ""
    roles: tuple[Role, ...] = ()
    second_factor: bool = False
    must_add_second_factor: bool = False  # nothing else is allowed until it is set up
    csrf: str = ""
    idle_seconds: float = 0.0  # without a request the session ends after this long
    ends: float = 0.0  # it ends then at the latest


class InvitationView(View, frozen=True):
    """An invitation that may still be accepted."""

    id: str
    roles: tuple[Role, ...]
    by: str
    expires: float


class InvitationLink(View, frozen=True):
    """A new invitation; the link is in this answer and nowhere else."""

    id: str
    link: str
    roles: tuple[Role, ...]
    expires: float


class SecondFactorView(View, frozen=True):
    """A new secret for an authenticator app; in force once a code of it is confirmed."""

    secret: str  # base32
    uri: str  # otpauth://totp/..., for a QR code


class AccountView(View, frozen=True):
    """One account, without any secret."""

    name: str
    roles: tuple[Role, ...]
    created: float
    by: str
    disabled: bool
    locked_until: float  # 0: not locked
    second_factor: bool
    last_sign_in: float  # 0: never


class AccountsView(View, frozen=True):
    """All accounts and the invitations still open."""

    accounts: tuple[AccountView, ...]
    invitations: tuple[InvitationView, ...]


# ---- home ------------------------------------------------------------------------------------


class Waiting(View, frozen=True):
    """Something that waits for a person. `link` is the console page it is decided on."""

    kind: Literal["study", "plan", "dataset", "budget", "hub", "health", "ledger"]
    subject: str  # digest or name
    title: str
    detail: str
    since: float
    link: str


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


# ---- datasets --------------------------------------------------------------------------------


class ColumnView(View, frozen=True):
    """One column of a dataset's schema."""

    name: str
    type: str  # float32 float64 int64 bool str category date timestamp
    unit: str = ""  # UCUM
    code_system: str = ""
    role: str = ""  # feature, target, patient, date, text, ignore
    missing: tuple[str, ...] = ()  # codes that mean no value
    description: str = ""


class FolderView(View, frozen=True):
    """A folder within the data roots that the administrator configured."""

    path: str  # "" for the list of roots
    parent: str  # "" for none
    folders: tuple[str, ...]
    files: tuple["FileView", ...]
    truncated: bool = False


class FileView(View, frozen=True):
    """A file that can be registered."""

    name: str
    path: str
    bytes: int
    modified: float


class InspectPath(Request, frozen=True):
    """Look at a table before it is registered; nothing is stored."""

    path: str
    missing: tuple[str, ...] | None = None  # texts that mean no value; None: the usual ones


class InspectedView(View, frozen=True):
    """What was found in a table: the proposed schema."""

    path: str
    format: str
    records: int
    bytes: int
    digest: str
    columns: tuple[ColumnView, ...]


class ColumnChange(Request, frozen=True):
    """A column as the data manager declares it; what is None stays as it is found."""

    name: str
    type: str | None = None
    unit: str | None = None
    code_system: str | None = None
    role: str | None = None
    missing: tuple[str, ...] | None = None
    description: str | None = None


class NewDataset(Request, frozen=True):
    """Register a table."""

    path: str
    name: str
    tags: tuple[str, ...]
    description: str = ""
    missing: tuple[str, ...] | None = None
    patient: str = ""  # column of patient ids
    columns: tuple[ColumnChange, ...] = ()


class ChangeDataset(Request, frozen=True):
    """What is given changes; the rest stays."""

    tags: tuple[str, ...] | None = None
    description: str | None = None
    enabled: bool | None = None  # False stops its running tasks
    mock: bool | None = None  # whether the consortium may have a mock twin of it
    columns: tuple[ColumnChange, ...] = ()


class DatasetView(View, frozen=True):
    """One registered dataset."""

    name: str
    description: str
    tags: tuple[str, ...]
    enabled: bool
    records: int
    path: str
    format: str
    bytes: int
    digest: str
    created: float
    by: str
    patient: str
    columns: tuple[ColumnView, ...]
    problem: str = ""  # why tasks are refused: the file was changed, or is gone
    version: int = 0  # of its schema
    mock: bool = False  # whether the consortium may have a mock twin of it


class DatasetsView(View, frozen=True):
    """All registered datasets."""

    datasets: tuple[DatasetView, ...]


class ProfileCell(View, frozen=True):
    """One bar of a histogram: a level, or the numbers from `low` to below `high`."""

    label: str  # of a level; "" of a bin
    low: float | None
    high: float | None
    records: int


class ProfileColumn(View, frozen=True):
    """What one column holds. Numbers of dates and times are days since 1970-01-01."""

    name: str
    type: str
    missing: int
    distinct: int
    least: float | None
    most: float | None
    mean: float | None
    sd: float | None
    quantiles: tuple[float, ...]  # 5, 25, 50, 75, 95 %; () where it has none
    cells: tuple[ProfileCell, ...]


class ProfileView(View, frozen=True):
    """What a dataset holds, for the site's own eyes: exact, small cells included."""

    records: int
    patients: int
    columns: tuple[ProfileColumn, ...]


class PreviewView(View, frozen=True):
    """The first rows of a table, as text; None for a missing value."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]


# ---- data loading plans ----------------------------------------------------------------------


class LoadingPlanView(View, frozen=True):
    """One data loading plan."""

    name: str
    version: int
    digest: str
    at: float
    by: str
    yaml: str
    attached: tuple["AttachmentView", ...] = ()


class AttachmentView(View, frozen=True):
    """Where a data loading plan holds. `study` is a name, "" for every study."""

    dataset: str
    study: str


class LoadingPlansView(View, frozen=True):
    """All data loading plans, in their newest version."""

    plans: tuple[LoadingPlanView, ...]


class SaveLoadingPlan(Request, frozen=True):
    """A data loading plan as YAML; saving it makes a new version."""

    yaml: str


class PreviewLoading(Request, frozen=True):
    """Try a data loading plan on a dataset; nothing is stored."""

    dataset: str
    yaml: str
    rows: int = 20


class AttachLoading(Request, frozen=True):
    """Attach a data loading plan to a dataset, for one study or for every one."""

    dataset: str
    study: str = ""


class ColumnSummary(View, frozen=True):
    """A column in few numbers, for the site's own eyes; None where it has no such number."""

    name: str
    type: str
    missing: int
    distinct: int
    least: str | None
    greatest: str | None
    mean: float | None
    deviation: float | None


class LoadingPreviewView(View, frozen=True):
    """A table before and after a data loading plan."""

    before: PreviewView
    after: PreviewView
    records_before: int
    records_after: int
    summary_before: tuple[ColumnSummary, ...]
    summary_after: tuple[ColumnSummary, ...]


# ---- studies ---------------------------------------------------------------------------------


class PeerView(View, frozen=True):
    """A site of a study and the key words to compare by telephone."""

    site: str
    own: bool
    state: str  # pinned, changed, new, unknown
    pinned: str  # six words, "" for none
    told: str  # six words, "" for none


class StudyView(View, frozen=True):
    """A study this site was invited to."""

    digest: str
    name: str
    state: str  # pending accepted declined left replaced expired
    purpose: str
    sites: tuple[str, ...]
    tags: tuple[str, ...]
    legal_basis: str
    ethics: str
    study_until: str  # its own last day
    until: str  # the last day here
    min_records: int
    offered: float
    decided: float
    by: str
    reason: str
    datasets: tuple[str, ...]  # it may use; empty: any with the tags
    matching: tuple[str, ...]  # enabled datasets here that carry all its tags
    peers: tuple[PeerView, ...]
    plans: tuple[str, ...]  # digests of plans offered for it
    accepted_before: str = ""  # digest of the version of the same name accepted here
    changes: tuple["StudyChange", ...] = ()  # against the version accepted here last


class StudyChange(View, frozen=True):
    """One field of a study that differs from the version accepted here."""

    field: str
    old: str
    new: str


class StudiesView(View, frozen=True):
    """All studies this site was invited to, newest first."""

    studies: tuple[StudyView, ...]


class Decide(Request, frozen=True):
    """A decision with its reason, which stays in the audit trail."""

    reason: str


class AcceptStudy(Request, frozen=True):
    """Accept a study, pinning the keys whose words the person was shown.

    `words` are site -> words as shown; Conflict when the hub tells others by now.
    """

    reason: str = ""
    until: str = ""
    datasets: tuple[str, ...] = ()
    words: dict[str, str] = {}


class PinKeys(Request, frozen=True):
    """Pin a study's keys anew: site -> words as the person compared them."""

    words: dict[str, str]


# ---- training plans --------------------------------------------------------------------------


class PlanSummary(View, frozen=True):
    """A training plan at this site."""

    digest: str
    name: str
    state: str  # pending approved rejected revoked expired
    author: str
    offered: float
    offered_for: tuple[str, ...]
    reviewer: str
    reason: str
    decided: float
    until: str


class PlansView(View, frozen=True):
    """All training plans offered to this site, newest first."""

    plans: tuple[PlanSummary, ...]


class SourceFile(View, frozen=True):
    """One file of a plan."""

    path: str
    text: str


class FindingView(View, frozen=True):
    """What a reviewer should look at: advice, not a verdict."""

    file: str
    line: int
    what: str
    severity: str = ""
    kind: str = ""


class ArgumentView(View, frozen=True):
    """One argument of a plan and what may be set without a new approval."""

    name: str
    default: Scalar | None
    site_range: str  # "" when the site has none
    approved: str  # the approval's own range, "" for none


class PlanView(View, frozen=True):
    """A training plan whole, for review."""

    summary: PlanSummary
    description: str
    entry: str
    requirements: tuple[str, ...]
    files: tuple[SourceFile, ...]
    findings: tuple[FindingView, ...]
    arguments: tuple[ArgumentView, ...]
    studies: tuple[str, ...]  # the approval holds for these only; empty: any accepted study
    previous: str  # digest of the version approved last here, "" for none
    reviewers: tuple[str, ...] = ()  # who has approved it so far
    reviewers_needed: int = 1
    via: str = "site"  # how an approval came about: site, shipped, consortium


class DiffLine(View, frozen=True):
    """One row of a side-by-side diff; a side that has no line is None."""

    kind: Literal["same", "changed", "added", "removed"]
    left_line: int | None
    left: str | None
    right_line: int | None
    right: str | None


class FileDiff(View, frozen=True):
    """One file before and now."""

    path: str
    state: Literal["same", "changed", "added", "removed"]
    lines: tuple[DiffLine, ...]  # the whole file; () when it is the same


class DiffView(View, frozen=True):
    """A plan against the version approved last at this site."""

    against: str  # digest, "" when none was approved: every file is added
    files: tuple[FileDiff, ...]


class ApprovePlan(Request, frozen=True):
    """Approve a plan. `arguments`: name -> two numbers (a range) or a list of values."""

    reason: str = ""
    until: str = ""
    arguments: dict[str, list[Scalar]] = {}
    studies: tuple[str, ...] = ()


class DryRun(Request, frozen=True):
    """Run a plan on invented records with a dataset's schema, in the sandbox."""

    dataset: str
    records: int = 500


class DryRunView(View, frozen=True):
    """How a dry run went."""

    ok: bool
    seconds: float
    memory_bytes: int
    outputs: tuple[tuple[str, str], ...]  # tensor name, shape and dtype
    metrics: dict[str, float]
    error: str  # the traceback, "" when it ran
    cause: str  # what sort of failure, "" when it ran
    records: int
    warnings: tuple[str, ...]  # such as that no sandbox held it


# ---- live runs -------------------------------------------------------------------------------


class RunView(View, frozen=True):
    """One task the agent works on now."""

    lease: str
    job: str
    kind: str
    round: int
    study: str
    plan: str  # first digits of the digest
    phase: str
    fraction: float
    since: float
    cpu_seconds: float | None  # used so far, None when not known; its slope is cores in use
    memory_bytes: int | None


class RunsView(View, frozen=True):
    """What the agent works on now."""

    agent_runs: bool
    connected: bool
    problem: str
    runs: tuple[RunView, ...]
    stopped: tuple[str, ...] = ()  # jobs that were stopped here and may be resumed


class ReleaseView(View, frozen=True):
    """Something that left the site, as the audit trail tells it."""

    seq: int
    at: float
    action: str
    subject: str  # lease or site
    outcome: str
    detail: str


class ReleasesView(View, frozen=True):
    """What left the site, newest first. `next`: give it as `before` for the page after."""

    releases: tuple[ReleaseView, ...]
    next: int | None


class StoppedView(View, frozen=True):
    """How many tasks of it ran at that moment."""

    stopped: int


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


class LedgerView(View, frozen=True):
    """How the accounts stand. `held` says why every charge is refused, "" for not."""

    accounts: tuple[AccountStanding, ...]
    entries: int
    head: str
    held: str


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


class HealthView(View, frozen=True):
    """What the doctor found."""

    site: str
    hub: str
    version: str
    sandbox: str
    certificate_expires: float
    findings: tuple[HealthFinding, ...]
