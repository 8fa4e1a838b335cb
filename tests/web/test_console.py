"""The node's console as a person meets it: Chromium, a real node, a real hub.

`test_a_person_who_never_saw_consilia` is the script of docs/how-to/use-the-console.md. With
CONSILIA_SCREENSHOTS=1 it writes that page's pictures.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browserkit import ARGUMENTS, AXE, Faults, Hospitals, browser_program, plan_folder

from consilia import Client, Experiment, Study

pytestmark = pytest.mark.slow

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
PHRASE = "seven quiet herons"
STUDY = Study(
    "kidney",
    "Predict kidney function from routine values, so that doses can be adapted earlier.",
    ("hillside", "riverside"),
    ("kidney",),
    controller="University hospital",
    legal_basis="Broad consent",
    ethics="EK 2025-118",
    until="2099-12-31",
)
PAGES = (
    "/", "/datasets", "/datasets/add", "/datasets/kidney-2025", "/loading-plans",
    "/loading-plans/new", "/opt-out", "/studies", "/plans", "/runs", "/ledger", "/audit",
    "/policy", "/accounts", "/settings", "/no-such-page",
)  # fmt: skip
DARK = ("/", "/datasets/kidney-2025", "/policy", "/audit")  # that show every kind of part
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospitals]:
    browser_program()
    with Hospitals(tmp_path_factory.mktemp("console")) as running:
        running.start()
        yield running


@pytest.fixture(scope="module")
def experiment(hospitals: Hospitals) -> Iterator[Experiment]:
    """A study and its plan on offer; the other hospital has agreed."""
    with Client(environ=hospitals.person) as client:
        plan = plan_folder(hospitals.root)
        offered = Experiment(client, study=STUDY, plan=plan, rounds=3)
        hospitals.decide_elsewhere("kidney", offered.offer().plan)
        yield offered


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
def signed_in(browser: Any, hospitals: Hospitals, experiment: Experiment) -> Any:
    """What the browser keeps after the account was made by the invitation's link."""
    context = browser.new_context(locale="en-GB", viewport={"width": 1280, "height": 820})
    page = context.new_page()
    page.goto(hospitals.invitation())
    page.get_by_label("Name").fill("maria")
    page.get_by_label("New password").fill(PHRASE)
    page.get_by_label("The same again").fill(PHRASE)
    page.get_by_role("button", name="Make the account").click()
    page.get_by_role("heading", name="Hello, maria").wait_for()
    state = context.storage_state()
    context.close()
    return state


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def page(browser: Any, signed_in: Any, hospitals: Hospitals, faults: Faults) -> Iterator[Any]:
    """A signed-in person's window; what it must not do is an error at its end."""
    context = browser.new_context(
        locale="en-GB", viewport={"width": 1280, "height": 820}, storage_state=signed_in
    )
    context.set_default_timeout(180_000)
    shown = context.new_page()
    watch(shown, hospitals.origin, faults)
    yield shown
    context.close()
    assert faults.seen == []


def watch(page: Any, origin: str, faults: Faults) -> None:
    page.on("console", lambda message: faults.console(message.type, message.text))
    page.on("pageerror", lambda error: faults.seen.append(f"defect: {error}"))
    page.on("request", lambda request: faults.request(request.url, origin))


def picture(page: Any, name: str) -> None:
    if os.environ.get("CONSILIA_SCREENSHOTS"):
        page.wait_for_timeout(500)  # transitions
        IMAGES.mkdir(exist_ok=True)
        page.screenshot(path=IMAGES / f"console-{name}.png")


def go(page: Any, name: str) -> None:
    """Choose a page on the left, as a person does."""
    page.get_by_role("link", name=re.compile(f"^{name}")).first.click()
    page.get_by_role("heading", level=1).wait_for()


