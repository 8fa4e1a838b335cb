"""The console's pages one by one in Chromium, against a real hub and two real nodes.

Each test makes what it needs under names of its own; none sees what another has done.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest
from browserkit import (
    ARGUMENTS,
    AXE,
    SLOW,
    Faults,
    Hospitals,
    browser_program,
    cohort,
    elsewhere,
    settled,
    until,
)

import privacykit
from consilia import Client, Experiment, Study
from consilia.node import approvals, budget
from consilia.node.store import Store
from consilia.privacy.ledger import Head
from consilia.wire.v1 import plan_digest
from pgkit import Postgres

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PHRASE = "seven quiet herons"
# elements of the page that hold more than their width shows
SIDEWAYS = """
[...document.querySelectorAll("main, main *")]
    .filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 2)
    .filter(e => getComputedStyle(e).overflowX !== "visible").map(e => e.className)
"""
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospitals]:
    browser_program()
    with Hospitals(tmp_path_factory.mktemp("pages")) as running:
        running.start()
        yield running


@pytest.fixture(scope="module")
def browser(hospitals: Hospitals) -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    root = ("--no-sandbox",) if os.geteuid() == 0 else ()
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=browser_program(), args=[*ARGUMENTS, *root]
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def maria(browser: Any, hospitals: Hospitals) -> Any:
    return enter(browser, hospitals, "maria")


def enter(browser: Any, hospitals: Hospitals, name: str) -> Any:
    """Make an account by an invitation's link; return what the browser keeps of it."""
    context = browser.new_context(locale="en-GB")
    page = context.new_page()
    page.goto(hospitals.invitation())
    page.get_by_label("Name").fill(name)
    page.get_by_label("New password").fill(PHRASE)
    page.get_by_label("The same again").fill(PHRASE)
    page.get_by_role("button", name="Make the account").click()
    page.get_by_role("heading", name=f"Hello, {name}").wait_for()
    state = context.storage_state()
    context.close()
    return state


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def page(browser: Any, maria: Any, hospitals: Hospitals, faults: Faults) -> Iterator[Any]:
    """A signed-in person's window; what it must not do, or shows badly, fails at its end."""
    context = browser.new_context(
        locale="en-GB", viewport={"width": 1280, "height": 900}, storage_state=maria
    )
    context.set_default_timeout(180_000)
    shown = context.new_page()
    shown.on("console", lambda message: faults.console(message.type, message.text))
    shown.on("pageerror", lambda error: faults.seen.append(f"defect: {error}"))
    shown.on("request", lambda request: faults.request(request.url, hospitals.origin))
    yield shown
    context.close()
    assert faults.seen == []


def accessible(page: Any) -> None:
    """Fail for what axe finds wrong with the page as it stands, in light and in dark."""
    page.evaluate(AXE.read_text())
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        settled(page)
        found = page.evaluate("r => axe.run(document, r)", {"runOnly": RULES})["violations"]
        assert [f"{scheme}: {v['id']}: {v['nodes'][0]['html'][:150]}" for v in found] == []


def picture(page: Any, name: str) -> None:
    """With CONSILIA_SCREENSHOTS=1, write a picture of the how-to, in light."""
    if os.environ.get("CONSILIA_SCREENSHOTS"):
        page.emulate_media(color_scheme="light")
        page.wait_for_timeout(500)  # transitions
        page.screenshot(path=ROOT / f"docs/images/console-{name}.png")


def add(hospitals: Hospitals, table: Path, name: str, *more: str) -> None:
    """Register a table at riverside by command."""
    hospitals.cli(
        "dataset", "add", table, "--name", name, "--tag", name, "--patient", "patient",
        *more, "--dir", hospitals.node,
    )  # fmt: skip


# ---- datasets --------------------------------------------------------------------------------


