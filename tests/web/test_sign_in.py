"""Signing in, as a person sees it: Chromium, a console's process, a real provider.

The commands and settings are those of docs/how-to/sign-in-with-oidc-or-ldap.md.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browserkit import ARGUMENTS, AXE, SOURCE, Faults, browser_program, until

from commandkit import Commands
from consilia.accounts import totp
from consilia.accounts.directory import SignInBy
from consilia.node.console.settings import Console as Settings
from consilia.wire import strict
from consolekit import make_node
from oidckit import SECRET, Provider, oidc_provider

pytestmark = pytest.mark.slow

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/sign-in-with-oidc-or-ldap.md"
PHRASE = "seven quiet herons"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


class Desk(Commands):
    """One console's process; `origin` is where it is."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, folder=root)
        self.node = root / "node"
        self.origin = ""

    def variables(self) -> dict[str, str]:
        """The environment of a person who has set nothing."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("CONSILIA_")}
        return clean | {"HOME": str(self.root), "PYTHONPATH": str(SOURCE)}

    def written(self, number: int) -> list[str]:
        """One command of the how-to, with this node's directory for the page's."""
        commands = re.findall(r"^\$ consilia (.*?)(?: &)?$", PAGE.read_text(), re.MULTILINE)
        return [w.replace("/srv/consilia", str(self.node)) for w in commands[number].split()]

    def start(self, provider: Provider) -> None:
        """Serve a console whose settings are the how-to's, but for where the provider is."""
        blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
        text = blocks[0].replace("https://login.hospital.example", provider.issuer)
        said = strict.from_yaml(text, dict[str, dict[str, SignInBy]], "the how-to")
        make_node(
            self.node,
            console=Settings(listen="127.0.0.1:0", sign_in=said["console"]["sign_in"]),
        )
        secret = self.node / "secrets" / "oidc-client"
        secret.write_text(SECRET)
        secret.chmod(0o600)
        self.spawn("console", *self.written(0))
        until((self.node / "console.url").exists)
        self.origin = (self.node / "console.url").read_text().strip()
        provider.client(f"{self.origin}/oidc/callback")

    def invitation(self) -> str:
        """A link to an account of the console's own."""
        link: str = json.loads(self.cli(*self.written(1), "--json"))["link"]
        return link


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    browser_program()
    with oidc_provider() as provider, Desk(tmp_path_factory.mktemp("desk")) as running:
        provider.users(
            m1={"preferred_username": "mara@hospital.example", "groups": ["consilia-review"]},
            n1={"preferred_username": "nils@hospital.example", "groups": ["gardeners"]},
        )
        running.start(provider)
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = browser_program()
    sync_api = pytest.importorskip("playwright.sync_api")
    root = ("--no-sandbox",) if os.geteuid() == 0 else ()
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=[*ARGUMENTS, *root])
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, desk: Desk) -> Iterator[Any]:
    """A window of somebody who is not signed in anywhere; no page of the console errs."""
    context = browser.new_context(locale="en-GB", viewport={"width": 1280, "height": 820})
    context.set_default_timeout(180_000)
    shown, faults = context.new_page(), Faults()
    shown.on("pageerror", lambda error: faults.seen.append(f"defect: {error}"))
    yield shown
    context.close()
    assert faults.seen == []


def at_the_provider(page: Any, login: str) -> None:
    """Sign in at the provider's own pages, and agree."""
    page.locator("input[name=login]").fill(login)
    page.locator("input[name=password]").fill("any")
    page.locator("button[type=submit]").click()
    page.get_by_role("button", name="Continue").click()


def accessible(page: Any) -> None:
    page.evaluate(AXE.read_text())
    rules = {"runOnly": RULES}
    found = page.evaluate("rules => axe.run(document, rules)", rules)["violations"]
    assert [v["id"] for v in found] == []


