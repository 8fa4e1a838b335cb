"""A hostile node, properly enrolled, against the real hub: each attack is rejected and told.

One job has a round for each attack. The hostile site is asked in every round like the others;
whatever it sends, the round closes with the honest sites, its record says why the hostile one
is not in it, and the last model is the honest mean.
"""

import asyncio
import http.client
import math
import os
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import msgspec
import numpy as np
import pytest
from bench.local import STUDY, TAG
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from faultkit import Lab, accepted

from consilia.core.weights import Weights
from consilia.errors import AuthError, Conflict, Refused, UpdateRejected, WireError
from consilia.node import identity
from consilia.node.blobline import BlobLine
from consilia.node.line import Credentials, Retry, client_context
from consilia.node.link import HttpLink
from consilia.wire import frames, hello
from consilia.wire.header import MAGIC, encode_header
from consilia.wire.problem import error_of
from consilia.wire.seal import seal
from consilia.wire.token import split_url
from consilia.wire.v1 import (
    Advertisement,
    Declined,
    Failed,
    Lease,
    OfferedDataset,
    Poll,
    Report,
    Result,
    Sealed,
    Verdict,
    encode,
)

HONEST = ("a", "b")
EVIL = "evil"
RECORDS = 500  # that the hostile site advertises


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("updates")) as lab:
        lab.make_hub()
        lab.start_hub()
        lab.each(HONEST, lab.enter)
        lab.join(EVIL)
        lab.sizes[EVIL] = RECORDS
        lab.agree_all(HONEST, invited=(EVIL,))
        yield lab


class Evil:
    """A node that holds a site's real keys and does with them what it wants."""

    def __init__(self, lab: Lab) -> None:
        directory = lab.node_directory(EVIL)
        secrets = directory / "secrets"
        self.lab = lab
        self.folder = directory
        self.key = identity.load(directory, EVIL).signing
        self.url = lab.addresses["nodes"]
        self.credentials = Credentials(
            secrets / "tls.pem", secrets / "tls.key", secrets / "ca.pem"
        )
        self.link = HttpLink(self.url, self.credentials, random=lambda: 0.5)
        self.blobs = BlobLine(
            split_url(self.url),
            self.context(hello.BLOB),
            None,
            retry=Retry(attempts=1),
            random=lambda: 0.5,
            frame_limit=1 << 30,
        )
        self.sent: list[Sealed] = []
        self.seen: list[str] = []  # leases

    def context(self, alpn: str) -> ssl.SSLContext:
        return client_context(alpn, self.credentials.ca.read_text(), self.credentials)

    async def close(self) -> None:
        self.blobs.close()
        await self.link.close()

    async def advertise(self, study: str) -> None:
        offered = OfferedDataset("d", (TAG,), RECORDS)
        said = Advertisement("0", (offered,), (study,), (self.lab.plan,))
        await self.link.advertise(seal("advertisement", EVIL, encode(said), self.key))

    async def lease(self) -> Lease:
        """Return the next lease. One that is being rejected may come once more."""
        while True:
            orders = await self.link.poll(Poll("s", tuple(self.seen), 0, 10.0))
            for lease in orders.leases:
                self.seen.append(lease.id)
                return lease
            await asyncio.sleep(0.01)  # the catalogue has news that a hostile node ignores

    async def base(self, lease: Lease) -> Weights:
        """Return the model that a lease starts from."""
        assert lease.task.model is not None
        path = self.folder / "base"
        path.unlink(missing_ok=True)
        await asyncio.to_thread(self.link.fetch, lease.task.model, path)
        return frames.read(path)

    async def trained(self, lease: Lease) -> Weights:
        """Return an honest update."""
        amount = np.float32(lease.task.seed % 1000 / 1000)
        base = await self.base(lease)
        return {name: np.asarray(w, np.float32) + amount for name, w in base.items()}

    def frame(self, weights: Weights) -> bytes:
        """Return weights as a frame, unsound numbers included."""
        path = self.folder / "frame"
        frames.write(path, weights, check_finite=False)
        return path.read_bytes()

    async def put(self, lease: str, body: bytes, total: int | None = None) -> str:
        """Send bytes as a lease's upload; return the frame digest, or raise what is told."""
        return await asyncio.to_thread(self._put, lease, body, total or len(body))

    def _put(self, lease: str, body: bytes, total: int) -> str:
        with self.blobs.line() as line:
            fields = {"Upload-Offset": "0", "Upload-Length": str(total)}
            line.request("PUT", f"/v1/uploads/{lease}", body, fields)
            answer = line.getresponse()
            told = answer.read()
        if answer.status != 200:
            raise error_of(answer.status, told)
        return answer.getheader("Frame-Digest", "")

    async def report(self, report: Report, **changes: object) -> Verdict:
        """Sign and send a report; `changes` are made after it was signed."""
        sealed = seal("report", EVIL, encode(report), self.key)
        self.sent.append(sealed)
        return await self.link.report(msgspec.structs.replace(sealed, **changes))

    async def result(self, lease: Lease, body: bytes, **changes: object) -> Verdict:
        """Upload a frame and report it, with `changes` to an honest result."""
        digest = await self.put(lease.id, body)
        task = lease.task
        honest = Result(lease.id, task.job, task.round, digest, RECORDS, {"amount": 0.5})
        return await self.report(msgspec.structs.replace(honest, **changes))

    async def give_up(self, lease: Lease) -> None:
        """End a lease that an attack has left open."""
        assert (await self.report(Failed(lease.id, "internal"))).accepted