def test_the_wizard_takes_a_folder_and_a_query(page: Any, hospitals: Hospitals) -> None:
    folder = hospitals.root / "exports" / "wards"
    folder.mkdir()
    for ward in ("a", "b"):
        cohort(folder / f"{ward}.csv", 60, 3)
    with duckdb.connect(hospitals.root / "exports" / "warehouse.duckdb") as db:
        db.read_csv(str(folder / "a.csv")).create("visits")
    page.goto(f"{hospitals.origin}/datasets/add")
    page.get_by_role("button", name="exports").click()
    page.get_by_role("button", name="wards").click()
    page.get_by_role("button", name="Use the whole folder as one table (2 files)").click()
    page.get_by_text("120", exact=True).wait_for()
    page.get_by_label("Name").fill("Wards!")
    page.get_by_role("button", name="Next").click()
    page.get_by_text("Found “Wards!”, needed 1 to 63").wait_for()  # at its field
    page.get_by_text("needed at least one tag").wait_for()
    page.get_by_label("Name").fill("wards")
    page.get_by_role("combobox", name="Tags").fill("wards")  # taken without Enter too
    page.get_by_role("button", name="Next").click()
    page.get_by_label("Code system: creatinine").fill("http://loinc.org")
    page.get_by_role("button", name="Register the dataset").click()
    page.get_by_role("heading", name="wards", level=1).wait_for()

    page.goto(f"{hospitals.origin}/datasets/add")
    page.get_by_role("button", name="exports").click()
    page.get_by_role("button", name="warehouse.duckdb").click()
    query = page.get_by_label("Query (one SELECT)")
    query.fill("SELECT patient, age FROM visit")
    page.get_by_role("button", name="Ask and look").click()
    page.get_by_role("alert").get_by_text("visit").wait_for()  # the database's own words
    query.fill("SELECT patient, age FROM visits WHERE age > 40")
    accessible(page)
    page.get_by_role("button", name="Ask and look").click()
    page.get_by_label("Name").fill("older")
    page.get_by_role("combobox", name="Tags").fill("older")
    page.keyboard.press("Enter")
    page.get_by_label("Column of patient ids").select_option("patient")
    page.get_by_role("button", name="Next").click()
    page.get_by_role("button", name="Register the dataset").click()
    page.get_by_text("FROM visits WHERE age > 40").wait_for()


def test_the_wizard_asks_a_database_of_the_hospital(
    page: Any, hospitals: Hospitals, postgres: Postgres
) -> None:
    """PostgreSQL, as the administrator has opened it in node.yaml; the next request sees it."""
    import psycopg  # noqa: PLC0415 - the fixture has found it

    address = postgres.fresh()
    with psycopg.connect(address) as db:
        db.execute("CREATE TABLE stays AS SELECT n AS patient, n % 9 AS days "
                   "FROM generate_series(1, 90) n")  # fmt: skip
    settings = hospitals.node / "node.yaml"
    name = address.partition("?")[0].rpartition("/")[2]
    libpq = f"host={postgres.directory} user=postgres dbname={name}"
    named = f"databases: {{warehouse: {{postgresql: '{libpq}'}}}}"
    before = settings.read_text()
    settings.write_text(before.replace("console: {", "console: {" + named + ", ", 1))
    try:
        page.goto(f"{hospitals.origin}/datasets/add")
        page.get_by_role("tab", name="Database query").click()
        page.get_by_label("Database", exact=True).select_option("warehouse")
        page.get_by_label("Query (one SELECT)").fill("DELETE FROM stays")
        page.get_by_role("button", name="Ask and look").click()
        page.get_by_role("alert").wait_for()  # only what reads
        page.get_by_label("Query (one SELECT)").fill("SELECT patient, days FROM stays")
        page.get_by_role("button", name="Ask and look").click()
        page.get_by_label("Name").fill("stays")
        page.get_by_role("combobox", name="Tags").fill("stays")
        page.keyboard.press("Enter")
        page.get_by_label("Column of patient ids").select_option("patient")
        page.get_by_role("button", name="Next").click()
        page.get_by_role("button", name="Register the dataset").click()
        page.get_by_role("heading", name="stays", level=1).wait_for()
        with psycopg.connect(address) as db:
            assert db.execute("SELECT count(*) FROM stays").fetchone() == (90,)
    finally:
        settings.write_text(before)


