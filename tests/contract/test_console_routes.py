"""What the console's pages ask: sources, twins, drafts, opt-outs, caps, comparing."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest

from consilia.node import approvals, comparing, config, datasets, loading, optout
from consilia.node.console.settings import Console as Settings
from consilia.node.console.settings import Database
from consilia.node.store import Store
from consilia.wire.v1 import MockColumn, MockTwin, OfferedDataset, SiteOffer, plan_digest
from consolekit import Console, Person, console
from nodekit import make_plan

LAB = "id,sex,kreatinin,group\n" + "".join(
    f"p{i},{('female', 'male')[i % 2]},{60 + i % 60},{i % 3}\n" for i in range(120)
)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Console]:
    data = tmp_path / "data"
    data.mkdir()
    (data / "lab.csv").write_text(LAB)
    with duckdb.connect(data / "cdw.duckdb") as db:
        db.read_csv(str(data / "lab.csv")).create("lab")
    named = {"warehouse": Database(duckdb=str(data / "cdw.duckdb"))}
    settings = Settings(data_roots=(str(data),), databases=named)
    async with console(tmp_path, console=settings) as made:
        yield made


async def register(person: Person, folder: Path) -> None:
    body = {"path": str(folder / "data" / "lab.csv"), "name": "lab", "tags": ["lab"]}
    await person.do("POST", "/api/datasets", body | {"patient": "id"})


# ---- where a table comes from ----------------------------------------------------------------


async def test_a_query_and_a_folder_become_datasets(node: Console, tmp_path: Path) -> None:
    person, folder = await node.enter("mara"), tmp_path / "data" / "parts"
    folder.mkdir()
    for part in ("a", "b"):
        (folder / f"{part}.csv").write_text("x\n" + "1\n2\n" * 5)
    found = await person.get("/api/folders", params={"path": str(tmp_path / "data")})
    shown = {f["name"]: f["database"] for f in found["files"]}
    assert shown == {"cdw.duckdb": True, "lab.csv": False}
    looked = await person.do("POST", "/api/datasets/inspect", {"path": str(folder)})
    assert looked["records"] == 20
    whole = {"path": str(folder), "name": "parts", "tags": ["t"]}
    assert (await person.do("POST", "/api/datasets", whole))["files"] == 2
    for database in ("warehouse", str(tmp_path / "data" / "cdw.duckdb")):
        query = {"database": database, "select": "SELECT id, kreatinin FROM lab"}
        looked = await person.do("POST", "/api/datasets/inspect", {"query": query})
        assert [c["name"] for c in looked["columns"]] == ["id", "kreatinin"]
    made = await person.do(
        "POST",
        "/api/datasets",
        {"query": query, "name": "high", "tags": ["t"], "patient": "id"},
    )
    assert made["source"].startswith("duckdb: ") and made["query"] == query["select"]
    assert not list(node.here.directory.glob("snapshots/.look*"))  # a look leaves nothing


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"query": {"database": "warehous", "select": "SELECT 1"}}, 404, "'warehouse'"),
        ({"query": {"database": "/etc/passwd", "select": "SELECT 1"}}, 403, "outside"),
        ({"query": {"database": "host=evil", "select": "SELECT 1"}}, 404, "console.databases"),
        ({"query": {"database": "warehouse", "select": "DROP TABLE lab"}}, 422, "one SELECT"),
        (
            {"query": {"database": "warehouse", "select": "FROM read_text('/etc/passwd')"}},
            422,
            "cdw.duckdb",
        ),
        ({}, 400, "name one"),
    ],
)
async def test_a_browser_asks_only_databases_that_were_opened(
    node: Console, body: Any, status: int, said: str
) -> None:
    person = await node.enter("mara")
    assert said in await person.refused("POST", "/api/datasets/inspect", body, status)
    assert (await person.get("/api/databases"))["databases"][0]["name"] == "warehouse"


def test_a_database_in_node_yaml_is_one_of_two_kinds(tmp_path: Path) -> None:
    text = "site: s\nhub: https://h:1\nconsole: {databases: {cdw: {password_file: x}}}\n"
    with pytest.raises(Exception, match=r"console\.databases\.cdw: needed one of"):
        config.parse(text, "node.yaml")


# ---- twins -----------------------------------------------------------------------------------


async def test_a_twin_is_seen_before_it_is_offered_and_withdrawn(
    node: Console, tmp_path: Path
) -> None:
    person = await node.enter("mara")
    await register(person, tmp_path)
    twin = await person.get("/api/datasets/lab/mock")
    assert (twin["offered"], twin["problem"], len(twin["invented"]["rows"])) == (False, "", 8)
    told = {c["name"]: c for c in twin["columns"]}
    assert told["sex"]["levels"] == {"female": 60, "male": 60}
    assert (told["id"]["levels"], told["id"]["counts"]) == ({}, [])  # ids tell nothing
    for offered in (True, False):
        await person.do("PATCH", "/api/datasets/lab", {"mock": offered})
        (said,) = datasets.offered(node.here.store, k=5)
        assert (said.mock is not None) == offered


# ---- drafts of loading plans -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "block", "field"),
    [
        ("{block: rename, columns: {kreatin: x}}", 1, "columns"),
        ("{block: unit, column: kreatinin, to: mg/L}", 1, "from"),
        ("{block: unit, column: kreatinin, from: mg/dL, to: mmol/X}", 1, "to"),
        ("{block: filter, where: 'kreatinin >'}", 1, "where"),
        ("{block: map, column: sex, values: {female: f}, other: kep}", 1, "other"),
        ("{block: keep, columns: [kreatinin]}, {block: cast, columns: {sex: int64}}", 1, ""),
        ("{block: cast, columns: {sex: int}}", 1, "columns"),
    ],
)
async def test_a_mistake_of_a_draft_is_placed(
    node: Console, tmp_path: Path, blocks: str, block: int, field: str
) -> None:
    person = await node.enter("mara")
    await register(person, tmp_path)
    body = {"yaml": f"name: p\nblocks: [{blocks}]\n", "dataset": "lab"}
    found = await person.do("POST", "/api/loading-plans/check", body)
    assert found["problem"] and (found["block"], found["field"]) == (block, field), found


async def test_a_draft_tells_which_columns_each_block_finds(
    node: Console, tmp_path: Path
) -> None:
    person = await node.enter("mara")
    await register(person, tmp_path)
    yaml = "name: p\nblocks:\n- {block: rename, columns: {kreatinin: creatinine}}\n"
    body = {"yaml": yaml, "dataset": "lab"}
    found = await person.do("POST", "/api/loading-plans/check", body)
    assert [[c["name"] for c in step] for step in found["columns"]] == [
        ["id", "sex", "kreatinin", "group"],
        ["id", "sex", "creatinine", "group"],
    ]
    kinds = (await person.get("/api/loading-plans/schema"))["properties"]
    assert len(kinds) == 10 and "substance" in kinds["unit"]["properties"]


async def test_what_keeps_a_plan_from_being_applied_is_shown(
    node: Console, tmp_path: Path
) -> None:
    person = await node.enter("mara")
    await register(person, tmp_path)
    plan = {"yaml": "name: p\nblocks:\n- {block: rename, columns: {kreatinin: creatinine}}\n"}
    await person.do("PUT", "/api/loading-plans/p", plan)
    await person.do("POST", "/api/loading-plans/p/attach", {"dataset": "lab"})
    (tmp_path / "data" / "lab.csv").write_text(LAB.replace("kreatinin", "crea"))
    changed = await person.do("POST", "/api/datasets/lab/refresh", {})
    assert len(changed["unfit"]) == 1 and "'kreatinin'" in changed["unfit"][0]
    assert "was changed after" in (await person.get("/api/datasets/lab"))["unfit"][0]
    waiting = (await person.get("/api/home"))["waiting"]
    assert "lab as loaded" in [w["subject"] for w in waiting]


# ---- opt-outs --------------------------------------------------------------------------------


async def test_the_list_is_changed_and_never_read_back(node: Console, tmp_path: Path) -> None:
    person = await node.enter("mara")
    await register(person, tmp_path)
    with node.here.store.write() as tx:
        optout.note_use(tx, "lab", frozenset(), node.clock())
    given = {"ids": "# ward 3\np1\n p2 \nnobody\n\n"}
    done = await person.do("POST", "/api/opt-outs", given)
    assert (done["given"], done["changed"], done["unknown"], done["problems"]) == (3, 3, 1, [])
    answer = await person.ask("GET", "/api/opt-outs")
    (cohort,) = answer.json()["cohorts"]
    assert (cohort["patients"], cohort["left"], cohort["changed"]) == (2, 118, 2)
    assert "fewer than 5" in cohort["waits"]
    assert "p1" not in answer.text and "nobody" not in answer.text
    more = {"ids": "".join(f"p{i}\n" for i in range(10, 14))}
    assert (await person.do("POST", "/api/opt-outs", more))["list"]["cohorts"][0]["waits"] == ""
    await person.do("POST", "/api/opt-outs/remove", {"id": "p1"})
    await person.refused("POST", "/api/opt-outs/remove", {"id": "p1"}, 404)
    history = (await person.get("/api/opt-outs"))["history"]
    assert [(h["actor"], h["added"]) for h in history] == [
        ("mara", False),
        ("mara", True),
        ("mara", True),
    ]
    assert "needed one a line" in await person.refused(
        "POST", "/api/opt-outs", {"ids": "#"}, 400
    )


# ---- caps by two people ----------------------------------------------------------------------


async def test_a_higher_cap_waits_for_another_person_where_the_site_wants_two(
    node: Console,
) -> None:
    mara, paul = await node.enter("mara"), await node.enter("paul")
    low = {"kind": "study", "name": "hearts", "epsilon": 2.0, "reason": "board"}
    assert (await mara.do("PUT", "/api/ledger/caps", low))["proposals"] == []
    settings = msgspec.structs.replace(node.here.config(), reviewers_needed=2)
    (node.here.directory / config.FILE).unlink()
    config.save(node.here.directory, settings)
    high = low | {"epsilon": 4.0, "reason": "more rounds"}
    (waits,) = (await mara.do("PUT", "/api/ledger/caps", high))["proposals"]
    assert (waits["by"], waits["epsilon"], _cap(await mara.get("/api/ledger"))) == (
        "mara",
        4,
        2,
    )
    again = await mara.do("PUT", "/api/ledger/caps", high)  # the same person twice is one
    assert _cap(again) == 2
    other = await paul.do("PUT", "/api/ledger/caps", high | {"epsilon": 3.5})
    assert (_cap(other), other["proposals"][0]["by"]) == (2, "paul")  # other figures: anew
    agreed = await mara.do("PUT", "/api/ledger/caps", high | {"epsilon": 3.5})
    assert (_cap(agreed), agreed["proposals"]) == (3.5, [])
    lower = await paul.do("PUT", "/api/ledger/caps", low | {"epsilon": 1.0})
    assert (_cap(lower), lower["proposals"]) == (1, [])  # a lower one protects: at once
    drop = {"kind": "study", "name": "hearts", "reason": "ended"}
    assert _cap(await mara.do("POST", "/api/ledger/caps/drop", drop)) == 1
    gone = {"kind": "study", "name": "hearts"}
    assert (await mara.do("POST", "/api/ledger/caps/withdraw", gone))["proposals"] == []
    assert "asked for by paul" in (await mara.ask("GET", "/api/ledger/export")).text


def _cap(view: Any) -> float | None:
    (found,) = [a["cap"] for a in view["accounts"] if a["name"] == "hearts"]
    return float(found) if found is not None else None


# ---- what left, and what waits for whom ------------------------------------------------------


async def test_advertisements_in_a_row_are_one_line_that_opens(node: Console) -> None:
    person = await node.enter("dora", "dpo")
    with node.here.store.write() as tx:
        for n in range(1200):  # more than is read at a time
            tx.audit(1000.0 + n, "agent", "site.advertise", "charite", "signed", f"n {n}")
        tx.audit(2300.0, "agent", "release", "job-1.1.0.charite", "released", "8 kB")
        for n in range(3):
            tx.audit(2400.0 + n, "agent", "site.advertise", "charite", "signed", f"m {n}")

    async def page(**asked: Any) -> Any:
        return await person.get("/api/releases", params=asked)

    folded = await page(fold=True)
    shown = [(r["action"], r["count"], r["since"], r["at"]) for r in folded["releases"][:3]]
    assert shown == [
        ("site.advertise", 3, 2400.0, 2402.0),
        ("release", 1, 2300.0, 2300.0),
        ("site.advertise", 1200, 1000.0, 2199.0),
    ]
    assert folded["next"] is None
    first = await page(fold=True, limit=1)
    second = await page(fold=True, limit=1, before=first["next"])
    assert [r["action"] for r in second["releases"]] == ["release"]
    top = first["releases"][0]
    each = await page(before=top["seq"] + 1, least=top["oldest"], kind="advertise")
    assert [r["detail"] for r in each["releases"]] == ["m 2", "m 1", "m 0"]
    (only,) = (await page(kind="release"))["releases"]
    assert (only["action"], only["count"]) == ("release", 1)
    plain = await page(limit=3)  # as before: every line of its own
    assert [r["count"] for r in plain["releases"]] == [1, 1, 1] and plain["next"] is not None
    text = await person.refused("GET", "/api/releases?kind=adverts", None, 400)
    assert "kind" in text and "advertise" in text
    for limit in (0, -1, 1001):  # lines that are made one are read by the thousand all the same
        text = await person.refused("GET", f"/api/releases?fold=true&limit={limit}", None, 400)
        assert f"limit: found {limit}" in text


async def test_home_tells_what_waits_for_whom(node: Console, tmp_path: Path) -> None:
    mara = await node.enter("mara", "data_manager", "reviewer")
    dora, rita, ivan = (
        await node.enter("dora", "data_manager"),
        await node.enter("rita", "reviewer"),
        await node.enter("ivan", "dpo"),
    )
    plan = make_plan()
    approvals.offer(
        node.here.store, plan, plan_digest(plan), study="hearts", author="ada", now=node.clock()
    )
    await register(mara, tmp_path)
    (tmp_path / "data" / "lab.csv").write_text(LAB + "p999,male,80,1\n")
    settings = msgspec.structs.replace(node.here.config(), reviewers_needed=2)
    (node.here.directory / config.FILE).unlink()
    config.save(node.here.directory, settings)

    async def mine(person: Person) -> dict[str, bool]:
        return {w["kind"]: w["yours"] for w in (await person.get("/api/home"))["waiting"]}

    node.clock.at += 120.0  # a file is looked at once a minute
    both = {"hub": True, "plan": True, "dataset": True}
    assert await mine(mara) == both
    assert await mine(dora) == both | {"plan": False}
    assert await mine(rita) == both | {"dataset": False}
    assert await mine(ivan) == both | {"plan": False, "dataset": False}
    await mara.do("POST", f"/api/plans/{plan_digest(plan)}/approve", {"reason": "read it"})
    assert await mine(mara) == both | {"plan": False}  # her word is said: another's is missing
    assert await mine(rita) == both | {"dataset": False}


# ---- comparing with other sites --------------------------------------------------------------


def offer(site: str, twin: MockTwin | None) -> SiteOffer:
    return SiteOffer(site, OfferedDataset("lab", ("lab",), 100, {}, twin))


def other_site() -> MockTwin:
    """A site that says f and m, and measures creatinine in mg/dL: about 1 +- 0.2."""
    return MockTwin((
        MockColumn("sex", "category", levels={"f": 50, "m": 50}),
        MockColumn("creatinine", "float64", start=0.6, width=0.1, counts=(5, 10, 20, 30, 20)),
        MockColumn("group", "int64", levels={"0": 30, "1": 35, "2": 35}),
    ))  # fmt: skip


async def test_a_proposal_mends_what_differs_and_is_added_to_the_plan_in_force(
    node: Console, tmp_path: Path
) -> None:
    person = await node.enter("mara")
    await register(person, tmp_path)
    store = node.here.store
    found = compared(store)
    about = {(d.column, d.about) for d in found.report.of("charite")}
    assert about == {("kreatinin", "name"), ("kreatinin", "scale"), ("sex", "categories")}
    assert found.proposal is not None and found.silent == ("mute",)
    assert [type(b).__name__ for b in found.proposal.blocks] == [
        "Rename",
        "ConvertUnit",
        "MapValues",
    ]
    loading.accept(store, found.proposal, "lab", actor="mara", now=node.clock(), study="hearts")
    again = compared(store)
    assert again.plan is not None and not again.report.of("charite")  # read as it is loaded
    assert again.proposal is None


def compared(store: Store) -> comparing.Compared:
    offers = (offer("leuven", other_site()), offer("mute", None))
    return comparing.compare(
        store, site="charite", study="hearts", dataset="lab", offers=offers
    )


async def test_with_nobody_to_compare_with_it_says_who_could(
    node: Console, tmp_path: Path
) -> None:
    person = await node.enter("mara")
    await register(person, tmp_path)
    with pytest.raises(Exception, match="mute could"):
        comparing.compare(
            node.here.store,
            site="charite",
            study="hearts",
            dataset="lab",
            offers=(offer("mute", None),),
        )
