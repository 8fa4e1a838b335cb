"""The privacy ledger: what has been spent on this site's patients, for ever, and what may be.

    nothing --reserve--> reserved --begin--> started --settle--> settled
                            +---refund---> refunded

One ledger stands for one patient universe: all datasets of the site that hold the same people,
whoever asks, in whichever study, however often a dataset is removed and registered again. A
task's cost is reserved before it runs; what would break a cap is refused, and nothing of it
runs. A reservation counts from the moment it is made, so after a crash it is still counted.
Only a task that has not begun is ever refunded: `begin` is committed when the sandbox is there
and has been sent nothing yet, neither plan nor task. What is reserved and not begun when an
agent starts was left by one that ended: `sweep` gives it back. `settle` is committed
before a byte of the result leaves.

Every step is one transaction of node.store: two programs on one file never overspend together.
Each appends to a chain of entries that is never changed, and to the audit trail.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from consilia.errors import Conflict, NotFound, Refused
from consilia.node import ledgerlog
from consilia.node.config import Budgets
from consilia.node.store import MAX_REASON, Row, Store, Transaction, printable
from consilia.privacy import ledger as rules
from consilia.privacy.accountant import ORDERS, cost
from consilia.privacy.ledger import Cap, Entry, Vector
from consilia.wire.v1 import Dp

Scope = Literal["universe", "dataset", "study", "researcher"]
State = Literal["reserved", "started", "settled", "refunded"]

SCOPES: tuple[Scope, ...] = get_args(Scope)
DEFAULT_UNIVERSE = "patients"
MAX_NAME = 200  # characters of a lease, a name or a researcher
MOST_ROUNDS = 1_000_000  # that an estimate counts
_SPEND = "SELECT lease, run, state FROM budget_spends WHERE lease = ?"


@dataclass(frozen=True, slots=True)
class Charge:
    """What one task is about to spend, and on whose account. `cost` is at `orders`, in nats."""

    lease: str
    job: str
    universe: str
    dataset: str
    study: str  # name
    researcher: str  # who answers for the job
    cost: tuple[float, ...]
    delta: float = 1e-5  # at which the job states its epsilon
    level: str = "record"  # whose presence the noise hides: record, patient, client
    orders: tuple[float, ...] = ORDERS


@dataclass(frozen=True, slots=True)
class Spend:
    """A lease's place in the ledger. `run` counts how often the lease was charged."""

    lease: str
    run: int
    state: State


@dataclass(frozen=True, slots=True)
class Standing:
    """One account: what was spent, with what is reserved and not settled by `open` leases.

    `epsilon` is at `delta`, the cap's. `used` is the part of the cap that is used up; it is
    None, as `cap` is, where this account has no cap of its own.
    """

    kind: Scope
    name: str
    epsilon: float
    delta: float
    used: float | None
    open: int
    cap: Cap | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What some rounds would come to here."""

    rounds: int
    rounds_left: int  # that the caps admit, whatever was asked for; at most MOST_ROUNDS
    after: tuple[Standing, ...]  # each account as it would stand

    @property
    def fits(self) -> bool:
        """True when every cap admits all rounds."""
        return self.rounds <= self.rounds_left


@dataclass(frozen=True, slots=True)
class _Books:
    """What it takes to say how accounts stand, of one moment."""

    tx: Transaction
    budgets: Budgets
    orders: tuple[float, ...]
    open: Counter[tuple[str, str]]  # leases of each account that are not settled, if counted


def charge_for(  # noqa: PLR0913 - the accounts, by keyword
    dp: Dp, *, lease: str, job: str, universe: str, dataset: str, study: str, researcher: str
) -> Charge:
    """Return what one round of `dp` costs; raise ConfigError when it is no mechanism."""
    return Charge(
        lease, job, universe, dataset, study, researcher, cost(dp), dp.delta, dp.level
    )


def universe_of(budgets: Budgets, dataset: str) -> str:
    """Return whose data a dataset holds: the site's patients, unless node.yaml says another."""
    return budgets.universes.get(dataset, DEFAULT_UNIVERSE)


