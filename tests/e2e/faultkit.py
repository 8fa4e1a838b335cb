"""What the fault tests stand on: real processes with a known result, and lines that misbehave.

`Lab` is a federation of bench.local running the plan known.py: `check` computes from what the
hub has recorded (which sites are in which round) what the last model must be, and compares.
`Relay` is a TCP relay that counts, holds and cuts.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
import pytest
import yaml
from bench.local import PATIENCE, STUDY, TAG, LocalFederation

import consilia
from commandkit import Commands
from consilia.core.chain import Break, Line
from consilia.core.select import site_seed
from consilia.data.registry import inspect_table
from consilia.errors import ConsiliaError
from consilia.node import app, approvals, audit, datasets, studies
from consilia.node.arguments import Interval
from consilia.node.control import poke
from consilia.node.launcher import Bubblewrap
from consilia.node.store import Store
from consilia.sdk.client import Client
from consilia.wire import frames, people
from consilia.wire.v1 import Plan, Privacy, Study

KNOWN = Path(__file__).parent / "known.py"
ALLOW = {name: Interval(0, 1e9) for name in ("parameters", "wait", "slow", "slow_round")}
ENVIRONMENT = {
    "PYTHONPATH": str(Path(consilia.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
SEED = 7
FOREVER = 1e6  # seconds


@dataclass
class Lab(Commands, LocalFederation):
    """A running federation: a hub, a node for each site, and a plan approved everywhere."""

    environment: Mapping[str, str] = field(default_factory=lambda: ENVIRONMENT)
    sizes: dict[str, int] = field(default_factory=dict)  # records of every site
    plan: str = ""

    def open(self, sites: Sequence[str], *, presence: float = 2.0) -> None:
        """Make and start everything. A site is away after `presence` seconds of silence."""
        self.make_hub()
        configure(self.hub_directory / "hub.yaml", presence_seconds=presence)
        self.start_hub()
        self.each(sites, self.enter)
        self.agree_all(sites)

    def make_hub(self) -> None:
        """Make the hub, where this machine can run workers as a site would."""
        if self.sandbox == "required" and (reason := Bubblewrap().available()):
            pytest.skip(reason)
        super().make_hub()

    def enter(self, site: str) -> None:
        """Let a site join with a table of its own size, and start its agent."""
        self.sizes[site] = 200 + 5 * len(self.sizes)
        table = self.root / f"{site}.csv"
        rows = (f"{i % 7},{i % 2}\n" for i in range(self.sizes[site]))
        table.write_text("x,y\n" + "".join(rows))
        self.join(site)
        self.register(site, table)
        self.start_node(site)

    def agree_all(self, sites: Sequence[str], invited: Sequence[str] = ()) -> None:
        """Offer study and plan to `sites` (and `invited`); have `sites` accept and approve."""
        with self.client() as client:
            client.create_study(Study(STUDY, "test", tuple(sorted((*sites, *invited))), (TAG,)))
            client.submit_study(STUDY)
            plan = Plan("known", {"known.py": KNOWN.read_text()}, "known:PLAN")
            self.plan = client.submit_plan(STUDY, plan).digest
        for site in sites:
            self.agree(site, self.plan)

    # What sites decide goes through the functions behind the commands: a command is a process
    # of half a second, and these tests make many sites.

    def join(self, site: str) -> None:
        """Invite a site and let its node join."""
        with self.client() as client:
            token = client.invite(site).token
        app.join(token, self.node_directory(site), sandbox=self.sandbox)
        configure(self.node_directory(site) / "node.yaml", plain_updates=True)

    def refused_join(self, token: str, directory: Path, *options: str) -> str:
        """Try to join, which must fail and leave nothing that looks joined; return why."""
        done = self.run("node", "join", "-", "--dir", directory, *options, stdin=token)
        assert done.returncode and not (directory / "node.yaml").exists()
        return done.stderr

    def register(self, site: str, table: Path, tag: str = TAG) -> None:
        """Register a table at a site."""
        measured = inspect_table(table, tag, (tag,), now=time.time())
        with self.at(site) as store:
            datasets.add(store, measured, actor="test", now=time.time())

    def agree(self, site: str, plan: str, *_: str) -> None:
        """Accept the study and approve the plan, once the node has heard of them."""
        with self.at(site) as store:
            self.wait(lambda: approvals.known(store, plan), f"{site} hears of the plan")
            now = time.time()
            studies.accept(store, STUDY, actor="test", now=now)
            approvals.approve(store, plan, actor="test", now=now, arguments=ALLOW)

    @contextlib.contextmanager
    def at(self, site: str) -> Iterator[Store]:
        """Open a node's store for a change, and tell its agent."""
        with contextlib.closing(Store.open(self.node_directory(site))) as store:
            yield store
        poke(self.node_directory(site))

    # ---- jobs ----------------------------------------------------------------------------

    def experiment(self, rounds: int = 1, **changes: Any) -> people.Experiment:
        """Return an experiment of the known plan; `arguments` are added to the usual ones."""
        arguments = {"parameters": 8192, **changes.pop("arguments", {})}
        usual = {
            "privacy": Privacy(),
            "min_updates": 2,
            "min_sites": len(self.sizes),  # no round opens while one of them is away
            "grace": PATIENCE,
            "deadline": 2 * PATIENCE,
        }
        return people.Experiment(
            study=STUDY,
            plan=self.plan,
            rounds=rounds,
            arguments=arguments,
            seed=SEED,
            **{**usual, **changes},
        )

    def ready(self, *sites: str) -> None:
        """Wait until these sites' agents poll."""

        def all_there() -> bool:
            with self.client() as client:
                return set(sites) <= {view.name for view in client.sites() if view.online}

        self.wait(all_there, f"{', '.join(sites)} are online")

    def start(self, client: Client, rounds: int = 1, **changes: Any) -> str:
        """Start a job of the known plan; return its id."""
        return client.start(self.experiment(rounds, **changes)).id

    def slow(self, site: str) -> dict[str, float]:
        """Arguments with which a site trains in round 1 until it is let go on."""
        return {"wait": FOREVER, "slow": self.sizes[site], "slow_round": 1}

    def let_go(self, site: str, job: str, times: int = 1) -> None:
        """Let a slow site end its training, once it has begun it so many times."""
        self.wait(lambda: len(self.trained(site, job)) >= times, f"{site} trains")
        os.kill(self.workers(site)[-1].pid, signal.SIGUSR1)

    def check(self, client: Client, view: people.JobView) -> None:
        """Assert that the last model is what the recorded sites' amounts make of the first."""
        last = view.rounds[-1].round
        assert [r.round for r in view.rounds] == list(range(last + 1)), "a round is missing"
        amount = sum(self._mean(r) for r in view.rounds if r.round)
        first, final = (self._model(client, f"{view.id}.{n}") for n in (0, last))
        assert amount > 0
        for name, weights in first.items():
            gap = float(np.abs(final[name] - weights - amount).max())
            assert gap < 1e-5 * max(1.0, amount), f"{name} is off by {gap} after {last} rounds"

    def _mean(self, round: people.RoundView) -> float:
        sizes = [self.sizes[site] for site in round.sites]
        assert round.records == sum(sizes), f"round {round.round} counted {round.records}"
        amounts = [
            float(np.float32(site_seed(SEED, round.round, site) % 1000 / 1000))
            for site in round.sites
        ]
        return float(np.average(amounts, weights=sizes))

    def _model(self, client: Client, id: str) -> dict[str, Any]:
        path = self.root / "model.frame"
        path.unlink(missing_ok=True)
        client.download_model(id, path)
        return dict(frames.read(path))

    # ---- what can be seen ----------------------------------------------------------------

    def log(self, name: str) -> str:
        """What a process has said, and an agent's own log."""
        files = [self.root / f"{name}.log", *self.node_directory(name).glob("log/agent.log*")]
        return "\n".join(f.read_text(errors="replace") for f in files if f.exists())

    def audit_lines(self, site: str, action: str) -> list[str]:
        """Subject and detail of a site's audit lines of one action."""
        return [f"{line.subject} {line.detail}" for line in self._audit(site, action)]

    def audit_times(self, site: str, action: str) -> list[float]:
        """When they were written, by the site's clock."""
        return [line.at for line in self._audit(site, action)]

    def _audit(self, site: str, action: str) -> list[Line]:
        with contextlib.closing(Store.open(self.node_directory(site))) as store:
            assert not isinstance(audit.verify(store), Break)
            return [line for line, _ in audit.every(store) if line.action == action]

    def trained(self, site: str, job: str) -> list[int]:
        """The rounds that a site's workers have begun to train, as they printed them."""
        log = self.node_directory(site) / "log" / "jobs" / f"{job}.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        # A crash report repeats what was said last: each line has its own time.
        found = dict.fromkeys(re.findall(rf"training {site} round (\d+) at ([\d.]+)", text))
        return [int(round) for round, _ in found]

    def children(self, site: str) -> list[psutil.Process]:
        """The processes that an agent has started itself: one for each worker."""
        return psutil.Process(self.processes[site].pid).children()

    def workers(self, site: str) -> list[psutil.Process]:
        """The newest worker of an agent: from the sandbox's outermost process inwards."""
        newest = max(self.children(site), key=lambda process: process.create_time())
        return [newest, *newest.children(recursive=True)]

    def listening(self, site: str) -> list[str]:
        """The TCP and UDP addresses at which an agent or its workers could be called."""
        agent = psutil.Process(self.processes[site].pid)
        return [
            f"{process.name()} {found.laddr}"
            for process in (agent, *agent.children(recursive=True))
            for found in process.net_connections("inet")
            if found.status == psutil.CONN_LISTEN or found.type == socket.SOCK_DGRAM
        ]

    def intact(self, *sites: str) -> None:
        """Assert that the audit chains of the hub and of `sites` hold."""
        with self.client() as client:
            assert client.verify_audit().intact
        for site in sites:
            assert "intact" in self.cli("audit", "verify", "--node", self.node_directory(site))


