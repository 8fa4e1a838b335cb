"""The hub's dashboard as people meet it: Chromium, a real hub, two real nodes.

`test_the_road_of_every_role` is the script of docs/how-to/use-the-dashboard.md. With
CONSILIA_SCREENSHOTS=1 it writes that page's pictures.
"""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from browserkit import AXE, Faults, plan_folder, until
from dashboardkit import (
    PHRASE,
    SITES,
    Consortium,
    arguments,
    browser_program,
    violations,
    watch,
)

from consilia import Client, Study
from consilia.accounts import totp
from consilia.wire.statistics import Noise

pytestmark = pytest.mark.slow

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
HOSTILE = "<img src=x onerror=alert(1)>"
PURPOSE = "Predict kidney function, so that doses are adapted earlier."
PAGES = (
    "/", "/studies", "/studies/new", "/studies/kidney", "/experiments", "/experiments/new",
    "/models", "/models/compare", "/sites", "/budgets", "/audit", "/people", "/settings",
    "/no-such-page",
)  # fmt: skip
DARK = ("/", "/studies/kidney", "/sites", "/people")  # that show every kind of part


@dataclass
class People:
    """Everybody's own browser: a context each, with what its pages did wrong."""

    browser: Any
    hub: Consortium
    faults: Faults = field(default_factory=Faults)
    pages: dict[str, Any] = field(default_factory=dict)

    def join(self, name: str, link: str) -> Any:
        """Make an account with an invitation's link, and stay signed in."""
        context = self.browser.new_context(
            locale="en-GB", viewport={"width": 1280, "height": 820}, ignore_https_errors=True
        )
        context.set_default_timeout(180_000)
        page = self.pages[name] = context.new_page()
        watch(page, self.hub.origin, self.faults)
        page.goto(link)
        page.get_by_label("Name").fill(name)
        page.get_by_label("New password").fill(PHRASE)
        page.get_by_label("The same again").fill(PHRASE)
        page.get_by_role("button", name="Make the account").click()
        page.get_by_role("heading", name=f"Hello, {name}").wait_for()
        return page


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    browser_program()
    with Consortium(tmp_path_factory.mktemp("dashboard")) as running:
        running.start()
        yield running


@pytest.fixture(scope="module")
def people(consortium: Consortium) -> Iterator[People]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_program(), args=arguments()
        )
        everybody = People(browser, consortium)
        everybody.join("olga", consortium.first)
        yield everybody
        browser.close()


def picture(page: Any, name: str) -> None:
    if os.environ.get("CONSILIA_SCREENSHOTS"):
        page.wait_for_timeout(600)  # transitions
        IMAGES.mkdir(exist_ok=True)
        page.screenshot(path=IMAGES / f"dashboard-{name}.png")


def go(page: Any, name: str) -> None:
    """Choose a page on the left, as a person does."""
    page.get_by_role("link", name=re.compile(f"^{name}$")).first.click()
    page.get_by_role("heading", name=name, level=1).wait_for()


def test_the_road_of_every_role(people: People) -> None:
    olga = people.pages["olga"]
    go(olga, "Sites")
    for site in SITES:
        olga.get_by_role("row", name=re.compile(f"^{site}.*Online")).wait_for()
    picture(olga, "sites")
    rosa = people.join("rosa", invited(people, "researcher"))
    write_a_study(rosa)
    plan = offer_and_decide(people.hub)
    train(rosa)
    assert plan.startswith("sha256:")
    propose(rosa)

    viktor = people.join("viktor", invited(people, "reviewer"))
    viktor.get_by_text("waits for a release by a second person").first.wait_for()
    picture(viktor, "home")
    release(viktor)

    dora = people.join("dora", invited(people, "user of models"))
    download(dora)
    assert dora.get_by_role("link", name="Studies").count() == 0

    anna = people.join("anna", invited(people, "auditor"))
    go(anna, "Audit trail")
    anna.get_by_role("cell", name="model.released").first.wait_for()
    anna.get_by_role("button", name="Verify").click()
    anna.get_by_text(re.compile("^Whole: all")).wait_for()
    picture(anna, "audit")
    assert people.faults.seen == []