# ---- the four steps --------------------------------------------------------------------------


def reserve(
    store: Store, charge: Charge, budgets: Budgets, *, now: float, again: bool = False
) -> Spend:
    """Count a task's cost before it runs, or raise Refused with the figures.

    The figures are for the site's staff. The same lease reserves once: a second call finds its
    reservation. A lease that was refunded is reserved anew. One that was settled is not, since
    its result may have left: `again` charges it a second time, for a second result.
    """
    _check(charge)
    with store.write() as tx:
        orders = _pin_orders(tx)
        change = rules.units(charge.cost, charge.orders, orders)
        found = _find(tx, charge.lease)
        if found is not None and found.state in ("reserved", "started"):
            return _same(tx, found, charge, change)
        if found is not None and found.state == "settled" and not again:
            raise Conflict(
                f"lease {charge.lease!r} is settled: its result may have left already; "
                "a second result has to be charged again"
            )
        objections = _objections(tx, charge, change, budgets)
        if not objections:
            run = found.run + 1 if found else 1
            return _reserve(_books(tx, budgets), charge, change, run, now)
        text = "the privacy budget does not allow it: " + "; ".join(objections)
        tx.audit(now, "agent", "budget.refuse", charge.lease, "refused", text)
    raise Refused(text)  # after the commit, so that the audit line stays


def begin(store: Store, lease: str, *, now: float) -> Spend:
    """Note that the task is about to run; from here on nothing is refunded."""
    with store.write() as tx:
        return begin_in(tx, lease, now=now)


def begin_in(tx: Transaction, lease: str, *, now: float) -> Spend:
    """As `begin`, inside a transaction of the caller."""
    _refuse_when_held(tx)
    found = _get(tx, lease)
    if found.state == "started":
        return found
    if found.state != "reserved":
        raise Conflict(f"lease {lease!r} is {found.state}: reserve it before it runs")
    return _step(tx, found, "started", Entry(0, now, "begin", lease, found.run))


def settle(
    store: Store, lease: str, *, now: float, used: tuple[float, ...] | None = None
) -> Spend:
    """Make a reservation final; before the first byte of the result leaves.

    `used`, at ORDERS, gives back the rest where the caller proves that less was spent. It must
    not have been chosen by looking at the data.
    """
    with store.write() as tx:
        return settle_in(tx, lease, now=now, used=used)


def settle_in(
    tx: Transaction, lease: str, *, now: float, used: tuple[float, ...] | None = None
) -> Spend:
    """As `settle`, inside a transaction of the caller: together with the result's own lines."""
    found = _get(tx, lease)
    if found.state == "settled":
        return found
    if found.state == "refunded":
        raise Conflict(f"lease {lease!r} was refunded: nothing of it may leave")
    back: Vector = ()
    if used is not None:
        orders, reserved = _orders(tx), _reserved(tx, lease)
        spent = rules.units(used, ORDERS, orders)
        if any(a > b for a, b in zip(spent, reserved.change, strict=True)):
            raise Conflict(f"lease {lease!r} spent more than it had reserved")
        back = rules.add(rules.negative(reserved.change), spent)
        _move(tx, reserved, back)
    tx.audit(now, "agent", "budget.settle", lease, "settled")
    return _step(tx, found, "settled", Entry(0, now, "settle", lease, found.run, change=back))


def refund(store: Store, lease: str, *, reason: str, now: float) -> Spend:
    """Give back what a task reserved that provably never began; Conflict when it has begun."""
    with store.write() as tx:
        return refund_in(tx, lease, reason=reason, now=now)


