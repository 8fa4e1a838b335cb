"""A hospital's console in a real browser: a hub, two nodes, the console's process and Chromium.

Made with the commands that a hospital uses. The browser may reach this machine only, and what
it is refused (content security policy) or asks for elsewhere counts as a fault of the page.
"""

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import consilia
from commandkit import Commands
from consilia.node.console import serve

SOURCE = Path(consilia.__file__).parents[1]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "use-the-console.md"
WEB = Path(__file__).resolve().parents[2] / "web"
AXE = WEB / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)  # fmt: skip

NUMBERS = '''"""Sums that both steps of the plan need."""

import numpy as np


def residual(weights, x, y):
    """How far the prediction is from what was measured."""
    return x @ weights["slope"] + weights["offset"][0] - y
'''
PLAN = '''"""Kidney function from age, blood pressure and creatinine: linear regression."""

import os

import numpy as np

from consilia.plans.numpy import numpy_plan
from numbers_of_it import residual


def init(args, seed):
    """Start from nothing."""
    return {"slope": np.zeros(3, np.float32), "offset": np.zeros(1, np.float32)}


def train(weights, data, args, context):
    """A few passes of gradient descent over this hospital's records."""
    loss = 0.0
    for epoch in range(args["epochs"]):
        for x, y in data.batches(32, shuffle=True):
            scaled = (x - [60, 135, 1]) / [15, 20, 0.4]
            error = residual(weights, scaled.astype(np.float32), y)
            weights["slope"] -= args["lr"] * (scaled.T @ error / len(x)).astype(np.float32)
            weights["offset"] -= args["lr"] * np.float32(error.mean())
            loss = float((error**2).mean())
        context.progress((epoch + 1) / args["epochs"], loss=loss)
    return {"loss": loss}


def predict(weights, data, args):
    """The kidney function of every record."""
    scaled = (data.x - [60, 135, 1]) / [15, 20, 0.4]
    return scaled @ weights["slope"] + weights["offset"][0]


PLAN = numpy_plan(
    init,
    train,
    features=["age", "systolic", "creatinine"],
    target="egfr",
    arguments={"lr": 0.05, "epochs": 3},
    predict=predict,
    predicts="number",
)
'''
SLOW = '''"""Mean creatinine, slowly: a task that one can watch, and stop."""

import time

import numpy as np

from consilia.plans.numpy import numpy_plan


def init(args, seed):
    """Start from nothing."""
    return {"mean": np.zeros(1, np.float32)}


def train(weights, data, args, context):
    """Compute a little, wait a little, for up to a minute."""
    for step in range(300):
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            weights["mean"] += np.float32(0)
        time.sleep(0.15)
        context.progress((step + 1) / 300)
    return {}


PLAN = numpy_plan(init, train, features=["creatinine"], target="egfr")
'''


def free_port() -> int:
    """A TCP port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(ready: Callable[[], bool], seconds: float = 180.0) -> None:
    """Wait for something outside this process."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"waited {seconds} s"
        time.sleep(0.1)


def settled(page: Any) -> None:
    """Wait for the end of what moves or fades on a page."""
    page.evaluate(
        "() => Promise.allSettled(document.getAnimations()"
        ".filter(a => a.effect.getComputedTiming().endTime < Infinity).map(a => a.finished))"
    )


def plan_folder(root: Path) -> Path:
    """Write the training plan as its researcher has it: two files."""
    folder = root / "kidney"
    folder.mkdir()
    (folder / "plan.py").write_text(PLAN)
    (folder / "numbers_of_it.py").write_text(NUMBERS)
    return folder


def elsewhere(path: Path, records: int, seed: int) -> Path:
    """Write a cohort as a hospital with other habits exports it: names, units, codes differ."""
    lines = cohort(path, records, seed).read_text().splitlines()
    out = [lines[0].replace("creatinine", "kreatinin")]
    for line in lines[1:]:
        patient, sex, age, systolic, creatinine, admitted, egfr = line.split(",")
        word, micromolar = {"f": "female", "m": "male"}[sex], float(creatinine) * 88.42
        out.append(f"{patient},{word},{age},{systolic},{micromolar:.1f},{admitted},{egfr}")
    path.write_text("\n".join(out) + "\n")
    return path


def cohort(path: Path, records: int, seed: int) -> Path:
    """Write a made-up cohort as a hospital would export it; some values are missing."""
    rng = np.random.default_rng(seed)
    age = rng.normal(61, 14, records).clip(18, 95).round()
    systolic = rng.normal(136, 19, records).clip(85, 210).round()
    creatinine = rng.gamma(9, 0.12, records).clip(0.4, 4).round(2)
    egfr = 170 + age * -0.9 + systolic * -0.12 + creatinine * -22 + rng.normal(0, 6, records)
    lines = ["patient,sex,age,systolic,creatinine,admitted,egfr"]
    for i in range(records):
        month, day = rng.integers(1, 13), rng.integers(1, 29)
        lines.append(
            f"P{i:04d},{'f' if rng.random() < 0.52 else 'm'},{age[i]:.0f},{systolic[i]:.0f},"
            f"{creatinine[i]:.2f},2025-{month:02d}-{day:02d},{egfr[i].clip(5, 140):.1f}"
        )
    path.write_text("\n".join(lines) + "\n")
    return path