def test_a_mock_twin_is_seen_offered_and_withdrawn(page: Any, hospitals: Hospitals) -> None:
    add(hospitals, cohort(hospitals.root / "exports" / "twin.csv", 200, 4), "twin")
    page.goto(f"{hospitals.origin}/datasets/twin")
    page.get_by_role("tab", name="Mock twin").click()
    page.get_by_role("heading", name="It stays here").wait_for()
    page.get_by_role("table", name="What it tells").get_by_text(
        "nothing of its"
    ).first.wait_for()
    assert (
        page.get_by_role("region", name="Records invented from it").get_by_role("row").count()
        == 9
    )
    accessible(page)
    picture(page, "twin")
    page.get_by_role("button", name="Offer it").click()
    page.get_by_role("heading", name="It is offered").wait_for()
    page.get_by_role("button", name="Withdraw it").click()
    page.get_by_role("dialog").get_by_role("button", name="Withdraw it").click()
    page.get_by_role("heading", name="It stays here").wait_for()


def test_a_twin_is_told_as_loading_plans_make_the_table(
    page: Any, hospitals: Hospitals, tmp_path: Path
) -> None:
    add(
        hospitals,
        cohort(hospitals.root / "exports" / "loaded.csv", 200, 11),
        "loaded",
        "--mock",
    )
    plan = tmp_path / "loaded-si.yaml"
    plan.write_text(
        "name: loaded-si\nblocks: [{block: rename, columns: {systolic: pressure}}]\n"
    )
    for words in (("create", plan), ("attach", "loaded-si", "loaded")):
        hospitals.cli("loading", *words, "--dir", hospitals.node)
    page.goto(f"{hospitals.origin}/datasets/loaded")
    page.get_by_role("tab", name="Mock twin").click()
    row = page.get_by_role("table", name="As loading plans make it").get_by_role(
        "row", name=re.compile("^loaded-si 1")
    )
    row.get_by_text("not told").wait_for()
    accessible(page)
    page.get_by_role("button", name="Tell this too").click()
    row.get_by_text("told", exact=True).wait_for()
    page.get_by_role("button", name="Tell the file's only").click()
    row.get_by_text("not told").wait_for()
    page.goto(f"{hospitals.origin}/audit?text=loaded")
    page.get_by_role("cell", name="maria").first.wait_for()


# ---- loading plans and harmonisation ---------------------------------------------------------


def test_blocks_are_edited_as_forms_and_as_text_in_step(
    page: Any, hospitals: Hospitals
) -> None:
    add(hospitals, elsewhere(hospitals.root / "exports" / "blocks.csv", 150, 5), "blocks")
    page.goto(f"{hospitals.origin}/loading-plans/si")
    page.get_by_label("Show what it does to").select_option("blocks")
    choose(page, "Rename columns")
    page.get_by_role("button", name="Add a line").click()
    page.get_by_role("combobox", name="Column 1").fill("kreatinin")
    page.get_by_label("New name 1").fill("creatinine")
    page.get_by_role("columnheader", name="creatinine").wait_for()  # what becomes of it
    choose(page, "Convert a unit")
    unit = page.get_by_role("listitem", name="2. Convert a unit")
    unit.get_by_role("combobox", name="Column").fill("creatinin")
    unit.get_by_text("there is no column 'creatinin'").wait_for()  # at its field
    unit.get_by_role("combobox", name="Column").fill("creatinine")
    unit.get_by_label("From unit").fill("umol/L")
    unit.get_by_label("To unit").fill("mg/dL")
    unit.get_by_label("Substance").fill("creatinine")
    after = page.get_by_role("region", name="After")
    after.get_by_text(re.compile(r"^[0-3]\.\d+$")).first.wait_for()  # mg/dL by now
    choose(page, "Keep some records")
    page.get_by_label("Keep where").fill("age >= 40")
    page.get_by_role("button", name="Move block 3 up").click()
    page.get_by_role("listitem", name="2. Keep some records").wait_for()
    accessible(page)
    picture(page, "blocks")
    page.get_by_role("tab", name="YAML").click()
    text = page.get_by_role("textbox", name="YAML")
    written = text.input_value()
    assert re.findall(r"block: (\w+)", written) == ["rename", "filter", "unit"]
    text.fill(written.replace("age >= 40", "age >= 50") + "  - block: map\n    column: sex\n")
    page.get_by_role("tab", name="Form").click()
    page.get_by_role("listitem", name="4. Map values").get_by_text("values").first.wait_for()
    page.get_by_role("button", name="Remove block 4").click()
    assert page.get_by_label("Keep where").input_value() == "age >= 50"
    page.get_by_role("button", name="Save").click()
    page.get_by_role("button", name="Attach to blocks").click()
    page.get_by_text("blocks · every study").wait_for()
    page.goto(f"{hospitals.origin}/loading-plans/si")
    page.get_by_text("blocks · every study").wait_for()  # it is there for everybody