def refund_in(tx: Transaction, lease: str, *, reason: str, now: float) -> Spend:
    """As `refund`, inside a transaction of the caller."""
    found = _get(tx, lease)
    if found.state == "refunded":
        return found
    if found.state != "reserved":
        raise Conflict(f"lease {lease!r} is {found.state}: what has begun is never refunded")
    reserved = _reserved(tx, lease)
    change, words = rules.negative(reserved.change), printable(reason, MAX_REASON)
    _move(tx, reserved, change)
    tx.audit(now, "agent", "budget.refund", lease, "refunded", words)
    entry = Entry(0, now, "refund", lease, found.run, change=change, detail=words)
    return _step(tx, found, "refunded", entry)


def sweep(store: Store, *, reason: str, now: float) -> tuple[str, ...]:
    """Give back all that is reserved and has not begun; return the leases.

    For an agent that has reserved nothing yet: whoever reserved it has ended, and its worker
    was never sent a thing. A node that was ever put back to an older state gives back nothing:
    what is reserved in it may have begun in the state that was lost.
    """
    with store.write() as tx:
        if tx.rows("SELECT 1 FROM budget_mirrors"):
            return ()
        rows = tx.rows(
            "SELECT lease FROM budget_spends WHERE state = 'reserved' ORDER BY lease"
        )
        leases = tuple(str(lease) for (lease,) in rows)
        for lease in leases:
            refund_in(tx, lease, reason=reason, now=now)
    return leases


def find(store: Store, lease: str) -> Spend | None:
    """Return a lease's place in the ledger, None when it has none."""
    return _spend(
        store.rows("SELECT lease, run, state FROM budget_spends WHERE lease = ?", (lease,))
    )


# ---- where the accounts stand ----------------------------------------------------------------


def standings(store: Store, budgets: Budgets) -> list[Standing]:
    """Return every account that has spent something or has a cap of its own."""
    with store.write() as tx:
        rows = tx.rows(
            "SELECT kind, name FROM budget_totals UNION SELECT kind, name FROM budget_caps"
        )
        known = {(kind, str(name)) for kind in SCOPES for k, name in rows if k == kind}
        known |= {("universe", u) for u in (DEFAULT_UNIVERSE, *budgets.universes.values())}
        books = _counting(tx, budgets)
        pairs = sorted(known, key=lambda pair: (SCOPES.index(pair[0]), pair[1]))
        return [_standing(books, kind, name) for kind, name in pairs]


def estimate(
    store: Store, budgets: Budgets, each: Dp, rounds: int, accounts: Mapping[Scope, str]
) -> Estimate:
    """Tell what `rounds` rounds of `each` would come to, and how many the caps admit."""
    with store.write() as tx:
        books, least, after = _counting(tx, budgets), MOST_ROUNDS, []
        change = rules.units(cost(each), ORDERS, books.orders)
        for kind in (kind for kind in SCOPES if kind in accounts):
            name = accounts[kind]
            if (cap := _cap(tx, budgets, kind, name)) is not None:
                held = rules.make_filter(cap, books.orders)
                least = min(least, rules.fits(held, _total(tx, kind, name), change, least))
            after.append(_standing(books, kind, name, tuple(rounds * v for v in change)))
        return Estimate(rounds, 0 if held_by(tx) else least, tuple(after))


# ---- inside ----------------------------------------------------------------------------------


def _check(charge: Charge) -> None:
    """Raise Refused for names that the hub gave and that could fool a reader."""
    for text in (charge.lease, charge.job, *(name for _, name in _accounts(charge))):
        if not text or text != printable(text, MAX_NAME):
            raise Refused(f"{text[:80]!r} names no account: 1 to {MAX_NAME} characters")
    if not 0 < charge.delta < 1:  # False for NaN
        raise Refused(f"delta: found {charge.delta}, needed a number between 0 and 1")


def _accounts(charge: Charge) -> tuple[tuple[Scope, str], ...]:
    names = (charge.universe, charge.dataset, charge.study, charge.researcher)
    return tuple(zip(SCOPES, names, strict=True))