def browser_program() -> str:
    """Return the path of Chromium; skip the test where it, or the built pages, are missing."""
    pytest.importorskip("playwright", reason="playwright is not installed (extra: dev)")
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    if not (serve.STATIC / "index.html").is_file() or not AXE.is_file():
        pytest.skip("the console's pages are not built: ./run web (needs Node.js and npm)")
    return found


@dataclass
class Faults:
    """What a page did that it must not: errors, refusals of its policy, requests elsewhere."""

    seen: list[str] = field(default_factory=list)

    def console(self, kind: str, text: str) -> None:
        """Note an error of the page, but for answers that a test provokes."""
        if kind in ("error", "warning") and "the server responded with a status of" not in text:
            self.seen.append(f"{kind}: {text}")

    def request(self, url: str, origin: str) -> None:
        """Note a request that leaves the console's own origin."""
        if not url.startswith((f"{origin}/", "data:", "blob:")):
            self.seen.append(f"request elsewhere: {url}")


class Hospitals(Commands):
    """A hub and two hospitals, as processes; `hillside` decides by commands."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, folder=root)
        self.hub, self.node = root / "hub", root / "riverside"
        self.people, self.nodes, self.port = free_port(), free_port(), free_port()
        self.person: dict[str, str] = {}

    def variables(self) -> dict[str, str]:
        """The environment of a person who has set nothing, then of the researcher."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("CONSILIA_")}
        home = {"HOME": str(self.root), "XDG_STATE_HOME": str(self.root / ".state")}
        return clean | home | {"PYTHONPATH": str(SOURCE)} | self.person

    @property
    def origin(self) -> str:
        """Where the console is."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start hub, nodes and the console; `riverside` has a file and nothing registered."""
        self.cli(
            "hub", "init", self.hub, "--people", f"127.0.0.1:{self.people}",
            "--nodes", f"127.0.0.1:{self.nodes}",
        )  # fmt: skip
        self.spawn("hub", "hub", "serve", "--dir", self.hub)
        until((self.hub / "run" / "addresses.json").exists)
        exports = self.root / "exports"
        exports.mkdir()
        cohort(exports / "kidney-2025.csv", 640, 1)
        self._join("hillside", "")
        self._join(
            "riverside",
            f"console: {{listen: '127.0.0.1:{self.port}', data_roots: ['{exports}']}}\n",
        )
        table = cohort(self.root / "hillside.csv", 420, 2)
        self.cli(
            "dataset", "add", table, "--name", "kidney", "--tag", "kidney", "--mock", "--dir",
            self.root / "hillside",
        )  # fmt: skip
        for site in ("hillside", "riverside"):
            self.spawn(site, "node", "serve", "--dir", self.root / site)
        self.spawn("console", *self.written(0))
        until(lambda: self.origin in (self.root / "console.log").read_text())
        secret = self.cli(
            "hub", "token", "create", "ada", "--role", "researcher", "--dir", self.hub
        )
        self.person = {
            "CONSILIA_URL": f"https://localhost:{self.people}",
            "CONSILIA_TOKEN": secret.strip(),
            "CONSILIA_CA": str(self.hub / "secrets" / "ca.pem"),
        }

    def _join(self, site: str, more: str) -> None:
        token = self.cli("hub", "invite", site, "--dir", self.hub)
        node = self.root / site
        self.cli("node", "join", "-", "--dir", node, "--sandbox", "off", stdin=token)
        with (node / "node.yaml").open("a") as settings:
            settings.write(f"min_records: 50\nlimits: {{threads: 1}}\n{more}")

    def written(self, number: int) -> list[str]:
        """One command of the how-to, with this node's directory for the page's."""
        commands = re.findall(r"^\$ consilia (.*?)(?: &)?$", PAGE.read_text(), re.MULTILINE)
        return [w.replace("/srv/consilia", str(self.node)) for w in commands[number].split()]

    def invitation(self) -> str:
        """A link to an account at the console."""
        link: str = json.loads(self.cli(*self.written(1), "--json"))["link"]
        return link

    def decide_elsewhere(self, study: str, plan: str) -> None:
        """Let the other hospital accept the study and approve the plan."""
        node = self.root / "hillside"
        until(lambda: plan in self.cli("node", "plans", "--dir", node, "--json"))
        self.cli("node", "accept", study, "--dir", node)
        self.cli("node", "approve", plan, "--dir", node)
