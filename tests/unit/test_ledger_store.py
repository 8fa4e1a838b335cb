"""The ledger at a node: what was reserved stays counted, whoever asks, whatever is restored."""

import csv
import math
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilia.core.chain import Break, Line
from consilia.errors import ConfigError, Conflict, ConsiliaError, NotFound, Refused, WireError
from consilia.node import audit, budget, config, datasets, ledger, ledgerlog
from consilia.node.config import Budgets
from consilia.node.ledger import Charge, Scope, Spend
from consilia.node.store import Store
from consilia.privacy import ledger as rules
from consilia.privacy.accountant import ORDERS, cost
from consilia.privacy.ledger import Cap, Head
from consilia.wire import seal
from consilia.wire.v1 import Advertisement, Dp, Sealed, decode, encode
from nodekit import write_table

DP = Dp("record", 2.0, 1.0, 0.1, 20)
BUDGETS = Budgets()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store.open(tmp_path)
    yield found
    found.close()


def charge(
    lease: str,
    dp: Dp = DP,
    *,
    universe: str = "patients",
    dataset: str = "hf",
    study: str = "hearts",
    researcher: str = "ada",
) -> Charge:
    return ledger.charge_for(
        dp,
        lease=lease,
        job="job-1",
        universe=universe,
        dataset=dataset,
        study=study,
        researcher=researcher,
    )


def reserve(store: Store, lease: str, budgets: Budgets = BUDGETS, **accounts: str) -> Spend:
    return ledger.reserve(store, charge(lease, DP, **accounts), budgets, now=1.0)


def spent(store: Store, kind: Scope = "universe", name: str = "patients") -> float:
    return sum(s.epsilon for s in standing(store, BUDGETS, {kind: name}))


def standing(
    store: Store, budgets: Budgets, accounts: Mapping[Scope, str]
) -> list[ledger.Standing]:
    named = accounts.items()
    return [s for s in ledger.standings(store, budgets) if (s.kind, s.name) in named]


def fill(store: Store, budgets: Budgets = BUDGETS, start: int = 0, **accounts: str) -> int:
    """Reserve until the ledger refuses; return how many were reserved."""
    count = 0
    try:
        while True:
            reserve(store, f"fill.{start + count}", budgets, **accounts)
            count += 1
    except Refused:
        return count


def details(pair: tuple[Line, str]) -> str:
    return pair[0].detail


def actions(store: Store) -> list[str]:
    return [f"{line.action}:{line.outcome}" for line, _ in audit.every(store)]


def prepare(store: Store, state: str) -> None:
    if state == "nothing":
        return
    reserve(store, "l")
    if state in ("started", "settled"):
        ledger.begin(store, "l", now=2.0)
    if state == "settled":
        ledger.settle(store, "l", now=3.0)
    if state == "refunded":
        ledger.refund(store, "l", reason="never ran", now=2.0)


STEPS: dict[str, Callable[[Store], Spend]] = {
    "reserve": lambda s: reserve(s, "l"),
    "begin": lambda s: ledger.begin(s, "l", now=5.0),
    "settle": lambda s: ledger.settle(s, "l", now=5.0),
    "refund": lambda s: ledger.refund(s, "l", reason="never ran", now=5.0),
}


@pytest.mark.parametrize(
    ("state", "step", "after"),
    [
        ("nothing", "reserve", "reserved"),
        ("nothing", "begin", NotFound),
        ("nothing", "settle", NotFound),
        ("nothing", "refund", NotFound),
        ("reserved", "reserve", "reserved"),
        ("reserved", "begin", "started"),
        ("reserved", "settle", "settled"),
        ("reserved", "refund", "refunded"),
        ("started", "reserve", "started"),
        ("started", "begin", "started"),
        ("started", "settle", "settled"),
        ("started", "refund", Conflict),
        ("settled", "reserve", Conflict),
        ("settled", "begin", Conflict),
        ("settled", "settle", "settled"),
        ("settled", "refund", Conflict),
        ("refunded", "reserve", "reserved"),
        ("refunded", "begin", Conflict),
        ("refunded", "settle", Conflict),
        ("refunded", "refund", "refunded"),
    ],
)
def test_every_step_from_every_state(
    store: Store, state: str, step: str, after: str | type[ConsiliaError]
) -> None:
    prepare(store, state)
    before = ledgerlog.head(store)
    if isinstance(after, str):
        found = STEPS[step](store)
        assert found.state == after and ledger.find(store, "l") == found
        assert STEPS[step](store) == found or (state, step) == ("refunded", "reserve")
        assert ledgerlog.head(store).length == before.length + (after != state)
    else:
        with pytest.raises(after):
            STEPS[step](store)
        assert ledgerlog.head(store) == before
    found_now = ledger.find(store, "l")
    counted = found_now is not None and found_now.state != "refunded"
    assert (spent(store) > 0) == counted
    assert ledgerlog.verify(store) == ledgerlog.head(store)