def _objections(
    tx: Transaction,
    charge: Charge,
    change: Vector,
    budgets: Budgets,
) -> list[str]:
    """Return every reason why a charge may not be made."""
    found = [text] if (text := held_by(tx)) else []
    ((place,),) = tx.rows(
        "SELECT (SELECT universe FROM budget_places WHERE dataset = ?)", (charge.dataset,)
    )
    if place not in (None, charge.universe):
        found.append(
            f"dataset {charge.dataset!r} was charged to the universe {place!r} before, now to "
            f"{charge.universe!r}: what was spent on its patients would be forgotten"
        )
    for kind, name in _accounts(charge):
        cap = _cap(tx, budgets, kind, name)
        if cap is None:
            continue
        held, before = rules.make_filter(cap, _orders(tx)), _total(tx, kind, name)
        after = rules.add(before, change)
        if not rules.admits(held, after):
            found.append(
                f"{kind} {name!r} has used {_percent(rules.used(held, before))} of its cap "
                f"(epsilon {cap.epsilon:g} at delta {cap.delta:g}); this would make it "
                f"{_percent(rules.used(held, after))}"
            )
    return found


def _percent(part: float) -> str:
    return "more than all" if math.isinf(part) else f"{100 * part:.4g} %"


def _reserve(books: _Books, charge: Charge, change: Vector, run: int, now: float) -> Spend:
    tx, alone = books.tx, rules.epsilon(change, charge.delta, books.orders)
    entry = Entry(
        0,
        now,
        "reserve",
        charge.lease,
        run,
        charge.job,
        *(charge.universe, charge.dataset, charge.study, charge.researcher, charge.level),
        *(alone, charge.delta, change),
    )
    _move(tx, entry, change)
    tx.execute(
        "INSERT INTO budget_places VALUES (?, ?) ON CONFLICT (dataset) DO NOTHING",
        (charge.dataset, charge.universe),
    )
    stands = _standing(books, "universe", charge.universe)
    cap = stands.cap or books.budgets.universe
    detail = (
        f"job {charge.job}, universe {charge.universe}, dataset {charge.dataset}, study "
        f"{charge.study}, researcher {charge.researcher}: {charge.level} level, epsilon "
        f"{alone:.4g} at delta {charge.delta:g} by itself; the universe has now used "
        f"{_percent(stands.used or 0.0)} of epsilon {cap.epsilon:g} at delta {cap.delta:g}"
    )
    tx.audit(now, "agent", "budget.reserve", charge.lease, "reserved", detail)
    return _step(tx, Spend(charge.lease, run, "reserved"), "reserved", entry)


def _same(tx: Transaction, found: Spend, charge: Charge, change: Vector) -> Spend:
    """Return the reservation a lease has, if it is for the same task."""
    _refuse_when_held(tx)
    old = _reserved(tx, charge.lease)
    asked = (charge.job, *(name for _, name in _accounts(charge)), change)
    if (old.job, old.universe, old.dataset, old.study, old.researcher, old.change) != asked:
        raise Conflict(f"lease {charge.lease!r} is reserved already, for another task")
    return found


def _step(tx: Transaction, spend: Spend, state: State, entry: Entry) -> Spend:
    """Write an entry, and where the lease stands after it."""
    seq = ledgerlog.append(tx, entry)
    if state == "reserved":
        tx.execute(
            "INSERT OR REPLACE INTO budget_spends VALUES (?, ?, ?, ?)",
            (spend.lease, spend.run, state, seq),
        )
    else:
        tx.execute("UPDATE budget_spends SET state = ? WHERE lease = ?", (state, spend.lease))
    return Spend(spend.lease, spend.run, state)


def held_by(tx: Transaction) -> str:
    """Return why the whole ledger is held (node.budget), "" when it is not."""
    rows = tx.rows("SELECT length FROM budget_mirrors WHERE accepted = 0")
    if not rows:
        return ""
    return (
        f"the hub mirrors a privacy ledger of {rows[0][0]} entries that this one does not "
        "contain: this node was put back to an older state, and what was spent since is "
        "unknown here. Put the newer state back, or decide: consilia node budget accept-restore"
    )