# ---- attacks: what is done in a round, and what its record says of the hostile site ----------

Attack = Callable[[Evil, Lease], Awaitable[None]]
ATTACKS: dict[str, tuple[Attack, str]] = {}
GAVE_UP = r"failed: internal"
COUNTED = ""


def attack(rejected: str) -> Callable[[Attack], Attack]:
    """Add an attack; `rejected` is what the round's record must say, COUNTED if nothing."""

    def add(function: Attack) -> Attack:
        ATTACKS[function.__name__] = (function, rejected)
        return function

    return add


async def _refused(sending: Awaitable[object], kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        await sending


def _changed(weights: Weights, value: float) -> Weights:
    """Put one value into the last place of the last tensor."""
    name = list(weights)[-1]
    tensor = weights[name].copy()
    tensor[-1] = value
    return {**weights, name: tensor}


@attack(r"rejected: tensor 'w3' holds NaN or infinity")
async def nan(evil: Evil, lease: Lease) -> None:
    body = evil.frame(_changed(await evil.trained(lease), math.nan))
    await _refused(evil.result(lease, body), UpdateRejected, "holds NaN or infinity")


@attack(r"rejected: tensor 'w3' holds NaN or infinity")
async def infinity(evil: Evil, lease: Lease) -> None:
    body = evil.frame(_changed(await evil.trained(lease), -math.inf))
    await _refused(evil.result(lease, body), UpdateRejected, "holds NaN or infinity")


@attack(r"rejected: the result names no model: an empty update cannot be averaged")
async def empty_update(evil: Evil, lease: Lease) -> None:
    task = lease.task
    verdict = await evil.report(Result(lease.id, task.job, task.round, None, RECORDS))
    assert not verdict.accepted and "empty update" in verdict.reason


@attack(r"rejected: frame header is not valid: .*length >= 1")
async def no_tensors(evil: Evil, lease: Lease) -> None:
    body = encode_header(()).ljust(64, b"\0")
    await _refused(evil.put(lease.id, body), WireError, "frame header is not valid")


@attack(r"rejected: the update does not have the model's shape: .*w0")
async def wrong_shape(evil: Evil, lease: Lease) -> None:
    weights = await evil.trained(lease)
    verdict = await evil.result(lease, evil.frame({**weights, "w0": weights["w0"][:-1]}))
    assert not verdict.accepted


@attack(r"rejected: the update does not have the model's shape: .*float16")
async def wrong_type(evil: Evil, lease: Lease) -> None:
    weights: Weights = {n: w.astype("float16") for n, w in (await evil.trained(lease)).items()}
    assert not (await evil.result(lease, evil.frame(weights))).accepted


@attack(r"rejected: the update does not have the model's shape: .*w3")
async def missing_tensor(evil: Evil, lease: Lease) -> None:
    weights = await evil.trained(lease)
    del weights["w3"]
    assert not (await evil.result(lease, evil.frame(weights))).accepted


@attack(r"rejected: the update does not have the model's shape: ")
async def another_order(evil: Evil, lease: Lease) -> None:
    weights = dict(reversed((await evil.trained(lease)).items()))
    assert not (await evil.result(lease, evil.frame(weights))).accepted


@attack(r"rejected: the result is of job 'job-other' round \d+, its lease of job ")
async def another_jobs_update(evil: Evil, lease: Lease) -> None:
    body = evil.frame(await evil.trained(lease))
    assert not (await evil.result(lease, body, job="job-other")).accepted


@attack(r"rejected: the result is of job .* round 999, its lease of job .* round \d+")
async def another_rounds_update(evil: Evil, lease: Lease) -> None:
    body = evil.frame(await evil.trained(lease))
    assert not (await evil.result(lease, body, round=999)).accepted


@attack(r"rejected: the result names frame b3:0{64}, uploaded was b3:")
async def another_digest(evil: Evil, lease: Lease) -> None:
    body = evil.frame(await evil.trained(lease))
    assert not (await evil.result(lease, body, model="b3:" + "0" * 64)).accepted


@attack(rf"rejected: the update claims {RECORDS * 1000} records, needed 1 to {RECORDS + 4}")
async def too_heavy(evil: Evil, lease: Lease) -> None:
    body = evil.frame(await evil.trained(lease))
    assert not (await evil.result(lease, body, records=RECORDS * 1000)).accepted


@attack(r"rejected: the update claims 0 records")
async def no_records(evil: Evil, lease: Lease) -> None:
    body = evil.frame(await evil.trained(lease))
    assert not (await evil.result(lease, body, records=0)).accepted


@attack(r"rejected: the update claims -200 records")
async def negative_records(evil: Evil, lease: Lease) -> None:
    body = evil.frame(await evil.trained(lease))
    assert not (await evil.result(lease, body, records=-200)).accepted


@attack(r"rejected: metric 'loss' is nan, needed a finite number")
async def nan_metric(evil: Evil, lease: Lease) -> None:
    body = evil.frame(await evil.trained(lease))
    assert not (await evil.result(lease, body, metrics={"loss": math.nan})).accepted


@attack(r"rejected: 65 metrics, at most 64 are allowed")
async def many_metrics(evil: Evil, lease: Lease) -> None:
    body = evil.frame(await evil.trained(lease))
    metrics = {f"m{i}": 1.0 for i in range(65)}
    assert not (await evil.result(lease, body, metrics=metrics)).accepted


@attack(r"rejected: frame of 10737418240 bytes is over the limit of \d+")
async def ten_gb_announced(evil: Evil, lease: Lease) -> None:
    sending = evil.put(lease.id, MAGIC, 10 << 30)
    await _refused(sending, WireError, "over the limit")


@attack(r"rejected: frame header of 4294967295 bytes is over the limit")
async def ten_gb_header(evil: Evil, lease: Lease) -> None:
    body = MAGIC + b"\xff\xff\xff\xff" + os.urandom(1000)
    await _refused(evil.put(lease.id, body), WireError, "frame header of 4294967295 bytes")


@attack(r"rejected: frame of 10737418368 bytes, limit \d+")
async def ten_gb_tensor(evil: Evil, lease: Lease) -> None:
    entry = frames.TensorEntry("w", "float32", (10 << 28,), 0, 10 << 30, bytes(32), True)
    body = encode_header((entry,)).ljust(128, b"\0")
    await _refused(evil.put(lease.id, body), WireError, "frame of 10737418368 bytes")


@attack(r"rejected: not a tensor frame: it starts with")
async def garbage(evil: Evil, lease: Lease) -> None:
    body = b"\x80\x04\x95pickle" + os.urandom(30_000)
    await _refused(evil.put(lease.id, body), WireError, "not a tensor frame")


@attack(r"rejected: 64 bytes after the end of the frame")
async def bytes_after_the_end(evil: Evil, lease: Lease) -> None:
    body = evil.frame(await evil.trained(lease)) + bytes(64)
    await _refused(evil.put(lease.id, body), WireError, "bytes after the end of the frame")


@attack(r"rejected: tensor 'w3' does not match its digest: bytes damaged")
async def a_flipped_bit(evil: Evil, lease: Lease) -> None:
    body = bytearray(evil.frame(await evil.trained(lease)))
    body[-100] ^= 1
    await _refused(evil.put(lease.id, bytes(body)), WireError, "bytes damaged")


@attack(
    r"rejected: tensor 'w0' is left out as unchanged, but the model .* holds no such tensor"
)
async def tensors_left_out_that_the_hub_has_not(evil: Evil, lease: Lease) -> None:
    """Claims that a tensor is unchanged, which it is not."""
    weights = await evil.trained(lease)
    path = evil.folder / "partial"
    digest = frames.tensor_digest("float32", weights["w0"].tobytes())
    frames.write(path, weights, unchanged={digest})
    assert not (await evil.result(lease, path.read_bytes())).accepted


@attack(GAVE_UP)
async def half_an_update(evil: Evil, lease: Lease) -> None:
    body = evil.frame(await evil.trained(lease))
    await evil.put(lease.id, body[:5000], len(body))
    task = lease.task
    result = Result(lease.id, task.job, task.round, "b3:" + "0" * 64, RECORDS)
    await _refused(evil.report(result), Conflict, "is not complete: send the rest first")
    await evil.give_up(lease)


@attack(GAVE_UP)
async def somebody_elses_lease(evil: Evil, lease: Lease) -> None:
    """Neither an upload nor a report for another site's lease has any effect."""
    body = evil.frame(await evil.trained(lease))
    other = lease.id.removesuffix(EVIL) + "a"
    await _refused(evil.put(other, body), Refused, f"{EVIL!r} does not hold lease")
    for report in (Failed(other, "crashed"), Declined(other)):
        verdict = await evil.report(report)
        assert not verdict.accepted and "was not given to site 'evil'" in verdict.reason
    await evil.give_up(lease)


@attack(GAVE_UP)
async def a_forged_signature(evil: Evil, lease: Lease) -> None:
    report = Failed(lease.id, "crashed")
    forged = seal("report", EVIL, encode(report), Ed25519PrivateKey.generate())
    await _refused(evil.link.report(forged), AuthError, "is not signed with its registered key")
    changed = evil.report(report, payload=encode(Failed(lease.id, "timeout")))
    await _refused(changed, AuthError, "is not signed with its registered key")
    await _refused(evil.report(report, site="a"), AuthError, "signed in the name of 'a'")
    other = seal("advertisement", EVIL, encode(report), evil.key)
    await _refused(evil.link.report(other), AuthError, "needed one for 'report'")
    await evil.give_up(lease)


@attack(GAVE_UP)
async def old_reports_again(evil: Evil, lease: Lease) -> None:
    """Everything that was ever sent, once more: no round but this one is open."""
    for sealed in tuple(evil.sent):
        try:
            await evil.link.report(sealed)
        except (AuthError, Conflict):
            continue  # it was refused the first time as well
    await evil.give_up(lease)


@attack(GAVE_UP)
async def models_of_others(evil: Evil, lease: Lease) -> None:
    """A digest names a frame and authorises nothing."""
    with evil.lab.client() as client:
        first = client.model(f"{lease.task.job}.0").digest
    if first == lease.task.model:
        raise AssertionError("this attack needs a later round than the first")
    fetching = asyncio.to_thread(evil.link.fetch, first, evil.folder / "stolen")
    await _refused(fetching, Refused, "has no lease that starts from frame")
    await evil.give_up(lease)


@attack(GAVE_UP)
async def garbage_in_messages(evil: Evil, lease: Lease) -> None:
    for path, body, status in (
        ("/v1/report", os.urandom(1000), 400),
        ("/v1/report", b"", 400),
        ("/v1/poll", b"\x81\xa7session\xdd\xff\xff\xff\xff", 400),
        ("/v1/report", bytes(5 << 20), 400),
        ("/v1/nothing", b"", 404),
        ("/api/v1/jobs", b"", 404),
    ):
        found = await asyncio.to_thread(evil_post, evil, path, body)
        assert found == status, f"{path} with {body[:8]!r} gave {found}"
    unreadable = seal("report", EVIL, os.urandom(100), evil.key)
    await _refused(evil.link.report(unreadable), WireError, "is not valid")
    await evil.give_up(lease)


def evil_post(evil: Evil, path: str, body: bytes) -> int:
    host, port = split_url(evil.url)
    line = http.client.HTTPSConnection(
        host, port, context=evil.context(hello.CONTROL), timeout=30
    )
    try:
        line.request("POST", path, body)
        return line.getresponse().status
    finally:
        line.close()


@attack(COUNTED)
async def the_same_update_twice(evil: Evil, lease: Lease) -> None:
    """Accepted once; said again it is the same answer; another one is refused."""
    body = evil.frame(await evil.trained(lease))
    assert (await evil.result(lease, body)).accepted
    assert (await evil.link.report(evil.sent[-1])).accepted
    task = lease.task
    other = Result(lease.id, task.job, task.round, "b3:" + "1" * 64, RECORDS)
    verdict = await evil.report(other)
    assert not verdict.accepted and "has another update already" in verdict.reason
    await _refused(evil.put(lease.id, body), Refused, "its round is over, or it was never")


@asynccontextmanager
async def evil_node(lab: Lab) -> AsyncIterator[Evil]:
    evil = Evil(lab)
    try:
        with lab.client() as client:
            study = client.study(STUDY).digest
        assert study is not None
        await evil.advertise(study)
        yield evil
    finally:
        await evil.close()


@pytest.mark.slow
async def test_every_attack_is_rejected_with_its_cause_and_alone(lab: Lab) -> None:
    attacks = list(ATTACKS.values())
    async with evil_node(lab) as evil:
        polling = asyncio.create_task(evil.lease())  # while it polls it is online
        await asyncio.sleep(0.2)
        with lab.client() as client:
            job = lab.start(client, len(attacks), min_updates=2, min_sites=3)
            done: dict[int, str] = {}
            while len(done) < len(attacks):
                lease = await polling
                if lease.task.kind == "init":
                    assert (await evil.report(Declined(lease.id, "no"))).accepted
                else:
                    function, expected = attacks[lease.task.round - 1]
                    await function(evil, lease)
                    done[lease.task.round] = expected
                polling = asyncio.create_task(evil.lease())
            view = await asyncio.to_thread(lab.finish, client, job)
            polling.cancel()
            for round in view.rounds[1:]:
                name, expected = list(ATTACKS)[round.round - 1], done[round.round]
                if expected == COUNTED:
                    assert round.sites == (*HONEST, EVIL) and not round.rejected, name
                    continue
                assert round.sites == HONEST, f"{name}: {round.sites}"
                assert round.rejected.keys() == {EVIL}, f"{name}: {round.rejected}"
                assert re.match(expected, round.rejected[EVIL]), f"{name}: {round.rejected}"
            lab.check(client, view)
            mine = [lease for lease in accepted(client, job) if lease.endswith(f".{EVIL}")]
            assert len(mine) == 1
            refusals = [line.detail for line in client.audit() if line.actor == f"site:{EVIL}"]
            assert any("was not given to site" in detail for detail in refusals)
        lab.intact(*HONEST)
        assert not any((lab.hub_directory / "spool").iterdir())
        assert "a defect" not in lab.log("hub")
