"""This site's part in masked rounds: its secrets, its words, its mask.

    begin -> keys        hear(roster) -> shares        hear(inbox) -> ready to mask
    mask(update)         hear(survivors) -> consent    hear(consents) -> unmask

What a step has made is stored before a byte of it is sent, so an agent that is killed and
started again says the very same words, and never both kinds of share of one peer. The secrets
of a round lie under its study's key (node.studykeys) and are deleted when it is over. The keys
of the other sites are those that a person at this site has pinned with the study (node.peers):
who is not pinned takes no part with us.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from consilia.algo.aggregate import Accumulator, accumulator, widen_into
from consilia.core.carried import Carried
from consilia.core.weights import TensorSpec
from consilia.errors import ConfigError, Refused, UpdateRejected
from consilia.node import coarse, noising, peers, studykeys
from consilia.node.compressing import Feedback
from consilia.node.policy import short
from consilia.node.spending import dp_of
from consilia.node.store import Store, Transaction
from consilia.privacy import ckks, gradients, masked, ring, secagg, shares, vault
from consilia.privacy.streams import random_of
from consilia.stats import sums
from consilia.wire import frames, masks, seal
from consilia.wire.v1 import Lease, Metrics, Said, Sealed, Task, Word, decode, encode

Step = Literal["keys", "shares", "consent", "unmask"]
REPORT = "report"
FEWEST = 3  # sites of a masked round
KEPT = 30 * 86400.0  # seconds that the secrets of a round nobody ended are kept
LONGEST = 7 * 86400.0  # seconds from joining a round to its update, whatever the hub allows
SLACK = 600.0  # seconds
_ORDER = ("", "roster", "inbox", "survivors", "consents")


@dataclass(frozen=True, slots=True)
class Spoken:
    """Where this site is in a masked round: the last word heard, and what it said then."""

    heard: str
    said: Sealed


@dataclass(frozen=True, slots=True)
class Open:
    """A round that was not over when the agent ended."""

    lease: Lease
    spoken: Spoken


@dataclass(frozen=True, slots=True)
class Turn:
    """What this site needs to encrypt, and to open the sum when it is its turn."""

    site: str
    key: bytes
    session: bytes
    survivors: tuple[str, ...] = ()
    place: int = 0  # among the survivors: how many open the sum before this site does
    sum: str = ""  # the frame of the encrypted sum

    def __repr__(self) -> str:
        """Name the turn without its key, so that no log shows it."""
        return f"Turn(site={self.site!r}, place={self.place}, key=hidden)"


@dataclass(frozen=True, slots=True)
class _Row:
    """What is stored of a round."""

    task: Task
    member: secagg.Member
    spoken: Spoken
    at: float  # when this site joined, by its own clock
    timeout: float  # seconds that the hub gave it then


def forget(tx: Transaction, lease: str) -> None:
    """Delete the secrets of a round in a transaction: this site says nothing more in it."""
    tx.execute("DELETE FROM masked WHERE lease = ?", (lease,))


class Masking:
    """The site's masked rounds. Methods block; any thread may call them, one per lease."""

    def __init__(
        self,
        store: Store,
        site: str,
        key: Ed25519PrivateKey,
        now: Callable[[], float],
        random: Callable[[int], bytes],
    ) -> None:
        """`random` gives secret bytes."""
        self._store = store
        self._site = site
        self._key = key
        self._now = now
        self._random = random
        self._rest = studykeys.rest_of(store, random)

    def begin(self, lease: Lease) -> Spoken:
        """Join a round, or go on with it after a restart. Raises Refused."""
        task, row = lease.task, self._row(lease.id)
        if row is not None:
            if row.task != task:
                raise Refused(f"lease {lease.id[:200]} was given before, with another task")
            return row.spoken
        if len(task.cohort) < FEWEST or self._site not in task.cohort:
            raise Refused(
                f"a masked round of {len(task.cohort)} sites: needed {FEWEST} at least, this "
                "one among them"
            )
        self._pins(lease)
        if encrypts(task):
            _require_tenseal()
        context = masked.context(lease.id, _subject(task), task.cohort)
        member, body = secagg.join(self._site, context, self._key.sign, self._random)
        said = self._seal(lease, "keys", body)
        kept = self._locked(lease, member)
        with self._store.write() as tx:
            tx.execute(
                "INSERT INTO masked VALUES (?, ?, ?, '', ?, ?)",
                (lease.id, self._now(), encode(lease), kept, encode(said)),
            )
            self._line(tx, lease, "mask.join", f"cohort {', '.join(task.cohort)}")
        return Spoken("", said)

    def hear(self, lease: Lease, word: Word, opened: str = "") -> Spoken:
        """Take what the hub passes on and say what it asks for.

        `opened` names the frame with the opened sum, in the last step of an encrypted round.

        A word heard before changes nothing. Raises Refused, AuthError or WireError for what
        must not be answered; nothing is said then, now or later.
        """
        row = self._row(lease.id)
        if row is None:
            raise Refused(f"lease {lease.id[:200]} takes part in no masked round here")
        member, spoken = row.member, row.spoken
        if _ORDER.index(word.step) <= _ORDER.index(spoken.heard):
            return spoken
        if _ORDER.index(word.step) != _ORDER.index(spoken.heard) + 1:
            raise Refused(f"word {word.step!r} came before the one that leads to it")
        said, detail = spoken.said, ""
        match word.step:
            case "roster":
                member, body = self._dealt(lease, member, word.body)
                said = self._seal(lease, "shares", body)
            case "inbox":
                member = secagg.receive(member, word.body)
                member = _keyed(member, word.body) if encrypts(lease.task) else member
            case "survivors":
                if not member.spent:
                    raise Refused("survivors were told before this site has sent its update")
                member, body = secagg.consent(member, word.body, self._key.sign)
                said, detail = self._seal(lease, "consent", body), "to the survivors told"
            case "consents":
                member, body = secagg.unmask(member, word.body, self._pins(lease))
                body = vault.named(body, opened) if encrypts(lease.task) else body
                said, detail = self._seal(lease, "unmask", body), "the survivors' sum"
        locked = self._locked(lease, member)
        with self._store.write() as tx:
            if word.step in ("survivors", "consents"):
                _one_sum(tx, lease, member.survivors, opens=word.step == "consents")
            kept = tx.execute(
                "UPDATE masked SET heard = ?, member = ?, said = ? WHERE lease = ?",
                (word.step, locked, encode(said), lease.id),
            )
            if not kept:
                raise Refused(f"lease {lease.id[:200]} has been answered: no word leaves now")
            if detail:
                self._line(
                    tx,
                    lease,
                    f"mask.{'consent' if word.step == 'survivors' else 'open'}",
                    detail,
                )
        return Spoken(word.step, said)

    def _dealt(
        self, lease: Lease, member: secagg.Member, roster: bytes
    ) -> tuple[secagg.Member, bytes]:
        """Deal shares, and in an encrypted round a key with them where this site makes one."""
        member, body = secagg.share(member, roster, self._pins(lease), self._random)
        if encrypts(lease.task) and vault.deals(member):
            return vault.deal(member, body, ckks.make_key(), self._random)
        return member, body

    def turn(self, lease: Lease, word: Word) -> Turn:
        """Judge the consents of an encrypted round; return what opening its sum takes.

        The rules are those by which `hear` unmasks: a threshold of signatures for the very
        survivors that this site has agreed to, one sum of a plan and a model. Raises as it.
        """
        row = self._row(lease.id)
        if row is None or row.spoken.heard != "survivors":
            raise Refused(f"lease {lease.id[:200]} has no survivors whose sum could be opened")
        member = row.member
        secagg.unmask(member, word.body, self._pins(lease))
        with self._store.write() as tx:
            _one_sum(tx, lease, member.survivors, opens=False)
        told, session = decode(word.body, masks.Consents), masks.session_of(member.roster)
        place, alive = member.survivors.index(self._site), member.survivors
        return Turn(self._site, member.cipher_key, session, alive, place, told.sum)

    def spend_key(self, lease: Lease, records: int) -> tuple[Turn, float]:
        """Return what encrypts this site's update, and its weight; its update is fixed now.

        Raises Refused as `mask` does.
        """
        row = self._may_send(lease, records)
        member = secagg.spend(row.member)
        self._put(lease, member)
        session = masks.session_of(member.roster)
        return Turn(self._site, member.cipher_key, session), records / lease.task.total

    def mask(  # noqa: PLR0913, PLR0917 - what is masked, with what, where to
        self, lease: Lease, update: Path, base: Path, out: Path, records: int, metrics: Metrics
    ) -> frames.Header:
        """Write the masked form of an update to `out` and return its header.

        `records` of the site weigh it. Raises Refused when the update is not the site's share
        of the cohort's records, UpdateRejected for a change beyond the range of the ring.
        """
        task, row = lease.task, self._may_send(lease, records)
        masker = self._spend(lease, row.member)
        if (dp := dp_of(task)) is not None and dp.distributed:
            about = (task, dp, row.member, masker, update, base, out)
            if gradients.applies(dp):
                return noising.mask_sum(*about, records / task.total, self._random)
            return noising.mask(*about, self._random)
        weight = records / task.total
        with frames.opened(update) as new, frames.opened(base) as old, out.open("wb") as file:
            header = frames.read_header(new)
            schema = masked.schema(header.schema, task.privacy.bits)
            writer = frames.FrameWriter(file.fileno(), schema)
            _write_extra(writer, masker, weight, metrics)
            for spec, hidden in zip(header.schema, schema[len(masked.EXTRA) :], strict=True):
                scale = masked.scale(spec, task.privacy)
                noise = self._rounding(task, spec) if hidden.dtype == "uint16" else None
                for change in changes(new, old, header, spec):
                    steps = masked.empty(hidden.dtype, change.size)
                    try:
                        ring.quantise(change, scale, weight, steps, noise)
                    except UpdateRejected as e:
                        raise UpdateRejected(f"tensor {spec.name!r}: {e}") from None
                    masker.mask(steps)
                    writer.append(frames.raw_bytes(steps))
            return writer.finish()

    def mask_numbers(self, lease: Lease, numbers: NDArray[np.uint64]) -> bytes:
        """Return the masked form of a vector of the 64-bit ring, for a sum without a model.

        Raises Refused as `mask`; the masks are used once.
        """
        masker = self._spend(lease, self._heard(lease).member)
        hidden = numbers.copy()
        masker.mask(hidden)
        return frames.raw_bytes(hidden).tobytes()

    def keyed(self, lease: Lease) -> int:
        """Return how many sites have sent keys, by the roster that this site has checked."""
        return len(masks.read_roster(self._heard(lease).member.roster).keys)

    def mask_coarse(  # noqa: PLR0913, PLR0917 - what is masked, with what, where to
        self,
        lease: Lease,
        update: Path,
        base: Path,
        out: Path,
        records: int,
        metrics: Metrics,
        feedback: Feedback,
        bound: float,
    ) -> tuple[frames.Header, Carried]:
        """As `mask`, in 8 bits: what they leave out is kept in `feedback`; see node.coarse.

        `bound` is the L2 norm that the change is clipped to, 0 for none.
        """
        task = lease.task
        coarse.require(task.privacy, len(task.cohort))
        row = self._may_send(lease, records)
        masker, weight = self._spend(lease, row.member), records / task.total

        def head(writer: frames.FrameWriter) -> None:
            _write_extra(writer, masker, weight, metrics)

        paths, rounding = (update, base, out), partial(self._rounding, task)
        return coarse.mask(lease, masker, weight, paths, feedback, bound, rounding, head)

    def _rounding(self, task: Task, spec: TensorSpec) -> Callable[[int], bytes]:
        """Return what a tensor is rounded with: from the task's seed when it is to come again.

        It hides nothing, so the hub may know it.
        """
        if not task.deterministic:
            return random_of(self._random(32))
        about = encode(("consilia rounding", task.round, task.seed, spec.name))
        return random_of(hashlib.sha256(about).digest())

    def _spend(self, lease: Lease, member: secagg.Member) -> secagg.Masker:
        """Return the masks of a round, noting first that they are used: it is for once only."""
        masker = secagg.masker(member)
        self._put(lease, secagg.spend(member))
        return masker

    def _put(self, lease: Lease, member: secagg.Member) -> None:
        locked = self._locked(lease, member)
        with self._store.write() as tx:
            tx.execute("UPDATE masked SET member = ? WHERE lease = ?", (locked, lease.id))

    def _locked(self, lease: Lease, member: secagg.Member) -> bytes:
        """Return the round's secrets under the study's key."""
        return self._rest.lock(lease.task.study, encode(member), _about(lease.id))

    def _may_send(self, lease: Lease, records: int) -> _Row:
        """Return the round; Refused unless an update on `records` may leave in it."""
        row, total = self._heard(lease), lease.task.total
        if not 0 < records <= total:
            raise Refused(
                f"{records} records would be weighed against {total} of the whole cohort"
            )
        return row

    def _heard(self, lease: Lease) -> _Row:
        """Return the round once its shares have arrived, Refused before and after."""
        row = self._row(lease.id)
        if row is None or row.spoken.heard != "inbox":
            raise Refused("the round's shares have not arrived: nothing can be masked")
        if not self._now() - row.at < min(row.timeout, LONGEST) + SLACK:
            raise Refused(
                "the round that this site joined must have ended long ago: its masks may have "
                "been used before its disk was put back to an older state"
            )
        return row

    def open(self) -> "list[Open]":
        """Return the rounds not over yet; forget those too old for anybody to end them."""
        with self._store.write() as tx:
            tx.execute("DELETE FROM masked WHERE at < ?", (self._now() - KEPT,))
        rows = self._store.rows("SELECT body, heard, said FROM masked ORDER BY at")
        return [Open(decode(b, Lease), Spoken(h, decode(s, Sealed))) for b, h, s in rows]

    def forget(self, *leases: str) -> None:
        """Delete the secrets of rounds that are over."""
        with self._store.write() as tx:
            for lease in leases:
                forget(tx, lease)

    def _row(self, lease: str) -> "_Row | None":
        rows = self._store.rows(
            "SELECT body, member, heard, said, at FROM masked WHERE lease = ?", (lease,)
        )
        if not rows:
            return None
        body, member, heard, said, at = rows[0]
        spoken, given = Spoken(str(heard), decode(said, Sealed)), decode(body, Lease)
        opened = self._rest.unlock(given.task.study, member, _about(lease))
        known = decode(opened, secagg.Member)
        return _Row(given.task, known, spoken, float(at), given.timeout)

    def _pins(self, lease: Lease) -> dict[str, bytes]:
        """Return the pinned keys of the cohort; Refused when one is missing."""
        pins = peers.pins(self._store, lease.task.study)
        if missing := [s for s in lease.task.cohort if s not in pins]:
            raise Refused(
                f"the keys of {', '.join(missing)} are not pinned for study "
                f"{lease.task.study_name!r}: compare their words with them and run: "
                f"consilia node pin {lease.task.study_name}"
            )
        return {site: pins[site] for site in lease.task.cohort}

    def _seal(self, lease: Lease, step: Step, body: bytes) -> Sealed:
        return seal.seal(REPORT, self._site, encode(Said(lease.id, step, body)), self._key)

    def _line(self, tx: Transaction, lease: Lease, action: str, detail: str) -> None:
        t = lease.task
        about = f"job {t.job}, round {t.round}, study {t.study_name}, digest {short(t.study)}"
        tx.audit(self._now(), "agent", action, lease.id, "done", f"{detail}; {about}")