def _refuse_when_held(tx: Transaction) -> None:
    if text := held_by(tx):
        raise Refused(text)


def _find(tx: Transaction, lease: str) -> Spend | None:
    return _spend(tx.rows(_SPEND, (lease,)))


def _get(tx: Transaction, lease: str) -> Spend:
    found = _find(tx, lease)
    if found is None:
        raise NotFound(f"lease {lease[:MAX_NAME]!r} has reserved nothing in the privacy ledger")
    return found


def _spend(rows: list[Row]) -> Spend | None:
    return Spend(*rows[0]) if rows else None


def _reserved(tx: Transaction, lease: str) -> Entry:
    """Return the entry of a lease's present reservation."""
    ((text,),) = tx.rows(
        "SELECT body FROM budget_entries WHERE seq = "
        "(SELECT reserve FROM budget_spends WHERE lease = ?)",
        (lease,),
    )
    return rules.read(text)


def _move(tx: Transaction, accounts: Entry, change: Vector) -> None:
    """Add a change to the totals of an entry's four accounts."""
    for kind, name in ledgerlog.names(accounts):
        total = rules.add(_total(tx, kind, name), change)
        tx.execute(
            "INSERT OR REPLACE INTO budget_totals VALUES (?, ?, ?)",
            (kind, name, json.dumps(total)),
        )


def _total(tx: Transaction, kind: str, name: str) -> Vector:
    rows = tx.rows("SELECT total FROM budget_totals WHERE kind = ? AND name = ?", (kind, name))
    return tuple(json.loads(rows[0][0])) if rows else ()


def _cap(tx: Transaction, budgets: Budgets, kind: Scope, name: str) -> Cap | None:
    """Return the cap in force: the one a command set, else the default of node.yaml."""
    rows = tx.rows(
        "SELECT epsilon, delta FROM budget_caps WHERE kind = ? AND name = ?", (kind, name)
    )
    if rows:
        return Cap(*rows[0])
    defaults: dict[Scope, Cap | None] = {
        "universe": budgets.universe,
        "dataset": budgets.dataset,
        "study": budgets.study,
        "researcher": budgets.researcher,
    }
    return defaults[kind]


def _orders(tx: Transaction) -> tuple[float, ...]:
    """Return the orders of the totals: those of the release that wrote the first entry."""
    rows = tx.rows("SELECT orders FROM budget_orders")
    return tuple(json.loads(rows[0][0])) if rows else ORDERS


def _pin_orders(tx: Transaction) -> tuple[float, ...]:
    """As `_orders`, and from now on for good."""
    orders = _orders(tx)
    tx.execute("INSERT OR IGNORE INTO budget_orders VALUES (1, ?)", (json.dumps(orders),))
    return orders


def _books(tx: Transaction, budgets: Budgets) -> _Books:
    return _Books(tx, budgets, _orders(tx), Counter())


def _counting(tx: Transaction, budgets: Budgets) -> _Books:
    """As `_books`, with the open leases counted: a look at each of them."""
    rows = tx.rows(
        "SELECT body FROM budget_entries WHERE seq IN (SELECT reserve FROM budget_spends "
        "WHERE state IN ('reserved', 'started'))"
    )
    pairs = (pair for (text,) in rows for pair in ledgerlog.names(rules.read(text)))
    return _Books(tx, budgets, _orders(tx), Counter(pairs))


def _standing(books: _Books, kind: Scope, name: str, more: Vector = ()) -> Standing:
    cap = _cap(books.tx, books.budgets, kind, name)
    total = rules.add(_total(books.tx, kind, name), more)
    delta = (cap or books.budgets.universe).delta
    epsilon = rules.epsilon(total, delta, books.orders)
    used = None if cap is None else rules.used(rules.make_filter(cap, books.orders), total)
    return Standing(kind, name, epsilon, delta, used, books.open[kind, name], cap)