def choose(page: Any, block: str) -> None:
    page.get_by_role("button", name="Add a block").click()
    page.get_by_role("menuitem", name=block).click()


def test_proposed_blocks_are_accepted_by_one_click(page: Any, hospitals: Hospitals) -> None:
    with Client(environ=hospitals.person) as client:
        study, _ = offered(hospitals, client, "harmony")
    table = cohort(hospitals.root / "harmony.csv", 300, 6)
    node = hospitals.root / "hillside"
    hospitals.cli(
        "dataset",
        "add",
        table,
        "--name",
        "harmony",
        "--tag",
        "harmony",
        "--mock",
        "--dir",
        node,
    )
    add(hospitals, elsewhere(hospitals.root / "exports" / "harmony.csv", 300, 7), "harmony")
    page.goto(f"{hospitals.origin}/studies/{study}/harmony")
    until(lambda: seen(page, "What differs"))  # the other site's twin has to reach the hub
    page.get_by_role("table", name="Column by column").get_by_text("kreatinin").wait_for()
    accessible(page)
    picture(page, "harmony")
    page.get_by_role("button", name="Accept the 3 proposed blocks").click()
    page.get_by_role("heading", name="Accepted: harmonise-harmony, version 1").wait_for()
    page.get_by_role("heading", name="The tables agree").wait_for()
    page.get_by_role("link", name="Open the loading plan").click()
    page.get_by_text("harmony · harmony").wait_for()
    page.goto(f"{hospitals.origin}/audit?text=harmonise-harmony")
    page.get_by_role("cell", name="maria").first.wait_for()


def seen(page: Any, title: str) -> bool:
    page.reload()
    page.get_by_role("heading", level=1).wait_for()
    page.get_by_role("status", name="Loading").first.wait_for(state="detached")
    return bool(page.get_by_role("heading", name=title).count())


def offered(hospitals: Hospitals, client: Client, name: str) -> tuple[str, Experiment]:
    """Offer a study that both sites accept; return its digest at a site and the experiment."""
    sites = ("hillside", "riverside")
    study = Study(name, f"A study of {name}", sites, (name,), until="2099-12-31")
    folder = hospitals.root / f"plan-{name}"
    folder.mkdir()
    (folder / "plan.py").write_text(SLOW.replace("Mean creatinine", f"Mean of {name}"))
    experiment = Experiment(client, study=study, plan=folder / "plan.py", rounds=2)
    plan = experiment.offer().plan
    for node in (hospitals.root / site for site in sites):
        until(partial(told, hospitals, node, plan))
        hospitals.cli("node", "accept", name, "--dir", node)
        hospitals.cli("node", "approve", plan, "--dir", node)
    found = json.loads(hospitals.cli("node", "studies", "--dir", hospitals.node, "--json"))
    return next(s["digest"] for s in found if s["study"]["name"] == name), experiment


def told(hospitals: Hospitals, node: Path, plan: str) -> bool:
    """Say whether a plan has come to a site."""
    return plan in hospitals.cli("node", "plans", "--dir", node, "--json")


# ---- copies at a data centre -----------------------------------------------------------------


