"""What a worker does to find out what a model remembers: its losses, fits, canaries, inversion.

An audit looks at how a plan trains at this site, with this site's records, so it runs where
they are. Nothing of it leaves the site. What is decided here is only what touches records; the
statistics are privacy.evidence, what is run in which order is node.evidence.

**Records and canaries.** A canary is a record that never was: each column's value is taken from
some record of the table, drawn anew for each column, the target too. So its columns are
plausible and it is not; only a model that was trained on it is sure of it. Canaries follow the
table's records: record i of an audit is row i, or canary i - records.

**Losses** are the plan's own of one record (plans.dp.DpParts.loss), of the model at rest
(eval), without the plan's transform.

**Inversion.** One round on a few records, and what its update tells. With y = W x + b as the
first layer, dL/dW = dL/dy x^T and dL/db = dL/dy: a row of W's change over b's change is the
record itself, or the average of those that reach this neuron. Where the model begins with
another layer, as for images, records are searched for (plans.inversion). The same is tried on
what a hub sees of a masked round, the change in the ring plus a keystream.

Sources: Yeom et al. 2018 (losses); Steinke, Nasr, Jagielski 2023 (canaries in one run); Phong
et al. 2018, section III (a record from gradients of a layer with bias).
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from consilia.core.weights import Array, Weights
from consilia.data.table import Column, Table
from consilia.errors import PlanError
from consilia.plans import inversion
from consilia.plans.contract import (
    Auditing,
    Context,
    TrainingPlan,
    check_arguments,
    copy_weights,
    run_task,
)
from consilia.plans.dp import DpParts
from consilia.privacy.evidence import Floats, correlation
from consilia.privacy.ring import quantise, scale_of
from consilia.privacy.streams import Streams
from consilia.wire.v1 import Arguments
from consilia.wire.worker import Audit

Contexts = Callable[[int], Context]  # round -> its context

LOSSES, PLAIN, MASKED, VIEW = "losses", "plain", "masked", "correlation"
_AT_ONCE = 1024  # records whose losses are taken together
_FAINT = 1e-7  # of the largest change of b: a neuron below it learned nothing
_RANGE = 8.0  # of wire.v1.Privacy; wider when the update is


@dataclass(frozen=True, slots=True)
class Probe:
    """A plan's model with the records of a table, and the loss of one of them."""

    module: nn.Module
    x: Tensor
    y: Tensor
    parts: DpParts
    features: tuple[str, ...] = ()  # names of x's columns


ProbeOf = Callable[[Weights, Table, Arguments, Context], Probe]


@dataclass(frozen=True, slots=True)
class Attacked:
    """A plan under audit, with the arguments of its experiment."""

    plan: TrainingPlan
    probe: ProbeOf
    given: Arguments

    def probed(self, weights: Weights, table: Table, context: Context) -> Probe:
        """Open a model with the records of a table."""
        arguments = check_arguments(self.plan.arguments, self.given)
        return self.probe(weights, table, arguments, context)


class Part(Table):
    """Some records of a table and some canaries, as a table of their own."""

    def __init__(self, whole: Table, audit: Audit, patient: str = "") -> None:
        """Take the records and canaries that `audit.inside` has; all when it is empty."""
        count = whole.records + audit.canaries
        chosen = np.unpackbits(np.frombuffer(audit.inside, np.uint8), count=count).astype(bool)
        self.whole = whole
        self._rows = np.arange(count) if not audit.inside else np.flatnonzero(chosen)
        self._canaries = audit.canaries
        self._seed = audit.seed
        self._patient = patient
        self._name = whole._name
        self.columns = dict(whole.columns)
        self.records = len(self._rows)
        self._loaded = {}
        self._samples = {}
        if not self.records:
            raise PlanError("an audit's task chooses no record; needed at least one")

    def _read(self, types: dict[str, str], *, narrow: bool) -> dict[str, Column]:
        found = self.whole._read(types, narrow=narrow)
        return {name: self._taken(name, *column) for name, column in found.items()}

    def _taken(self, name: str, values: Array, mask: NDArray[np.bool_] | None) -> Column:
        """Return a column's chosen values: of records as they are, of canaries drawn."""
        rng = np.random.default_rng((self._seed, zlib.crc32(name.encode())))
        source = rng.integers(self.whole.records, size=self._canaries)
        # a column of ids would tell canaries by their twins: each is a person of its own
        planted = values[source] if name != self._patient else self._people()
        held = None if mask is None else np.concatenate([mask, mask[source]])[self._rows]
        if held is not None and not held.any():
            held = None
        return np.concatenate([values, planted])[self._rows], held

    def _people(self) -> Array:
        names = [f"canary {i}" for i in range(self._canaries)]
        return np.array(names, object)


def auditing(probe: ProbeOf) -> Auditing:
    """Return what runs the audit tasks of plans whose models `probe` opens."""

    def run(  # noqa: PLR0913, PLR0917  the parameters of contract.Auditing
        plan: TrainingPlan,
        audit: Audit,
        weights: Weights | None,
        table: Table,
        given: Arguments,
        contexts: Contexts,
    ) -> Weights:
        attacked = Attacked(plan, probe, given)
        part = Part(table, audit, contexts(0).patient)
        if audit.do == "fit":
            return fit(attacked, part, audit.rounds, contexts)
        if weights is None:
            raise PlanError(f"an audit's task {audit.do!r} needs a model, and names none")
        if audit.do == "losses":
            return {LOSSES: losses(attacked, weights, part, contexts(0))}
        if audit.do == "explain":
            from consilia.plans.explain import explain  # noqa: PLC0415  # it builds on this

            return explain(attacked, weights, part, contexts(0), audit.most)
        return invert(attacked, weights, part, contexts(0))

    return run


