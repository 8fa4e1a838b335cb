"""What a site is asked to join and to let run: studies and training plans."""

from typing import Literal

from consilia.wire.console import Request, View
from consilia.wire.v1 import Scalar

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
    controller: str = ""
    retention_days: int = 0  # that what it leaves may be kept after its end; 0: not said
    residency: str = ""  # region that its sites must be in; "" for any
    region_problem: str = ""  # why this site cannot accept it for that
    statistics: bool = False  # sums over the records may be asked for
    data_centre: str = ""  # the site that holds copies of what others pool; "": none
    pooled: tuple[str, ...] = ()  # the sites asked to pool; asking is not consent


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
    approved: str  # the range of the approval, or of its first of two signers; "" for none


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
    mark: str = ""  # of all that was decided up to now; sent back as `seen` with a decision


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
    """Approve a plan. `arguments`: name -> two numbers (a range) or a list of values.

    `seen`: the mark of the plan as the person read it; Conflict when somebody has decided
    since. "": whatever was decided.
    """

    reason: str = ""
    until: str = ""
    arguments: dict[str, list[Scalar]] = {}
    studies: tuple[str, ...] = ()
    seen: str = ""


class RejectPlan(Request, frozen=True):
    """Reject a plan, with the reason for the audit trail; `seen` as in ApprovePlan."""

    reason: str
    seen: str = ""


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
