"""The site's policy over time: which node.yaml held, what was asked, what a change would do.

    check    read a proposed file, name what is wrong, replay what was asked in the last 30 days
    apply    the same; then file, history and audit line in one step; the agent takes it in

What a hub asked is kept as one row for all tasks of one day and hour with the same facts:
study, plan, tags, arguments, privacy. No round, no model, no number about a record. It serves
as advice and is no audit trail: a crash may lose its last minute.

A replay judges old requests by today's approvals, studies and datasets, once under the policy
in force and once under the proposed one: what differs is the change's own doing.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from pathlib import Path

import msgspec

from consilia.accounts.store import Reads
from consilia.errors import ConfigError, Conflict
from consilia.files import write_whole
from consilia.node import config as configs
from consilia.node.config import NodeConfig
from consilia.node.policy import Decision, Policy, Request, decide, person
from consilia.node.signoffs import signoffs
from consilia.node.store import Store, Transaction

Policies = Callable[[NodeConfig], Policy]  # the site's decisions under a configuration

DAYS = 30  # that requests are kept
QUIET = 5.0  # seconds without a task after which they are written down
LATEST = 60.0  # seconds that they wait at most
MAX_ROWS = 2000  # of one day
MAX_BODY = 4 << 10  # bytes of one kept request
KEPT_POLICIES = 1000
FIXED = frozenset({"site", "hub"})  # another site or hub is another node: join anew
# what the running agent takes in at once; any other key holds from its next start
LIVE = frozenset({
    "min_records", "clip_norm", "arguments", "disclose_reasons", "plain_updates", "dp_required",
    "failures_per_day", "permitted_studies", "terms", "hours", "reviewers_needed",
    "consortium_review", "retention_days", "compressed_updates", "regions", "statistics",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class InForce:
    """A policy that was put in force: its place in the history, by whom, and its text."""

    seq: int
    at: float  # Unix seconds
    actor: str
    digest: str  # sha256 of the text
    text: str


@dataclass(frozen=True, slots=True)
class Differs:
    """Requests of one kind that a change decides differently."""

    day: str
    kind: str
    study: str
    plan: str  # digest
    count: int
    allowed: bool  # by the proposed policy
    reasons: tuple[str, ...]  # the objections of whichever policy refuses


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a proposed policy changes."""

    keys: tuple[str, ...]  # that differ from the policy in force
    restart: tuple[str, ...]  # of those, what holds only from the agent's next start
    asked: int  # tasks of the last 30 days that were judged again
    differs: tuple[Differs, ...]


@dataclass(frozen=True, slots=True)
class _Kept:
    count: int
    allowed: bool
    body: bytes


Rows = Mapping[tuple[str, str], _Kept]  # by day and digest of the body


class Recent:
    """What was asked and is not written down yet. Used on the event loop."""

    def __init__(self) -> None:
        """Nothing was asked yet."""
        self._rows: dict[tuple[str, str], _Kept] = {}
        self._first = self._last = 0.0  # when, Unix seconds

    def note(self, request: Request, decision: Decision, day: date, now: float) -> None:
        """Remember a request; what is too long to be allowed by any policy is left out."""
        minute = request.minute // 60 * 60 if request.minute >= 0 else -1
        model = None if request.model is None else "-"
        body = msgspec.msgpack.encode(replace(request, minute=minute, model=model))
        if len(body) > MAX_BODY or len(self._rows) >= MAX_ROWS:
            return
        self._first, self._last = (self._first if self._rows else now), now
        key = (day.isoformat(), hashlib.sha256(body).hexdigest())
        before = self._rows.get(key)
        count = before.count + 1 if before else 1
        self._rows[key] = _Kept(count, decision.allowed, body)

    def take(self, now: float, everything: bool = False) -> Rows:
        """Return what is due and forget it here: once it is quiet, or has waited a minute."""
        if not everything and now - self._last < QUIET and now - self._first < LATEST:
            return {}
        found, self._rows = self._rows, {}
        return found


