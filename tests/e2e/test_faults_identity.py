"""Who may talk to whom: certificates, revocation, forged hubs, clocks that are wrong.

Real agents and a real hub; every refusal tells at the site what is wrong.
"""

import asyncio
import io
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bench.local import CONSILIA, PATIENCE, STUDY, TAG
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from faultkit import KNOWN, Lab, accepted, until

from consilia.errors import AuthError, NotFound, WireError
from consilia.hub.authority import DAY, Authority, issue_node, make_authority
from consilia.hub.blobplane import BlobPlane
from consilia.hub.blobsession import BlobHandle, Upload
from consilia.hub.listener import NodeListener, make_contexts
from consilia.hub.telemetry import make_log
from consilia.node import app
from consilia.wire import frames
from consilia.wire.v1 import (
    Catalogue,
    Declined,
    Enrol,
    Enrolled,
    Failed,
    Lease,
    Orders,
    Plan,
    PlanEntry,
    Poll,
    Progress,
    Renew,
    Report,
    Result,
    Sealed,
    SiteOffers,
    Study,
    Task,
    Verdict,
    plan_digest,
)

SITES = ("a", "b")
HOUR = 3600


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("identity")) as lab:
        lab.open(SITES)
        yield lab


def problem(lab: Lab, site: str) -> str:
    """What keeps an agent from its hub, as its staff are told."""
    command = ("node", "status", "--dir", lab.node_directory(site), "--json")
    found: str = json.loads(lab.cli(*command))["problem"]
    return found


def online(lab: Lab) -> set[str]:
    """The sites that poll."""
    with lab.client() as client:
        return {view.name for view in client.sites() if view.online}


def still_works(lab: Lab) -> None:
    """Assert that a job runs with all sites."""
    lab.ready(*SITES)
    with lab.client() as client:
        view = lab.finish(client, lab.start(client))
        assert view.rounds[1].sites == SITES
        lab.check(client, view)


# ---- certificates --------------------------------------------------------------------------