def test_the_cap_is_a_hard_stop_and_a_refund_makes_room_for_exactly_one(store: Store) -> None:
    count = fill(store)
    held = rules.make_filter(BUDGETS.universe, ORDERS)
    assert count == rules.fits(held, (), rules.units(cost(DP), ORDERS, ORDERS), 999) > 10
    assert 8.5 < spent(store) <= 10
    with pytest.raises(Refused, match=r"'patients' has used 9\d\.\d+ % of its cap \(eps"):
        reserve(store, "more")
    assert ledger.find(store, "more") is None
    last = [line.detail for line, _ in audit.every(store) if line.action == "budget.reserve"][
        -1
    ]
    assert "level, epsilon " in last and " % of epsilon 10 at delta 1e-05" in last
    assert actions(store)[-1] == "budget.refuse:refused"
    ledger.refund(store, "fill.3", reason="the model never arrived", now=2.0)
    assert fill(store, start=1000) == 1
    assert ledgerlog.verify(store) == ledgerlog.head(store)


def test_a_refused_charge_leaves_only_its_audit_line(store: Store) -> None:
    tight = Budgets(Cap(0.0))
    with pytest.raises(
        Refused, match=r"epsilon 0 at delta 1e-05.*this would make it more than all"
    ):
        reserve(store, "l", tight)
    assert ledgerlog.head(store).length == 0 and spent(store) == 0
    assert actions(store) == ["budget.refuse:refused"]


def test_the_same_patients_are_one_account_whatever_asks(store: Store, tmp_path: Path) -> None:
    table = write_table(tmp_path / "hf.csv", 120)
    for number, (study, who) in enumerate(
        [("hearts", "ada"), ("lungs", "ben"), ("hearts", "eve")]
    ):
        datasets.add(store, table, actor="mara", now=1.0)
        reserve(store, f"l{number}", dataset=table.name, study=study, researcher=who)
        datasets.remove(store, table.name, actor="mara", now=1.0)
    alone = Budgets()
    one, three = (
        ledger.estimate(store, alone, DP, n, {"universe": "elsewhere"}).after[0].epsilon
        for n in (1, 3)
    )
    assert spent(store) == pytest.approx(three)
    assert spent(store, "dataset", table.name) == pytest.approx(three)
    assert spent(store, "researcher", "ben") == pytest.approx(one)
    assert spent(store, "study", "hearts") > spent(store, "study", "lungs")


def test_a_dataset_cannot_leave_its_universe(store: Store) -> None:
    reserve(store, "a")
    with pytest.raises(Refused, match="charged to the universe 'patients' before"):
        reserve(store, "b", universe="animals")
    reserve(store, "c", universe="animals", dataset="mice")
    assert spent(store, "universe", "animals") > 0


@pytest.mark.parametrize("kind", ["dataset", "study", "researcher"])
def test_each_account_has_its_own_cap(store: Store, kind: Scope) -> None:
    mine = {"dataset": "hf", "study": "hearts", "researcher": "ada"}[kind]
    default = msgspec.convert({kind: {"epsilon": 5.0}}, Budgets)
    few = fill(store, default)
    with pytest.raises(Refused, match=f"{kind} '{mine}' has used"):
        reserve(store, "l", default)
    assert fill(store, default, 500, **{kind: "other"}) > 0  # what is left of the universe
    decided = {"actor": "mara", "reason": "board"}
    with store.write() as tx:
        budget.set_cap(tx, kind, mine, Cap(0.1), now=1.0, **decided)
    assert few and fill(store, Budgets(Cap(100.0)), 900) == 0
    with store.write() as tx:
        budget.drop_cap(tx, kind, mine, now=1.0, **decided)
    assert fill(store, Budgets(Cap(11.0)), 900) > 0
    with pytest.raises(Conflict, match="no command has set a cap"), store.write() as tx:
        budget.drop_cap(tx, kind, mine, now=1.0, **decided)
    assert ledgerlog.verify(store) == ledgerlog.head(store)


