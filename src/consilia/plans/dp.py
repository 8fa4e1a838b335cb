"""Training with differential privacy: Consilia's own loop for PyTorch plans.

A plan supplies what is about the model: the module, the loss of one record, a transform, an
optimizer. Everything that the promise rests on is here: which units are drawn (records, or
patients with all of their records), the gradient of each unit by itself, its clipping, the
noise, the number of steps. One step, for n units with gradients g_i and rate q:

    draw each unit with probability q                                   privacy.sampling
    x_i = g_i * min(1, bound / |g_i|), rounded to the grid              privacy.noise
    x   = (sum of x_i over the drawn + noise) / (q * n_public)
    the optimizer steps along x

**Sensitivity.** Adding or removing one unit changes the sum by one x_i, and |x_i| <= clip: the
sum is of whole numbers below 2^53, so floating point does not add to that. A unit whose
gradient is not finite counts as zero: failing would tell of it. A step that draws nobody
releases noise like any other.

**A gradient of one unit sees no other**: the loss is called on one record at a time (batched by
vmap), buffers are read and never written, and layers that mix records are refused. A patient's
gradient is that of the mean loss over at most `patient_records` records, drawn anew each step.

Nothing else leaves: no metric, and no count of units but the public one. What a plan could
still do, being Python in the same process, docs/explanation/differential-privacy.md says.

Sources: Abadi et al. 2016 (DP-SGD), algorithm 1; Levy et al. 2021 (units of several records);
Papernot et al. 2021 (q * n, not the drawn number, under Poisson sampling).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from consilia.data.table import Table
from consilia.errors import PlanError
from consilia.plans.contract import Context
from consilia.privacy import gradients
from consilia.privacy.accountant import check, public_count
from consilia.privacy.noise import Grid, Stream, discrete_gaussian, local_grid
from consilia.privacy.sampling import poisson, subset
from consilia.wire.v1 import Arguments, Dp

_BYTES = 128 << 20  # of per-unit gradients held at once
_MOST = 512  # units differentiated at once
_BLOCK = 1 << 16  # numbers clipped at once, so that they stay in the cache
_EXACT = float(1 << 53)  # float64 adds whole numbers below it without error

Gradients = Mapping[str, Tensor]  # parameter -> one gradient per unit, in the first dimension


@dataclass(frozen=True, slots=True)
class DpParts:
    """What a plan supplies for private training.

    `loss(model, x, y)` gets a batch of one record and returns its loss, one number. It may not
    look at values with `if` or `.item()`: all records are traced at once. `transform(x)`
    changes a batch of one record before the loss (augmentation). Without an
    `optimizer(parameters, args)`, plain SGD with the argument `lr`. `patient_records` bounds
    how many records of one patient a step looks at.
    """

    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    optimizer: Callable[[Any, Arguments], torch.optim.Optimizer] | None = None
    transform: Callable[[Tensor], Tensor] | None = None
    patient_records: int = 32


@dataclass(frozen=True, slots=True)
class Units:
    """Whose presence is hidden: rows of the data, unit by unit."""

    rows: NDArray[np.int64]  # all rows, those of a unit side by side
    starts: NDArray[np.int64]  # unit -> its first place in `rows`; one more at the end

    @property
    def count(self) -> int:
        """Number of units."""
        return len(self.starts) - 1

    def of(self, unit: int) -> NDArray[np.int64]:
        """Return the rows of one unit."""
        return self.rows[self.starts[unit] : self.starts[unit + 1]]


def units(dp: Dp, table: Table, column: str) -> Units:
    """Return the units of a dataset: records, or patients by the dataset's id `column`."""
    if dp.level == "record":
        every = np.arange(table.records, dtype=np.int64)
        return Units(every, np.arange(table.records + 1, dtype=np.int64))
    if not column:
        raise PlanError(
            "privacy at patient level, but the dataset declares no column of patient ids; "
            "register it with one, or ask for record level"
        )
    if table.columns.get(column) not in ("str", "category"):
        raise PlanError(
            f"the patient column {column!r} is {table.columns.get(column, 'not there')}; "
            "register it as text (str), so that no plan takes it for a feature"
        )
    if lacking := int(table.missing(column).sum()):
        raise PlanError(
            f"the patient column {column!r} has no value in {lacking} records; whose they are "
            "decides what is protected: complete them, or leave these records out"
        )
    _, codes = np.unique(table.column(column).astype(str), return_inverse=True)
    counts = np.bincount(codes)
    return Units(
        np.argsort(codes, kind="stable").astype(np.int64),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


def check_layers(module: nn.Module) -> None:
    """Raise PlanError, with the remedy, for a layer that lets one record see another."""
    for name, layer in module.named_modules():
        kind = type(layer).__name__
        if isinstance(layer, nn.modules.batchnorm._NormBase) and not isinstance(
            layer, nn.modules.instancenorm._InstanceNorm
        ):
            raise PlanError(
                f"layer {name!r} is {kind}, which normalises a record by the others of its "
                "batch: no bound on one record's influence holds. Use nn.GroupNorm or "
                "nn.InstanceNorm instead"
            )
        if getattr(layer, "track_running_stats", False):
            raise PlanError(
                f"layer {name!r} is {kind} with track_running_stats=True, which carries "
                "records over to others; make it with track_running_stats=False"
            )
        if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
            raise PlanError(
                f"layer {name!r} is {kind}, whose size waits for data; give its size"
            )


def train(  # noqa: PLR0913, PLR0917  what a round consists of
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    whose: Units,
    parts: DpParts,
    dp: Dp,
    args: Arguments,
    context: Context,
) -> None:
    """Run one round's steps on `module`, in place. All of its privacy is spent on return."""
    check(dp)
    check_layers(module)
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    if not trained:
        raise PlanError("the model has no parameter to train")
    size = sum(p.numel() for p in trained.values())
    grid = local_grid(dp, size)
    if whose.count * dp.clip / grid.step >= _EXACT:
        raise PlanError(
            f"noise_multiplier={dp.noise_multiplier:g} for {whose.count} units leaves sums "
            "that are not exact; ask for more noise"
        )
    stream = Stream(context.random)
    sampler = discrete_gaussian(grid.std)
    optimizer = _optimizer(module, parts, args)
    scale = grid.step / (dp.sampling * public_count(whose.count))
    for step in range(dp.steps):
        total = torch.zeros(size, dtype=torch.float64, device=x.device)
        drawn = poisson(stream, whose.count, dp.sampling)
        for batch in _batches(drawn, whose, parts, size, stream):
            add_clipped(total, unit_gradients(module, trained, x, y, batch, parts), grid)
        total += torch.from_numpy(sampler.draw(stream, size)).to(x.device)
        total *= scale
        _step(module, trained, total, optimizer, context)
        context.progress((step + 1) / dp.steps)


def gradient_sum(  # noqa: PLR0913, PLR0917  what a round consists of
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    whose: Units,
    parts: DpParts,
    dp: Dp,
    context: Context,
) -> dict[str, NDArray[np.float32] | NDArray[np.float64]]:
    """Return minus the sum of one draw's clipped gradients, in whole steps, by parameter.

    It is secret as it is: the agent adds this site's share of the noise before it leaves
    (privacy.gradients). Every float tensor of the model has to be trained, since noise is
    added to each. Coordinates are cut to what a float32 holds exactly.
    """
    check(dp)
    check_layers(module)
    trained = dict(module.named_parameters())
    frozen = [n for n, p in trained.items() if not p.requires_grad]
    state = module.state_dict()
    frozen += [n for n, t in state.items() if t.is_floating_point() and n not in trained]
    if frozen or not trained:
        raise PlanError(
            f"tensor {(frozen or ['(none)'])[0]!r} of the model is not trained, or shared: "
            "with dp.distributed every float tensor of the model gets a share of the noise. "
            "Train all of it, or ask for distributed: false"
        )
    size = sum(p.numel() for p in trained.values())
    steps, stream = gradients.grid(dp, size), Stream(context.random)
    if whose.count * gradients.UNITS >= _EXACT:
        raise PlanError(f"{whose.count} units are too many for sums that are exact")
    total = torch.zeros(size, dtype=torch.float64, device=x.device)
    drawn = poisson(stream, whose.count, dp.sampling)
    for batch in _batches(drawn, whose, parts, size, stream):
        add_clipped(total, unit_gradients(module, trained, x, y, batch, parts), steps)
    total.neg_().clamp_(-gradients.EXACT, gradients.EXACT)
    context.progress(1.0)
    found, start = {}, 0
    for name, parameter in trained.items():
        part = total[start : start + parameter.numel()].reshape(parameter.shape)
        found[name] = part.to(parameter.dtype).cpu().numpy()
        start += parameter.numel()
    return found


def unit_gradients(  # noqa: PLR0913, PLR0917  see `train`
    module: nn.Module,
    trained: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    batch: NDArray[np.int64],
    parts: DpParts,
) -> dict[str, Tensor]:
    """Return the gradient of each unit's mean loss, parameter by parameter.

    `batch` is units x records of row numbers; -1 stands for no record.
    """
    held = batch >= 0
    rows = torch.from_numpy(np.where(held, batch, batch[:, :1])).to(x.device)
    share = torch.from_numpy(held / held.sum(1, keepdims=True)).to(x.device, torch.float32)
    alone = _recurrent(module)
    inner = _Loss(module, parts)
    # torch refuses to write into what `grad` did not pass; a new tensor in its place is dropped
    rest = {n: b.detach() for n, b in inner.named_buffers()}
    rest |= {n: p.detach() for n, p in inner.named_parameters() if not p.requires_grad}

    def one(values: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
        loss = functional_call(inner, {**values, **rest}, (a[None], b[None]))
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise PlanError(f"dp loss of one record is {found}; needed one number")
        return loss.reshape(())

    def unit(values: dict[str, Tensor], a: Tensor, b: Tensor, part: Tensor) -> Tensor:
        if len(a) == 1:
            return one(values, a[0], b[0])
        if alone:
            losses = torch.stack([one(values, *parts) for parts in zip(a, b, strict=True)])
        else:
            losses = vmap(one, in_dims=(None, 0, 0), randomness="different")(values, a, b)
        return torch.dot(losses, part.to(losses.dtype))

    values = {f"module.{n}": p.detach() for n, p in trained.items()}
    found = _differentiate(unit, values, (x[rows], y[rows], share), alone)
    return {n: found[f"module.{n}"] for n in trained}


def add_clipped(total: Tensor, gradients: Gradients, grid: Grid) -> None:
    """Add each unit's gradient to `total`, clipped and in whole steps of the grid.

    `total` is float64 of all parameters, one after the other; it holds whole numbers only.
    """
    flat = [g.reshape(len(g), -1) for g in gradients.values()]
    norms = torch.stack(
        [torch.linalg.vector_norm(g, dim=1, dtype=torch.float64) for g in flat]
    ).norm(dim=0)
    fine = torch.isfinite(norms)
    if not bool(fine.all()):
        flat = [torch.where(fine[:, None], g, torch.zeros_like(g)) for g in flat]
    factors = torch.clamp(grid.bound / torch.where(fine, norms, 1.0), max=1.0) / grid.step
    start = 0
    for g in flat:
        into = total[start : start + g.shape[1]]
        block = max(1, _BLOCK // g.shape[1])
        for i in range(0, len(g), block):
            wide = g[i : i + block].to(torch.float64, copy=True)
            into += wide.mul_(factors[i : i + block, None]).round_().sum(0)
        start += g.shape[1]


class _Loss(nn.Module):
    """The loss as a module, so that its parameters can be swapped for others."""

    def __init__(self, module: nn.Module, parts: DpParts) -> None:
        super().__init__()
        self.module = module
        self._parts = parts

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self._parts.transform is not None:
            x = self._parts.transform(x)
        return self._parts.loss(self.module, x, y)


def _differentiate(
    unit: Callable[..., Tensor],
    values: dict[str, Tensor],
    data: tuple[Tensor, ...],
    one_by_one: bool,
) -> dict[str, Tensor]:
    """Return grad(unit) for each element of `data`, stacked."""
    gradient = grad(unit)
    each = vmap(gradient, in_dims=(None, 0, 0, 0), randomness="different")
    try:
        if not one_by_one:
            batched: dict[str, Tensor] = each(values, *data)
            return batched
        found = [gradient(values, *parts) for parts in zip(*data, strict=True)]
        return {n: torch.stack([f[n] for f in found]) for n in values}
    except RuntimeError as error:
        if "alloc" in str(error) or "memory" in str(error):
            raise
        raise PlanError(
            "the loss cannot be differentiated record by record: it may not branch on values "
            f"of tensors, call .item(), or write to buffers. torch says: {error}"
        ) from error


def _recurrent(module: nn.Module) -> bool:
    """Say whether torch cannot batch the gradients of this model: it has no rule for these."""
    return any(isinstance(layer, nn.RNNBase) for layer in module.modules())


def _batches(
    drawn: NDArray[np.int64], whose: Units, parts: DpParts, size: int, stream: Stream
) -> Iterator[NDArray[np.int64]]:
    """Yield units x records of row numbers, -1 for none: of like size, few enough at once."""
    most = max(1, min(_MOST, _BYTES // (4 * size)))
    if len(whose.rows) == whose.count:  # a record each
        rows = whose.rows[drawn][:, None]
        yield from (rows[i : i + most] for i in range(0, len(rows), most))
        return
    held = [subset(stream, whose.of(int(u)), parts.patient_records) for u in drawn]
    held.sort(key=len)
    for start in range(0, len(held), most):
        group = held[start : start + most]
        batch = np.full((len(group), len(group[-1])), -1, np.int64)
        for line, rows in zip(batch, group, strict=True):
            line[: len(rows)] = rows
        yield batch


def _optimizer(module: nn.Module, parts: DpParts, args: Arguments) -> torch.optim.Optimizer:
    if parts.optimizer is not None:
        return parts.optimizer(module.parameters(), args)
    return torch.optim.SGD(module.parameters(), lr=float(args["lr"]))


def _step(
    module: nn.Module,
    trained: Mapping[str, nn.Parameter],
    total: Tensor,
    optimizer: torch.optim.Optimizer,
    context: Context,
) -> None:
    """Let the optimizer step along `total`, plus FedProx's pull, which knows no record."""
    start = 0
    for parameter in trained.values():
        part = total[start : start + parameter.numel()]
        parameter.grad = part.reshape(parameter.shape).to(parameter.dtype)
        start += parameter.numel()
    pull = context.proximal(module)
    if isinstance(pull, Tensor):
        torch.autograd.backward(pull)  # adds to the gradients
    optimizer.step()