def encrypts(task: Task) -> bool:
    """Tell whether a task belongs to a round of homomorphic encryption."""
    return task.privacy.aggregation == "ckks"


def _about(lease: str) -> str:
    return f"masked round {lease}"


def _require_tenseal() -> None:
    try:
        ckks.require()
    except ConfigError as e:
        raise Refused(f"the round is encrypted, and at this site {e}") from None


def _keyed(member: secagg.Member, inbox: bytes) -> secagg.Member:
    """Return the member with the round's key; Refused when it is none."""
    member = vault.take(member, inbox)
    try:
        ckks.Cipher(member.cipher_key)
    except UpdateRejected as e:
        raise Refused(str(e)) from None
    return member


def _one_sum(tx: Transaction, lease: Lease, survivors: tuple[str, ...], opens: bool) -> None:
    """Open one sum only of what a plan makes of a model; Refused for other survivors.

    The same plan and arguments on the same model give the same update again, or nearly: the
    sum with a site less the sum without it would be that site's update. So it counts in every
    job and attempt, for ever. Noise of differential privacy makes each update another one.
    """
    task = lease.task
    if dp_of(task) is not None:
        return
    for key in _keys(task):
        known = tx.rows("SELECT survivors FROM sums WHERE id = ?", (key,))
        told = " ".join(survivors)
        if known and known[0][0] != told:
            raise Refused(
                f"this site has helped to open the sum of {known[0][0]} for this plan, model "
                f"and arguments (or statistics); with that of {told} the difference would tell "
                "single sites' updates. Wait for the same sites, or start from another model "
                "(another seed)"
            )
        if opens and not known:
            tx.execute("INSERT INTO sums VALUES (?, ?)", (key, told))


