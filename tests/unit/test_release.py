"""The one door out: what passes, what does not, and that nothing passes without its line."""

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilia.core.weights import BFLOAT16, Weights, dtype_name, narrow, widen
from consilia.errors import ConsiliaError, Refused, WorkerError
from consilia.node import audit, clip
from consilia.node.config import Limits, NodeConfig
from consilia.node.outbox import Answer
from consilia.node.release import Release
from consilia.node.store import Store
from consilia.privacy import filecrypt
from consilia.privacy.disclosure import BUCKETS, release_duration
from consilia.wire import frames, seal
from consilia.wire.v1 import (
    Advertisement,
    Failed,
    Lease,
    OfferedDataset,
    Plan,
    Progress,
    Report,
    Result,
    Sealed,
    Task,
)
from consilia.wire.worker import Done, WorkerTensor
from nodekit import SITE, stored

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
CONFIG = NodeConfig(SITE, "https://hub:1")
W = np.arange(100_000, dtype=np.float32)
BASE: Weights = {
    "w": W,
    "same": np.ones((3, 4)),
    "n": np.arange(5, dtype=np.int64),
    "none": np.zeros((0, 7), np.float32),
}
NAMES = tuple(f"m{i:063}" for i in range(64))
PLAN = Plan("line", {"plan.py": " ".join(("loss", "AUC", *NAMES))}, "plan:PLAN")
NEW: Weights = {**BASE, "w": W + np.float32(1)}


@dataclass
class Door:
    """A release with its store and a base model."""

    folder: Path
    store: Store
    release: Release
    base: Path

    def pass_through(
        self,
        weights: Weights,
        *,
        records: int = 100,
        metrics: dict[str, float] | None = None,
        base: bool = True,
        available: int = 120,
        cut: int = 0,
        lease: str = "j.1.0.s",
        tensors: tuple[WorkerTensor, ...] | None = None,
    ) -> Answer:
        """Hand over an outcome as a worker does, `cut` bytes short."""
        if tensors is None:
            tensors = tuple(
                WorkerTensor(n, dtype_name(a.dtype), a.shape) for n, a in weights.items()
            )
        data = b"".join(np.ascontiguousarray(a).tobytes() for a in weights.values())
        read, write = os.pipe()

        def feed() -> None:
            with contextlib.suppress(BrokenPipeError), os.fdopen(write, "wb") as pipe:
                pipe.write(data[: len(data) - cut])

        thread = threading.Thread(target=feed)
        thread.start()
        done = Done(records, {"loss": 0.5} if metrics is None else metrics, tensors)
        try:
            return self.release.result(
                task(lease, init=not base),
                done,
                read,
                base=self.base if base else None,
                available=available,
                least=100,
                seconds=3.3,
            )
        finally:
            os.close(read)
            thread.join()

    def lines(self) -> list[str]:
        return [line.action for line, _ in audit.every(self.store)]

    def sent(self, answer: Answer) -> Path:
        """Return a copy of what is sent of an answer; on the disk it lies sealed."""
        assert answer.frame is not None
        assert filecrypt.is_sealed(answer.frame.read_bytes()[:100])
        copy = self.folder / "sent.frame"
        with self.release.outbox.plain(answer, answer.frame) as path:
            copy.write_bytes(path.read_bytes())
        return copy

    def left(self) -> list[Path]:
        return list((self.folder / "outbox").iterdir())


def task(lease: str = "j.1.0.s", init: bool = False) -> Lease:
    kind = "init" if init else "train"
    what = Task(kind, "j", 1, "sha256:5", "hearts", "sha256:7", {}, ("t",), None, 1)  # type: ignore[arg-type]
    return Lease(lease, what, 60.0)


def make(folder: Path, config: NodeConfig = CONFIG) -> Door:
    store = Store.open(folder)
    with store.write() as tx:  # whose source says how metrics may be called
        values = ("sha256:7", "line", msgspec.msgpack.encode(PLAN))
        tx.execute(
            "INSERT INTO plans VALUES "
            "(?, ?, ?, '', 'approved', 0, '', '', 0, 0, '', '{}', '[]')",
            values,
        )
    base = folder / "base.frame"
    frames.write(base, BASE)
    return Door(
        folder,
        store,
        Release(store, folder / "outbox", config, KEY, time.time, os.urandom),
        base,
    )


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    found = make(tmp_path)
    yield found
    found.store.close()