def test_a_copy_is_sent_and_withdrawn_by_a_person_who_sees_where_it_goes(
    page: Any, hospitals: Hospitals
) -> None:
    digest = pooling(hospitals, "pooled", centre="hillside", asked="riverside")
    hospitals.cli(
        *("pool", "open", "pooled", "--reason", "contract 7"),
        *("--dir", hospitals.root / "hillside"),
    )
    page.goto(f"{hospitals.origin}/studies/{digest}")
    page.get_by_role("link", name="Open pooling").click()
    page.get_by_role("heading", name="What would leave").wait_for()
    page.get_by_text("This site is asked to let a copy of its records go").wait_for()
    page.get_by_text("Pinned here").wait_for()
    accessible(page)
    picture(page, "pool")
    page.get_by_role("button", name="Send a copy to hillside").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("RECORDS LEAVE THIS SITE: 90 records of pooled").wait_for()
    dialog.get_by_label("Reason").fill("DPO 2026-11")
    sending = dialog.get_by_role("button", name="Send a copy to hillside")
    assert sending.is_disabled()  # until the receiver is named once more
    dialog.get_by_label("hillside").fill("hillside")
    until(lambda: _sent(page, sending, dialog))
    page.get_by_role("heading", name="A copy has left").wait_for()
    hospitals.cli(
        *("pool", "take", "pooled", "--site", "riverside", "--reason", "contract 7"),
        *("--dir", hospitals.root / "hillside"),
    )
    copies = page.get_by_role("table", name="Copies")
    copies.get_by_text("at the data centre").wait_for()
    page.get_by_role("button", name="Withdraw the copy").click()
    page.get_by_role("dialog").get_by_label("Reason").fill("consent ended")
    page.get_by_role("dialog").get_by_role("button", name="Withdraw the copy").click()
    copies.get_by_text("deleted").wait_for()  # the data centre says so
    trail = hospitals.cli("node", "log", "--last", 30, "--dir", hospitals.node, "--json")
    said = {line["action"]: (line["actor"], line["detail"]) for line in json.loads(trail)}
    assert said["pool.send"][0] == "maria" and "to hillside" in said["pool.send"][1]
    assert said["pool.withdraw"] == ("maria", "consent ended")


def _sent(page: Any, sending: Any, dialog: Any) -> bool:
    """Press until the data centre's word that it is open has come through the hub."""
    done, refused = (
        page.get_by_role("heading", name="A copy has left"),
        dialog.get_by_role("alert"),
    )
    sending.click()
    done.or_(refused).first.wait_for()
    return bool(done.count())


def test_a_data_centre_opens_and_takes_a_copy_in(page: Any, hospitals: Hospitals) -> None:
    digest = pooling(hospitals, "taken", centre="riverside", asked="hillside")
    page.goto(f"{hospitals.origin}/studies/{digest}/pool")
    page.get_by_role("button", name="Open for copies").click()
    page.get_by_role("dialog").get_by_label("Reason").fill("contract 8")
    page.get_by_role("dialog").get_by_role("button", name="Open for copies").click()
    page.get_by_text("No site has sent a copy yet").wait_for()
    node = hospitals.root / "hillside"
    words = ("--dataset", "taken", "--to", "riverside", "--reason", "DPO", "--dir", node)
    until(lambda: _succeeds(hospitals, "pool", "send", "taken", *words))
    until(lambda: seen_button(page, "Take it in"))
    accessible(page)
    page.get_by_role("button", name="Take it in").click()
    page.get_by_role("dialog").get_by_label("Reason").fill("as signed")
    page.get_by_role("dialog").get_by_role("button", name="Take it in").click()
    page.get_by_role("table", name="Copies").get_by_text("at the data centre").wait_for()
    page.goto(f"{hospitals.origin}/datasets")
    page.get_by_text("pool-taken").wait_for()


def _succeeds(hospitals: Hospitals, *words: Any) -> bool:
    try:
        hospitals.cli(*words)
    except RuntimeError as e:  # the hub has not passed the data centre's word on yet
        assert "does not take uploads" in str(e)
        return False
    return True


def seen_button(page: Any, name: str) -> bool:
    page.reload()
    page.get_by_role("heading", level=1).wait_for()
    page.get_by_role("status", name="Loading").first.wait_for(state="detached")
    return bool(page.get_by_role("button", name=name).count())


