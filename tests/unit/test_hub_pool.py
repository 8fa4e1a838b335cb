"""The hub's part in pooling: what it relays to whom, who trains, how federated a study is."""

import datetime
from pathlib import Path

import pytest
from hubkit import Hub, key_of, open_hub
from sqlalchemy import Connection

from consilia.errors import AuthError, ConfigError, NotFound, Refused, WireError
from consilia.hub import audit, records
from consilia.hub.pool import front, placement
from consilia.hub.pool.ending import Ending
from consilia.hub.pool.relay import PoolRelay
from consilia.hub.records import StudyRecord
from consilia.hub.rest.governance import checked_study
from consilia.wire import pool
from consilia.wire.seal import seal
from consilia.wire.v1 import Advertisement, OfferedDataset, Sealed, Study, encode, study_digest

STUDY = Study("s", "p", ("a", "b", "c", "d"), ("t",), data_centre="d", pooled=("a", "b"))
DIGEST = study_digest(STUDY)
UPLOAD, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64
RECORD = StudyRecord(STUDY, DIGEST, "submitted", "ada", 0.0, 0.0)


def said(site: str, *statements: pool.Statement, records: int = 100) -> Advertisement:
    return Advertisement(
        "1",
        (OfferedDataset("t", ("t",), records, {}),),
        (DIGEST,),
        pool=tuple(seal(pool.CONTEXT, site, encode(s), key_of(site)) for s in statements),
    )


def sent(upload: str = UPLOAD) -> pool.Sent:
    return pool.Sent(DIGEST, upload, b"", b"", b"", 10, 95)


HELD = pool.Held(DIGEST, "a", UPLOAD, 95)
WITHDRAWN = pool.Withdrawn(DIGEST, UPLOAD)


@pytest.mark.parametrize(
    ("site", "centre", "state", "trainers"),
    [
        ((), (), "asked", ("a", "b", "c")),
        ((sent(),), (), "sent", ("a", "b", "c")),
        ((sent(),), (HELD,), "held", ("b", "c", "d")),
        ((), (HELD,), "asked", ("a", "b", "c")),  # the data centre claims what nobody has sent
        ((WITHDRAWN,), (HELD,), "withdrawn", ("a", "b", "c")),
        ((WITHDRAWN,), (pool.Deleted(DIGEST, "a", UPLOAD),), "withdrawn", ("a", "b", "c")),
        ((sent(OTHER),), (pool.Deleted(DIGEST, "a", UPLOAD),), "sent", ("a", "b", "c")),
    ],
)
def test_a_record_trains_in_one_place_whatever_was_said(
    site: tuple[pool.Statement, ...],
    centre: tuple[pool.Statement, ...],
    state: str,
    trainers: tuple[str, ...],
) -> None:
    words = {"a": said("a", *site), "b": said("b"), "c": said("c"), "d": said("d", *centre)}
    assert placement.standing(STUDY, DIGEST, words)["a"].state == state
    copies = placement.held(STUDY, DIGEST, words)
    assert placement.trainers(STUDY, copies) == trainers
    found = placement.degree(STUDY, DIGEST, words)
    at_home = 2 / 3 if state == "held" else 1.0
    assert found.sites == pytest.approx(at_home) and found.planned == pytest.approx(1 / 3)
    by_records = 200 / 295 if state == "held" else 1.0
    assert found.records == pytest.approx(by_records)
    assert placement.twice(STUDY, copies, ("a", "d")) == (("a",) if state == "held" else ())


def test_a_study_without_a_data_centre_is_wholly_federated() -> None:
    plain = replace_study(data_centre="", pooled=())
    found = placement.degree(plain, study_digest(plain), {})
    assert (found.sites, found.planned, found.records) == (1.0, 1.0, None)
    assert placement.trainers(plain, frozenset()) == ()


def replace_study(**changes: object) -> Study:
    fields = {f: getattr(STUDY, f) for f in STUDY.__struct_fields__}
    return Study(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data_centre": "x"}, "data_centre: found 'x', needed one of the study's sites"),
        ({"pooled": ("d",)}, "pooled: found 'd'"),
        ({"pooled": ()}, "one without the other"),
        ({"data_centre": "", "pooled": ("a",)}, "one without the other"),
    ],
)
def test_terms_that_make_no_sense_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        checked_study(replace_study(**changes), 0.0)


def test_the_terms_are_in_the_digest_and_plain_studies_keep_theirs() -> None:
    assert study_digest(replace_study(pooled=("a",))) != DIGEST
    assert b"pooled" not in encode(replace_study(data_centre="", pooled=()))


def test_a_piece_goes_from_its_site_to_the_data_centre_only(tmp_path: Path) -> None:
    relay = PoolRelay(tmp_path / "pool")
    relay.put(RECORD, "a", UPLOAD, 0, b"one")
    relay.put(RECORD, "a", UPLOAD, 2, b"three")
    assert relay.have(RECORD, "a", UPLOAD).have == (0, 2)
    assert relay.get(RECORD, "d", "a", UPLOAD, 0) == b"one"
    with pytest.raises(NotFound, match="piece 1"):
        relay.get(RECORD, "d", "a", UPLOAD, 1)
    for reader in ("a", "b", "c"):
        with pytest.raises(Refused, match="is not the data centre"):
            relay.get(RECORD, reader, "a", UPLOAD, 0)
    with pytest.raises(Refused, match="does not ask site 'c' to pool"):
        relay.put(RECORD, "c", UPLOAD, 0, b"x")
    for number, body in ((-1, b"x"), (pool.MAX_PIECES, b"x"), (0, b""), (0, b"x" * 2**21)):
        with pytest.raises(WireError, match="piece"):
            relay.put(RECORD, "a", UPLOAD, number, body)
    relay.put(RECORD, "a", OTHER, 0, b"new")
    assert relay.have(RECORD, "a", UPLOAD).have == (), "a site has one upload a study"
    relay.settle("a", said("a", WITHDRAWN), ())
    assert relay.have(RECORD, "a", OTHER).have == ()


