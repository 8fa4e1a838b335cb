"""Masked rounds at the hub: pass messages on, sum what it cannot read, unmask the sum.

The hub never holds a key or a site's update. What it passes on it cannot change: keys and
consents are signed by the sites, shares sealed from site to site. It learns one number of a
round that closes: the sum, over the survivors that a threshold of sites has signed for.
"""

import base64
from collections.abc import Callable, Iterable, Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from consilia.algo.aggregate import Accumulator, Read, accumulator, cast, widen_into
from consilia.core import steps
from consilia.core.round import JobState, Tell
from consilia.core.weights import Array, Schema, TensorSpec
from consilia.errors import EmptyRound, UpdateRejected
from consilia.privacy import masked, ring, secagg, vault
from consilia.privacy.streams import Ring
from consilia.wire.masks import Consents
from consilia.wire.v1 import Metrics, Privacy, Said, Word, decode, encode

PIECE = 64 << 10  # elements worked on at a time: they stay in the cache


def context(state: JobState) -> bytes:
    """Return what binds the messages of the open round to this attempt at it."""
    attempt = f"e{state.attempt}" if state.kind == "evaluate" else f"{state.attempt}"
    lease = f"{state.job}.{state.round}.{attempt}.hub"
    subject, judging = state.config.statistics or state.model or "", state.config.evaluating
    noise = state.config.noise
    if state.kind == "evaluate":
        noise = "" if judging is None else judging.noise
    return masked.context(lease, subject + noise, steps.cohort(state))


def said(state: JobState, step: str) -> dict[str, bytes]:
    """Return what each site has said in a step of the open round."""
    return {
        lease.site: base64.b64decode(body)
        for lease in state.leases.values()
        for name, body in lease.words.items()
        if name == step
    }


def unmasker(state: JobState) -> secagg.Unmasker:
    """Return what takes the masks off the sum of the open round's survivors."""
    bound = context(state)
    members = secagg.roster(bound, said(state, "keys"))
    shares, words = said(state, "shares"), said(state, "unmask")
    return secagg.unmasker(bound, members, shares, survivors(state), words)


def sum_of(bodies: Iterable[str]) -> NDArray[np.uint64]:
    """Return the sum, in the ring of 64 bits, of vectors as the journal keeps them."""
    total: NDArray[np.uint64] = np.sum(
        [np.frombuffer(base64.b64decode(body), "<u8") for body in bodies],
        axis=0,
        dtype=np.uint64,
    )
    return total


def survivors(state: JobState) -> tuple[str, ...]:
    """Return the sites whose updates are in, sorted."""
    found = (lease.site for lease in state.leases.values() if lease.status == "accepted")
    return tuple(sorted(found))


class Words:
    """What sites are told, so that they can do the step they are asked for.

    All inboxes are made at once, of all shares: they are kept until another round asks.
    """

    def __init__(self) -> None:
        """Start with nothing kept."""
        self._about: tuple[bytes, tuple[str, ...]] = (b"", ())
        self._boxes: dict[str, bytes] = {}

    def word(self, state: JobState, tell: Tell, total: str = "") -> Word:
        """Return what one site is told; its lease is one of the open round's.

        `total` names the frame of the survivors' sum in an encrypted round.
        """
        match tell.step:
            case "shares":
                body = secagg.roster(context(state), said(state, "keys"))
                return Word(tell.lease, "roster", body)
            case "update":
                return Word(tell.lease, "inbox", self._inboxes(state)[tell.site])
            case "consent":
                body = secagg.survivors(context(state), survivors(state))
                return Word(tell.lease, "survivors", body)
            case _:
                body = secagg.consents(said(state, "consent"))
                if total:
                    body = encode(msgspec.structs.replace(decode(body, Consents), sum=total))
                return Word(tell.lease, "consents", body)

    def _inboxes(self, state: JobState) -> dict[str, bytes]:
        sharers = (lease.site for lease in state.leases.values() if "shares" in lease.words)
        about = (context(state), tuple(sorted(sharers)))
        if about != self._about:
            shares = said(state, "shares")
            boxes = secagg.inboxes(shares)
            if state.config.encrypted:
                boxes = vault.passed_on(shares, boxes)
            self._about, self._boxes = about, boxes
        return self._boxes


def check(state: JobState, site: str, message: Said, public_key: bytes) -> None:
    """Raise WireError when a site's message is malformed or not of this round and step.

    `public_key` is the one the site is registered with.
    """
    if message.step != state.step:
        return  # early, late or said before: the machine passes it over
    body, about = message.body, context(state)
    if message.step == "keys":
        secagg.check_keys(body, site, about, public_key)
        return
    roster = secagg.roster(about, said(state, "keys"))
    parties = secagg.Parties(tuple(said(state, "shares")), survivors(state))
    match message.step:
        case "shares":
            secagg.check_shares(body, site, roster)
            vault.check(body, site, roster, state.config.encrypted)
        case "consent":
            secagg.check_consent(body, site, roster, parties, public_key)
        case "unmask":
            secagg.check_unmask(body, site, roster, parties)