def invited(people: People, role: str) -> str:
    """The link that the operator makes for somebody."""
    olga = people.pages["olga"]
    go(olga, "People and roles")
    olga.get_by_role("button", name="Invite a person").click()
    dialog = olga.get_by_role("dialog")
    assert dialog.get_by_role("checkbox", checked=True).count() == 0  # nothing of the last one
    dialog.get_by_label(role, exact=True).check()
    dialog.get_by_role("button", name="Make the link").click()
    link: str = dialog.get_by_label("Invitation link").input_value()
    olga.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    return people.hub.here(link)


def write_a_study(page: Any) -> None:
    go(page, "Studies")
    page.get_by_text("No studies yet").wait_for()
    page.get_by_role("link", name="New study").click()
    page.get_by_label("Name").fill("kidney")
    page.get_by_label("Purpose").fill(PURPOSE)
    page.get_by_role("button", name="Next").click()
    page.get_by_label("Controller").fill("University hospital")
    page.get_by_label("Legal basis").fill("Broad consent")
    page.get_by_label("Ethics reference").fill("EK 2025-118")
    page.get_by_label("Retention in days").fill("365")
    picture(page, "wizard")
    page.get_by_role("button", name="Next").click()
    for site in SITES:
        page.get_by_role("combobox", name="Sites to ask").fill(site)
        page.keyboard.press("Enter")
    page.get_by_role("combobox", name="Tags of the data").fill("kidney")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Next").click()
    page.get_by_text("365 days").wait_for()
    page.get_by_role("button", name="Back").click()
    pool_and_think_again(page)
    page.get_by_role("heading", name="kidney", level=1).wait_for()
    page.get_by_role("button", name="Submit to the sites").click()
    page.get_by_role("dialog").get_by_role("button", name="Submit to the sites").click()
    page.get_by_role("cell", name="not decided").first.wait_for()


def pool_and_think_again(page: Any) -> None:
    """A draft with a data centre is kept; then it is changed to have none."""
    page.get_by_label("Data centre").select_option("riverside")
    page.get_by_text("Choose at least one site").wait_for()
    assert page.get_by_role("button", name="Next").is_disabled()
    assert page.get_by_role("checkbox", name="riverside").count() == 0
    page.get_by_role("checkbox", name="hillside").check()
    page.evaluate(AXE.read_text())
    assert violations(page, "wizard with a data centre") == []
    page.get_by_role("button", name="Next").click()
    page.get_by_role("button", name="Keep the draft").click()
    page.get_by_text("hillside: asked").wait_for()
    page.get_by_role("link", name="Edit").click()
    for _ in range(2):
        page.get_by_role("button", name="Next").click()
    page.get_by_label("Data centre").select_option(label="None: every site trains at home")
    page.get_by_role("checkbox", name="hillside").wait_for(state="detached")
    page.get_by_role("button", name="Next").click()
    page.get_by_role("button", name="Keep the draft").click()
    page.get_by_text("hillside: asked").wait_for(state="detached")


def offer_and_decide(hub: Consortium) -> str:
    """The plan is offered from a terminal; the hospitals decide at their nodes."""
    folder = plan_folder(hub.root)
    told = hub.cli("plan", "submit", folder, "--study", "kidney", "--json")
    digest = re.search(r"sha256:[0-9a-f]{64}", told)
    assert digest, told
    hub.decide("kidney", digest[0])
    return digest[0]


