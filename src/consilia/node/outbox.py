"""Answers that a site has made and the hub does not have yet: DIR/outbox and their rows.

An answer is written in the transaction that audits it, and kept until the hub has acknowledged
it, so a restarted agent sends the same answer again instead of training again. Its frame is not
synced: after a power cut an answer whose frame is damaged is dropped, and its task runs again.
What is not masked lies sealed under its study's key. What may be answered is node.release's.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from consilia.errors import ConsiliaError
from consilia.node import maskedevaluation, updates
from consilia.node.masking import forget
from consilia.node.store import Store, Transaction, hashed_name
from consilia.node.studykeys import Rest
from consilia.wire import frames
from consilia.wire.v1 import Lease, Result, Sealed, decode, encode


@dataclass(frozen=True, slots=True)
class Answer:
    """What the node says on a lease, durable and audited; `frame` goes with a result."""

    lease: Lease
    report: Sealed
    frame: Path | None = None
    listens: bool = False  # a masked round goes on with it, without a frame


class Outbox:
    """What waits for the hub. Methods block; any thread may call them."""

    def __init__(
        self, store: Store, folder: Path, rest: Rest, now: Callable[[], float]
    ) -> None:
        """Open the folder, made 0700 when missing."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self._store = store
        self._folder = folder
        self._rest = rest
        self._now = now
        self._lock = threading.Lock()
        self._acknowledged: dict[str, Path | None] = {}  # settled, not yet noted on disk
        self._views: set[tuple[Path, int]] = set()  # frames being sent, opened: descriptors

    def answered(self, lease: str) -> bool:
        """Tell whether this node has ever answered a lease: it never does so twice."""
        return bool(self._store.rows("SELECT 1 FROM leases WHERE id = ?", (lease,)))

    def path(self, lease: str) -> Path:
        """Return where the frame of a lease's answer lies."""
        return self._folder / f"{hashed_name(lease)}.frame"

    def seal(self, lease: Lease) -> None:
        """Put the frame of an answer under its study's key, where it lies."""
        self._rest.keep_in_place(lease.task.study, self.path(lease.id), _about(lease))

    @contextmanager
    def committing(
        self,
    ) -> Iterator[tuple[Transaction, Callable[[str, Path | None], None]]]:
        """One transaction that also notes what was acknowledged; frames go after the commit."""
        with self._lock:
            noted, self._acknowledged = self._acknowledged, {}
        done = dict(noted)
        try:
            with self._store.write() as tx:
                yield tx, done.__setitem__
                for lease in done:
                    tx.execute(
                        "UPDATE leases SET settled = 1, lease = NULL, report = NULL, "
                        "frame = NULL WHERE id = ?",
                        (lease,),
                    )
        except BaseException:
            with self._lock:
                self._acknowledged = {**noted, **self._acknowledged}
            raise
        for frame in done.values():
            if frame is not None:
                self.discard(frame)

    def keep(
        self,
        tx: Transaction,
        lease: Lease,
        report: Sealed,
        frame: str | None,
        listens: bool = False,
    ) -> None:
        """Write an answer down; `frame` is the name of its file, if it has one."""
        if frame is None and not listens:
            forget(tx, lease.id)  # a site that has declined or failed gives out no share
        tx.execute(
            "INSERT INTO leases VALUES (?, ?, 0, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
            "at = excluded.at, settled = 0, report = excluded.report, frame = excluded.frame",
            (lease.id, self._now(), encode(lease), encode(report), frame),
        )

    @contextmanager
    def plain(self, answer: Answer, frame: Path) -> Iterator[Path]:
        """Yield where the frame of an answer can be read while it is sent; FileNotFoundError.

        Once the answer is withdrawn it reads as empty: no more of it is sent.
        """
        about = _about(answer.lease)
        with self._rest.opened(answer.lease.task.study, frame, about) as fd:
            view = (frame, fd)
            with self._lock:
                self._views.add(view)
            try:
                yield Path(f"/proc/self/fd/{fd}")
            finally:
                with self._lock:
                    self._views.discard(view)

    def discard(self, frame: Path) -> None:
        """Remove a frame, and empty what a transfer is reading of it."""
        updates.discard(frame)
        with self._lock:
            for path, fd in self._views:
                if path == frame:
                    with contextlib.suppress(OSError):
                        os.truncate(f"/proc/self/fd/{fd}", 0)

    def acknowledged(self, answer: Answer) -> None:
        """Note that the hub has the answer: written with the next transaction or `flush`."""
        with self._lock:
            self._acknowledged[answer.lease.id] = answer.frame

    def flush(self) -> None:
        """Write down all acknowledgements and remove their frames."""
        with self._lock:
            idle = not self._acknowledged
        if not idle:
            with self.committing():
                pass

    def pending(self) -> list[Answer]:
        """After a restart: return the answers not acknowledged; drop the broken ones."""
        rows = self._store.rows(
            "SELECT lease, report, frame FROM leases WHERE settled = 0 ORDER BY at"
        )
        answers, kept = [], set()
        for lease_bytes, report, name in rows:
            lease, sealed = decode(lease_bytes, Lease), decode(report, Sealed)
            path = None if name is None else self._folder / str(name)
            answer = Answer(lease, sealed, path, self._listens(lease))
            if path is not None and not self._sound(answer, path):
                self._forget(answer)
                continue
            if path is not None:
                kept.add(path.name)
            answers.append(answer)
        for stray in self._folder.iterdir():
            if stray.name not in kept:
                stray.unlink()
        return answers

    def _forget(self, answer: Answer) -> None:
        """Remove an answer whose frame a power cut has damaged: the task may run again."""
        with self._store.write() as tx:
            tx.execute("DELETE FROM leases WHERE id = ?", (answer.lease.id,))
            tx.audit(
                self._now(), "agent", "release.withdraw", answer.lease.id, "dropped",
                "its frame was damaged before it was sent",
            )  # fmt: skip

    def _sound(self, answer: Answer, path: Path) -> bool:
        """Tell whether a kept frame is whole and the one the signed result names."""
        result = decode(answer.report.payload, Result)
        if result.model is None:
            return False
        try:
            with self.plain(answer, path) as view, frames.opened(view) as fd:
                size = os.fstat(fd).st_size
                verifier = frames.Verifier(size, expected=result.model)
                verifier.feed_file(fd, size)
        except (ConsiliaError, OSError):
            return False
        return verifier.complete

    def _listens(self, lease: Lease) -> bool:
        """Tell whether a masked round goes on after an answer without a frame.

        One that declines or fails has deleted the round's secrets with the answer.
        """
        if not (
            maskedevaluation.masks_evaluation(lease.task) or lease.task.kind == "statistics"
        ):
            return False
        return bool(self._store.rows("SELECT 1 FROM masked WHERE lease = ?", (lease.id,)))


def _about(lease: Lease) -> str:
    return f"update of lease {lease.id}"
