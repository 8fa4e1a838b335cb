"""Signing in to the hub by the organisation's own means: Chromium, a hub, OIDC and LDAP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browserkit import AXE
from dashboardkit import Consortium, arguments, browser_program, violations

from ldapkit import GROUPS, PASSWORD, PEOPLE, SERVICE, SERVICE_PASSWORD, Directory, ldap_server
from oidckit import CLIENT, SECRET, Provider, oidc_provider

pytestmark = pytest.mark.slow


def settings(folder: Path, provider: Provider, ldap: Directory) -> dict[str, object]:
    """What hub.yaml says of them."""
    for name, text in (("oidc", SECRET), ("ldap", SERVICE_PASSWORD)):
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(text)
    oidc = {
        "issuer": provider.issuer, "client_id": CLIENT, "label": "Institute account",
        "client_secret_file": str(folder / "oidc"),
        "scopes": ["openid", "profile", "offline_access"],
        "roles": {"auditor": ["audit"]},
    }  # fmt: skip
    directory = {
        "url": ldap.url, "base": PEOPLE, "roles": {"auditor": [f"cn=auditors,{GROUPS}"]},
        "label": "Institute directory", "ca": str(ldap.folder / "ca.pem"),
        "bind_dn": SERVICE, "bind_password_file": str(folder / "ldap"),
    }  # fmt: skip
    ways = {"oidc": oidc, "ldap": directory, "contact": "the registry, 12"}
    return {"sign_in": ways}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    browser_program()
    folder = tmp_path_factory.mktemp("institute")
    (folder / "ldap-server").mkdir()
    with (
        oidc_provider() as provider,
        ldap_server(folder / "ldap-server") as ldap,
        Consortium(folder) as running,
    ):
        provider.users(
            ada={"preferred_username": "ada", "groups": ["audit"]},
            ben={"preferred_username": "ben", "groups": ["sports"]},
        )
        ldap.group("auditors", ldap.person("mara"))
        running.start_hub("127.0.0.1", settings(folder, provider, ldap))
        provider.client(f"{running.origin}/api/v1/auth/oidc/oidc/callback")
        yield running


@pytest.fixture
def page(hub: Consortium) -> Iterator[Any]:
    """A window of somebody who is signed in nowhere; no page of the hub errs."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        path = browser_program()
        browser = playwright.chromium.launch(executable_path=path, args=arguments())
        context = browser.new_context(locale="en-GB", ignore_https_errors=True)
        context.set_default_timeout(180_000)
        shown, defects = context.new_page(), list[str]()
        shown.on("pageerror", lambda error: defects.append(str(error)))
        yield shown
        browser.close()
    assert defects == []


def by_the_institute(page: Any, hub: Consortium, login: str) -> None:
    page.goto(hub.origin)
    page.get_by_role("link", name="Sign in with Institute account").click()
    page.locator("input[name=login]").fill(login)
    page.locator("input[name=password]").fill("any")
    page.locator("button[type=submit]").click()
    page.get_by_role("button", name="Continue").click()


def test_a_person_signs_in_at_the_institutes_page(page: Any, hub: Consortium) -> None:
    by_the_institute(page, hub, "ada")
    page.get_by_role("heading", name="Hello, ada").wait_for()
    page.reload()
    page.get_by_role("heading", name="Hello, ada").wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Sign in to the hub").wait_for()


def test_who_has_no_role_is_told_so_at_the_door(page: Any, hub: Consortium) -> None:
    by_the_institute(page, hub, "ben")
    page.get_by_role("alert").wait_for()
    page.evaluate(AXE.read_text())
    assert violations(page, "the door") == []
    assert page.get_by_role("button", name="Sign out").count() == 0


def test_a_person_of_the_directory_signs_in_with_their_password(
    page: Any, hub: Consortium
) -> None:
    page.goto(hub.origin)
    page.get_by_label("Account of").select_option("Institute directory")
    for password in ("not hers", PASSWORD):
        page.get_by_label("Name").fill("mara")
        page.locator("input[type=password]").fill(password)
        page.get_by_role("button", name="Sign in", exact=True).click()
        page.get_by_role("heading", name="Hello, mara").or_(
            page.get_by_role("alert")
        ).wait_for()
    page.get_by_role("heading", name="Hello, mara").wait_for()