def test_a_lease_belongs_to_one_task(store: Store) -> None:
    reserve(store, "l")
    for other in (charge("l", study="lungs"), charge("l", Dp("record", 1.0, 1.0, 0.1, 20))):
        with pytest.raises(Conflict, match="reserved already, for another task"):
            ledger.reserve(store, other, BUDGETS, now=2.0)


def test_a_second_result_is_charged_a_second_time(store: Store) -> None:
    prepare(store, "settled")
    once = spent(store)
    found = ledger.reserve(store, charge("l"), BUDGETS, now=4.0, again=True)
    assert (found.run, found.state) == (2, "reserved") and spent(store) > once
    ledger.refund(store, "l", reason="never ran", now=5.0)
    assert spent(store) == once  # the first result stays charged
    assert ledgerlog.verify(store) == ledgerlog.head(store)


def test_less_can_be_settled_than_was_reserved_and_never_more(store: Store) -> None:
    reserve(store, "l")
    half, more = Dp("record", 2.0, 1.0, 0.1, 10), Dp("record", 1.9, 1.0, 0.1, 20)
    with pytest.raises(Conflict, match="spent more than it had reserved"):
        ledger.settle(store, "l", now=2.0, used=cost(more))
    ledger.settle(store, "l", now=2.0, used=cost(half))
    expected = ledger.estimate(store, BUDGETS, half, 1, {"universe": "elsewhere"}).after[0]
    assert spent(store) == pytest.approx(expected.epsilon, rel=1e-9)
    assert ledgerlog.verify(store) == ledgerlog.head(store)


def test_an_estimate_is_what_then_happens(store: Store) -> None:
    fill(store, Budgets(Cap(4.0)))
    accounts: dict[Scope, str] = {"universe": "patients", "study": "hearts"}
    said = ledger.estimate(store, BUDGETS, DP, 3, accounts)
    assert said.fits and said.after[1].cap is None
    for n in range(3):
        reserve(store, f"more.{n}")
    now = standing(store, BUDGETS, accounts)
    assert [(s.epsilon, s.used) for s in now] == [(s.epsilon, s.used) for s in said.after]
    assert fill(store, start=700) == said.rounds_left - 3
    assert not ledger.estimate(store, BUDGETS, DP, 1, accounts).fits


def test_standings_show_open_leases_and_defaults(store: Store) -> None:
    (empty,) = ledger.standings(store, BUDGETS)
    assert (empty.name, empty.epsilon, empty.used) == ("patients", 0.0, 0.0)
    reserve(store, "a")
    reserve(store, "b", study="lungs")
    ledger.settle(store, "a", now=2.0)
    found = {(s.kind, s.name): s for s in ledger.standings(store, BUDGETS)}
    assert found["universe", "patients"].open == 1
    assert found["study", "hearts"].open == 0 and found["study", "lungs"].open == 1
    assert found["study", "lungs"].cap is None and found["study", "lungs"].used is None


@pytest.mark.parametrize("text", ["", "x" * 201, "a\nb", "a\x1b[2J"])
def test_names_that_could_fool_a_reader_are_refused(store: Store, text: str) -> None:
    with pytest.raises(Refused, match="names no account"):
        reserve(store, "l", study=text)
    with pytest.raises(ConfigError, match="names no account"), store.write() as tx:
        budget.set_cap(tx, "study", text, Cap(1.0), actor="m", reason="r", now=1.0)


def test_a_decision_needs_a_reason_and_a_cap_that_caps(store: Store) -> None:
    for cap, reason in ((Cap(1.0), "  "), (Cap(math.nan), "why"), (Cap(1.0, 0.5), "why")):
        with pytest.raises(ConfigError), store.write() as tx:
            budget.set_cap(tx, "study", "s", cap, actor="m", reason=reason, now=1.0)
    assert ledgerlog.head(store).length == 0


def test_orders_stay_those_of_the_first_entry(store: Store) -> None:
    few = replace(charge("a"), cost=cost(DP)[::2], orders=ORDERS[::2])
    ledger.reserve(store, few, BUDGETS, now=1.0)
    coarse = spent(store)
    ledger.refund(store, "a", reason="never ran", now=1.0)
    assert spent(store) == 0
    reserve(store, "a")
    assert 0 < spent(store) <= coarse