def keep(store: Store, rows: Rows, today: date) -> None:
    """Write down what was asked, and forget what is older than 30 days. Blocks."""
    if not rows:
        return
    before = (today - timedelta(days=DAYS)).isoformat()
    with store.write() as tx:
        tx.execute("DELETE FROM requests WHERE day < ?", (before,))
        for (day, digest), kept in rows.items():
            tx.execute(
                "INSERT INTO requests SELECT ?, ?, ?, ?, ? WHERE "
                "(SELECT count(*) FROM requests WHERE day = ?) < ? "
                "ON CONFLICT (day, digest) DO UPDATE SET count = count + excluded.count, "
                "allowed = excluded.allowed",
                (day, digest, kept.count, int(kept.allowed), kept.body, day, MAX_ROWS),
            )


def newest(store: Store) -> InForce | None:
    """Return the policy that was put in force last, None before the agent's first start."""
    rows = store.rows(
        "SELECT seq, at, actor, digest, body FROM policies ORDER BY seq DESC LIMIT 1"
    )
    return InForce(*rows[0]) if rows else None


def history(store: Store) -> list[InForce]:
    """Return every policy that is kept, newest first."""
    rows = store.rows("SELECT seq, at, actor, digest, body FROM policies ORDER BY seq DESC")
    return [InForce(*row) for row in rows]


def started(store: Store, directory: Path, now: float) -> None:
    """Enter the file that an agent starts with, when it is not the one applied last."""
    text = _read(directory / configs.FILE)
    last = newest(store)
    if last is not None and last.digest == digest_of(text):
        return
    with store.write() as tx:
        _enter(tx, text, "file", now)
        tx.touch()
        said = "the first" if last is None else "edited by hand"
        tx.audit(now, "agent", "policy.load", digest_of(text), "in force", said)


def propose(
    store: Store, directory: Path, text: str, source: str, policies: Policies
) -> Proposal:
    """Say what `text` (YAML) would change; raise ConfigError for what is wrong with it."""
    old = configs.load(directory)
    new = configs.parse(text, source)
    changed = tuple(n for n in new.__struct_fields__ if getattr(new, n) != getattr(old, n))
    if fixed := FIXED.intersection(changed):
        name = sorted(fixed)[0]
        raise ConfigError(
            f"{source}: {name} is {getattr(new, name)!r}, this node's is "
            f"{getattr(old, name)!r}; another {name} needs a node of its own: "
            "consilia node join"
        )
    asked, differs = replay(store, policies(old), policies(new))
    return Proposal(changed, tuple(n for n in changed if n not in LIVE), asked, differs)


def apply(  # noqa: PLR0913 - by keyword
    store: Store,
    directory: Path,
    text: str,
    source: str,
    policies: Policies,
    *,
    actor: str,
    now: float,
    made_from: str = "",
) -> Proposal:
    """Put `text` in force: file, history and audit line together, or nothing of it.

    `made_from` is the digest of the file that the change was made to, "" for whichever it is;
    Conflict when it is another by now. A change that loosens what two people guard here takes
    effect when as many different people have applied the very same text; Conflict before.
    """
    found, new = propose(store, directory, text, source, policies), configs.parse(text, source)
    _agreed(store, configs.load(directory), new, text, actor, now)
    path = directory / configs.FILE
    with store.write() as tx:  # one at a time: two must not share the draft
        held = configs.load(directory)  # it, and whose word counts, may be others by now
        if loosened(held, new) and len(_people(tx, text, actor)) < held.reviewers_needed:
            raise Conflict("whose word was needed may not decide any more; apply it again")
        if made_from and (known := digest_of(_read(path))) != made_from:
            raise Conflict(
                f"digest: {configs.FILE} was changed meanwhile (it is {known[:19]} now); load "
                "it again and make the change once more"
            )
        _enter(tx, text, actor, now)
        tx.execute("DELETE FROM signoffs WHERE plan = ?", (digest_of(text),))
        tx.touch()
        refused = sum(d.count for d in found.differs if not d.allowed)
        allowed = sum(d.count for d in found.differs if d.allowed)
        detail = (
            f"changed: {', '.join(found.keys) or 'nothing'}; of {found.asked} tasks asked in "
            f"{DAYS} days it would have refused {refused} more and allowed {allowed} more"
        )
        tx.audit(now, actor, "policy.apply", digest_of(text), "in force", detail)
        write_whole(
            path, text.encode()
        )  # a crash before COMMIT: the next start enters the new file
    return found