def pooling(hospitals: Hospitals, name: str, centre: str, asked: str) -> str:
    """Let both sites accept a study that asks one to pool at the other; return its digest."""
    table = cohort(hospitals.root / f"{name}.csv", 90, 12)
    hospitals.cli(
        *("dataset", "add", table, "--name", name, "--tag", name, "--patient", "patient"),
        *("--dir", hospitals.root / asked),
    )
    with Client(environ=hospitals.person) as client:
        sites = ("hillside", "riverside")
        client.create_study(
            Study(
                name, f"A study of {name}", sites, (name,), data_centre=centre, pooled=(asked,)
            )
        )
        client.submit_study(name)
    for node in (hospitals.root / site for site in sites):
        until(partial(invited, hospitals, node, name))
        hospitals.cli("node", "accept", name, "--dir", node)
    found = json.loads(hospitals.cli("node", "studies", "--dir", hospitals.node, "--json"))
    return str(next(s["digest"] for s in found if s["study"]["name"] == name))


def invited(hospitals: Hospitals, node: Path, name: str) -> bool:
    """Say whether a study has come to a site."""
    return name in hospitals.cli("node", "studies", "--dir", node)


# ---- patients who opted out ------------------------------------------------------------------


def test_opt_outs_are_added_by_list_and_by_file(
    page: Any, hospitals: Hospitals, tmp_path: Path
) -> None:
    add(hospitals, cohort(hospitals.root / "exports" / "optout.csv", 150, 8), "optout")
    page.goto(f"{hospitals.origin}/opt-out")
    page.get_by_label("Patient ids").fill("# by letter\nP0001\nP0002\nX9\n")
    page.get_by_role("button", name="Put 3 patients on the list").click()
    page.get_by_text("1 id is in no dataset here now").wait_for()
    row = page.get_by_role("row", name=re.compile("^optout"))
    row.get_by_text("148 of 150").wait_for()
    letters = tmp_path / "letters.txt"
    letters.write_text("".join(f"P{i:04d}\n" for i in range(10, 20)))
    page.locator("input[type=file]").set_input_files(letters)
    page.get_by_role("button", name="Put 10 patients on the list").click()
    row.get_by_text("138 of 150").wait_for()
    page.get_by_role("table", name="History").get_by_text("10 new").wait_for()
    assert "P0001" not in page.content()
    accessible(page)
    picture(page, "optout")


# ---- running jobs ----------------------------------------------------------------------------


def test_a_running_job_is_seen_and_stopped_at_once(page: Any, hospitals: Hospitals) -> None:
    name = "stopped"
    add(hospitals, cohort(hospitals.root / "exports" / f"{name}.csv", 200, 9), name)
    node = hospitals.root / "hillside"
    table = cohort(hospitals.root / f"{name}.csv", 200, 10)
    hospitals.cli("dataset", "add", table, "--name", name, "--tag", name, "--dir", node)
    with Client(environ=hospitals.person) as client:
        _, running = offered(hospitals, client, name)
        running.start()
        page.goto(f"{hospitals.origin}/runs")
        task = page.locator("section", has=page.get_by_role("button", name="Stop"))
        task.get_by_text("on average").wait_for()  # processor time of the worker
        task.get_by_text("MB").wait_for()
        accessible(page)
        picture(page, "runs")
        task.get_by_role("button", name="Stop").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Reason").fill("the ward called")
        pressed = time.monotonic()
        dialog.get_by_role("button", name="Stop").click()
        page.get_by_role("heading", name="Nothing runs now").wait_for()
        assert time.monotonic() - pressed < 5  # a second for the task, one for the page
        page.get_by_role("heading", name=f"Job {running.job.id} is stopped here").wait_for()
    page.get_by_role("link", name="See it in the audit trail").click()
    page.get_by_role("cell", name="job stopped here").wait_for()
    page.goto(f"{hospitals.origin}/runs")
    page.get_by_role("link", name="Its messages").click()
    messages = page.get_by_role("table", name="Job messages")
    messages.get_by_text("the agent").first.wait_for()
    assert messages.get_by_text(running.job.id, exact=True).count() > 0
    accessible(page)
    picture(page, "messages")