# ---- the chain -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (
            "UPDATE budget_entries SET body = replace(body, 'ada', 'eve') WHERE seq = 2",
            "changed",
        ),
        ("DELETE FROM budget_entries WHERE seq = 2", "changed or removed"),
        ("UPDATE budget_totals SET total = '[]' WHERE kind = 'universe'", "totals"),
        ("DELETE FROM budget_totals WHERE kind = 'study'", "totals"),
        ("UPDATE budget_spends SET state = 'refunded'", "states"),
        ("UPDATE budget_caps SET epsilon = 99", "caps"),
        ("DELETE FROM budget_caps", "caps"),
    ],
)
def test_a_changed_ledger_is_noticed(
    store: Store, tmp_path: Path, tamper: str, says: str
) -> None:
    with store.write() as tx:
        budget.set_cap(tx, "study", "hearts", Cap(9.0), actor="m", reason="r", now=1.0)
    prepare(store, "settled")
    with sqlite3.connect(tmp_path / "node.sqlite") as bare:
        for trigger in ("budget_stays", "budget_remains"):
            bare.execute(f"DROP TRIGGER {trigger}")
        bare.execute("PRAGMA foreign_keys = OFF")
        bare.execute(tamper)
    bare.close()
    found = ledgerlog.verify(store)
    assert isinstance(found, Break) and says in found.reason


@pytest.mark.parametrize(
    "sql", ["UPDATE budget_entries SET body = ''", "DELETE FROM budget_entries"]
)
def test_entries_are_never_changed(store: Store, sql: str) -> None:
    reserve(store, "l")
    with pytest.raises(ConsiliaError, match="ledger entries are never"), store.write() as tx:
        tx.execute(sql)


def test_history_and_csv(store: Store) -> None:
    reserve(store, "l", researcher="=cmd()")
    ledger.refund(store, "l", reason="the model,\nnever arrived", now=2.0)
    assert [e.kind for e in ledgerlog.history(store)] == ["reserve", "refund"]
    assert [e.kind for e in ledgerlog.latest(store, 1)] == ["refund"]
    assert ledgerlog.history(store, after=1, limit=1) == ledgerlog.latest(store, 1)
    rows = list(csv.DictReader("".join(ledgerlog.export_csv(store)).splitlines()))
    assert rows[0]["researcher"] == "'=cmd()" and 0 < float(rows[0]["epsilon"]) < 10
    assert rows[1]["detail"] == "the model,\\nnever arrived"
    assert rows[1]["digest"] == ledgerlog.head(store).digest


def test_every_change_has_its_audit_line(store: Store) -> None:
    prepare(store, "settled")
    reserve(store, "m")
    ledger.refund(store, "m", reason="x", now=1.0)
    with store.write() as tx:
        budget.set_cap(tx, "study", "s", Cap(1.0), actor="mara", reason="r", now=1.0)
    assert actions(store) == [
        "budget.reserve:reserved",
        "budget.settle:settled",
        "budget.reserve:reserved",
        "budget.refund:refunded",
        "budget.cap:changed",
    ]


# ---- a node that was put back ----------------------------------------------------------------


def signed(store: Store, key: Ed25519PrivateKey) -> Sealed:
    head = ledgerlog.head(store)
    said = Advertisement("1", ledger_head=head.digest, ledger_length=head.length)
    return seal.seal("advertisement", "charite", encode(said), key)


