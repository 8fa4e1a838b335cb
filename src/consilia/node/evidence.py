"""A privacy report's measurements: which attack tasks run on a site's own data, in which order.

    fit a model on half of the dataset, and one on the other half     references, some pairs
    losses of the attacked model and of each reference                loss and reference attack
    fit on the records and on canaries, each planted by a coin        canaries
    one update on a few records, turned back                          inversion

Every task runs in the sandboxed worker (node.runner) as kind "audit"; the arrays it returns are
read here, checked, and turned into numbers. Models trained on the way lie in a folder that the
caller removes. Nothing is sent anywhere, and nothing is charged to the privacy ledger: what is
charged is what leaves.

With records that the model never saw (`holdout`) the model itself is attacked. Without, a part
of the dataset is held out and a stand-in attacked, trained here on the rest: that says what the
plan gives away at this site alone, where no other site's records dilute it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from consilia.core.weights import Schema, TensorSpec, Weights, mismatch
from consilia.data.registry import Dataset
from consilia.errors import ConfigError, WorkerError
from consilia.node import ledgerlog
from consilia.node.aside import read_tensors
from consilia.node.runner import Runs, TaskOutput
from consilia.node.store import Store
from consilia.privacy import ledger as rules
from consilia.privacy import verdict
from consilia.privacy.accountant import ORDERS, cost, epsilon
from consilia.privacy.evidence import Flags, Floats, calibrated, confidence_of
from consilia.privacy.verdict import Attack, Claim, Inversion, Planted
from consilia.wire import frames
from consilia.wire.v1 import Arguments, Dp, Metrics, Plan
from consilia.wire.worker import Audit, Run

INVERTED = (1, 8, 64)  # records of the updates that are turned back
LEAST_RECORDS = 20  # of members and of others
DELTA = 1e-5  # where no privacy is claimed
_PAGE = 1000
_MESSAGE = 400  # characters of a failure that people are shown; the job's log has it whole


@dataclass(frozen=True, slots=True)
class Asked:
    """What to examine. `model` is a tensor frame."""

    plan: Plan
    dataset: Dataset
    holdout: Dataset | None
    split: float  # of the dataset, held out from a stand-in where there is no holdout
    model: Path
    arguments: Arguments
    rounds: int  # of each model trained here
    dp: Dp | None  # of that training
    references: int  # models, in pairs
    canaries: int
    seconds: float  # a task may take


@dataclass(frozen=True, slots=True)
class Measured:
    """What the attacks gave."""

    attacks: tuple[Attack, ...]
    planted: Planted | None
    inversions: tuple[Inversion, ...]
    notes: tuple[str, ...]


def check(asked: Asked) -> None:
    """Raise ConfigError for what cannot be examined."""
    n = asked.dataset.records
    if asked.holdout is not None and asked.holdout.digest == asked.dataset.digest:
        raise ConfigError(
            f"holdout {asked.holdout.name!r} is the same file as dataset "
            f"{asked.dataset.name!r}; needed records that the model never saw"
        )
    if asked.holdout is None and not 0 < asked.split < 1:
        raise ConfigError(f"split={asked.split:g}; needed a share between 0 and 1")
    held = asked.holdout.records if asked.holdout else round(n * asked.split)
    members = n if asked.holdout else n - held
    if min(members, held) < LEAST_RECORDS:
        raise ConfigError(
            f"{members} records to recognise and {held} held out; needed at least "
            f"{LEAST_RECORDS} of each, or nothing can be proved"
        )
    if asked.references < 2 or asked.references % 2:
        raise ConfigError(
            f"references={asked.references}; needed 2, 4, 6, ...: pairs of halves"
        )
    if asked.rounds < 1:
        raise ConfigError(f"rounds={asked.rounds}; needed 1 or more")
    if asked.canaries and asked.canaries < LEAST_RECORDS:
        raise ConfigError(f"canaries={asked.canaries}; needed 0 or at least {LEAST_RECORDS}")
    if asked.dp is not None and asked.dp.level == "client":
        raise ConfigError(
            "privacy at client level is given to a site's whole update, outside of training, "
            "and cannot be tried with records: give an experiment without dp"
        )


def ledger_claim(store: Store, job: str, dataset: str) -> Claim | None:
    """Return what this site's ledger charged a job on a dataset, None when it was nothing."""
    total: rules.Vector = ()
    last: rules.Entry | None = None
    after = 0
    while page := ledgerlog.history(store, after, _PAGE):
        after = page[-1].seq
        for entry in (e for e in page if (e.job, e.dataset) == (job, dataset) and e.change):
            total = rules.add(total, entry.change) if total else entry.change
            last = entry
    if last is None or not any(total):
        return None
    spent = rules.epsilon(total, last.delta or DELTA, ORDERS[: len(total)])
    return Claim(spent, last.delta or DELTA, last.level, "ledger")