def loosened(old: NodeConfig, new: NodeConfig) -> tuple[str, ...]:
    """Name the keys by which a change lets fewer people decide, or more be spent for ever."""
    found = [] if new.reviewers_needed >= old.reviewers_needed else ["reviewers_needed"]
    review, before = new.consortium_review, old.consortium_review
    if review is not None and (
        before is None or review.reviewers < before.reviewers or review.sites < before.sites
    ):
        found.append("consortium_review")
    for name in ("universe", "dataset", "study", "researcher"):
        held, cap = getattr(old.privacy, name), getattr(new.privacy, name)
        if held is not None and (
            cap is None or cap.epsilon > held.epsilon or cap.delta > held.delta
        ):
            found.append(f"privacy.{name}")
    return tuple(found)


def _agreed(  # noqa: PLR0913, PLR0917 - both policies, and who applies the new one when
    store: Store, old: NodeConfig, new: NodeConfig, text: str, actor: str, now: float
) -> None:
    """Note who applies a loosening; raise Conflict until enough different people have."""
    names, digest = loosened(old, new), digest_of(text)
    if old.reviewers_needed < 2 or not names:
        return
    people = _people(store, text, actor)
    if len(people) >= old.reviewers_needed:
        return
    count = f"{len(people)} of {old.reviewers_needed} people"
    with store.write() as tx:
        tx.execute(
            "INSERT OR REPLACE INTO signoffs VALUES (?, ?, ?, '', '')", (digest, actor, now)
        )
        detail = f"{count}; loosens {', '.join(names)}"
        tx.audit(now, actor, "policy.sign-off", digest, "pending", detail)
    raise Conflict(
        f"{', '.join(names)}: the change loosens what {old.reviewers_needed} people guard here "
        f"(reviewers_needed). {count} have asked for it so far, and nothing has changed yet: "
        "somebody else has to apply the very same text"
    )


def _people(db: Reads, text: str, actor: str) -> set[str]:
    """Return who stands for a text: whose word for it waits and counts, and `actor`."""
    words = signoffs(db, digest_of(text), "administrator")
    return {person(s.reviewer) for s in words} | {person(actor)}


def replay(store: Store, old: Policy, new: Policy) -> tuple[int, tuple[Differs, ...]]:
    """Judge what was asked under both; return how many tasks, and what differs."""
    asked, found = 0, []
    rows = store.rows("SELECT day, count, body FROM requests ORDER BY day DESC, digest")
    for day, count, body in rows:
        asked += int(count)
        try:
            request = msgspec.msgpack.decode(body, type=Request)
        except msgspec.ValidationError:
            continue  # of a release that knew another sort of request
        on = date.fromisoformat(str(day))
        before, after = decide(request, old, on), decide(request, new, on)
        if before.allowed != after.allowed:
            reasons = after.objections or before.objections
            found.append(
                Differs(
                    str(day),
                    request.kind,
                    request.study_name,
                    request.plan,
                    int(count),
                    after.allowed,
                    reasons,
                )
            )
    return asked, tuple(found)


def minute_of(now: float) -> int:
    """Return the minute of the site's day at `now`, 0 to 1439."""
    at = datetime.fromtimestamp(now)
    return at.hour * 60 + at.minute


def _enter(tx: Transaction, text: str, actor: str, now: float) -> None:
    tx.execute(
        "INSERT INTO policies (at, actor, digest, body) VALUES (?, ?, ?, ?)",
        (now, actor, digest_of(text), text),
    )
    tx.execute(
        "DELETE FROM policies WHERE seq <= (SELECT max(seq) FROM policies) - ?",
        (KEPT_POLICIES,),
    )


def digest_of(text: str) -> str:
    """Return the digest that names a version of node.yaml."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} cannot be read: {e}") from None