def test_a_person_who_never_saw_consilia(
    page: Any, hospitals: Hospitals, experiment: Experiment
) -> None:
    page.goto(hospitals.origin)
    page.get_by_text("Study offered").wait_for()
    picture(page, "home")
    register(page)
    review(page)
    accept(page)
    go(page, "Home")
    page.get_by_text("All done").wait_for()

    experiment.start()
    assert experiment.wait().state == "done"

    go(page, "Runs and releases")
    released = page.get_by_role("cell", name=f"{experiment.job.id}.")
    released.first.wait_for()
    assert released.count() >= 3  # an update each round
    picture(page, "released")
    check_the_audit(page)


def register(page: Any) -> None:
    go(page, "Datasets")
    page.get_by_role("link", name="Add a dataset").first.click()
    page.get_by_role("button", name="exports").click()
    page.get_by_role("button", name="kidney-2025.csv").click()
    page.get_by_role("combobox", name="Tags").fill("kidney")
    page.keyboard.press("Enter")
    page.get_by_label("Column of patient ids").select_option("patient")
    page.get_by_role("button", name="Next").click()
    page.get_by_label("Unit (UCUM): creatinine").fill("mg/dL")
    page.get_by_label("Role: egfr").select_option("target")
    picture(page, "columns")
    page.get_by_role("button", name="Register the dataset").click()
    page.get_by_role("tab", name="Preview").click()
    page.get_by_role("cell", name="P0000").wait_for()
    page.get_by_role("tab", name="Profile").click()
    page.get_by_role("img", name="Distribution of age").wait_for()
    picture(page, "profile")


def review(page: Any) -> None:
    go(page, "Training plans")
    page.get_by_role("link", name="kidney", exact=True).click()
    page.get_by_role("button", name="plan.py").click()
    page.get_by_text("⚑").first.wait_for()  # what stands beside a line
    picture(page, "plan")
    page.get_by_role("tab", name="What changed").click()
    page.get_by_text("everything is new").wait_for()
    page.get_by_role("button", name="Approve").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("lr").fill("0.2 to 0.1")
    dialog.get_by_role("button", name="Approve").click()
    dialog.get_by_text("low to high").wait_for()  # a mistake is named, nothing is sent
    dialog.get_by_label("lr").fill("0.01 to 0.1")
    dialog.get_by_label("Reason").fill("read it; no file, no network")
    dialog.get_by_role("button", name="Approve").click()
    page.get_by_role("button", name="Revoke the approval").wait_for()


def accept(page: Any) -> None:
    go(page, "Studies")
    page.get_by_role("link", name="kidney", exact=True).click()
    page.get_by_text("Key words of the sites").wait_for()
    picture(page, "study")
    page.get_by_role("button", name="Accept").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("I compared the key words").check()
    dialog.get_by_role("button", name="Accept").click()
    page.get_by_role("button", name="Leave").wait_for()
    page.get_by_text("pinned", exact=True).wait_for()


def check_the_audit(page: Any) -> None:
    go(page, "Audit trail")
    page.get_by_label("Who", exact=True).fill("maria")
    page.get_by_role("cell", name="dataset added").wait_for()
    page.get_by_role("cell", name="hub", exact=True).first.wait_for(state="detached")
    page.get_by_role("button", name="Verify").click()
    page.get_by_text("Whole: all").wait_for()
    picture(page, "audit")


def test_every_page_is_accessible_in_light_and_dark(page: Any, hospitals: Hospitals) -> None:
    found = []
    page.goto(hospitals.origin)
    page.get_by_role("heading", level=1).wait_for()
    page.evaluate(AXE.read_text())  # by the debugger: the page's own policy forbids scripts
    for scheme, paths in (("light", PAGES), ("dark", DARK)):
        page.emulate_media(color_scheme=scheme)
        for path in paths:
            page.evaluate("path => history.pushState(null, '', path)", path)
            page.get_by_role("heading", level=1).wait_for()
            page.get_by_role("status", name="Loading").first.wait_for(state="detached")
            found += violations(page, f"{scheme} {path}")
    assert found == []


