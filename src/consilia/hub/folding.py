"""From spooled updates to the next model's frame, streamed: what the folding thread does.

An `Aggregate` belongs to one round of one job. Updates are folded as they are accepted; `close`
folds what is still missing (all of them in deterministic mode, in site order) and streams base
model, mean and optimizer state through the strategy, chunk by chunk, into new frames. Memory
is one model (the mean) and a few chunks.

The optimizer state of strategies that keep one (FedAdam's m and v) is a frame of its own: its
first tensor names job and round, so that no two rounds share a frame; then, for every piece of
every floating-point tensor, one piece per slot, in the order in which they are used.

Everything here blocks and runs in one thread at a time. Errors are ConsiliaErrors whose text
tells why the round cannot be closed.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from consilia.algo.aggregate import Accumulator, Fold, Read, accumulator, cast, widen_into
from consilia.algo.compress import Codec, recut, restored
from consilia.algo.robust import Floats, check
from consilia.algo.strategy import Strategy, steps
from consilia.core.weights import DTYPES, Array, Schema, TensorSpec, dtype_name
from consilia.errors import StorageError, UpdateRejected
from consilia.hub.blobs import Blob, Blobs, Spool
from consilia.hub.combining import Choice, Combined, squares
from consilia.wire import frames
from consilia.wire.frames import CHUNK, FrameWriter, Header, TensorEntry

PIECE = CHUNK // 4  # elements handled at a time
SYNC_FIRST = 8 << 20  # bytes; adopting syncs too, but uploads of other sites wait for it


@dataclass(frozen=True, slots=True)
class Update:
    """One accepted update, as core.round's Close lists it."""

    site: str
    lease: str
    digest: str
    records: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a job makes its next model: the strategy, its options, and its state so far."""

    strategy: Strategy
    options: Mapping[str, float]
    optimizer: str | None  # digest of the state frame, None before the first round


@dataclass(frozen=True, slots=True)
class Made:
    """A new model, durable under its digest; `optimizer` likewise, None without state.

    Of a masked round, `records` and `metrics` are what its sum holds of them. `alarms`, `told`
    and `notes` are from hub.watching: when they led back, `header` is that of a model before.
    """

    header: Header
    optimizer: str | None
    records: int | None = None
    metrics: Mapping[str, float] | None = None
    alarms: tuple[str, ...] = ()  # with figures, for the audit
    told: tuple[str, ...] = ()  # the same for everybody who sees the job
    notes: Mapping[str, float] = field(default_factory=dict)


class Result(Protocol):
    """What a round's updates have become: `Means`, or hub.combining.Combined."""

    def mean(self, spec: TensorSpec) -> Accumulator:
        """Return a tensor's mean, flat."""

    def result_chunk(self, spec: TensorSpec, start: int, stop: int) -> Array:
        """Return a part of a tensor's mean in its own dtype."""


class Means(Result, Protocol):
    """What updates are folded into: algo.aggregate.Fold, hub.masking.MaskedFold."""

    def add(self, records: int, read: Read) -> None:
        """Fold one update."""

    def clear(self) -> None:
        """Start again, empty."""


Finish = Callable[[Means, Callable[[TensorSpec], Iterator[Array]]], None]