def test_hard_cases_are_explained_and_looking_at_them_is_on_record(
    page: Any, hospitals: Hospitals
) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra: torch)")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: sklearn)")
    work = privacykit.plan(
        ("nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 1)", "nn.Linear(30, 1)")
    )
    folder = hospitals.root / "exports" / "hard"
    folder.mkdir()
    privacykit.mislabelled(folder, work, wrong := (4, 17, 40))
    add(hospitals, folder / "cohort.csv", "hard")
    digest = plan_digest(work)
    with contextlib.closing(Store.open(hospitals.node)) as store:
        approvals.offer(store, work, digest, study="hard", author="ada", now=time.time())
    hospitals.cli("node", "approve", digest, "--dir", hospitals.node)
    page.goto(f"{hospitals.origin}/datasets/hard")
    page.get_by_role("tab", name="Hard cases").click()
    page.get_by_label("Model file").fill("/etc/passwd")
    page.get_by_label("Training plan").select_option(digest)
    page.get_by_role("button", name="Find them").click()
    page.get_by_text("outside of the data roots").wait_for()
    page.get_by_label("Model file").fill(str(folder / "model.npz"))
    page.get_by_label("How many records").fill("3")
    page.get_by_role("button", name="Find them").click()
    table = page.get_by_role("table", name="Hard cases")
    table.wait_for()
    for row in wrong:
        assert (
            table.get_by_role("row", name=re.compile(f"p{row:03} .*f[0-9]{{2}}")).count() == 1
        )
    accessible(page)
    for address, kind, word in (
        ("audit", "CSV", "hard.cases"),
        ("audit", "JSON", '"hard.cases"'),
        ("ledger", "CSV", "epsilon"),
    ):
        page.goto(f"{hospitals.origin}/{address}")
        with page.expect_download() as given:
            page.get_by_role("link", name=kind).click()
        assert word in Path(given.value.path()).read_text()


# ---- oversight -------------------------------------------------------------------------------


def test_a_higher_cap_takes_two_people(page: Any, browser: Any, hospitals: Hospitals) -> None:
    settings = hospitals.node / "node.yaml"
    before = settings.read_text()
    try:
        settings.write_text(before + "reviewers_needed: 2\n")
        page.goto(f"{hospitals.origin}/ledger")
        cap(page, 2, "board")
        page.get_by_role("row", name=re.compile("capped.*of ε 2")).wait_for()
        cap(page, 4, "more rounds")
        page.get_by_text("You asked for it").wait_for()
        accessible(page)
        context = browser.new_context(
            locale="en-GB", storage_state=enter(browser, hospitals, "paul")
        )
        other = context.new_page()
        other.goto(f"{hospitals.origin}/ledger")
        other.get_by_role("button", name="Agree").click()
        other.get_by_label("Reason").fill("as the board wants")
        other.get_by_role("dialog").get_by_role("button", name="Agree").click()
        other.get_by_role("row", name=re.compile("capped.*of ε 4")).wait_for()
        context.close()
    finally:
        settings.write_text(before)


def test_a_ledger_that_was_put_back_goes_on_by_two_people(
    page: Any, browser: Any, hospitals: Hospitals
) -> None:
    settings = hospitals.node / "node.yaml"
    before = settings.read_text()
    try:
        settings.write_text(before + "reviewers_needed: 2\n")
        with contextlib.closing(Store.open(hospitals.node)) as store:
            budget.compare(store, Head(4000, "sha256:" + "c" * 64), time.time())
        page.goto(hospitals.origin)
        page.get_by_role("link", name="The privacy ledger is held").click()
        page.get_by_text("the hub mirrors 4000").wait_for()
        accessible(page)
        go_on(page, "Go on without what is missing", "the disk was lost")
        page.get_by_text("maria wants to go on").wait_for()
        assert page.get_by_role("button", name="Agree").count() == 0  # one person is one
        context = browser.new_context(
            locale="en-GB", storage_state=enter(browser, hospitals, "rita")
        )
        other = context.new_page()
        other.goto(f"{hospitals.origin}/ledger")
        go_on(other, "Agree: go on without what is missing", "I have seen the disk")
        other.get_by_role("heading", name="The privacy ledger is held").wait_for(
            state="detached"
        )
        context.close()
        page.goto(f"{hospitals.origin}/audit?text=asked for by maria")
        page.get_by_role("cell", name="rita").first.wait_for()
    finally:
        settings.write_text(before)
        with contextlib.closing(Store.open(hospitals.node)) as store:
            if budget.held(store) is not None:  # the other tests' jobs go on
                with store.write() as tx:
                    budget.accept_restore(tx, actor="user:test", reason="over", now=time.time())