def test_a_ledger_behind_its_mirror_refuses_until_a_person_decides(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    store = Store.open(tmp_path)
    reserve(store, "before")
    early = signed(store, key)
    store.close()
    shutil.copytree(tmp_path, tmp_path.parent / "backup")
    store = Store.open(tmp_path)
    prepare(store, "settled")
    mirror = signed(store, key)
    assert budget.check_mirror(store, early, public, 2.0) == ""  # ahead of an old mirror
    assert budget.check_mirror(store, mirror, public, 2.0) == ""
    store.close()

    old = Store.open(tmp_path.parent / "backup")
    assert "mirrors 4 entries, signed by this node; this ledger has 1" in budget.check_mirror(
        old, mirror, public, 3.0
    )
    assert budget.held(old) == Head(4, stated(mirror))
    for lease in ("new", "before"):
        with pytest.raises(Refused, match="consilia node budget accept-restore"):
            reserve(old, lease)
    with pytest.raises(Refused, match="put back to an older state"):
        ledger.begin(old, "before", now=3.0)
    assert not ledger.estimate(old, BUDGETS, DP, 1, {"universe": "patients"}).fits
    assert "this ledger has 1" in budget.check_mirror(old, mirror, public, 3.0)  # still so
    assert "mirrors 8 entries" in budget.compare(old, Head(8, "sha256:" + "8" * 64), 3.0)
    with pytest.raises(ConfigError, match="reason: found none"), old.write() as tx:
        budget.accept_restore(tx, actor="mara", reason=" ", now=4.0)
    with old.write() as tx:
        assert budget.accept_restore(tx, actor="mara", reason="disk lost", now=4.0).length == 4
    ledger.begin(old, "before", now=4.0)
    reserve(old, "new")
    assert budget.check_mirror(old, mirror, public, 5.0) == ""  # the same question, answered
    with pytest.raises(Conflict, match="nothing to accept"), old.write() as tx:
        budget.accept_restore(tx, actor="mara", reason="again", now=5.0)
    assert ledgerlog.verify(old) == ledgerlog.head(old)
    assert actions(old).count("budget.hold:held") == 1
    assert actions(old).count("budget.restore:accepted") == 1
    old.close()


def stated(mirror: Sealed) -> str:
    return decode(mirror.payload, Advertisement).ledger_head


def test_a_ledger_that_went_another_way_is_behind_even_when_it_is_longer(
    tmp_path: Path,
) -> None:
    here, there = tmp_path / "a", tmp_path / "b"
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    for folder in (here, there):
        folder.mkdir()
    one, two = Store.open(here), Store.open(there)
    reserve(one, "x")
    for n in range(5):
        reserve(two, f"y{n}")
    assert "does not contain that head" in budget.check_mirror(
        two, signed(one, key), public, 1.0
    )
    one.close()
    two.close()


def test_a_mirror_of_an_earlier_node_of_the_site_is_asked_about_too(store: Store) -> None:
    earlier, mine = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    public = mine.public_key().public_bytes_raw()
    said = Advertisement("1", ledger_head="sha256:" + "1" * 64, ledger_length=7)
    mirror = seal.seal("advertisement", "charite", encode(said), earlier)
    assert "an earlier node of this site" in budget.check_mirror(store, mirror, public, 1.0)
    with pytest.raises(Refused, match="7 entries"):
        reserve(store, "l")


def test_a_mirror_that_states_nothing_holds_nothing(store: Store) -> None:
    key = Ed25519PrivateKey.generate()
    sealed = seal.seal("advertisement", "charite", encode(Advertisement("1")), key)
    assert budget.check_mirror(store, sealed, key.public_key().public_bytes_raw(), 1.0) == ""
    assert budget.check_mirror(store, signed(store, key), b"x" * 32, 1.0) == ""
    reserve(store, "l")


@pytest.mark.parametrize(("length", "holds"), [(-5, False), (0, False), (2**64 - 1, True)])
def test_a_hub_that_makes_up_a_mirror_can_only_ask(
    store: Store, length: int, holds: bool
) -> None:
    made_up = Advertisement("1", ledger_head="x\x1b[2J" * 99, ledger_length=length)
    mirror = Sealed("advertisement", "charite", encode(made_up), b"none")
    assert bool(budget.check_mirror(store, mirror, b"x" * 32, 1.0)) == holds
    assert (budget.held(store) is not None) == holds
    with pytest.raises(WireError):
        budget.check_mirror(store, Sealed("advertisement", "charite", b"no", b""), b"", 1.0)
    assert ledgerlog.head(store).length == 0


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan])
def test_a_delta_that_is_none_is_refused(store: Store, delta: float) -> None:
    with pytest.raises(Refused, match="delta"):
        ledger.reserve(store, replace(charge("l"), delta=delta), BUDGETS, now=1.0)


def test_a_node_of_the_first_release_gets_its_ledger(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    with sqlite3.connect(tmp_path / "node.sqlite") as bare:
        names = bare.execute(
            "SELECT type, name FROM sqlite_schema WHERE sql IS NOT NULL AND tbl_name NOT IN "
            "('meta', 'audit', 'datasets', 'studies', 'plans', 'offers', 'leases', 'failures')"
        ).fetchall()
        for kind in ("trigger", "index", "table"):
            for name in (name for found, name in names if found == kind):
                bare.execute(f"DROP {kind} {name}")
        bare.execute("PRAGMA user_version = 1")
    bare.close()
    store = Store.open(tmp_path)
    reserve(store, "l")
    assert ledgerlog.verify(store) == ledgerlog.head(store) != rules.EMPTY
    store.close()


# ---- any order of steps ----------------------------------------------------------------------

OPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "again", "begin", "settle", "refund"]), st.integers(0, 7)
    ),
    max_size=60,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ops=OPS)
