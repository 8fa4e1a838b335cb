"""Patients who opted out: kept as keyed hashes, left out whenever a dataset is loaded.

An id enters as text, spaces around it taken off, and is kept only as a BLAKE2b hash under a key
of the site's (DIR/secrets/optout.key): the list cannot be read back, nor compared with one of
another site. It holds for every dataset that declares a column of patient ids.

What a dataset's records say together must not betray who has just left: a model trained with
one patient and one trained without differ by that patient. So after a change of the list the
next training task waits until at least k patients of the dataset have changed since the last
one, or adds noise (differential privacy). `wait` decides; docs/how-to/opt-out.md tells it.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from consilia.core.weights import Array
from consilia.errors import ConfigError, NotFound, StorageError
from consilia.files import write_whole
from consilia.node.store import Store, Transaction

KEY = "secrets/optout.key"
KEY_BYTES = 32
HASH_BYTES = 16
MAX_ID = 256  # characters of a patient id
MAX_PATIENTS = 5_000_000  # on the list

Patients = frozenset[bytes]  # hashes of patient ids


@dataclass(frozen=True, slots=True)
class OptedOut:
    """One entry of the list."""

    patient: bytes  # hash
    at: float  # Unix seconds
    actor: str

    @property
    def mark(self) -> str:
        """The first hex digits of the hash: enough to see that an entry is there."""
        return self.patient.hex()[:12]


def wait(before: Patients | None, now: Patients, k: int, private: bool) -> str | None:
    """Say why a release has to wait after a change of the list; None when it need not.

    `before` are the patients left out of a dataset when a task last ran on it without
    differential privacy, None when none ever did; `now` those that are left out today. Who came
    back counts like who left.
    """
    changed = 0 if before is None else len(before ^ now)
    if private or changed == 0 or changed >= k:
        return None
    return (
        f"since the last task {changed} patients opted out or came back; fewer than {k} could "
        "be worked out from the difference: it waits for more, or for differential privacy"
    )


def key(directory: Path, random: Callable[[int], bytes] = os.urandom) -> bytes:
    """Return the site's key for the list, made at its first use."""
    path = directory / KEY
    try:
        if not path.exists():
            write_whole(path, random(KEY_BYTES))
        found = path.read_bytes()
    except OSError as e:
        raise StorageError(f"{path} cannot be read: {e.strerror}") from None
    if len(found) != KEY_BYTES:
        raise StorageError(
            f"{path} has {len(found)} bytes, not {KEY_BYTES}: restore it from a backup; "
            "without it nobody on the opt-out list is recognised"
        )
    return found


def hashed(patient: str, secret: bytes) -> bytes:
    """Return what the list keeps of a patient id; ConfigError for what is none."""
    text = patient.strip()
    if not text or len(text) > MAX_ID or not text.isprintable():
        raise ConfigError(
            f"patient id {text[:20]!r}; needed 1 to {MAX_ID} printable characters, as it "
            "stands in the datasets"
        )
    return hashlib.blake2b(text.encode(), digest_size=HASH_BYTES, key=secret).digest()


def add(store: Store, patients: Iterable[str], secret: bytes, *, actor: str, now: float) -> int:
    """Put patients on the list; return how many are new on it. All of them, or none."""
    hashes = {hashed(p, secret) for p in patients}
    with store.write() as tx:
        new = 0
        for patient in hashes:
            new += tx.execute(
                "INSERT INTO optouts VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (patient, now, actor),
            )
        total = _count(tx)
        if total > MAX_PATIENTS:
            raise ConfigError(f"the opt-out list would hold {total}; at most {MAX_PATIENTS}")
        if new:
            _changed(tx)
        tx.audit(
            now, actor, "optout.add", "opt-out list", "added", f"{new} new, {total} in all"
        )
    return new


def remove(store: Store, patient: str, secret: bytes, *, actor: str, now: float) -> None:
    """Take a patient off the list, who wants to take part again; NotFound when not on it."""
    with store.write() as tx:
        found = tx.execute("DELETE FROM optouts WHERE patient = ?", (hashed(patient, secret),))
        if not found:
            raise NotFound("this patient id is not on the opt-out list")
        _changed(tx)
        detail = f"1 removed, {_count(tx)} in all"
        tx.audit(now, actor, "optout.remove", "opt-out list", "removed", detail)


def entries(store: Store) -> list[OptedOut]:
    """Return the list, oldest first."""
    rows = store.rows("SELECT patient, at, actor FROM optouts ORDER BY at, patient")
    return [OptedOut(bytes(p), float(at), str(actor)) for p, at, actor in rows]


def listed(store: Store) -> Patients:
    """Return everybody on the list."""
    return frozenset(bytes(p) for (p,) in store.rows("SELECT patient FROM optouts"))


def state(store: Store) -> str:
    """Name the list as it is now at this node; "" while nobody is on it. Microseconds."""
    rows = store.rows("SELECT value FROM meta WHERE key = ? AND EXISTS "
                      "(SELECT 1 FROM optouts)", (_CHANGES,))  # fmt: skip
    return f"change {int(rows[0][0])}" if rows else ""


def find(
    ids: Array, missing: NDArray[np.bool_], on_list: Patients, secret: bytes
) -> tuple[NDArray[np.bool_], Patients]:
    """Return which records belong to patients on the list, and those patients."""
    rows = np.zeros(len(ids), np.bool_)
    found: set[bytes] = set()
    known: dict[str, bool] = {}
    for index, patient in enumerate(ids.tolist()):
        if missing[index] or not (text := str(patient).strip()):
            continue
        if text not in known:
            own = hashlib.blake2b(text.encode(), digest_size=HASH_BYTES, key=secret).digest()
            known[text] = own in on_list
            if known[text]:
                found.add(own)
        rows[index] = known[text]
    return rows, frozenset(found)


def packed(patients: Patients) -> bytes:
    """Return patients as they are stored."""
    return b"".join(sorted(patients))


def unpacked(data: bytes) -> Patients:
    """Return what `packed` was given."""
    return frozenset(data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES))


def last_used(store: Store, dataset: str) -> Patients | None:
    """Return who was left out when a task last ran without noise; None when none ever did."""
    rows = store.rows("SELECT patients FROM optout_used WHERE dataset = ?", (dataset,))
    return unpacked(bytes(rows[0][0])) if rows else None


def note_use(tx: Transaction, dataset: str, patients: Patients, now: float) -> None:
    """Write down, with the start of a task, who is left out of it."""
    tx.execute(
        "INSERT INTO optout_used VALUES (?, ?, ?) ON CONFLICT (dataset) DO UPDATE "
        "SET at = excluded.at, patients = excluded.patients",
        (dataset, now, packed(patients)),
    )


def read_ids(lines: Sequence[str]) -> list[str]:
    """Return the ids of a file with one a line; empty lines and # comments are left out."""
    found = [line.strip() for line in lines]
    return [text for text in found if text and not text.startswith("#")]


_CHANGES = "optout_changes"  # in the table meta: how often the list was changed


def _changed(tx: Transaction) -> None:
    """Say that who is left out has changed."""
    tx.execute(
        "INSERT INTO meta VALUES (?, 1) ON CONFLICT (key) DO UPDATE SET value = value + 1",
        (_CHANGES,),
    )
    tx.touch()


def _count(tx: Transaction) -> int:
    ((total,),) = tx.rows("SELECT count(*) FROM optouts")
    return int(total)
