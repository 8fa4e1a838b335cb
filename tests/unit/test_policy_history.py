"""The policy over time: hours, what a change would decide, one file in force, its schema."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from consilia.core.chain import Break
from consilia.errors import ConfigError, Conflict
from consilia.node import audit, config, hours, policyhistory, policyschema
from consilia.node.config import NodeConfig
from consilia.node.policy import Decision, PlanGrant, Policy, Request, StudyGrant
from consilia.node.standing import policy_of
from consilia.node.store import Store
from staffkit import employ

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "docs/reference/node-policy.schema.json"
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()
TODAY = date(2026, 11, 21)
BASE = "# ours\nsite: charite\nhub: https://hub:8444\n"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "node.yaml").write_text(BASE)
    found = Store.open(tmp_path)
    yield found
    assert not isinstance(audit.verify(found), Break)
    found.close()


# ---- hours -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("mon-fri 19:00-07:00", [(0, 19, 0), (1, 3, 0), (5, 6, 59)], [(0, 18, 59), (0, 3, 0)]),
        ("sat-sun 00:00-24:00", [(5, 0, 0), (6, 23, 59)], [(4, 23, 59), (0, 0, 0)]),
        ("fri-mon 08:00-09:30", [(4, 8, 0), (0, 9, 29)], [(1, 8, 0), (4, 9, 30)]),
        ("wed,sun 22:00-24:00", [(2, 22, 0), (6, 23, 59)], [(3, 0, 0), (2, 21, 59)]),
    ],
)
def test_windows(
    text: str, inside: list[tuple[int, int, int]], outside: list[tuple[int, int, int]]
) -> None:
    window = hours.parse(text)
    for day, hour, minute in inside:
        assert window.holds(day, hour * 60 + minute), (day, hour, minute)
    for day, hour, minute in outside:
        assert not window.holds(day, hour * 60 + minute), (day, hour, minute)


@pytest.mark.parametrize(
    "text", ["", "mon", "mon 8-9", "mon 08:00-08:00", "day 08:00-09:00", "mon 25:00-26:00",
             "mon 24:00-07:00", "mon 08:60-09:00", "mon- 08:00-09:00"]
)  # fmt: skip
def test_what_is_no_window_is_refused_with_a_right_one(text: str) -> None:
    with pytest.raises(ConfigError, match=r"00:00-24:00|00:00 to 24:00|valid: mon|mon-fri 19"):
        hours.parse(text)


@given(st.integers(0, 6), st.integers(0, 1439), st.integers(0, 1438), st.integers(1, 1440))
def test_a_window_and_its_complement_share_no_minute(
    day: int, minute: int, start: int, end: int
) -> None:
    if end in {start, hours.DAY}:
        return
    every = frozenset(range(7))
    window = hours.Window(every, start, end)
    rest = hours.Window(every, end, start)
    assert window.holds(day, minute) != rest.holds(day, minute)


# ---- what a change would have done -----------------------------------------------------------

ASKED = Request(
    "init", "sha256:5", "hearts", "sha256:7", frozenset(), {}, None, 60.0, minute=190
)


def asked(store: Store, *requests: Request, day: date = TODAY) -> None:
    recent = policyhistory.Recent()
    for request in requests:
        recent.note(request, Decision(()), day, NOW)
    policyhistory.keep(store, recent.take(NOW, everything=True), TODAY)


def test_the_same_request_is_one_row_however_often_it_is_asked(store: Store) -> None:
    same = [replace(ASKED, minute=180 + n, model=f"b3:{n}") for n in range(50)]
    asked(store, *same)
    asked(store, *same)
    assert store.rows("SELECT count, body FROM requests")[0][0] == 100
    assert len(store.rows("SELECT * FROM requests")) == 1
    asked(store, replace(ASKED, arguments={"x": "y" * 100_000}))
    assert len(store.rows("SELECT * FROM requests")) == 1, "a hub can fill the disk"


def test_requests_are_written_when_it_is_quiet_or_has_lasted() -> None:
    recent = policyhistory.Recent()
    recent.note(ASKED, Decision(()), TODAY, NOW)
    assert not recent.take(NOW + 1)
    for second in range(0, 59, 2):
        recent.note(ASKED, Decision(()), TODAY, NOW + second)
    assert not recent.take(NOW + 59) and recent.take(NOW + 61)
    assert not recent.take(NOW + 999)


def test_requests_are_forgotten_after_30_days(store: Store) -> None:
    asked(store, ASKED, day=date(2026, 10, 21))
    asked(store, ASKED)
    assert store.rows("SELECT day FROM requests") == [("2026-11-21",)]


POLICY = Policy(
    {"sha256:5": StudyGrant("hearts", frozenset(), TODAY)},
    {"sha256:7": PlanGrant("p", until=TODAY, signers=frozenset({"anna"}))},
    failures_per_day=1,
)


def test_a_replay_shows_what_the_change_itself_decides(store: Store) -> None:
    asked(store, ASKED, ASKED, replace(ASKED, study_name="lungs"))
    night = replace(POLICY, hours=(hours.parse("mon-fri 19:00-07:00"),))
    assert policyhistory.replay(store, POLICY, night) == (3, ()), "Saturday 03:00 is Friday's"
    two = replace(POLICY, reviewers_needed=2)
    _, found = policyhistory.replay(store, POLICY, two)
    assert [(d.study, d.count, d.allowed) for d in found] == [("hearts", 2, False)]
    assert "different reviewers" in found[0].reasons[0]
    _, back = policyhistory.replay(store, two, POLICY)
    assert [(d.study, d.count, d.allowed) for d in back] == [("hearts", 2, True)]


# ---- one file in force -----------------------------------------------------------------------


def apply(store: Store, text: str) -> policyhistory.Proposal:
    under = partial(policy_of, store)
    where = store.path.parent
    return policyhistory.apply(store, where, text, "new.yaml", under, actor="mara", now=NOW)


def test_what_is_applied_is_the_file_word_for_word_and_audited(store: Store) -> None:
    text = BASE + "# why: ethics\nmin_records: 500\ncache_bytes: 1000\n"
    found = apply(store, text)
    assert found.keys == ("cache_bytes", "min_records") and found.restart == ("cache_bytes",)
    assert (store.path.parent / "node.yaml").read_text() == text
    newest = policyhistory.newest(store)
    assert newest is not None and (newest.text, newest.actor) == (text, "mara")
    policyhistory.started(store, store.path.parent, NOW)  # nothing new: it is in force
    assert [line.action for line, _ in audit.every(store)] == ["policy.apply"]


TWO = BASE + "reviewers_needed: 2\nprivacy: {universe: {epsilon: 2.0}}\n"


@pytest.mark.parametrize(
    ("loose", "named"),
    [
        (TWO.replace("needed: 2", "needed: 1"), "reviewers_needed"),
        (TWO.replace("epsilon: 2.0", "epsilon: 2.5"), "privacy.universe"),
        (TWO + "consortium_review: {reviewers: 2, sites: 2}\n", "consortium_review"),
    ],
)
def test_what_two_people_guard_is_loosened_by_two_people(
    store: Store, loose: str, named: str
) -> None:
    apply(store, TWO)  # stricter: one person may
    employ(store, "mara", "ben")
    where, under = store.path.parent, partial(policy_of, store)
    for actor in ("mara", "user:mara"):  # at the console and in a terminal: one person
        with pytest.raises(Conflict, match=rf"{named}.* 1 of 2 people"):
            policyhistory.apply(store, where, loose, "new", under, actor=actor, now=NOW)
    assert (where / "node.yaml").read_text() == TWO
    other = loose + "# another text\n"
    with pytest.raises(Conflict, match="1 of 2 people"):
        policyhistory.apply(store, where, other, "new", under, actor="ben", now=NOW)
    policyhistory.apply(store, where, loose, "new", under, actor="ben", now=NOW)
    assert (where / "node.yaml").read_text() == loose
    said = [(line.action, line.actor) for line, _ in audit.every(store)]
    assert said[-1] == ("policy.apply", "ben") and ("policy.sign-off", "mara") in said


def test_of_changes_made_to_one_file_at_once_one_holds(store: Store) -> None:
    where, made_from = store.path.parent, f"sha256:{sha256(BASE.encode()).hexdigest()}"
    texts = [f"{BASE}min_records: {500 + i}\n{'# why' * 20_000}\n" for i in range(6)]

    def change(text: str) -> bool:
        try:
            policyhistory.apply(
                store, where, text, "draft", partial(policy_of, store), actor="mara", now=NOW,
                made_from=made_from,
            )  # fmt: skip
        except Conflict as e:
            assert "was changed meanwhile" in str(e)
            return False
        return True

    with ThreadPoolExecutor(len(texts)) as pool:
        assert sum(pool.map(change, texts)) == 1
    (known,) = policyhistory.history(store)
    assert (where / "node.yaml").read_text() == known.text, "the file is not what was entered"


def test_a_file_edited_by_hand_is_entered_at_the_next_start(store: Store) -> None:
    apply(store, BASE)
    (store.path.parent / "node.yaml").write_text(BASE + "dp_required: true\n")
    policyhistory.started(store, store.path.parent, NOW)
    assert [p.actor for p in policyhistory.history(store)] == ["file", "mara"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BASE + "min_recrods: 5\n", "did you mean 'min_records'"),
        (BASE + "dp_required: true\ndp_required: false\n", "is there twice, first on line 4"),
        (BASE + "hours: [mon 8-9]\n", "write it as 'mon-fri 19:00-07:00'"),
        (BASE + "reviewers_needed: 0\n", "found 0, needed 1 to 20"),
        (BASE + "consortium_review: {reviewers: 1, sites: 2}\n", "reviewers of 2 sites"),
        (BASE + "consortium_review: {reviewer: 1}\n", "did you mean 'reviewers'"),
        (BASE + "permitted_studies: ['../x']\n", "permitted_studies"),
        (BASE + "terms: {ethics: true}\n", "did you mean 'ethics_required'"),
        (BASE + "retention_days: -1\n", "found -1"),
        (BASE.replace("charite", "oslo"), "another site needs a node of its own"),
        (BASE.replace("https://hub", "https://evil"), "another hub needs a node of its own"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_changes(
    store: Store, text: str, words: str
) -> None:
    before = (store.path.parent / "node.yaml").read_text()
    with pytest.raises(ConfigError, match=words):
        apply(store, text)
    assert (store.path.parent / "node.yaml").read_text() == before
    assert policyhistory.newest(store) is None and list(audit.every(store)) == []


def test_every_key_that_is_told_to_hold_at_once_exists() -> None:
    assert set(NodeConfig.__struct_fields__) >= policyhistory.LIVE | policyhistory.FIXED


# ---- the schema ------------------------------------------------------------------------------


def test_every_key_is_described_and_the_published_schema_is_this_one() -> None:
    assert set(policyschema.keys()) == set(policyschema.DESCRIPTIONS)
    anew = f"consilia node policy --schema > {SCHEMA.relative_to(ROOT)}"
    assert SCHEMA.read_text() == policyschema.text(), f"publish it anew: {anew}"


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        (BASE, True),
        (BASE + "limits: {memory_bytes: 5}\narguments: {lr: [0, 1]}\n", True),
        (BASE + "consortium_review: {reviewers: 2, sites: 2}\n", True),
        (BASE + "consortium_review: null\n", True),
        (BASE + "consortium_review: {people: 2}\n", False),
        (BASE + "min_records: many\n", False),
        (BASE + "min_recrods: 5\n", False),
        ("hub: https://hub:8444\n", False),
    ],
)
def test_the_schema_takes_what_the_node_takes(text: str, fits: bool) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(policyschema.text()))
    assert validator.is_valid(yaml.safe_load(text)) is fits
    try:
        config.parse(text)
    except ConfigError:
        assert not fits
    else:
        assert fits