def opened(sealed: Sealed) -> Report:
    body = seal.open_sealed(sealed, "report", KEY.public_key().public_bytes_raw())
    report: Report = msgspec.msgpack.decode(body, type=Report)
    return report


def test_an_update_leaves_with_signature_digest_and_line(door: Door) -> None:
    answer = door.pass_through(NEW)
    report = opened(answer.report)
    assert isinstance(report, Result)
    header = frames.read_header(door.sent(answer))
    assert (report.model, report.records, report.seconds) == (header.digest, 100, 5.0)
    assert [e.name for e in header.entries if not e.stored] == ["same", "n", "none"]
    np.testing.assert_array_equal(stored(door.sent(answer))["w"], NEW["w"])
    (line,) = [line for line, _ in audit.every(door.store)]
    assert (line.action, line.subject, line.outcome) == ("release", "j.1.0.s", "released")
    for word in (header.digest, f"{header.total_bytes} bytes", "job j, round 1", "hearts"):
        assert word in line.detail
    assert "0.5" not in line.detail, "a value is in the audit trail"


@pytest.mark.parametrize(
    ("table", "digest", "state"),
    [("plans", "sha256:7", "revoked"), ("studies", "sha256:5", "left")],
)
def test_no_answer_is_released_after_the_sites_word_was_taken_back(
    door: Door, table: str, digest: str, state: str
) -> None:
    """Between the end of the training and the transaction that releases its update."""
    study = (
        "INSERT INTO studies VALUES ('sha256:5', 'h', x'', 'accepted', 0, '', '', 0, '', '[]')"
    )
    with door.store.write() as tx:
        tx.execute(study)
    door.pass_through(NEW)
    with door.store.write() as tx:
        tx.execute(f"UPDATE {table} SET state = ? WHERE digest = ?", (state, digest))  # noqa: S608 - constants
    before = door.left()
    with pytest.raises(Refused, match=f"was {state} before its answer was written"):
        door.pass_through(NEW, lease="j.2.0.s")
    assert door.left() == before and door.lines() == ["release"]
    assert not door.release.outbox.answered("j.2.0.s"), "it can still be declined"