def configure(path: Path, **changes: Any) -> None:
    """Change keys of a YAML file. Nested keys are written a__b."""
    settings = yaml.safe_load(path.read_text())
    for name, value in changes.items():
        *folders, key = name.split("__")
        place = settings
        for folder in folders:
            place = place.setdefault(folder, {})
        place[key] = value
    path.write_text(yaml.safe_dump(settings, sort_keys=False))


def journal(client: Client, job: str, *types: str) -> list[people.EventView]:
    """A job's journalled events, of these types."""
    found: list[people.EventView] = []
    after = 0
    while page := client.events(job, after, 0.0):
        found += page
        after = page[-1].seq
    return [e for e in found if e.type in types]


def accepted(client: Client, job: str) -> list[str]:
    """The leases of all accepted updates, in the order of acceptance."""
    return [str(e.body["lease"]) for e in journal(client, job, "Accepted")]


def until(
    lab: LocalFederation, what: str, condition: Callable[[], bool], patience: float = PATIENCE
) -> None:
    """Wait for something that is asked of a hub which may be away for a moment."""

    def held() -> bool:
        with contextlib.suppress(ConsiliaError):
            return condition()
        return False

    lab.wait(held, what, patience)


class Relay:
    """A TCP relay in front of 127.0.0.1:`port`. `up` counts the bytes sent to that port.

    hold_after(n)      pass `n` more bytes upwards, then none until `release`
    cut_after(up, down) cut the line that carries the n-th next byte of that way
    cut()              cut every line now
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.up = self.down = self.lines = self.cuts = 0
        self._limit: int | None = None
        self._cuts: list[tuple[str, int]] = []
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._closed = False
        self._change = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._begin(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.release()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def hold_after(self, count: int) -> None:
        """Pass about `count` more bytes upwards, then none."""
        with self._change:
            self._limit = self.up + count

    def release(self) -> None:
        """Pass everything again."""
        with self._change:
            self._limit = None
            self._change.notify_all()

    @property
    def holding(self) -> bool:
        """Whether bytes wait here."""
        return self._limit is not None and self.up >= self._limit

    def cut_after(self, up: int | None = None, down: int | None = None) -> None:
        """Cut the line that carries the n-th next byte upwards, or downwards; once each."""
        with self._change:
            if up is not None:
                self._cuts.append(("up", self.up + up))
            if down is not None:
                self._cuts.append(("down", self.down + down))

    def cut(self) -> None:
        """Cut every line."""
        with self._change:
            pairs = list(self._pairs)
        for pair in pairs:
            self._sever(pair)

    def _accept(self) -> None:
        while not self._closed:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            self._begin(self._serve, line)

    def _begin(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self, line: socket.socket) -> None:
        try:
            there = self._dial(line)
            there.settimeout(None)
        except OSError:
            line.close()
            return
        self.lines += 1
        pair = (line, there)
        with self._change:
            self._pairs.add(pair)
        self._begin(self._pump, pair, "down", there, line)
        self._pump(pair, "up", line, there)

    def _dial(self, line: socket.socket) -> socket.socket:
        """Connect to where `line` wants to go."""
        return socket.create_connection(self._target, 5)

    def _pump(
        self,
        pair: tuple[socket.socket, socket.socket],
        way: str,
        source: socket.socket,
        sink: socket.socket,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if way == "up":
                    with self._change:
                        self._change.wait_for(lambda: not self.holding)
                sink.sendall(data)
                if self._count(way, len(data)):
                    break
        self._sever(pair)

    def _count(self, way: str, count: int) -> bool:
        """Count bytes that went through; return whether their line is to be cut."""
        with self._change:
            if way == "up":
                self.up += count
            else:
                self.down += count
            passed = self.up if way == "up" else self.down
            due = [cut for cut in self._cuts if cut[0] == way and cut[1] <= passed]
            self._cuts = [cut for cut in self._cuts if cut not in due]
            self.cuts += len(due)
            return bool(due)

    def _sever(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._change:
            self._pairs.discard(pair)
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class ConnectProxy(Relay):
    """An HTTP CONNECT proxy with a password; it alone can resolve `name`.

    `asked` lists the targets of accepted requests, `refused` counts the others.
    """

    def __init__(self, name: str, authorisation: str) -> None:
        super().__init__(0)
        self._name = name
        self._authorisation = authorisation
        self.asked: list[str] = []
        self.refused = 0

    def _dial(self, line: socket.socket) -> socket.socket:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (byte := line.recv(1)):
                raise ConnectionError("closed within the request")
            head += byte
        request, *fields = head.decode().split("\r\n")
        method, target, _ = request.split(" ")
        host, port = target.rsplit(":", 1)
        if f"Proxy-Authorization: {self._authorisation}" not in fields:
            self.refused += 1
            line.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            raise ConnectionError("no password")
        if (method, host) != ("CONNECT", self._name):
            self.refused += 1
            line.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            raise ConnectionError("not allowed")
        self.asked.append(target)
        there = socket.create_connection(("127.0.0.1", int(port)), 5)
        line.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return there


@contextlib.contextmanager
def relayed(lab: Lab, sites: Iterable[str]) -> Iterator[dict[str, Relay]]:
    """Put a relay of its own between each of these sites and the hub; agents are restarted."""
    port = int(lab.addresses["nodes"].rsplit(":", 1)[1])
    with contextlib.ExitStack() as stack:
        relays = {site: stack.enter_context(Relay(port)) for site in sites}
        direct = {site: _hub_of(lab, site) for site in relays}
        for site, relay in relays.items():
            _redirect(lab, site, f"https://127.0.0.1:{relay.port}")
        lab.ready(*relays)
        yield relays
        for site, url in direct.items():
            _redirect(lab, site, url)
        lab.ready(*relays)


def _hub_of(lab: Lab, site: str) -> str:
    settings = yaml.safe_load((lab.node_directory(site) / "node.yaml").read_text())
    return str(settings["hub"])


def _redirect(lab: Lab, site: str, url: str) -> None:
    if site in lab.processes:
        lab.end(site)
    configure(lab.node_directory(site) / "node.yaml", hub=url)
    lab.start_node(site)


@contextlib.contextmanager
def small_disk(path: Path, size: int) -> Iterator[None]:
    """Mount a file system of `size` bytes at `path`."""
    path.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(path)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        for _ in range(50):
            if not subprocess.run(
                ["umount", str(path)], check=False, capture_output=True
            ).returncode:
                break
            time.sleep(0.1)
        else:
            subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(directory: Path, leave: int) -> Path:
    """Fill the file system of `directory` up to `leave` free bytes; return the ballast."""
    ballast = directory / "ballast"
    while True:
        disk = os.statvfs(directory)
        count = disk.f_bavail * disk.f_frsize - leave
        assert count > 0, f"{directory} has no {leave} bytes free"
        with ballast.open("wb") as out, contextlib.suppress(OSError):  # who lives here wrote
            os.posix_fallocate(out.fileno(), 0, count)
            return ballast