def _keys(task: Task) -> tuple[str, ...]:
    """Return what one sum may be opened of: of statistics, each part for itself."""
    if task.kind == "statistics" and task.privacy.statistics is not None:
        return sums.parts(task.privacy.statistics)
    what: tuple[object, ...] = (task.plan, task.model, sorted(task.arguments.items()))
    if task.kind != "train":  # what is found of a model is another sum than what it is made
        what = (*what, task.kind)
    return (hashlib.sha256(encode(what)).hexdigest(),)


def _subject(task: Task) -> str:
    """Return what a masked round is about: its model or question, and the noise of its sum."""
    asked = task.privacy.statistics if task.kind == "statistics" else None
    about = task.model or "" if asked is None else sums.digest(asked)
    return about + shares.named(dp_of(task))


def _write_extra(
    writer: frames.FrameWriter, masker: secagg.Masker, weight: float, metrics: Metrics
) -> None:
    """Write the masked weight, and the masked metrics, that go before the model's tensors."""
    for spec, values in zip(masked.EXTRA, (np.ones(1), slots(metrics)), strict=True):
        steps = masked.empty(spec.dtype, values.size)
        ring.quantise(values, masked.extra_scale(spec.name), weight, steps)
        masker.mask(steps)
        writer.append(frames.raw_bytes(steps))