def violations(page: Any, where: str) -> list[str]:
    rules = {"runOnly": RULES}
    result = page.evaluate("rules => axe.run(document, rules)", rules)
    return [f"{where}: {v['id']}: {v['nodes'][0]['html'][:120]}" for v in result["violations"]]


def test_the_keyboard_alone_reaches_and_opens_a_page(page: Any, hospitals: Hospitals) -> None:
    page.goto(hospitals.origin)
    page.get_by_role("heading", level=1).wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('href')") == "/datasets":
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"  # one sees where one is
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Datasets", level=1).wait_for()


def test_a_wrong_password_says_so_and_german_is_complete(
    browser: Any, hospitals: Hospitals, signed_in: Any, faults: Faults
) -> None:
    context = browser.new_context(locale="de-DE", viewport={"width": 390, "height": 800})
    page = context.new_page()
    watch(page, hospitals.origin, faults)
    page.goto(f"{hospitals.origin}/studies")
    page.get_by_label("Name").fill("maria")
    page.get_by_label("Passwort", exact=False).first.fill("not the password")
    page.get_by_role("button", name="Anmelden").click()
    page.get_by_role("alert").wait_for()
    page.get_by_label("Passwort", exact=False).first.fill(PHRASE)
    page.get_by_role("button", name="Anmelden").click()
    page.get_by_role("heading", name="Studien", level=1).wait_for()
    assert page.evaluate("document.documentElement.lang") == "de"
    wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    assert not wide  # a telephone's width is enough
    assert faults.seen == []
    context.close()


def test_a_changed_file_is_noticed(page: Any, hospitals: Hospitals) -> None:
    with (hospitals.root / "exports" / "kidney-2025.csv").open("a") as file:
        file.write("P9999,f,50,120,1.00,2025-05-05,80.0\n")
    page.goto(f"{hospitals.origin}/datasets/kidney-2025")
    page.get_by_role("alert").wait_for()
    page.get_by_role("tab", name="Manage").click()
    page.get_by_role("button", name="Look at the file again").click()
    page.get_by_role("alert").wait_for(state="detached")
    page.get_by_role("tab", name="About").click()
    page.get_by_text("641").wait_for()


def test_a_plan_is_tried_a_loading_plan_previewed_and_the_policy_weighed(
    page: Any, hospitals: Hospitals
) -> None:
    page.goto(f"{hospitals.origin}/plans")
    page.get_by_role("link", name="kidney", exact=True).click()
    page.get_by_role("tab", name="Dry run").click()
    page.get_by_label("With the columns of").select_option("kidney-2025")
    page.get_by_role("button", name="Try it").click()
    # This node has no sandbox, so it may refuse: then it says why and what to do.
    page.get_by_text(re.compile("It ran|without a sandbox")).wait_for()

    page.goto(f"{hospitals.origin}/loading-plans/shorter")
    page.get_by_label("Show what it does to").select_option("kidney-2025")
    page.get_by_role("tab", name="YAML").click()
    blocks = page.get_by_role("textbox", name="YAML")
    blocks.fill(
        "name: shorter\nblocks:\n  - {block: rename, columns: {creatinine: kreatinin}}\n"
    )
    page.get_by_role("columnheader", name="kreatinin").wait_for()
    blocks.fill(
        "name: shorter\nblocks:\n  - {block: renam, columns: {creatinine: kreatinin}}\n"
    )
    page.get_by_role("tab", name="Form").click()
    page.get_by_text("did you mean 'rename'").wait_for()  # a mistake is told while one types

    page.goto(f"{hospitals.origin}/policy")
    page.get_by_label("Fewest records to train on").fill("5000")
    page.get_by_role("button", name="What would change?").click()
    page.get_by_role("cell", name="min_records").wait_for()
    page.get_by_text("past decisions would have been different").wait_for()
    page.get_by_role("button", name="Put in force").click()
    page.get_by_role("dialog").get_by_role("button", name="Put in force").click()
    page.get_by_text("This is the policy in force.").wait_for()
    assert "min_records: 5000" in (hospitals.node / "node.yaml").read_text()