def go_on(page: Any, button: str, reason: str) -> None:
    page.get_by_role("button", name=button).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill(reason)
    dialog.get_by_role("button", name=button).click()
    dialog.wait_for(state="detached")


def test_what_a_site_tells_of_itself_is_one_line_that_opens(
    page: Any, hospitals: Hospitals
) -> None:
    with contextlib.closing(Store.open(hospitals.node)) as store, store.write() as tx:
        for number in range(40):
            said = ("site.advertise", "riverside", "signed", f"advertisement {number}")
            tx.audit(time.time(), "agent", *said)
    page.goto(f"{hospitals.origin}/runs")
    left = page.get_by_role("table", name="What left the site")
    line = left.get_by_role("row").filter(has_text=re.compile(r"\d\d advertisements, since"))
    line.get_by_role("button", name="Show each").first.click()
    line.get_by_text("advertisement 39").wait_for()
    assert left.get_by_text("advertisement 0").count() == 1
    accessible(page)
    line.get_by_role("button", name="As one line").click()
    left.get_by_text("advertisement 39").wait_for(state="detached")
    page.get_by_label("Show", exact=True).select_option("results of tasks")
    line.wait_for(state="detached")


def cap(page: Any, epsilon: float, reason: str) -> None:
    page.get_by_role("button", name="Set a cap").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Kind").select_option("researcher")
    dialog.get_by_label("Name").fill("capped")
    dialog.get_by_label("ε (epsilon)").fill(str(epsilon))
    dialog.get_by_label("Reason").fill(reason)
    dialog.get_by_role("button", name="Save").click()
    dialog.wait_for(state="detached")


@pytest.mark.parametrize("width", [1200, 400])
def test_the_audit_trail_fits_a_desk_and_a_telephone(
    page: Any, hospitals: Hospitals, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"{hospitals.origin}/audit")
    page.get_by_role("table", name="Audit trail").wait_for()
    # nothing is cut off and nothing has to be scrolled sideways, not even within the table
    wide = page.evaluate(SIDEWAYS)
    assert wide == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    accessible(page)


def test_every_field_of_the_policy_has_words_in_both_languages() -> None:
    schema = json.loads((ROOT / "docs/reference/node-policy.schema.json").read_text())
    words = [
        json.loads((ROOT / f"web/src/console/text/{name}.json").read_text())
        for name in ("en", "de")
    ]
    local = ("site", "hub", "sandbox", "proxy", "proxy_password_file", "console")
    fields = []
    for key, part in schema["properties"].items():
        inner = part.get("properties", {})
        fields += [f"{key}.{name}" for name in inner] or [key]
    asked = [f for f in fields if f.partition(".")[0] not in local]
    assert len(asked) > 40
    missing = [
        (k, i) for f in asked for k in (f"policy.{f}", f"policy.{f}.hint")
        for i, known in enumerate(words) if not known.get(k)
    ]  # fmt: skip
    assert missing == []


def test_the_how_to_names_what_the_pages_say() -> None:
    text = (ROOT / "docs/how-to/use-the-console.md").read_text()
    english = json.loads((ROOT / "web/src/console/text/en.json").read_text())
    named = [
        " ".join(words.split())
        for words in re.findall(r"(?<!\*)\*([^*\n]+(?:\n[^*\n]+)?)\*", text)
    ]
    assert len(named) > 35
    assert set(named) - set(english.values()) == set()


def test_the_policy_form_writes_records_and_shows_what_would_change(
    page: Any, hospitals: Hospitals
) -> None:
    page.goto(f"{hospitals.origin}/policy")
    page.get_by_label("Ranges of arguments").fill("lr: 0.5 to 0.1")
    page.get_by_text("cannot be read").wait_for()
    page.get_by_label("Ranges of arguments").fill("lr: 0.1 to 0.5")
    page.get_by_label("One study: ε").fill("3")
    page.get_by_role("switch", name="Accept a review by other sites").check()
    page.get_by_role("button", name="What would change?").click()
    changes = page.get_by_role("table", name="Keys that change")
    for key in ("arguments", "privacy", "consortium_review"):
        changes.get_by_role("cell", name=key, exact=True).wait_for()
    page.get_by_text("requests of the last 30 days").wait_for()
    accessible(page)