async def measure(
    runner: Runs,
    asked: Asked,
    folder: Path,
    rng: np.random.Generator,
    tell: Callable[[str], None],
) -> Measured:
    """Run the attacks. `rng` draws halves, canaries and seeds; `tell` hears what is done."""
    check(asked)
    bench = _Bench(runner, asked, folder, rng)
    n, delta = asked.dataset.records, asked.dp.delta if asked.dp else DELTA
    members = np.ones(n, np.bool_)
    target = asked.model
    if asked.holdout is None:
        members[rng.permutation(n)[: round(n * asked.split)]] = False
        tell("training a stand-in on the records that are not held out")
        target = await bench.fit("stand-in", members)
    tell(f"training {asked.references} reference models")
    references = await _references(bench, asked.references)
    tell("attacking the model")
    losses, _ = await bench.losses(target, 0)
    sure = confidence_of(np.vstack([losses, references.losses]))
    scores = {
        "loss attack": sure[0],
        "reference attack": calibrated(sure[0], sure[1:], ~references.usable),
    }
    flags = np.concatenate([members, np.zeros(bench.others, np.bool_)])
    attacks = tuple(
        verdict.attack(name, s[flags], s[~flags], delta, rng) for name, s in scores.items()
    )
    planted = None
    if asked.canaries:
        tell(f"planting {asked.canaries} canaries")
        planted = await _plant(bench, references, delta)
    tell("turning updates back into records")
    inversions, notes = await _invert(bench)
    return Measured(attacks, planted, inversions, notes)


@dataclass(frozen=True, slots=True)
class _References:
    """What models trained on halves of the dataset make of each record and canary."""

    losses: Floats  # models x (records + holdout)
    usable: Flags  # the same: not trained on, and one model of each pair
    canaries: Floats  # losses, models x canaries