def test_any_order_of_steps_counts_what_may_have_run(
    ops: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A naive model beside it: how often each lease is counted, whatever was asked when."""
    store = Store.open(tmp_path_factory.mktemp("any"))
    tight = Budgets(Cap(3.0))
    held = rules.make_filter(tight.universe, ORDERS)
    one = rules.units(cost(DP), ORDERS, ORDERS)
    most = rules.fits(held, (), one, 999)
    counted: dict[str, int] = {}
    states: dict[str, str] = {}
    for verb, number in ops:
        lease = f"l{number}"
        state = states.get(lease, "nothing")
        try:
            if verb in ("reserve", "again"):
                again = verb == "again"
                ledger.reserve(store, charge(lease), tight, now=1.0, again=again)
                if state in ("nothing", "refunded") or (again and state == "settled"):
                    counted[lease] = counted.get(lease, 0) + 1
                    states[lease] = "reserved"
            else:
                found = STEPS_FOR[verb](store, lease)
                if verb == "refund" and state == "reserved":
                    counted[lease] -= 1
                states[lease] = found.state
        except Refused:
            assert sum(counted.values()) == most
        except (Conflict, NotFound):
            assert (verb, state) in FORBIDDEN
        (total,) = [s.used for s in standing(store, tight, {"universe": "patients"})]
        expected = tuple(sum(counted.values()) * v for v in one)
        assert total == rules.used(held, expected) and sum(counted.values()) <= most
    assert ledgerlog.verify(store) == ledgerlog.head(store)
    store.close()


STEPS_FOR: dict[str, Callable[[Store, str], Spend]] = {
    "begin": lambda s, lease: ledger.begin(s, lease, now=1.0),
    "settle": lambda s, lease: ledger.settle(s, lease, now=1.0),
    "refund": lambda s, lease: ledger.refund(s, lease, reason="never ran", now=1.0),
}
FORBIDDEN = {
    *(("reserve", "settled"), ("begin", "nothing"), ("begin", "settled")),
    *(("begin", "refunded"), ("settle", "nothing"), ("settle", "refunded")),
    *(("refund", "nothing"), ("refund", "started"), ("refund", "settled")),
}


# ---- node.yaml -------------------------------------------------------------------------------

GOOD = "site: charite\nhub: https://hub.example.org:8443\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("privacy: {universe: {epsilon: -1}}", "privacy.universe.epsilon: found -1"),
        ("privacy: {universe: {epsilon: 1001}}", "needed 0 (nothing) to 1000"),
        ("privacy: {study: {epsilon: 1, delta: 0}}", "privacy.study.delta: found 0"),
        ("privacy: {study: {epsilon: 1, delta: 1e-6}}", "Expected `float`, got `str`"),
        ("privacy: {study: {delta: 0.001}}", "missing required field `epsilon`"),
        ("privacy: {universe: null}", "privacy.universe"),
        ("privacy: {universes: {hf: 'No Name'}}", "privacy.universes: universe name 'No Name'"),
        ("privacy: {studies: {}}", "unknown key 'studies' in privacy; did you mean 'study'"),
    ],
)
def test_mistakes_in_the_section_are_named(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(GOOD + text, "node.yaml")
    assert says in str(caught.value)


def test_the_section_names_caps_and_universes(tmp_path: Path) -> None:
    text = "privacy: {study: {epsilon: 2, delta: 1.0e-6}, universes: {mice: animals}}"
    found = config.parse(GOOD + text).privacy
    assert found.universe == Cap(10.0, 1e-5) and found.study == Cap(2.0, 1e-6)
    assert ledger.universe_of(found, "mice") == "animals"
    assert ledger.universe_of(found, "hf") == "patients"
    config.save(tmp_path, config.parse(GOOD + text))
    assert config.load(tmp_path).privacy == found


def test_the_section_is_documented() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "node-config.md"
    text = page.read_text("utf-8")
    assert [n for n in Budgets.__struct_fields__ if f"| `{n}` |" not in text] == []