def losses(attacked: Attacked, weights: Weights, table: Table, context: Context) -> Floats:
    """Return the loss of each record under a model."""
    probe = attacked.probed(weights, table, context)
    module = probe.module.eval()

    def one(x: Tensor, y: Tensor) -> Tensor:
        return probe.parts.loss(module, x[None], y[None]).reshape(())

    found = []
    with torch.no_grad():
        blocks = (torch.split(t, _AT_ONCE) for t in (probe.x, probe.y))
        for x, y in zip(*blocks, strict=True):
            found.append(inversion.each_of(one, x, y).double().cpu())
    values: Floats = torch.cat(found).numpy()
    if not np.isfinite(values).all():
        raise FloatingPointError(
            f"the loss of {int((~np.isfinite(values)).sum())} records is not finite"
        )
    return values


def fit(attacked: Attacked, table: Table, rounds: int, contexts: Contexts) -> Weights:
    """Return the plan's model after `rounds` rounds at this site alone, from its own start."""
    plan, given = attacked.plan, attacked.given
    weights = copy_weights(run_task(plan, None, None, given, contexts(0)).weights)
    for number in range(1, rounds + 1):
        weights = run_task(plan, weights, table, given, contexts(number)).weights
    return copy_weights(weights)


def invert(attacked: Attacked, weights: Weights, part: Part, context: Context) -> Weights:
    """Return how near a hub comes to each record of `part` from one update, plain and masked.

    PLAIN, MASKED: the distance to the nearest guess, record by record, as the root mean square
    over features, each in standard deviations of the whole table (1 where it does not vary).
    VIEW: the correlation of what the hub sees of a masked update with the update; over how
    many numbers; 1 when records were searched for, 0 when a formula gave them.
    """
    whole = attacked.probed(weights, part.whole, context)
    layer, records = _first_layer(whole), _flat(whole.x)
    spread = np.where(records.std(0) > 0, records.std(0), 1.0)
    before = copy_weights(weights)
    after = run_task(attacked.plan, weights, part, attacked.given, context).weights
    change = {n: _float(after[n]) - _float(before[n]) for n in before if _is_float(before[n])}
    truth = attacked.probed(before, part, context)
    x, seed = _flat(truth.x), int.from_bytes(context.random(6), "big")

    def guesses(update: dict[str, Floats]) -> Floats:
        if layer is not None:
            return _guesses(update, layer)
        return _searched(truth, update, records.mean(0), spread, seed)

    seen = _masked(change, context.random(32))
    flat, view = (np.concatenate([c.ravel() for c in d.values()]) for d in (change, seen))
    return {
        PLAIN: _distances(x, guesses(change), spread),
        MASKED: _distances(x, guesses(seen), spread),
        VIEW: np.array([correlation(flat, view), float(flat.size), float(layer is None)]),
    }


# ---- inside ----------------------------------------------------------------------------------


def _first_layer(probe: Probe) -> tuple[str, str] | None:
    """Return the names of W and b of a linear layer that sees the record first, else None."""
    for name, layer in probe.module.named_modules():
        if not any(True for _ in layer.parameters(recurse=False)):
            continue
        fitting = isinstance(layer, nn.Linear) and layer.in_features == probe.x[0].numel()
        if fitting and layer.bias is not None:
            stem = f"{name}." if name else ""
            return f"{stem}weight", f"{stem}bias"
        return None
    raise PlanError("nothing can be turned back: the model has no parameters")


def _searched(
    probe: Probe, change: dict[str, Floats], centre: Floats, spread: Floats, seed: int
) -> Floats:
    """Return records searched for, records x features; PlanError for too many."""
    if len(probe.y) > inversion.MOST:
        raise PlanError(
            "the first layer is no nn.Linear with a bias, so records are searched for, and "
            f"that finds next to nothing in updates on more than {inversion.MOST}"
        )
    mean, deviation = (
        torch.from_numpy(values).reshape(probe.x[0].shape) for values in (centre, spread)
    )
    found = inversion.search(
        probe.module, probe.parts.loss, change, probe.y, mean, deviation, seed
    )
    return _flat(found)


def _flat(x: Tensor) -> Floats:
    values: Floats = x.double().cpu().numpy().reshape(len(x), -1)
    return values


def _masked(change: dict[str, Floats], seed: bytes) -> dict[str, Floats]:
    """Return what a hub sees of an update in a masked round, as the numbers it would read."""
    largest = max((float(np.abs(c).max(initial=0.0)) for c in change.values()), default=0.0)
    scale = scale_of(32, max(_RANGE, 2 * largest))
    mask, seen = Streams([seed], []), {}
    for name, values in change.items():
        ring = np.empty(values.size, np.uint32)
        quantise(values.ravel(), scale, 1.0, ring)
        mask.add(ring)
        seen[name] = (ring.view(np.int32) / scale).reshape(values.shape)
    return seen


def _guesses(change: dict[str, Floats], layer: tuple[str, str]) -> Floats:
    """Return a guess of a record from each neuron that learned: neurons x features."""
    weight, bias = change[layer[0]], change[layer[1]]
    learned = np.abs(bias) > _FAINT * np.abs(bias).max(initial=0.0)
    guesses: Floats = weight[learned] / bias[learned, None]
    return guesses


def _distances(x: Floats, guesses: Floats, spread: Floats) -> Floats:
    """Return each record's distance to the guess nearest to it; huge without a guess."""
    best = np.full(len(x), np.inf)
    for guess in guesses:
        best = np.minimum(best, np.sqrt((((x - guess) / spread) ** 2).mean(1)))
    nearest: Floats = np.minimum(best, np.finfo(np.float64).max)  # no guess is no infinity
    return nearest


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f"


def _float(array: Array) -> Floats:
    return np.asarray(array, np.float64)