async def _references(bench: "_Bench", count: int) -> _References:
    """Train pairs of models on halves of the dataset, each record in one of each pair.

    A record that was held out is in neither; one of the two is taken by a coin, so that for
    members and others as many models are averaged.
    """
    n, rng = bench.asked.dataset.records, bench.rng
    losses, usable, canaries = [], [], []
    for pair in range(count // 2):
        half = np.zeros(n, np.bool_)
        half[rng.permutation(n)[: n // 2]] = True
        coins = rng.random(bench.others) < 0.5
        for side, inside in enumerate((half, ~half)):
            model = await bench.fit(f"reference-{pair}-{side}", inside)
            found, of_canaries = await bench.losses(model, bench.asked.canaries)
            losses.append(found)
            canaries.append(of_canaries)
            usable.append(np.concatenate([~inside, coins if side else ~coins]))
            model.unlink()
    return _References(np.array(losses), np.array(usable), np.array(canaries))


async def _plant(bench: "_Bench", references: _References, delta: float) -> Planted:
    """Train with canaries, each planted by a coin, and guess which ones were."""
    asked = bench.asked
    coins = bench.rng.random(asked.canaries) < 0.5
    everyone = np.ones(asked.dataset.records, np.bool_)
    model = await bench.fit("planted", np.concatenate([everyone, coins]))
    _, losses = await bench.losses(model, asked.canaries)
    sure = confidence_of(np.vstack([losses, references.canaries]))
    accounted = None if asked.dp is None else epsilon(cost(asked.dp, asked.rounds), delta)
    return verdict.planted(sure[0] - sure[1:].mean(0), coins, delta, accounted)


async def _invert(bench: "_Bench") -> tuple[tuple[Inversion, ...], tuple[str, ...]]:
    """Turn updates on few and on more records back; say what could not be tried."""
    start = await bench.fit("start", np.ones(bench.asked.dataset.records, np.bool_), rounds=0)
    found, notes = [], []
    for count in (c for c in INVERTED if c <= bench.asked.dataset.records):
        try:
            found.append(await bench.invert(start, count))
        except WorkerError as error:
            if error.cause not in ("plan-contract", "plan-error", "not-finite"):
                raise
            notes.append(f"an update on {count} records was not turned back: {error}")
    return tuple(found), tuple(dict.fromkeys(notes))


class _Bench:
    """One audit's tasks: what is sent to the worker, and what comes back, checked."""

    def __init__(
        self, runner: Runs, asked: Asked, folder: Path, rng: np.random.Generator
    ) -> None:
        self.asked = asked
        self.rng = rng
        self.others = asked.holdout.records if asked.holdout else 0
        self._runner = runner
        self._folder = folder
        self._schema = frames.read_header(asked.model).schema
        self._seed = int(rng.integers(1 << 31))  # of the canaries

    async def fit(self, name: str, inside: Flags, rounds: int | None = None) -> Path:
        """Train a model on some records, canaries behind them; return its frame."""
        rounds = self.asked.rounds if rounds is None else rounds
        canaries = self.asked.canaries if len(inside) > self.asked.dataset.records else 0
        packed = np.packbits(inside).tobytes()
        audit = Audit("fit", rounds, canaries, self._seed, packed)
        weights = await self._run(audit, None, self._schema)
        path = self._folder / f"{name}.frame"
        await asyncio.to_thread(frames.write, path, weights)
        return path

    async def losses(self, model: Path, canaries: int) -> tuple[Floats, Floats]:
        """Return a model's losses on dataset and holdout, one after the other; on canaries."""
        n = self.asked.dataset.records
        audit = Audit("losses", canaries=canaries, seed=self._seed)
        here = await self._losses(audit, model, self.asked.dataset, n + canaries)
        held = np.empty(0)
        if self.asked.holdout is not None:
            held = await self._losses(Audit("losses"), model, self.asked.holdout, self.others)
        return np.concatenate([here[:n], held]), here[n:]

    async def invert(self, model: Path, count: int) -> Inversion:
        """Turn one round's update on `count` records, drawn at random, back."""
        inside = np.zeros(self.asked.dataset.records, np.bool_)
        inside[self.rng.permutation(len(inside))[:count]] = True
        audit = Audit("invert", inside=np.packbits(inside).tobytes())
        names = (("plain", count), ("masked", count), ("correlation", 3))
        wanted = tuple(TensorSpec(name, "float64", (size,)) for name, size in names)
        got = await self._run(audit, model, wanted)
        plain, masked, view = (np.asarray(got[name], np.float64) for name, _ in names)
        how: verdict.How = "search" if view[2] else "formula"
        return verdict.inversion(plain, masked, float(view[0]), int(view[1]), how)

    async def _losses(self, audit: Audit, model: Path, dataset: Dataset, count: int) -> Floats:
        wanted = (TensorSpec("losses", "float64", (count,)),)
        return np.asarray((await self._run(audit, model, wanted, dataset))["losses"], float)

    async def _run(
        self, audit: Audit, model: Path | None, wanted: Schema, dataset: Dataset | None = None
    ) -> Weights:
        """Run one task and return its arrays; raise WorkerError for others than `wanted`."""
        dataset = dataset or self.asked.dataset
        task = Run(
            "audit",
            1,
            self.asked.arguments,
            None,
            int(self.rng.integers(1 << 31)),
            False,
            dp=self.asked.dp,
            audit=audit,
        )
        job = f"audit-{dataset.name}"[:63].rstrip("-._")  # a warm worker for each dataset
        try:
            output = await self._runner.run(
                job, self.asked.plan, dataset, task, model, unheard, self.asked.seconds
            )
        except WorkerError as error:
            raise WorkerError(last_line(error), error.cause) from None
        taken = False
        try:
            found = await asyncio.to_thread(_received, output, wanted)
            taken = True
        finally:
            output.close(consumed=taken)
        return found


def _received(output: TaskOutput, wanted: Schema) -> Weights:
    """Read the arrays of an outcome, in its order; refuse what was not asked for."""
    found = tuple(TensorSpec(t.name, t.dtype, t.shape) for t in output.done.tensors)
    if problem := mismatch(found, wanted):
        raise WorkerError(
            f"the worker's answer is not what was asked: {problem}", "plan-contract"
        )
    return read_tensors(output, found)


def unheard(fraction: float, metrics: Metrics) -> None:
    """Let a task's progress pass: what people follow is the list of tasks."""


def last_line(error: WorkerError) -> str:
    """Return what a traceback ends with."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1][:_MESSAGE] if lines else error.cause