def train(page: Any) -> None:
    page.get_by_role("cell", name="accepted").nth(1).wait_for()
    page.get_by_text(re.compile("about .* records")).first.wait_for()
    picture(page, "study")
    page.get_by_role("link", name="New experiment").click()
    plans = page.get_by_label("Training plan")
    plans.locator("option", has_text="kidney").wait_for(state="attached")
    plans.select_option(index=1)
    page.get_by_label("Name", exact=True).fill("first try")
    page.get_by_label("Rounds", exact=True).fill("3")
    page.get_by_label("Fewest sites").fill("7")  # more than there are
    page.get_by_text("thing keeps it from starting").wait_for()  # told while one types
    page.get_by_label("Fewest sites").fill("2")
    page.get_by_role("switch", name="Let the sites evaluate the models").click()
    page.get_by_label("Rounds between two evaluations").fill("2")
    page.get_by_label("hillside").wait_for()
    page.get_by_text("Ready to start").wait_for()
    picture(page, "builder")
    page.get_by_role("button", name="Start the experiment").click()
    page.get_by_role("heading", name="first try", level=1).wait_for()
    page.get_by_text("done", exact=True).first.wait_for()
    page.get_by_role("img", name=re.compile("loss by round")).wait_for()
    legend = page.get_by_role("listitem").filter(has_text="riverside")
    legend.first.wait_for()  # two hospitals sum in the open, so each one's loss is known
    page.get_by_role("tab", name="Log").click()
    page.get_by_role("cell", name="round closed").first.wait_for()
    page.get_by_role("tab", name="Rounds").click()
    page.evaluate("scrollTo(0, 0)")
    picture(page, "experiment")
    judge(page)


def judge(page: Any) -> None:
    """A finished job goes on with more rounds only; its model is judged at the hospitals."""
    page.get_by_role("button", name="Go on").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("It has had its 3 rounds: to go on, give it more.").wait_for()
    assert dialog.get_by_label("Rounds in all").input_value() == "8"
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    trained = page.url
    page.get_by_role("button", name="Evaluate").click()
    dialog = page.get_by_role("dialog", name="Evaluate")
    dialog.get_by_role("button", name="Add a row").click()
    dialog.get_by_label("Name 1").fill("age")
    dialog.get_by_label("age", exact=True).fill("60")
    dialog.get_by_role("button", name="Ask the sites").click()
    page.get_by_role("heading", name="first try, 3", level=1).wait_for()
    page.get_by_text("done", exact=True).first.wait_for()
    told = page.get_by_role("table", name="What each site has told")
    told.get_by_role("cell", name=re.compile("^age: ")).first.wait_for()
    told.get_by_role("cell", name="whole hold-out").first.wait_for()
    page.get_by_role("button", name="Go on").wait_for(state="detached")  # no round could follow
    told.scroll_into_view_if_needed()
    picture(page, "evaluation")
    page.goto(trained)


def propose(page: Any) -> None:
    page.get_by_role("link", name="Models of this experiment").click()
    page.get_by_role("link", name=re.compile(r"\.3$")).click()
    page.get_by_text("rounds 0 to 3").wait_for()
    page.get_by_role("button", name="Propose for release").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("best so far")
    dialog.get_by_role("button", name="Propose for release").click()
    page.get_by_text("candidate", exact=True).wait_for()


