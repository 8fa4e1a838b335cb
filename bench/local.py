"""A whole federation on this machine, as real processes started by the real commands.

`LocalFederation`: a hub and one node per site, each a process of its own with its own
directory under `root`, TLS 1.3 with certificates on both sides, free ports on 127.0.0.1.
Benchmarks and end-to-end tests stand on it, or on its base, `Programs`, which runs commands.
Whatever happens, closing leaves no process behind.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from consilia.sdk.client import Client
from consilia.wire import people
from consilia.wire.v1 import Study

CONSILIA = (sys.executable, "-m", "consilia.cli.main")
STUDY = "local"
TAG = "local"
PATIENCE = 150.0  # seconds until something expected counts as missing


@dataclass
class Programs:
    """`consilia` commands run to their end, and processes of it that never outlive a `with`."""

    root: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = field(default=None, kw_only=True)  # where they run; None: here
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, kw_only=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process: ask, wait, kill."""
        for process in self.processes.values():
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + 10
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            _signal(process, signal.SIGKILL)
            process.wait()
        self.processes.clear()

    def variables(self) -> dict[str, str]:
        """Return the environment that commands and processes get."""
        return {**os.environ, **self.environment}

    def run(
        self, *words: object, stdin: str = "", more: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end, whatever that is; `more` is added to its environment."""
        return subprocess.run(
            [*CONSILIA, *map(str, words)],
            input=stdin,
            capture_output=True,
            text=True,
            env={**self.variables(), **(more or {})},
            cwd=self.folder,
            check=False,
            timeout=PATIENCE,
        )

    def cli(
        self, *words: object, stdin: str = "", more: Mapping[str, str] | None = None
    ) -> str:
        """Run one command that must succeed; return its standard output."""
        done = self.run(*words, stdin=stdin, more=more)
        if done.returncode:
            raise RuntimeError(f"consilia {words[:3]}: {done.returncode}: {done.stderr}")
        return done.stdout

    def spawn(self, name: str, *words: object, prefix: Sequence[str] = ()) -> None:
        """Start a command that stays, in a process group of its own; its log is NAME.log."""
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*prefix, *CONSILIA, *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.variables(),
                cwd=self.folder,
                start_new_session=True,
            )

    def end(self, name: str, number: int = signal.SIGTERM) -> int:
        """Send a signal to a process and wait for it; then kill what is left of its group."""
        process = self.processes.pop(name)
        process.send_signal(number)
        try:
            return process.wait(60)
        finally:
            _signal(process, signal.SIGKILL)
            process.wait()

    def kill(self, name: str) -> None:
        """Kill a process as a power cut would (-9), its process group with it."""
        process = self.processes.pop(name)
        _signal(process, signal.SIGKILL)
        process.wait()


@dataclass
class LocalFederation(Programs):
    """A hub and its nodes. Use it in a `with` block."""

    sandbox: Literal["required", "off"] = "required"
    hub_options: tuple[str, ...] = ()  # of `consilia hub init`
    host: str = "127.0.0.1"  # address that the hub listens on and is reached by

    @property
    def hub_directory(self) -> Path:
        """The hub's directory."""
        return self.root / "hub"

    def node_directory(self, site: str) -> Path:
        """The directory of a site's node."""
        return self.root / site

    @property
    def addresses(self) -> Mapping[str, str]:
        """Where the running hub listens: people, nodes."""
        found: dict[str, str] = json.loads(
            (self.hub_directory / "run/addresses.json").read_text()
        )
        return found

    # ---- hub -----------------------------------------------------------------------------

    def make_hub(self) -> None:
        """Make the hub's directory, keys and database; free ports."""
        here = f"{self.host}:0"
        listen = ("--people", here, "--nodes", here, "--host", self.host)
        self.cli("hub", "init", self.hub_directory, *listen, *self.hub_options)

    def start_hub(self) -> None:
        """Start the hub and wait until it answers; keep its ports for the next start."""
        marker = self.hub_directory / "run/addresses.json"
        marker.unlink(missing_ok=True)
        self.spawn("hub", "hub", "serve", "--dir", self.hub_directory)
        self.wait(marker.exists, "the hub listens")
        self._keep_ports()

    def _keep_ports(self) -> None:
        """Write the ports into hub.yaml, so that a restarted hub is where its nodes look."""
        config = self.hub_directory / "hub.yaml"
        text = config.read_text()
        for key, address in (("people_listen", "people"), ("node_listen", "nodes")):
            port = self.addresses[address].rsplit(":", 1)[1]
            text = "\n".join(
                f"{key}: {self.host}:{port}" if line.startswith(f"{key}:") else line
                for line in text.split("\n")
            )
        config.write_text(text)

    @property
    def operator(self) -> Mapping[str, str]:
        """The environment of commands that act as the hub's operator."""
        secrets = self.hub_directory / "secrets"
        return {
            "CONSILIA_URL": self.addresses["people"],
            "CONSILIA_TOKEN": (secrets / "operator.token").read_text().strip(),
            "CONSILIA_CA": str(secrets / "ca.pem"),
        }

    def client(self, role: str = "operator") -> Client:
        """Return a client of the hub with the operator's token, or a new one of `role`."""
        secret = (self.hub_directory / "secrets/operator.token").read_text().strip()
        ca = (self.hub_directory / "secrets/ca.pem").read_text()
        url = self.addresses["people"]
        operator = Client(url, secret, ca)
        if role == "operator":
            return operator
        with operator:
            token = operator.new_token(role, role)
        if token.secret is None:
            raise RuntimeError("the hub made a token without a secret")
        return Client(url, token.secret, ca)

    # ---- sites ---------------------------------------------------------------------------

    def join(self, site: str) -> None:
        """Invite a site and let its node join."""
        token = self.cli("hub", "invite", site, "--dir", self.hub_directory)
        where = self.node_directory(site)
        self.cli("node", "join", "-", "--dir", where, "--sandbox", self.sandbox, stdin=token)
        with (where / "node.yaml").open("a") as settings:
            settings.write("plain_updates: true  # the plain round is measured too\n")

    def register(self, site: str, table: Path, tag: str = TAG) -> None:
        """Register a table at a site."""
        self.cli(
            "dataset",
            "add",
            table,
            "--name",
            tag,
            "--tag",
            tag,
            "--dir",
            self.node_directory(site),
        )

    def start_node(self, site: str, prefix: Sequence[str] = ()) -> None:
        """Start a site's agent."""
        self.spawn(site, "node", "serve", "--dir", self.node_directory(site), prefix=prefix)

    def each(self, sites: Iterable[str], step: Callable[[str], object]) -> None:
        """Run `step` for every site, two at a time; raise its first error."""
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(step, site) for site in sites]:
                done.result()

    def agree(self, site: str, plan: str, *allow: str) -> None:
        """Accept the study and approve the plan, once the node has heard of them."""
        where = self.node_directory(site)

        def known() -> bool:
            return plan in self.cli("node", "plans", "--dir", where, "--json")

        self.wait(known, f"{site} hears of the plan")
        self.cli("node", "accept", STUDY, "--dir", where)
        ranges = [option for text in allow for option in ("--allow", text)]
        self.cli("node", "approve", plan, "--reason", "reviewed", *ranges, "--dir", where)

    # ---- studies and jobs ----------------------------------------------------------------

    def offer(self, client: Client, sites: Sequence[str], source: Path) -> str:
        """Submit the study and a plan; return the plan's digest."""
        if not any(view.study.name == STUDY for view in client.studies()):
            study = Study(STUDY, "measure and test", tuple(sorted(sites)), (TAG,))
            client.create_study(study)
            client.submit_study(STUDY)
        words = ("plan", "submit", source, "--study", STUDY, "--json")
        return str(json.loads(self.cli(*words, more=self.operator))["digest"])

    def finish(self, client: Client, job: str, patience: float = PATIENCE) -> people.JobView:
        """Wait until a job has ended well; return it."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            view = client.job(job)
            if view.state == "done":
                return view
            if view.state in ("failed", "stopped"):
                raise RuntimeError(f"job {job} {view.state}: {view.cause}\n{self.errors()}")
            time.sleep(0.2)  # rarely: what watches a job should not weigh on it
        raise TimeoutError(f"job {job} is {client.job(job)}; logs in {self.root}")

    def errors(self) -> str:
        """Return the last errors and warnings in the logs of every process."""
        logs = [*self.root.glob("*.log"), *self.root.glob("*/log/agent.log")]
        found = (
            f"{log.relative_to(self.root)}: {line}"
            for log in sorted(logs)
            for line in [
                line
                for line in log.read_text(errors="replace").splitlines()
                if '"error"' in line or '"warning"' in line
            ][-5:]
        )
        return "\n".join(found)

    def wait(
        self, condition: Callable[[], bool], what: str, patience: float = PATIENCE
    ) -> None:
        """Wait until `condition` holds."""
        deadline = time.monotonic() + patience
        while not condition():
            if dead := [n for n, p in self.processes.items() if p.poll() is not None]:
                logs = "\n".join((self.root / f"{n}.log").read_text()[-2000:] for n in dead)
                raise RuntimeError(f"{', '.join(dead)} ended while waiting for: {what}\n{logs}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {patience:g} s for: {what}; logs in {self.root}")
            time.sleep(0.05)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