WRONG = {
    "nan": ({**NEW, "w": np.full(100_000, np.nan, np.float32)}, "not-finite"),
    "infinity": ({**NEW, "same": np.full((3, 4), np.inf)}, "not-finite"),
    "shape": ({**NEW, "n": np.arange(6)}, "plan-contract"),
    "dtype": ({**NEW, "w": NEW["w"].astype(np.float64)}, "plan-contract"),
    "missing": ({"w": NEW["w"]}, "plan-contract"),
    "order": (dict(reversed(NEW.items())), "plan-contract"),
    "extra": ({**NEW, "more": np.ones(3)}, "plan-contract"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_an_update_that_does_not_fit_stays(door: Door, fault: str) -> None:
    weights, cause = WRONG[fault]
    with pytest.raises(WorkerError) as caught:
        door.pass_through(weights)
    assert caught.value.cause == cause
    assert door.lines() == [] and door.left() == []


@pytest.mark.parametrize("cut", [1, 5000, 400_000])
def test_a_worker_that_ends_in_the_middle_leaves_nothing(door: Door, cut: int) -> None:
    with pytest.raises(WorkerError) as caught:
        door.pass_through(NEW, cut=cut)
    assert caught.value.cause == "crashed" and door.left() == []


@pytest.mark.parametrize(
    ("records", "available", "error"),
    [(99, 120, Refused), (0, 120, Refused), (-5, 120, Refused), (121, 120, WorkerError)],
)
def test_record_counts_out_of_bounds(
    door: Door, records: int, available: int, error: type[ConsiliaError]
) -> None:
    with pytest.raises(error):
        door.pass_through(NEW, records=records, available=available)
    assert door.lines() == [] and door.left() == []


@pytest.mark.parametrize("records", [100, 120])
def test_record_counts_at_their_bounds(door: Door, records: int) -> None:
    assert opened(door.pass_through(NEW, records=records).report).records == records  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("metrics", "cause"),
    [
        ({"loss": math.nan}, "not-finite"),
        ({"loss": math.inf}, "not-finite"),
        ({"the patient's name": 1.0}, "plan-contract"),
        ({"x" * 65: 1.0}, "plan-contract"),
        ({"": 1.0}, "plan-contract"),
        ({f"m{i}": 1.0 for i in range(65)}, "plan-contract"),
    ],
)
def test_metrics_out_of_bounds(door: Door, metrics: dict[str, float], cause: str) -> None:
    with pytest.raises(WorkerError) as caught:
        door.pass_through(NEW, metrics=metrics)
    assert caught.value.cause == cause and door.lines() == []
    with pytest.raises(WorkerError):
        door.release.progress("j", 0.5, metrics)


def test_metrics_at_their_bounds(door: Door) -> None:
    metrics = dict.fromkeys(NAMES, 1.0)
    assert opened(door.pass_through(NEW, metrics=metrics).report).metrics == metrics  # type: ignore[union-attr]
    assert opened(door.release.progress("j", 0.25, {"AUC": 0.5})) == Progress("j", 0.25)
    with pytest.raises(WorkerError):
        door.release.progress("j", math.nan, {})


def test_a_first_model_is_whole_and_bounded(tmp_path: Path) -> None:
    size = sum(a.nbytes for a in NEW.values())
    config = msgspec.structs.replace(CONFIG, limits=Limits(update_bytes=size))
    door = make(tmp_path, config)
    answer = door.pass_through(NEW, base=False, records=0, metrics={})
    assert frames.read_header(door.sent(answer)).whole
    with pytest.raises(WorkerError, match="limit"):
        door.pass_through({**NEW, "b": np.ones(1, np.int8)}, base=False, records=0)
    with pytest.raises(WorkerError, match="claims records"):
        door.pass_through(NEW, base=False, records=1)
    for spec in (
        WorkerTensor("w", "float32", (-1, 4)),
        WorkerTensor("w", "object", (1,)),
        WorkerTensor("w", "float32", (1,) * 17),
        WorkerTensor("w\n", "float32", (1,)),
    ):
        with pytest.raises(WorkerError) as caught:
            door.pass_through(
                {"w": np.ones(1, np.float32)}, base=False, records=0, tensors=(spec,)
            )
        assert caught.value.cause == "plan-contract"
    with pytest.raises(WorkerError):
        door.pass_through({}, base=False, records=0)
    door.store.close()


def test_answers_survive_a_restart_until_they_are_acknowledged(door: Door) -> None:
    kept = door.pass_through(NEW, lease="a")
    lost = door.pass_through(NEW, lease="b")
    failed = door.release.failed(task("c"), "timeout")
    assert lost.frame is not None
    with lost.frame.open("r+b") as file:
        file.truncate(1000)
    (door.folder / "outbox" / "stray.frame").write_bytes(b"of a process that was killed")

    again = Release(door.store, door.folder / "outbox", CONFIG, KEY, time.time, os.urandom)
    assert again.outbox.pending() == [kept, failed]
    assert door.left() == [kept.frame]
    assert (
        again.outbox.answered("a")
        and again.outbox.answered("c")
        and not again.outbox.answered("b")
    )
    again.acknowledged(kept)
    again.acknowledged(failed)
    again.outbox.flush()
    assert door.left() == [] and again.outbox.pending() == [] and again.outbox.answered("a")


def test_acknowledgements_ride_on_the_next_transaction(door: Door) -> None:
    first = door.pass_through(NEW, lease="a")
    door.release.acknowledged(first)
    assert first.frame is not None and first.frame.exists()
    second = door.pass_through(NEW, lease="b")
    assert not first.frame.exists() and door.release.outbox.pending() == [second]


def test_a_withdrawn_answer_is_gone_and_audited(door: Door) -> None:
    answer = door.pass_through(NEW)
    door.release.withdraw(answer, "taken back by the hub")
    assert door.left() == [] and door.release.outbox.pending() == []
    assert door.lines() == ["release", "release.withdraw"]


def test_a_refusal_keeps_its_reasons_at_home(door: Door) -> None:
    silent = door.release.declined(task(), ["only 7 records"], "task.refuse")
    assert opened(silent.report).disclosed == ""  # type: ignore[union-attr]
    (line,) = [line for line, _ in audit.every(door.store)]
    assert "only 7 records" in line.detail


def test_a_failure_is_one_word_and_counted(door: Door) -> None:
    for i in range(3):
        answer = door.release.failed(task(f"l{i}"), "memory")
        assert opened(answer.report) == Failed(f"l{i}", "memory")
    assert door.store.rows("SELECT count FROM failures") == [(3,)]


def test_the_public_state_is_signed_with_the_trails_head_and_audited_once(door: Door) -> None:
    def told(state: Advertisement) -> Advertisement:
        sealed = door.release.advertisement(state)
        public = KEY.public_key().public_bytes_raw()
        found: Advertisement = msgspec.msgpack.decode(
            seal.open_sealed(sealed, "advertisement", public), type=Advertisement
        )
        return found

    state = Advertisement("1", (OfferedDataset("cohort", ("t",), 120),))
    first = told(state)
    assert (first.audit_length, first.audit_head) == audit.head(door.store)
    assert first.audit_length == 1 == told(state).audit_length
    assert told(Advertisement("1")).audit_length == 2
    door.release.failed(task(), "timeout")
    assert told(Advertisement("1")).audit_length == 3, "an older head was signed"


def test_durations_are_bucketed() -> None:
    assert [release_duration(s) for s in (0.0, 0.1, 0.11, 59.9, 3600, 3601)] == [
        *(0.1, 0.1, 0.2, 60.0, 3600.0, 7200.0)
    ]
    assert {release_duration(s / 7) for s in range(3600 * 7)} == set(map(float, BUCKETS))


# ---- clipping -------------------------------------------------------------------------------


@pytest.mark.parametrize(("bound", "moved"), [(1e9, 1.0), (50.0, 50.0 / math.sqrt(100_001))])
def test_an_update_is_clipped_to_its_norm(tmp_path: Path, bound: float, moved: float) -> None:
    door = make(tmp_path, msgspec.structs.replace(CONFIG, clip_norm=bound))
    same = np.ones((3, 4))
    same[0, 0] += 1
    new: Weights = {**NEW, "same": same, "n": np.arange(5, 10)}
    answer = door.pass_through(new)
    sent = stored(door.sent(answer))
    first = sent["w"].astype(np.float64)[:100]
    np.testing.assert_allclose(sent["same"].astype(np.float64)[0, 0], 1 + moved, rtol=1e-12)
    np.testing.assert_allclose(first - W[:100], moved, rtol=1e-4)
    np.testing.assert_array_equal(sent["n"], new["n"])  # integers are no coordinates
    with door.sent(answer).open("rb") as a, door.base.open("rb") as b:
        assert clip.norm(a.fileno(), b.fileno()) <= min(bound, math.sqrt(100_001)) * (1 + 1e-4)
    assert opened(answer.report).model == frames.read_header(door.sent(answer)).digest  # type: ignore[union-attr]
    door.store.close()


def test_half_precision_is_clipped_in_double(tmp_path: Path) -> None:
    old = {"h": np.zeros(8, np.float16), "b": narrow(np.zeros(8, np.float32))}
    new = {"h": np.full(8, 3, np.float16), "b": narrow(np.full(8, 4, np.float32))}
    a, b, out = (tmp_path / name for name in ("a", "b", "out"))
    frames.write(a, new)
    frames.write(b, old)
    with a.open("rb") as left, b.open("rb") as right:
        assert clip.norm(left.fileno(), right.fileno()) == math.sqrt(8 * 25)
        clip.scaled(left.fileno(), right.fileno(), 0.5, out)
    half = frames.read(out)
    assert half["b"].dtype == BFLOAT16
    np.testing.assert_array_equal(half["h"], np.full(8, 1.5, np.float16))
    np.testing.assert_array_equal(widen(half["b"]), np.full(8, 2, np.float32))