def test_a_person_signs_in_at_the_hospitals_page(page: Any, desk: Desk) -> None:
    page.goto(f"{desk.origin}/plans")
    page.get_by_role("link", name="Sign in: Hospital account").wait_for()
    accessible(page)
    page.get_by_role("link", name="Sign in: Hospital account").click()
    at_the_provider(page, "m1")
    page.get_by_role("heading", name="Training plans", level=1).wait_for()  # the page wanted
    page.goto(f"{desk.origin}/settings")
    page.get_by_text("Your password is kept by the hospital's directory").wait_for()
    page.get_by_text("the hospital's sign-in page", exact=True).wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Name").wait_for()


def test_who_has_no_role_reads_whom_to_ask(page: Any, desk: Desk) -> None:
    page.goto(desk.origin)
    page.get_by_role("link", name="Sign in: Hospital account").click()
    at_the_provider(page, "n1")
    alert = page.get_by_role("alert")
    alert.get_by_text("none of your groups has a role").wait_for()
    alert.get_by_text("ask the help desk, telephone 4711").wait_for()
    accessible(page)
    assert "sign_in" not in page.url  # a reload asks anew
    assert page.request.get(f"{desk.origin}/assets/missing.js").status == 404


def test_a_second_factor_is_set_up_asked_for_and_guarded(page: Any, desk: Desk) -> None:
    page.goto(desk.invitation())
    page.get_by_label("Name").fill("olga")
    page.get_by_label("New password").fill(PHRASE)
    page.get_by_label("The same again").fill(PHRASE)
    page.get_by_role("button", name="Make the account").click()
    page.get_by_role("heading", name="Hello, olga").wait_for()
    page.goto(f"{desk.origin}/settings")
    page.get_by_role("button", name="Add a second factor").click()
    page.get_by_role("img", name="QR code").wait_for()
    secret = page.get_by_text(re.compile("^[A-Z2-7]{32}$")).inner_text()
    step = int(time.time()) // totp.STEP
    type_code(page, totp.code(secret, step))
    page.get_by_role("button", name="Switch on").click()
    page.get_by_text("It is on.").wait_for()

    page.get_by_role("button", name="Sign out").click()
    enter(page, PHRASE)
    page.get_by_label("Digit 1", exact=True).wait_for()
    type_code(page, "000000")
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.get_by_role("alert").get_by_text("wrong").wait_for()
    type_code(page, totp.code(secret, max(step + 1, int(time.time()) // totp.STEP)))
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.get_by_role("button", name="Sign out").wait_for()

    page.get_by_role("button", name="Sign out").click()
    for _ in range(5):
        enter(page, "not the password")
        page.get_by_role("alert").get_by_text("wrong").wait_for()
    enter(page, PHRASE)
    page.get_by_role("alert").get_by_text("too many failed attempts").wait_for()


def test_a_form_outlives_the_session_that_it_was_begun_in(page: Any, desk: Desk) -> None:
    page.goto(desk.invitation())
    page.get_by_label("Name").fill("petra")
    page.get_by_label("New password").fill(PHRASE)
    page.get_by_label("The same again").fill(PHRASE)
    page.get_by_role("button", name="Make the account").click()
    page.get_by_role("heading", name="Hello, petra").wait_for()
    page.goto(f"{desk.origin}/settings")
    page.get_by_label("Current password").fill(PHRASE)
    page.get_by_label("New password").fill("eight loud herons")
    page.context.clear_cookies()
    page.get_by_role("button", name="Change the password").click()
    page.get_by_text("Your session has ended").wait_for()
    accessible(page)
    door = page.get_by_role("main")  # the page behind it is hidden
    door.get_by_label("Name").fill("petra")
    door.get_by_label(re.compile("^Password")).first.fill(PHRASE)
    door.get_by_role("button", name="Sign in", exact=True).click()
    page.get_by_text("Your session has ended").wait_for(state="detached")
    assert page.get_by_label("New password").input_value() == "eight loud herons"
    page.get_by_role("button", name="Change the password").click()
    page.get_by_text("The password is changed").wait_for()


def enter(page: Any, password: str) -> None:
    page.get_by_label("Name").fill("olga")
    page.get_by_label(re.compile("^Password")).first.fill(password)
    page.get_by_role("button", name="Sign in", exact=True).click()


def type_code(page: Any, code: str) -> None:
    for i, digit in enumerate(code, 1):
        page.get_by_label(f"Digit {i}", exact=True).fill(digit)