class Aggregate:
    """The updates of one round, folded as they come. Not thread-safe."""

    def __init__(
        self,
        blobs: Blobs,
        base: str,
        checkpoint: Callable[[str], None] = lambda _: None,
        means: Callable[[Schema], Means] = Fold,
        codec: Codec | None = None,
    ) -> None:
        """Open the frame `base` that a round starts from; `means` makes what it folds into.

        Updates are compressed by `codec`, if there is one.
        """
        self._codec = codec
        self._blobs = blobs
        self._means = means
        self._checkpoint = checkpoint
        self._buffer = bytearray(CHUNK)
        self._open(base)
        self._fold: Means | None = None
        self._folded: list[str] = []  # leases

    def _open(self, base: str) -> None:
        self._base = self._blobs.open(base)
        self.header = frames.read_header(self._base.fd)

    def rebase(self, base: str) -> None:
        """Start the next round, from the frame `base`, in the memory of the last one."""
        schema = self.header.schema
        self._leave_base()
        self._open(base)
        if self.header.schema != schema:
            self._fold = None
        self.reset()

    def add(self, update: Update) -> None:
        """Fold one spooled update; on an error everything folded so far must be folded anew."""
        if self._fold is None:
            self._fold = self._means(self.header.schema)
        with self._blobs.read_spool(update.lease) as spool:
            try:
                self._fold.add(update.records, self._reader(spool, update))
            except UpdateRejected as e:
                raise UpdateRejected(f"update of site {update.site!r}: {e}") from e
        self._folded.append(update.lease)

    def close(
        self,
        name: str,
        round: int,
        updates: Sequence[Update],
        recipe: Recipe,
        finish: Finish | None = None,
    ) -> Made:
        """Make the model of exactly `updates` durable; `name` is unique to this attempt.

        `finish` makes the mean of what was folded, given how to read the base's tensors.
        """
        leases = {u.lease for u in updates}
        if not leases.issuperset(self._folded):
            self.reset()
        for update in updates:
            if update.lease not in self._folded:
                self.add(update)
        self._checkpoint("close.folded")
        if self._fold is None or not self._folded:
            raise StorageError(f"{name}: there is no update to make a model of")
        if finish is not None:
            finish(self._fold, self._old)
        step = _Step(self._blobs, self._base, self.header, self._fold, recipe, self._checkpoint)
        return step.run(name, round)

    def combine(
        self, name: str, round: int, updates: Sequence[Update], recipe: Recipe, choice: Choice
    ) -> Made:
        """Make the model durable that a rule makes of all updates, read side by side."""
        self.reset()
        check(choice.rule, choice.options, len(updates))
        with self.beside(updates) as reads:
            found = Combined(self.header.schema, reads, choice)
            self._checkpoint("close.folded")
            step = _Step(self._blobs, self._base, self.header, found, recipe, self._checkpoint)
            return step.run(name, round)

    def spread(self, updates: Sequence[Update]) -> Floats:
        """Return the squared distances [n + 1, n + 1] of updates, in site order, and base."""
        with self.beside(updates) as reads:
            return squares(self.header.schema, (*reads, self._old))

    @contextlib.contextmanager
    def beside(self, updates: Sequence[Update]) -> Iterator[tuple[Read, ...]]:
        """Open updates side by side, in the order of their sites; pieces share one buffer."""
        with contextlib.ExitStack() as stack:
            reads = []
            for update in sorted(updates, key=lambda update: update.site):
                spool = stack.enter_context(self._blobs.read_spool(update.lease))
                reads.append(self._reader(spool, update))
            yield tuple(reads)

    def moved(self, made: Header) -> float:
        """Return the L2 norm of a new model, which is in the store, minus the base."""
        with self._blobs.open(made.digest) as blob:
            entries = {entry.name: entry for entry in made.entries}

            def new(spec: TensorSpec) -> Iterator[Array]:
                return frames.chunks(blob.fd, made, entries[spec.name], self._buffer)

            found = squares(self.header.schema, (new, self._old))
        return float(np.sqrt(found[0, 1]))

    def reset(self) -> None:
        """Forget what was folded; the base stays open and the memory is kept."""
        if self._fold is not None:
            self._fold.clear()
        self._folded = []

    def release(self) -> None:
        """Free the arrays and close the base."""
        self._fold = None
        self._leave_base()

    def _leave_base(self) -> None:
        # A model that was replaced is rarely read again: its pages serve the next one.
        os.posix_fadvise(self._base.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self._base.close()

    def _old(self, spec: TensorSpec) -> Iterator[Array]:
        entry = next(e for e in self.header.entries if e.name == spec.name)
        return frames.chunks(self._base.fd, self.header, entry, self._buffer)

    def _reader(self, spool: Blob, update: Update) -> Callable[[TensorSpec], Iterator[Array]]:
        """Return how `Fold` reads the update: tensors it leaves out come from the base."""
        header = frames.read_header(spool.fd)
        if header.digest != update.digest:
            raise StorageError(
                f"the spool of update {update.lease} holds frame {header.digest}, needed "
                f"{update.digest} as it was accepted: the disk has changed it"
            )
        own = {e.name: e for e in header.entries if e.stored}
        if self._codec is not None:
            return self._unpacked(spool, header, own, self._codec)
        borrowed = frames.borrowed(header, self.header)

        def read(spec: TensorSpec) -> Iterator[Array]:
            entry = own.get(spec.name)
            if entry is not None:
                return frames.chunks(spool.fd, header, entry, self._buffer)
            return frames.chunks(self._base.fd, self.header, borrowed[spec.name], self._buffer)

        return read

    def _unpacked(
        self, spool: Blob, header: Header, own: Mapping[str, TensorEntry], codec: Codec
    ) -> Read:
        """Return how to read a compressed update: whole, cut as the others are."""

        def part(spec: TensorSpec) -> Iterator[Array]:
            return frames.chunks(spool.fd, header, own[spec.name], self._buffer)

        whole = restored(codec, part, self._old)
        return lambda spec: recut(whole(spec), CHUNK // DTYPES[spec.dtype].itemsize)


@dataclass(frozen=True, slots=True)
class _Step:
    """One pass over base, mean and optimizer state, writing the next model and state."""

    _blobs: Blobs
    _base: Blob
    _header: Header
    _fold: Result
    _recipe: Recipe
    _checkpoint: Callable[[str], None]

    def run(self, name: str, round: int) -> Made:
        """Write both frames under spool names made of `name`, and adopt them durably."""
        model, state = f"{name}.model", f"{name}.optimizer"
        try:
            return self._run(name, round, model, state)
        except BaseException:
            for spool in (model, state):  # half written, it would take up what space there is
                with contextlib.suppress(StorageError):
                    self._blobs.discard(spool)
            raise

    def _run(self, name: str, round: int, model: str, state: str) -> Made:
        if not self._recipe.strategy.slots:
            with self._blobs.open_spool(model) as spool:
                spool.expect(self._header.total_bytes)
                header = self._write(FrameWriter(spool.fd, self._header.schema), round, None)
                self._adopt(spool, header)
            return Made(header, None)
        with self._blobs.open_spool(model) as spool, self._blobs.open_spool(state) as slots:
            spool.expect(self._header.total_bytes * (1 + len(self._recipe.strategy.slots)))
            kept = _Slots(self._blobs, self._recipe, name, self._header.schema, slots.fd)
            try:
                header = self._write(FrameWriter(spool.fd, self._header.schema), round, kept)
                optimizer = kept.finish()
            finally:
                kept.close()
            self._adopt(slots, optimizer)
            self._adopt(spool, header)
        return Made(header, optimizer.digest)

    def _adopt(self, spool: Spool, header: Header) -> None:
        self._checkpoint("close.written")
        if header.total_bytes > SYNC_FIRST:
            spool.sync()
        self._checkpoint("close.synced")
        self._blobs.adopt(spool.name, header.digest)
        self._checkpoint("close.adopted")

    def _write(self, out: FrameWriter, round: int, slots: "_Slots | None") -> Header:
        try:
            for entry in self._header.entries:
                if steps(entry.spec):
                    self._float_tensor(out, entry, round, slots)
                else:
                    for start, stop in _pieces(entry.spec):
                        out.append(
                            frames.raw_bytes(self._fold.result_chunk(entry.spec, start, stop))
                        )
            return out.finish()
        except UpdateRejected as e:
            raise UpdateRejected(f"the new model is not finite: {e}") from e

    def _float_tensor(
        self, out: FrameWriter, entry: TensorEntry, round: int, slots: "_Slots | None"
    ) -> None:
        """Move one tensor by the strategy's rule, piece by piece, in the mean's precision."""
        spec, mean = entry.spec, self._fold.mean(entry.spec)
        strategy, options = self._recipe.strategy, self._recipe.options
        old = np.empty(min(PIECE, spec.size), mean.dtype)
        reader = _exact(self._base.fd, self._header, entry)
        for start, stop in _pieces(spec):
            part = old[: stop - start]
            widen_into(next(reader), part, spec)
            state = slots.read(mean.dtype, stop - start) if slots else {}
            # What overflows here is found by the writer, which takes finite values only.
            with np.errstate(all="ignore"):
                new = strategy.step(options, part, mean[start:stop], state, round)
            if slots:
                slots.write(state)
            out.append(frames.raw_bytes(cast(new, spec.dtype)))


class _Slots:
    """The optimizer state of one round, read from the last frame and written to the next."""

    def __init__(
        self, blobs: Blobs, recipe: Recipe, name: str, schema: Schema, fd: int
    ) -> None:
        self._slots = recipe.strategy.slots
        self._initial = recipe.strategy.initial(recipe.options)
        body = tuple(_slot_schema(schema, self._slots))
        self._out = FrameWriter(fd, (TensorSpec(name, "bool", (0,)), *body))
        self._old = blobs.open(recipe.optimizer) if recipe.optimizer else None
        self._entries: Iterator[TensorEntry] = iter(())
        if self._old is not None:
            self._header = frames.read_header(self._old.fd)
            if self._header.schema[1:] != body:
                self._old.close()
                raise StorageError(
                    f"optimizer state {recipe.optimizer} does not fit the model: it was kept "
                    "for another schema or strategy"
                )
            self._entries = iter(self._header.entries[1:])

    def read(
        self, dtype: "np.dtype[np.float32] | np.dtype[np.float64]", size: int
    ) -> dict[str, Accumulator]:
        """Return the next piece of every slot; the strategy's start in the first round."""
        pieces: dict[str, Accumulator] = {
            slot: np.full(size, self._initial[slot], dtype) for slot in self._slots
        }
        if self._old is not None:
            for piece in pieces.values():
                frames.read_tensor(self._old.fd, self._header, next(self._entries), piece)
        return pieces

    def write(self, pieces: Mapping[str, Accumulator]) -> None:
        """Write what the strategy made of the pieces that `read` gave."""
        for slot in self._slots:
            self._out.append(frames.raw_bytes(pieces[slot]))

    def finish(self) -> Header:
        """Complete the frame."""
        return self._out.finish()

    def close(self) -> None:
        """Close the last round's frame."""
        if self._old is not None:
            self._old.close()


def _pieces(spec: TensorSpec) -> Iterator[tuple[int, int]]:
    for start in range(0, spec.size, PIECE):
        yield start, min(start + PIECE, spec.size)


def _exact(fd: int, header: Header, entry: TensorEntry) -> Iterator[Array]:
    """Yield a stored tensor in pieces of PIECE elements, as `_pieces` cuts it."""
    width = entry.nbytes // max(1, entry.spec.size)
    return frames.chunks(fd, header, entry, bytearray(PIECE * width))


def _slot_schema(schema: Schema, slots: Sequence[str]) -> Iterator[TensorSpec]:
    """Yield the state frame's tensors: `<tensor number>.<piece>.<slot>`."""
    for number, spec in enumerate(schema):
        if steps(spec):
            kind = dtype_name(accumulator(spec.dtype))
            for piece, (start, stop) in enumerate(_pieces(spec)):
                for slot in slots:
                    yield TensorSpec(f"{number}.{piece}.{slot}", kind, (stop - start,))