def stolen(lab: Lab) -> Authority:
    """Return the hub's authority: its operator has been careless with the key."""
    secrets = lab.hub_directory / "secrets"
    key = serialization.load_pem_private_key((secrets / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Authority(x509.load_pem_x509_certificate((secrets / "ca.pem").read_bytes()), key)


@contextmanager
def certified(lab: Lab, site: str, authority: Authority, at: float) -> Iterator[None]:
    """Run an agent whose own key `authority` has certified at the time `at`."""
    secrets = lab.node_directory(site) / "secrets"
    kept = (secrets / "tls.pem").read_bytes()
    key = serialization.load_pem_private_key((secrets / "tls.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    made = issue_node(authority, site, key.public_key(), at, x509.random_serial_number())
    lab.end(site)
    (secrets / "tls.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    try:
        lab.start_node(site)
        yield
        lab.end(site)
    finally:
        (secrets / "tls.pem").write_bytes(kept)
    lab.start_node(site)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "days", "told"),
    [
        ("the hub", -40, "refused the node's certificate: it has expired; join again"),
        ("somebody", 0, "refused the node's certificate: another authority issued it"),
        ("a thief", 0, "this certificate is not in force at the hub"),
    ],
    ids=["expired", "foreign", "never-issued"],
)
def test_a_certificate_that_is_not_in_force(lab: Lab, who: str, days: int, told: str) -> None:
    """The hub refuses it, the site is told why, and with its own it is back."""
    now = time.time()
    authority = stolen(lab)
    if who == "somebody":
        name = authority.certificate.subject.rfc4514_string().removeprefix("CN=Consilia hub ")
        authority = make_authority(name, now, x509.random_serial_number())
    with certified(lab, "b", authority, now + days * DAY):
        until(lab, f"b is told: {told}", lambda: told in problem(lab, "b"))
        assert told in lab.log("b")
        until(lab, "the hub sees b as away", lambda: "b" not in online(lab))
    still_works(lab)


@pytest.mark.slow
def test_join_tokens_work_once_and_in_time(lab: Lab, tmp_path: Path) -> None:
    with lab.client() as client:
        token = client.invite("once").token
        app.join(token, tmp_path / "first")
        told = "the join token is not valid: it was used, has expired, or is not of this hub"
        assert told in lab.refused_join(token, tmp_path / "second")
        late = client.invite("late", 0.1 / HOUR).token
        time.sleep(0.2)
        assert told in lab.refused_join(late, tmp_path / "late")


# ---- revocation ----------------------------------------------------------------------------


@pytest.mark.slow
def test_revoked_in_the_middle_of_a_round(tmp_path: Path) -> None:
    """The next request is refused, the round goes on without; a new invite heals."""
    sites = (*SITES, "c")
    with Lab(tmp_path) as lab:
        lab.open(sites)
        with lab.client() as client:
            job = lab.start(client, 2, min_sites=2, arguments=lab.slow("c"))
            until(lab, "c trains", lambda: lab.trained("c", job) == [1])
            until(lab, "a and b are done", lambda: len(accepted(client, job)) == 3)
            lab.cli("hub", "revoke", "c", "--dir", lab.hub_directory)
            told = "it was revoked, replaced or never issued here; ask the hub's operator"
            until(lab, "c is told", lambda: told in problem(lab, "c"))
            view = lab.finish(client, job)
            assert [r.sites for r in view.rounds[1:]] == [SITES] * 2
            assert view.rounds[1].rejected == {"c": "rejected: the site was revoked"}
            assert view.rounds[1].seconds < PATIENCE, "the round waited for a revoked site"
            lab.check(client, view)
            states = {v.name: (v.state, v.online) for v in client.sites()}
            assert states["c"] == ("revoked", False)
        # Its old keys stay worthless; with a new invite and new keys the site is back.
        lab.end("c")
        lab.node_directory("c").rename(tmp_path / "old-c")
        lab.join("c")
        lab.register("c", tmp_path / "c.csv")
        lab.start_node("c")
        lab.agree("c", lab.plan)
        lab.ready("c")
        with lab.client() as client:
            view = lab.finish(client, lab.start(client, min_sites=3))
            assert view.rounds[1].sites == sites
            assert {v.name: v.state for v in client.sites()}["c"] == "enrolled"
        lab.intact(*sites)


# ---- forged hubs ---------------------------------------------------------------------------


@pytest.mark.slow
def test_another_hub_at_the_hubs_address(lab: Lab, tmp_path: Path) -> None:
    """Nodes talk to nobody who has not the key of the CA they joined."""
    port = lab.addresses["nodes"].rsplit(":", 1)[1]
    other = tmp_path / "hub"
    here = ("--people", "127.0.0.1:0", "--nodes", f"127.0.0.1:{port}", "--host", "127.0.0.1")
    lab.cli("hub", "init", other, *here)
    lab.kill("hub")
    lab.spawn("other", "hub", "serve", "--dir", other)
    lab.wait((other / "run/addresses.json").exists, "the other hub serves")
    told = "is not the hub this node joined"
    for site in SITES:
        until(lab, f"{site} notices", lambda: told in problem(lab, site))  # noqa: B023
    lab.kill("other")
    lab.start_hub()
    still_works(lab)


@dataclass
class ForgedHub:
    """Thieves with every key of the hub, at its address, who ask for what was not allowed."""

    model: Path  # what they send, whatever is asked for
    leases: dict[str, Lease] = field(default_factory=dict)
    answers: dict[str, Report] = field(default_factory=dict)
    offer: Catalogue = field(default_factory=lambda: Catalogue(1))
    plans: dict[str, Plan] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)  # digests of plans

    def identify(self, certificate: bytes) -> str:
        subject = x509.load_der_x509_certificate(certificate).subject
        return str(next(iter(subject)).value)

    async def enrol(self, request: Enrol) -> Enrolled:
        raise AuthError("not today")

    async def renew(self, site: str, request: Renew) -> Enrolled:
        raise AuthError("not today")

    async def offers(self, site: str, study: str) -> SiteOffers:
        raise AuthError("not today")

    async def poll(self, site: str, poll: Poll) -> Orders:
        await asyncio.sleep(0.05)
        mine = [
            lease
            for lease in self.leases.values()
            if lease.id.endswith(f".{site}")
            and lease.id not in self.answers
            and lease.id not in poll.running
        ]
        return Orders(tuple(mine), (), self.offer.version)

    async def report(self, site: str, sealed: Sealed) -> Verdict:
        report = msgspec.msgpack.decode(sealed.payload, type=Report)
        if not isinstance(report, Progress):
            self.answers[report.lease] = report
        return Verdict(True)

    async def advertise(self, site: str, sealed: Sealed) -> Verdict:
        return Verdict(True)

    async def catalogue(self, site: str) -> Catalogue:
        return self.offer

    async def pool(self, site: str, method: str, path: str, body: bytes) -> object:
        raise NotFound(f"{site} pools nothing: {method} {path}, {len(body)} bytes")

    async def plan(self, site: str, digest: str) -> Plan:
        self.asked.append(digest)
        if digest not in self.plans:
            raise NotFound(f"no plan {digest}")
        return self.plans[digest]

    def readable(self, site: str, digest: str) -> BlobHandle:
        return Opened(self.model)

    def upload(self, site: str, lease: str) -> Upload:
        raise WireError("thieves take no uploads in this test")


class Opened:
    """An open file."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY)
        self.size = path.stat().st_size

    def close(self) -> None:
        os.close(self.fd)


Asked = dict[str, tuple[Lease, Report]]


def forged_leases(lab: Lab, study: str, evil: str, model: str) -> Asked:
    """What the thieves ask of site a, and all they may hear: no reason, no result."""

    def asks(name: str, **changes: object) -> Lease:
        honest = Task(
            kind="train",
            job=f"job-{name}",
            round=1,
            study=study,
            study_name=STUDY,
            plan=lab.plan,
            arguments={"parameters": 8},
            tags=(TAG,),
            model=model,
            seed=1,
        )
        task = msgspec.structs.replace(honest, **changes)
        return Lease(f"job-{name}.1.0.a", task, 60.0)

    leases = {
        "an unapproved plan": asks("plan", plan=evil),
        "a first model by an unapproved plan": asks("init", plan=evil, kind="init", model=None),
        "a study that was not accepted": asks("study", study="sha256:" + "0" * 64),
        "other data": asks("data", tags=("everything",)),
        "an argument out of range": asks("range", arguments={"wait": -1}),
        "an argument nobody allowed": asks("argument", arguments={"path": "/etc/passwd"}),
    }
    answers: Asked = {name: (lease, Declined(lease.id)) for name, lease in leases.items()}
    # What the asker may be told: what is wrong with an argument, and nothing else.
    told = {
        "an argument out of range": "argument 'wait' = -1, allowed here: 0 to 1e+09",
        "an argument nobody allowed": "argument 'path' is not among those the approval names",
    }
    answers |= {name: (leases[name], Declined(leases[name].id, t)) for name, t in told.items()}
    # Allowed by the site's own rules, but the frame is not what the digest names.
    swapped = asks("model", model="b3:" + "5" * 64)
    answers["a model that is another"] = (swapped, Failed(swapped.id, "transfer"))
    return answers


@pytest.mark.slow
async def test_a_hub_whose_keys_were_stolen_can_start_nothing(lab: Lab, tmp_path: Path) -> None:
    """TLS is authentic; the site's own decisions stand between the thieves and its data."""
    with lab.client() as client:
        study = client.study(STUDY).digest
    assert study is not None
    mark = tmp_path / "it-ran"
    body = KNOWN.read_text() + f"\nopen({str(mark)!r}, 'w').close()\n"
    evil = Plan("known", {"known.py": body}, "known:PLAN")
    header = frames.write(tmp_path / "model", {"w0": np.zeros(8, np.float32)})
    asked = forged_leases(lab, study, plan_digest(evil), header.digest)
    hub = ForgedHub(tmp_path / "model")
    # Its source under the digest of another plan, which staff may be about to approve.
    innocent = Plan("innocent", {"known.py": KNOWN.read_text() + "\n"}, "known:PLAN")
    hub.plans = {plan_digest(innocent): evil}
    entry = PlanEntry(plan_digest(innocent), "innocent", STUDY, "ada")
    hub.offer = Catalogue(1 << 40, (Study(STUDY, "x", SITES, (TAG,)),), (entry,))
    hub.leases = {lease.id: lease for lease, _ in asked.values()}
    port = int(lab.addresses["nodes"].rsplit(":", 1)[1])
    lab.kill("hub")
    secrets = lab.hub_directory / "secrets"
    ca = (secrets / "ca.pem").read_text()
    contexts = make_contexts(secrets / "server.pem", secrets / "server.key", ca)
    log = make_log(io.StringIO())
    plane = BlobPlane(contexts.blob, hub.identify, hub, log)
    listener = NodeListener(contexts, hub, hub, plane, log)
    await listener.start("127.0.0.1", port)
    workers = {p.pid for p in lab.children("a")}
    try:
        deadline = time.monotonic() + PATIENCE
        while len(hub.answers) < len(asked) or not hub.asked:
            assert time.monotonic() < deadline, f"answered only {hub.answers}"
            await asyncio.sleep(0.05)
    finally:
        await listener.close(1.0)
    for name, (lease, expected) in asked.items():
        assert hub.answers[lease.id] == expected, name
    assert not any(isinstance(answer, Result) for answer in hub.answers.values())
    assert {p.pid for p in lab.children("a")} <= workers, "something was started"
    assert not mark.exists()
    refused = "\n".join(lab.audit_lines("a", "task.refuse"))
    for lease, expected in asked.values():
        if isinstance(expected, Declined):
            assert lease.id in refused
    assert "no approval in force" in refused and "is not accepted here" in refused
    offered = "\n".join(lab.audit_lines("a", "plan.offer"))
    assert plan_digest(innocent) in offered and plan_digest(evil) in offered
    lab.start_hub()
    still_works(lab)


# ---- clocks --------------------------------------------------------------------------------


# The library for several threads, without its command: that one would wait beside the agent.
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


def clock(skew: str) -> tuple[str, ...]:
    """What to put before a command so that its clock, not its stopwatch, is wrong."""
    return "env", f"LD_PRELOAD={FAKETIME}", f"FAKETIME={skew}", "FAKETIME_DONT_FAKE_MONOTONIC=1"


def start_at(lab: Lab, site: str, skew: str) -> None:
    """Start a node whose clock is wrong.

    libfaketime turns an absolute sleep whose end is past by then, as it is on a busy machine,
    into EINVAL: the start fails, and is tried again.
    """

    def away() -> bool:
        with lab.client() as client:
            return site not in {view.name for view in client.sites() if view.online}

    for last in (False, False, False, True):
        lab.wait(away, f"{site} is away")
        lab.start_node(site, prefix=clock(skew))
        try:
            lab.ready(site)
        except RuntimeError as error:
            if last or "[Errno 22]" not in str(error):
                raise
            del lab.processes[site]
        else:
            return


@pytest.mark.slow
@pytest.mark.skipif(
    FAKETIME is None, reason="faketime is not installed (Debian: apt-get install faketime)"
)
def test_clocks_an_hour_wrong(lab: Lab, tmp_path: Path) -> None:
    """One site's clock is an hour late, the other's an hour early; a third joins like that."""
    for site, skew in (("a", "-1h"), ("b", "+1h")):
        lab.end(site)
        start_at(lab, site, skew)
    still_works(lab)
    with lab.client() as client:
        seen = {v.name: v.last_seen or 0.0 for v in client.sites()}
    for site, seconds in (("a", -HOUR), ("b", HOUR)):
        assert abs(seen[site] - time.time()) < 60, "the hub goes by its own clock"
        lines = lab.audit_times(site, "release")
        assert abs(lines[-1] - time.time() - seconds) < 60, "the site goes by its own"
    for attempt in range(4):
        with lab.client() as client:
            token = client.invite("third").token
        where = str(tmp_path / f"third{attempt}")
        joined = subprocess.run(
            [*clock("-1h"), *CONSILIA, "node", "join", "-", "--dir", where],
            input=token,
            env={**os.environ, **lab.environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if "[Errno 22]" not in joined.stderr:  # see start_at
            break
    assert joined.returncode == 0, joined.stderr
    for site in SITES:
        lab.end(site)
        lab.start_node(site)
    still_works(lab)
    lab.intact(*SITES)