def release(page: Any) -> None:
    page.get_by_role("link", name=re.compile(r"\.3$")).first.click()
    page.get_by_text("What to beware of").wait_for()
    picture(page, "model")
    page.get_by_role("button", name="Release", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("checked at both hospitals")
    dialog.get_by_role("button", name="Release", exact=True).click()
    page.get_by_text("released", exact=True).first.wait_for()
    go(page, "Models")
    for box in (0, 1):
        page.get_by_role("checkbox").nth(box).check()
    page.get_by_role("button", name="Compare (2)").click()
    page.get_by_role("heading", name="Compare models").wait_for()
    page.get_by_role("row", name=re.compile("^Stage")).wait_for()


def download(page: Any) -> None:
    go(page, "Models")
    page.get_by_role("link", name=re.compile(r"\.3$")).click()
    with page.expect_download() as fetched:
        page.get_by_role("button", name="Download the weights").click()
    assert Path(fetched.value.path()).stat().st_size > 100


def test_every_page_is_accessible_in_light_and_dark(people: People) -> None:
    page, found = people.pages["olga"], []
    page.evaluate(AXE.read_text())  # by the debugger: the page's own policy forbids scripts
    with Client(environ=people.hub.person) as client:
        jobs = [f"/experiments/{job.id}" for job in client.jobs()]
        models = [f"/models/{job.split('/')[-1]}.1" for job in jobs]
    for scheme, paths in (("light", (*PAGES, *jobs, *models)), ("dark", (*DARK, *jobs))):
        page.emulate_media(color_scheme=scheme)
        for path in paths:
            page.evaluate("path => history.pushState(null, '', path)", path)
            page.get_by_role("heading", level=1).wait_for()
            page.get_by_role("status", name="Loading").first.wait_for(state="detached")
            found += violations(page, f"{scheme} {path}")
    page.emulate_media(color_scheme="light")
    assert found == []
    assert people.faults.seen == []


def test_a_private_answer_shows_its_price_and_its_error(people: People) -> None:
    """Numbers with noise are read wrongly without both; counts are whole, some below 0."""
    hub = people.hub
    with Client(environ=hub.person) as client:
        client.create_study(Study("counted", PURPOSE, SITES, ("kidney",), statistics=True))
        client.submit_study("counted")
        for site in SITES:
            node = hub.root / site
            until(partial(heard, hub, node))
            hub.cli("node", "accept", "counted", "--dir", node)
        until(lambda: set(client.study("counted").sites.values()) == {"accepted"})
        view = client.statistics(
            "counted", ["age"], what=("count", "mean"), bounds={"age": (20, 90)}, dp=Noise(1.0)
        ).view
    page = people.pages["olga"]
    page.goto(f"{hub.origin}/experiments/{view.job}")
    page.get_by_text(re.compile("^Epsilon 1 at delta 0.00001 for each record,")).wait_for()
    table = page.get_by_role("table", name="Statistics")
    table.get_by_role("columnheader", name="Standard error").wait_for()
    (count,) = [f for f in view.figures if f.statistic == "count"]
    assert count.value is not None and count.error is not None
    row = table.get_by_role("row", name=re.compile("^count age"))
    assert f"{round(count.value):,}" in row.inner_text()
    assert f"{count.error:.3g}" in row.inner_text()
    assert page.get_by_role("link", name="Models of this experiment").count() == 0
    page.evaluate(AXE.read_text())
    assert violations(page, "a private answer") == []
    assert people.faults.seen == []


def heard(hub: Consortium, node: Path) -> bool:
    """Whether a hospital has been told of the study."""
    return "counted" in hub.cli("node", "studies", "--dir", node)


def test_changed_terms_are_offered_anew_and_declines_are_seen(people: People) -> None:
    hub = people.hub
    node = hub.root / SITES[0]
    with Client(environ=hub.person) as client:
        client.create_study(Study("renewed", PURPOSE, SITES, ("kidney",)))
        before = client.submit_study("renewed").digest
        page = people.pages["olga"]
        page.goto(f"{hub.origin}/studies/renewed")
        page.get_by_role("link", name="Change terms").click()
        page.get_by_label("Purpose").fill("To learn more")
        for _ in range(3):
            page.get_by_role("button", name="Next").click()
        page.get_by_text("Each site sees what has changed, field by field").wait_for()
        page.get_by_role("button", name="Offer to the sites anew").click()
        page.get_by_role("heading", name="renewed", level=1).wait_for()
        page.get_by_text("To learn more").wait_for()
        now = client.study("renewed")
        assert now.digest != before and now.state == "submitted"
        until(lambda: str(now.digest) in hub.cli("node", "studies", "--json", "--dir", node))
        hub.cli("node", "decline", str(now.digest), "--dir", node)
        page.get_by_role("row", name=re.compile(f"^{SITES[0]}.*declined")).wait_for()
    assert people.faults.seen == []


def test_what_strangers_wrote_is_shown_as_text(people: People) -> None:
    with Client(environ=people.hub.person) as client:
        client.create_study(Study("strange", HOSTILE, SITES, ("x",), HOSTILE, ethics=HOSTILE))
    page = people.pages["olga"]
    go(page, "Studies")
    page.get_by_role("cell", name=HOSTILE).wait_for()
    page.get_by_role("link", name="strange").click()
    page.get_by_text(HOSTILE).nth(2).wait_for()
    assert page.locator("img[src=x]").count() == 0
    assert people.faults.seen == []


def test_a_session_survives_a_reload_and_ends_everywhere_at_once(people: People) -> None:
    page = people.pages["olga"]
    page.goto(f"{people.hub.origin}/sites")
    page.get_by_role("heading", name="Sites", level=1).wait_for()
    second = page.context.new_page()  # another window takes the same cookie's next turn
    second.goto(f"{people.hub.origin}/audit")
    second.get_by_role("heading", name="Audit trail", level=1).wait_for()
    page.reload()
    page.get_by_role("heading", name="Sites", level=1).wait_for()
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    assert "ey" not in kept.replace("key", "")  # no token lies in the browser's store
    second.close()


def test_a_second_factor_is_set_up_and_asked_for(people: People) -> None:
    page = people.join("emil", invited(people, "auditor"))
    go(page, "Settings")
    page.get_by_role("button", name="Add a second factor").click()
    page.get_by_role("img", name="QR code").wait_for()
    secret = page.get_by_text(re.compile("^[A-Z2-7]{32}$")).inner_text()
    step = int(time.time()) // totp.STEP
    type_code(page, totp.code(secret, step))
    page.get_by_role("button", name="Switch it on").click()
    page.get_by_role("button", name="Remove the second factor").wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Name").fill("emil")
    page.locator("input[type=password]").fill(PHRASE)
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.get_by_label("Digit 1", exact=True).wait_for()
    type_code(page, totp.code(secret, step))  # it was used to switch it on
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.get_by_role("alert").wait_for()
    type_code(page, totp.code(secret, max(step + 1, int(time.time()) // totp.STEP)))
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.get_by_role("button", name="Sign out").wait_for()
    assert people.faults.seen == []


def type_code(page: Any, code: str) -> None:
    for i, digit in enumerate(code, 1):
        page.get_by_label(f"Digit {i}", exact=True).fill(digit)


def test_german_on_a_telephone_and_a_wrong_password(people: People) -> None:
    context = people.browser.new_context(
        locale="de-DE", viewport={"width": 390, "height": 800}, ignore_https_errors=True
    )
    page = context.new_page()
    watch(page, people.hub.origin, people.faults)
    page.goto(f"{people.hub.origin}/studies")
    page.get_by_label("Name").fill("olga")
    page.locator("input[type=password]").fill("not the password")
    page.get_by_role("button", name="Anmelden").click()
    page.get_by_role("alert").wait_for()
    page.locator("input[type=password]").fill(PHRASE)
    page.get_by_role("button", name="Anmelden").click()
    page.get_by_role("heading", name="Studien", level=1).wait_for()
    assert page.evaluate("document.documentElement.lang") == "de"
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
    assert people.faults.seen == []
    context.close()


def test_it_loads_little_before_the_door(people: People) -> None:
    """How soon it is painted is measured: `./run bench pages`."""
    context = people.browser.new_context(ignore_https_errors=True)
    page = context.new_page()
    sizes: dict[str, int] = {}

    def count(response: Any) -> None:
        if response.url.endswith((".js", ".css")):
            sizes[response.url] = int(response.headers["content-length"])

    page.on("response", count)
    page.goto(people.hub.origin)
    page.get_by_role("heading", name="Sign in to the hub").wait_for()
    context.close()
    assert any(url.endswith(".js") for url in sizes)
    assert sum(sizes.values()) < 250_000, f"script and style before the door: {sizes}"


def test_the_operators_token_opens_the_door_too(people: People) -> None:
    context = people.browser.new_context(ignore_https_errors=True, locale="en-GB")
    page = context.new_page()
    page.goto(people.hub.origin)
    page.get_by_text("API token", exact=True).click()
    page.get_by_label("API token").last.fill(people.hub.person["CONSILIA_TOKEN"])
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name=re.compile("^Hello")).wait_for()
    page.reload()
    page.get_by_role("heading", name="Sign in to the hub").wait_for()  # it was in memory only
    context.close()


def test_what_is_there_stays_when_asking_again_fails(people: People) -> None:
    """A page asks again every few seconds; a hub that is away for one takes nothing away."""
    page = people.pages["olga"]
    go(page, "Sites")
    row = page.get_by_role("row", name=re.compile(f"^{SITES[0]}"))
    row.wait_for()
    page.route("**/api/v1/sites**", lambda route: route.abort())
    page.get_by_role("alert").wait_for()
    assert row.is_visible()
    page.unroute("**/api/v1/sites**")
    page.get_by_role("alert").wait_for(state="detached")
    assert row.is_visible()
    people.faults.seen.clear()  # the browser's own words for a request that was cut