def slots(metrics: Metrics) -> NDArray[np.float64]:
    """Return the metrics in their slots: sorted by name, the rest zero."""
    slots = np.zeros(masked.EXTRA[1].size)
    for place, name in enumerate(sorted(metrics)):
        slots[place] = metrics[name]
    return slots


def changes(
    new: int, old: int, header: frames.Header, spec: TensorSpec
) -> Iterator[Accumulator]:
    """Yield new minus old of one tensor, in pieces, in the accumulator's precision."""
    base = frames.read_header(old)
    own = next(e for e in header.entries if e.name == spec.name)
    before = next(e for e in base.entries if e.name == spec.name)
    source = (new, header, own)
    if not own.stored:  # the identical tensor of the base, perhaps under another name
        source = (old, base, frames.borrowed(header, base)[spec.name])
    kind = accumulator(spec.dtype)
    left, right = bytearray(frames.CHUNK), bytearray(frames.CHUNK)
    ours = frames.chunks(*source, left)
    theirs = frames.chunks(old, base, before, right)
    for a, b in zip(ours, theirs, strict=True):
        change, start = np.empty(a.size, kind), np.empty(a.size, kind)
        widen_into(a, change, spec)
        widen_into(b, start, spec)
        np.subtract(change, start, out=change)
        yield change
