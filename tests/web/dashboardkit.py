"""The hub's dashboard in a real browser: a hub and two hospitals, as processes, and Chromium.

Made with the commands that an operator uses. The browser may reach this machine only; what it
is refused (content security policy) or asks for elsewhere counts as a fault of the page.
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from browserkit import ARGUMENTS, AXE, CHROMIUM, SOURCE, Faults, cohort, free_port, until

from commandkit import Commands
from consilia.hub.rest.pages import STATIC

PHRASE = "seven quiet herons"
SITES = ("hillside", "riverside")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


def browser_program() -> str:
    """Return the path of Chromium; skip the test where it, or the built pages, are missing."""
    pytest.importorskip("playwright", reason="playwright is not installed (extra: dev)")
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    if not (STATIC / "index.html").is_file() or not AXE.is_file():
        pytest.skip("the dashboard's pages are not built: ./run web (needs Node.js and npm)")
    return found


def arguments() -> list[str]:
    """What Chromium is started with."""
    return [*ARGUMENTS, *(("--no-sandbox",) if os.geteuid() == 0 else ())]


class Consortium(Commands):
    """A hub and two hospitals that have joined it, each with a table."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, folder=root)
        self.hub = root / "hub"
        self.people, self.nodes = free_port(), free_port()
        self.person: dict[str, str] = {}
        self.first = ""  # the link of the first operator

    def variables(self) -> dict[str, str]:
        """The environment of somebody who has set nothing, then of the operator."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("CONSILIA_")}
        home = {"HOME": str(self.root), "XDG_STATE_HOME": str(self.root / ".state")}
        return clean | home | {"PYTHONPATH": str(SOURCE)} | self.person

    @property
    def origin(self) -> str:
        """Where the dashboard is."""
        return f"https://127.0.0.1:{self.people}"

    def start_hub(
        self, host: str = "localhost", more: Mapping[str, object] | None = None
    ) -> None:
        """Start the hub alone, reached at `host`; `more` takes the place of its settings."""
        told = self.cli(
            "hub", "init", self.hub, "--people", f"127.0.0.1:{self.people}",
            "--nodes", f"127.0.0.1:{self.nodes}", "--host", host, "--host", "127.0.0.1",
        )  # fmt: skip
        link = re.search(r"https://\S+/invitation#\S+", told)
        assert link, told
        self.first = self.here(link[0])
        settings = self.hub / "hub.yaml"
        said = yaml.safe_load(settings.read_text()) | dict(more or {})
        settings.write_text(yaml.safe_dump(said))
        self.spawn("hub", "hub", "serve", "--dir", self.hub)
        until((self.hub / "run" / "addresses.json").exists)

    def start(self) -> None:
        """Start hub and nodes."""
        self.start_hub()
        for number, site in enumerate(SITES):
            self._join(site, number)
        for site in SITES:
            self.spawn(site, "node", "serve", "--dir", self.root / site)
        self.person = {
            "CONSILIA_URL": f"https://localhost:{self.people}",
            "CONSILIA_TOKEN": (self.hub / "secrets" / "operator.token").read_text().strip(),
            "CONSILIA_CA": str(self.hub / "secrets" / "ca.pem"),
        }

    def here(self, link: str) -> str:
        """Return a link of the hub at the address that the browser may reach."""
        return f"{self.origin}/{link.split('/', 3)[3]}"

    def _join(self, site: str, seed: int) -> None:
        token = self.cli("hub", "invite", site, "--dir", self.hub)
        node = self.root / site
        self.cli("node", "join", "-", "--dir", node, "--sandbox", "off", stdin=token)
        with (node / "node.yaml").open("a") as settings:
            settings.write("min_records: 50\nlimits: {threads: 1}\n")
        table = cohort(self.root / f"{site}.csv", 420 + 100 * seed, seed)
        named = ("--name", "kidney", "--tag", "kidney", "--patient", "patient")
        self.cli("dataset", "add", table, *named, "--dir", node)
        self.cli("dataset", "holdout", "kidney", "--share", "0.3", "--seed", "7", "--dir", node)

    def decide(self, study: str, plan: str) -> None:
        """Let every hospital accept the study and approve the plan."""
        for site in SITES:
            node = self.root / site
            self.wait_for_plan(node, plan)
            self.cli("node", "accept", study, "--dir", node)
            self.cli("node", "approve", plan, "--dir", node)

    def wait_for_plan(self, node: Path, plan: str) -> None:
        """Wait until a hospital has been told of a plan."""
        until(lambda: plan in self.cli("node", "plans", "--dir", node, "--json"))


def watch(page: Any, origin: str, faults: Faults) -> None:
    """Note what a page must not do."""
    page.on("console", lambda message: faults.console(message.type, message.text))
    page.on("pageerror", lambda error: faults.seen.append(f"defect: {error}"))
    page.on("request", lambda request: faults.request(request.url, origin))


def violations(page: Any, where: str) -> list[str]:
    """Return what axe finds on the page as it is; axe is loaded already."""
    result = page.evaluate("rules => axe.run(document, rules)", {"runOnly": RULES})
    return [f"{where}: {v['id']}: {v['nodes'][0]['html'][:160]}" for v in result["violations"]]