class MaskedFold:
    """The sum of masked updates; after `open`, their mean, as algo.aggregate.Fold gives it.

    Memory: one array for each tensor, which holds the sum in the ring and then the mean in
    the same bytes (16-bit rings and integers of fewer bytes take more).
    """

    def __init__(self, schema: Schema, privacy: Privacy) -> None:
        """Start empty, for a model of `schema`."""
        self._schema = schema
        self._privacy = privacy
        self._masked = masked.schema(schema, privacy.bits)
        self._sums = {spec.name: masked.empty(spec.dtype, spec.size) for spec in self._masked}
        self._means: dict[str, Accumulator] = {}
        self.weight = 0.0  # of all survivors together, once opened
        self.metrics: tuple[float, ...] = ()
        self.clear()

    def clear(self) -> None:
        """Start again, empty, in the same memory."""
        self._means = {}
        self.updates = 0

    def add(self, records: int, read: Read) -> None:
        """Add one masked update, in the ring. `records` is not used: weights are masked."""
        for spec in self._masked:
            total, done = self._sums[spec.name], 0
            for chunk in read(spec):
                part = total[done : done + chunk.size]
                if chunk.dtype != part.dtype or chunk.size != part.size:
                    raise UpdateRejected(f"masked tensor {spec.name!r} is too long or another")
                if self.updates:
                    np.add(part, chunk, out=part)
                else:
                    part[...] = chunk
                done += chunk.size
            if done != total.size:
                raise UpdateRejected(f"masked tensor {spec.name!r} ended after {done} elements")
        self.updates += 1

    def open(
        self,
        unmasker: secagg.Unmasker,
        old: Callable[[TensorSpec], Iterator[Array]],
        total: int = 1,
    ) -> None:
        """Take the masks off the sum and turn it into the mean model.

        `total` are the records that weights are shares of; `old` yields the
        base model's tensors, as flat pieces of any length.
        """
        if not self.updates:
            raise EmptyRound("no masked update was accepted, so there is nothing to unmask")
        for spec in masked.EXTRA:
            unmasker.subtract(self._sums[spec.name])
        (self.weight,) = self._floats(masked.WEIGHT)
        if not 0 < self.weight <= 1 + 1e-6:
            raise UpdateRejected(
                f"the masked weights add up to {self.weight:g}, needed above 0 and at most 1: "
                "a site did not weigh its update by its share of the records"
            )
        self.metrics = tuple(v / self.weight for v in self._floats(masked.METRICS))
        for spec, hidden in zip(self._schema, self._masked[len(masked.EXTRA) :], strict=True):
            step = masked.scale(spec, self._privacy, total) * self.weight
            self._open_tensor(spec, self._sums[hidden.name], step, unmasker, old(spec))

    def mean(self, spec: TensorSpec) -> Accumulator:
        """Return the tensor's mean, flat, float32 or float64; EmptyRound before `open`."""
        if spec.name not in self._means:
            raise EmptyRound("the masked sum was not opened, so there is no mean")
        return self._means[spec.name]

    def result_chunk(self, spec: TensorSpec, start: int, stop: int) -> Array:
        """Return elements `start` to `stop` of the tensor's mean in its own dtype, flat."""
        return cast(self.mean(spec)[start:stop], spec.dtype)

    def _floats(self, name: str) -> list[float]:
        signed = self._sums[name].view(np.int64)
        return [float(v) / masked.extra_scale(name) for v in signed]

    def _open_tensor(
        self,
        spec: TensorSpec,
        total: Ring,
        step: float,
        unmasker: secagg.Unmasker,
        old: Iterator[Array],
    ) -> None:
        kind = accumulator(spec.dtype)
        same = kind.itemsize == total.dtype.itemsize
        mean = total.view(kind) if same else np.empty(total.size, kind)
        done = 0
        base = np.empty(PIECE, kind)
        for chunk in old:
            for start in range(0, chunk.size, PIECE):
                part = chunk[start : start + PIECE]
                stop = done + part.size
                unmasker.subtract(total[done:stop])
                change = ring.dequantise(total[done:stop], step, kind)
                widen_into(part, base[: part.size], spec)
                np.add(change, base[: part.size], out=mean[done:stop])
                done = stop
        self._means[spec.name] = mean


def opener(
    state: JobState, fold: MaskedFold, old: Callable[[TensorSpec], Iterator[Array]]
) -> None:
    """Unmask the sum of exactly the survivors of the open round."""
    accepted = [lease for lease in state.leases.values() if lease.status == "accepted"]
    told = tuple((lease.site, lease.id, "", lease.records) for lease in accepted)
    fold.open(unmasker(state), old, total(told))


def metrics(state: JobState, values: tuple[float, ...]) -> Metrics:
    """Name the unmasked metrics; none when the survivors did not all name the same ones."""
    accepted = [lease for lease in state.leases.values() if lease.status == "accepted"]
    names: set[tuple[str, ...]] = {tuple(sorted(lease.metrics)) for lease in accepted}
    if len(names) != 1:
        return {}
    return dict(zip(names.pop(), values, strict=False))


def total(updates: tuple[tuple[str, str, str, int], ...]) -> int:
    """Return the record count that every weight was taken of; UpdateRejected if they differ."""
    found = {count for _, _, _, count in updates}
    if len(found) != 1:
        raise UpdateRejected(f"the sites weighed their updates by different totals: {found}")
    return found.pop()