def test_nobody_but_the_data_centre_can_have_an_upload_deleted(tmp_path: Path) -> None:
    relay = PoolRelay(tmp_path / "pool")
    relay.put(RECORD, "a", UPLOAD, 0, b"one")
    relay.settle("b", said("b", HELD), ())
    assert relay.have(RECORD, "a", UPLOAD).have == (0,)
    relay.settle("d", said("d", HELD), {DIGEST})
    assert relay.have(RECORD, "a", UPLOAD).have == ()


def test_statements_are_the_site_s_own() -> None:
    key = key_of("a").public_key().public_bytes_raw()
    front.check("a", said("a", sent()), key)
    with pytest.raises(AuthError):
        front.check("a", replace_pool(seal(pool.CONTEXT, "a", encode(HELD), key_of("b"))), key)
    with pytest.raises(WireError, match="in the name of 'b'"):
        front.check("a", said("b", HELD), key)
    with pytest.raises(WireError, match="2001 statements"):
        front.check("a", replace_pool(*[said("a", HELD).pool[0]] * 2001), key)


def replace_pool(*statements: Sealed) -> Advertisement:
    return Advertisement("1", pool=statements)


def enter(db: Connection, name: str, **terms: object) -> StudyRecord:
    study = replace_study(name=name, **terms)
    records.add_study(db, study, "ada", 0.0)
    return records.submit_study(db, name, 0.0)


async def test_an_upload_that_nobody_took_goes_with_its_study(tmp_path: Path) -> None:
    relay, day = PoolRelay(tmp_path / "pool"), 86400.0
    last = datetime.datetime(2030, 6, 15, 12).timestamp()
    clock = [last]
    async with open_hub(tmp_path) as hub:
        store = hub.store
        sweep = Ending(store, relay, lambda: clock[0]).sweep
        assert await sweep() == ()
        dated = await store.write(lambda db: enter(db, "dated", until="2030-06-15"))
        ended = await store.write(lambda db: enter(db, "ended"))
        open_ = await store.write(lambda db: enter(db, "open"))
        for study in (dated, ended, open_):
            relay.put(study, "a", UPLOAD, 0, b"sealed")
        relay.put(ended, "b", UPLOAD, 0, b"sealed")
        assert await sweep() == (), "nothing has ended"
        await store.write(lambda db: records.close_study(db, "ended", last))
        gone = await sweep()
        assert {(g.study, g.site) for g in gone} == {("ended", "a"), ("ended", "b")}
        clock[0] = last + day
        assert await sweep() == (), "the last day is not over everywhere"
        clock[0] = last + 2 * day
        assert [g.study for g in await sweep()] == ["dated"]
        assert await sweep() == ()
        assert relay.have(open_, "a", UPLOAD).have == (0,)
        assert len(list((tmp_path / "pool").iterdir())) == 1
        lines = await store.read(lambda db: audit.about(db, ("dated", "ended", "open")))
        told = [
            (e.line.subject, e.line.detail) for e in lines if e.line.action == "pool.discard"
        ]
        assert told == [
            ("ended", "sealed upload of site a, never taken: the study is closed"),
            ("ended", "sealed upload of site b, never taken: the study is closed"),
            ("dated", "sealed upload of site a, never taken: the study ended on 2030-06-15"),
        ]


async def test_a_study_that_has_ended_takes_and_gives_no_piece(tmp_path: Path) -> None:
    """Nobody may take an upload any more, whether or not housekeeping has been here."""
    relay, day = PoolRelay(tmp_path / "pool"), 86400.0
    last = datetime.datetime(2030, 6, 15, 12).timestamp()
    clock = [last + day]
    async with open_hub(tmp_path) as hub:
        asked = front.PoolFront(hub.store, relay, lambda: clock[0])
        study = await hub.store.write(lambda db: enter(db, "dated", until="2030-06-15"))
        upload = f"/v1/pool/{study.digest}/a/{UPLOAD}"
        await asked.answer("a", "PUT", f"{upload}/0", b"sealed")
        assert await asked.answer("d", "GET", f"{upload}/0", b"") == b"sealed"
        clock[0] += day
        for site, method, path in (("a", "PUT", "/1"), ("a", "GET", ""), ("d", "GET", "/0")):
            with pytest.raises(Refused, match="pools nothing any more: the study ended"):
                await asked.answer(site, method, upload + path, b"sealed")
        assert relay.have(study, "a", UPLOAD).have == (0,)


async def test_a_hub_without_a_relay_says_so(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub:
        assert isinstance(hub, Hub)
        with pytest.raises(NotFound, match="relays no uploads"):
            await hub.federation.pool("a", "GET", "/v1/pool", b"")
