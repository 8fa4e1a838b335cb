"""Training plans in PyTorch: a model, and either a training loop or a loss and an optimizer.

    def model(args):
        return nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 1))

    def train(model, data, args, context):               # looks like a local loop
        optimizer = torch.optim.SGD(model.parameters(), lr=args["lr"])
        for epoch in range(args["epochs"]):
            for x, y in data.batches(args["batch_size"], shuffle=True):
                loss = criterion(model(x).squeeze(1), y) + context.proximal(model)
                optimizer.zero_grad(); loss.backward(); optimizer.step()
            context.progress((epoch + 1) / args["epochs"], loss=loss.item())
        return {"loss": loss.item()}

    PLAN = torch_plan(model, train, features="*", target="diagnosis",
                      arguments={"lr": 0.05, "epochs": 1, "batch_size": 32})

A plan may also say what a round with differential privacy needs, `dp=DpParts(loss=...)`: then
Consilia runs its own loop, plans.dp. A plan with loss and optimizer has said it already.

All of the model's `state_dict` travels, buffers too. On the CPU its tensors share their
memory with the arrays that the worker reads models into, so a model is in memory once.
Importing this module imports torch; nothing else in Consilia does.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from consilia.core.weights import BFLOAT16, Array, Weights, mismatch, schema_of
from consilia.data.contract import Selection
from consilia.data.table import Table, batch_stop
from consilia.errors import PlanError
from consilia.plans import dp as private
from consilia.plans.attack import Probe, ProbeOf, auditing
from consilia.plans.contract import (
    PROXIMAL_MU,
    Context,
    Outcome,
    Predicting,
    TrainingPlan,
    check_declared,
    check_predicts,
    contiguous,
    select,
)
from consilia.plans.dp import DpParts
from consilia.privacy import gradients
from consilia.privacy.accountant import public_count
from consilia.wire.v1 import Arguments, Dp, Scalar

__all__ = ["DpParts", "TorchData", "array_of", "tensor_of", "torch_plan"]

_GATHER_BYTES = 4 << 20  # of a shuffled pass, gathered at once and cut into batches

Model = Callable[[Arguments], nn.Module]
Train = Callable[[nn.Module, "TorchData", Arguments, Context], Mapping[str, object] | None]
Evaluate = Callable[[nn.Module, "TorchData", Arguments], Mapping[str, object]]
Predict = Callable[[nn.Module, "TorchData", Arguments], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
Optimizer = Callable[[Any, Arguments], torch.optim.Optimizer]

_LOOP_ARGUMENTS: Mapping[str, Scalar] = {"lr": 0.01, "epochs": 1, "batch_size": 32}


@dataclass(frozen=True, slots=True)
class TorchData:
    """A site's records as tensors: `x` (records x features, float32), `y`, and batches."""

    x: Tensor
    y: Tensor
    features: tuple[str, ...]
    generator: torch.Generator

    @property
    def records(self) -> int:
        """Number of records."""
        return int(self.x.shape[0])

    def batches(
        self, batch_size: int, *, shuffle: bool = False, drop_last: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, y) of `batch_size` records, shuffled by the task's own seed.

        The tensors are copies: changing them in place does not change the dataset. Without a
        target, y has no columns.
        """
        stop = batch_stop(self.records, batch_size, drop_last)
        order = None
        if shuffle:
            order = torch.randperm(self.records, generator=self.generator).to(self.x.device)
        row = max(1, self.x[:1].nbytes)
        step = max(1, _GATHER_BYTES // (row * batch_size)) * batch_size
        for start in range(0, stop, step):
            end = min(start + step, stop)
            if order is None:
                x, y = self.x[start:end].clone(), self.y[start:end].clone()
            else:
                rows = order[start:end]
                x, y = self.x.index_select(0, rows), self.y.index_select(0, rows)
            yield from zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True)


def torch_plan(  # noqa: PLR0913  a declaration, written with keywords
    model: Model,
    train: Train | None = None,
    *,
    features: Sequence[str] | str,
    target: str | Sequence[str] | None,
    target_type: str = "float32",
    classes: Sequence[str] = (),
    fill: float | None = None,
    arguments: Mapping[str, Scalar] | None = None,
    evaluate: Evaluate | None = None,
    loss: Loss | None = None,
    optimizer: Optimizer | None = None,
    dp: DpParts | None = None,
    predict: Predict | None = None,
    predicts: str = "",
) -> TrainingPlan:
    """Make a training plan of a PyTorch model.

    Give `train`, or give `loss(output, y)` and `optimizer(parameters, args)`: then Consilia
    runs the loop, with the arguments lr, epochs and batch_size (and FedProx when the
    experiment asks for it). `evaluate(model, data, args)` is called on the model as received,
    before training; its metrics are reported with `received_` in front of their names.

    `target_type` is the dtype of y: float32, or int64 for class indices; `classes` lists the
    texts of a text target. A missing feature becomes `fill`; without one it is an error.

    `dp` is what rounds with privacy at record or patient level run instead of `train`.

    `predict(model, data, args)` gives one prediction for each record of `data`, so that sites
    can evaluate models on their hold-outs; `predicts` says what it is: probability (of class
    1), margin (above 0 for class 1), classes (a probability each), number, risk (higher for an
    earlier event; the target is time and event) or mask (a value for each target column).
    """
    declared, loop = _trained_by(train, loss, optimizer, arguments)
    parts = _parts(dp, loss, optimizer, declared)
    selection = select(features, target, target_type, classes, fill)
    held = _Held(model)
    check_predicts(predicts, predict)
    return TrainingPlan(
        "torch",
        _initial(held),
        _training(held, selection, loop, evaluate, parts),
        check_declared(declared),
        selection,
        parts is not None,
        None if parts is None else auditing(_probe(held, selection, parts)),
        None if predict is None else _predicting(held, selection, predict, predicts),
        network=_made(model),
    )


def _trained_by(
    train: Train | None,
    loss: Loss | None,
    optimizer: Optimizer | None,
    arguments: Mapping[str, Scalar] | None,
) -> tuple[dict[str, Scalar], Train]:
    """Return the arguments that a plan declares, and the loop that trains its model."""
    declared = dict(arguments or {})
    if train is not None:
        if loss is not None or optimizer is not None:
            raise PlanError("give train, or loss and optimizer, not both")
        return declared, train
    if loss is None or optimizer is None:
        raise PlanError("torch_plan needs train=, or both loss= and optimizer=")
    return {**_LOOP_ARGUMENTS, **declared}, _loop(loss, optimizer)


def _initial(held: "_Held") -> Callable[[Arguments, int], Weights]:
    """Return what makes the first model."""

    def init(args: Arguments, seed: int) -> Weights:
        _seed(seed, deterministic=False)
        return held.weights(held.module(args, torch.device("cpu"), fresh=True))

    return init


def _made(model: Model) -> Callable[[Arguments], nn.Module]:
    """Return what makes the plan's module, for whoever exports a model."""

    def network(args: Arguments) -> nn.Module:
        return _checked(model(args))

    return network


def _training(
    held: "_Held",
    selection: Selection,
    train: Train,
    evaluate: Evaluate | None,
    parts: DpParts | None,
) -> Callable[[Weights, Table | None, Arguments, Context], Outcome]:
    """Return what runs one task of a round at a site."""

    def run(
        weights: Weights, table: Table | None, args: Arguments, context: Context
    ) -> Outcome:
        if table is None:
            raise PlanError("training needs a dataset, and the task names none")
        torch.set_num_threads(context.threads)
        _seed(context.seed, deterministic=context.deterministic)
        device = _device(context)
        module = held.module(args, device)
        held.load(module, weights)
        data = held.data(table, selection, device, context.seed)
        if mu := args.get(PROXIMAL_MU):
            context.proximal_term = _pull(module, float(mu))
        if context.dp is not None:
            private.check_layers(module)
            if context.dp.level != "client" and parts is not None:
                whose = held.units(context.dp, table, context.patient)
                return _private(held, module, weights, data, whose, parts, args, context)
        metrics = {} if evaluate is None else _received(module, data, args, evaluate)
        module.train()
        metrics |= train(module, data, args, context) or {}
        return Outcome(held.weights(module, weights), table.records, metrics)  # type: ignore[arg-type]

    return run


def _private(  # noqa: PLR0913, PLR0917 - what a round is made of
    held: "_Held",
    module: nn.Module,
    weights: Weights,
    data: TorchData,
    whose: private.Units,
    parts: DpParts,
    args: Arguments,
    context: Context,
) -> Outcome:
    """Run a round with privacy at record or patient level, in Consilia's own loop."""
    if context.dp is None:
        raise PlanError("the round asks for no privacy")
    module.train()
    if gradients.applies(context.dp):
        about = (module, data.x, data.y, whose, parts, context.dp, context)
        sums = private.gradient_sum(*about)
        return Outcome({**weights, **sums}, public_count(whose.count), {})
    private.train(module, data.x, data.y, whose, parts, context.dp, args, context)
    # patients count for patients: how many records one has is not for others to see
    return Outcome(held.weights(module, weights), public_count(whose.count), {})


def _received(
    module: nn.Module, data: TorchData, args: Arguments, evaluate: Evaluate
) -> dict[str, object]:
    """Return what the plan finds of the model as it came, under names of its own."""
    module.eval()
    with torch.no_grad():
        found = evaluate(module, data, args)
    return {f"received_{name}": value for name, value in found.items()}


def _device(context: Context) -> torch.device:
    """Return where a task computes."""
    return torch.device("cuda" if context.cuda and torch.cuda.is_available() else "cpu")


def _checked(made: object) -> nn.Module:
    """Return what a plan's model() has made; PlanError for no module."""
    if not isinstance(made, nn.Module):
        raise PlanError(f"model() returned {type(made).__name__}; needed an nn.Module")
    return made


def _predicting(
    held: "_Held", selection: Selection, predict: Predict, predicts: str
) -> Predicting:
    """Return what predicts for every record of a table."""

    def run(
        weights: Weights, table: Table, args: Arguments, context: Context
    ) -> tuple[str, Array, Array]:
        torch.set_num_threads(context.threads)
        _seed(context.seed, deterministic=context.deterministic)
        device = _device(context)
        module = held.module(args, device)
        held.load(module, weights)
        data = held.data(table, selection, device, context.seed)
        module.eval()
        with torch.no_grad():
            scores = predict(module, data, args)
        truth = array_of("y", data.y.double())
        return predicts, array_of("predict", scores.double()), truth

    return run


def _probe(held: "_Held", selection: Selection, parts: DpParts) -> ProbeOf:
    """Return what hands an audit the model with the records of a table."""

    def probe(weights: Weights, table: Table, args: Arguments, context: Context) -> Probe:
        device = _device(context)
        module = held.module(args, device)
        held.load(module, weights)
        data = held.data(table, selection, device, context.seed)
        return Probe(module, data.x, data.y, parts, data.features)

    return probe


def _parts(
    dp: DpParts | None,
    loss: Loss | None,
    optimizer: Optimizer | None,
    declared: Mapping[str, Scalar],
) -> DpParts | None:
    """Return what private rounds need: as given, or from loss and optimizer; else None."""
    if dp is None:
        if loss is None:
            return None
        plain = loss
        return DpParts(lambda model, x, y: plain(model(x), y), optimizer)
    if dp.patient_records < 1:
        raise PlanError(f"patient_records={dp.patient_records}; needed at least 1")
    if dp.optimizer is not None or optimizer is not None:
        return replace(dp, optimizer=dp.optimizer or optimizer)
    if not isinstance(declared.get("lr"), float):
        raise PlanError("dp=DpParts(...) without an optimizer needs the argument lr, a number")
    return dp


class _Held:
    """The model and the data on their device, kept from round to round."""

    def __init__(self, model: Model) -> None:
        self._make = model
        self._module: nn.Module | None = None
        self._key: object = None
        self._data: tuple[object, TorchData] | None = None
        self._units: tuple[object, private.Units] | None = None

    def module(
        self, args: Arguments, device: torch.device, *, fresh: bool = False
    ) -> nn.Module:
        """Return the model for `args` on `device`, the one of the last round where it fits."""
        key = (tuple(sorted(args.items())), device)
        if fresh or self._module is None or self._key != key:
            self._module, self._key = _checked(self._make(args)).to(device), key
        for parameter in self._module.parameters():
            parameter.grad = None
        return self._module

    def load(self, module: nn.Module, weights: Weights) -> None:
        """Put `weights` into the model: on the CPU by sharing their memory, else by copying."""
        state = _state(module)
        needed = {n: _dtype(n, t) for n, t in state.items()}
        found = {n: (a.dtype, a.shape) for n, a in weights.items()}
        if found != needed:
            names = sorted(
                n for n in found.keys() | needed.keys() if found.get(n) != needed.get(n)
            )
            raise PlanError(
                f"the received model does not fit model(): {names[:5]} differ in name, dtype "
                "or shape; does model(args) depend on something other than its arguments?"
            )
        with torch.no_grad():
            for name, tensor in state.items():
                source = tensor_of(weights[name])
                if tensor.device.type != "cpu":
                    tensor.copy_(source)
                elif tensor.data_ptr() != source.data_ptr():
                    tensor.data = source

    def weights(self, module: nn.Module, into: Weights | None = None) -> Weights:
        """Return the model's state as arrays; on the CPU they share its memory."""
        out: Weights = {}
        with torch.no_grad():
            for name, tensor in _state(module).items():
                if tensor.device.type != "cpu" and into is not None:
                    tensor_of(into[name]).copy_(tensor)
                    out[name] = into[name]
                else:
                    out[name] = contiguous(array_of(name, tensor))
        if into is not None and (problem := mismatch(schema_of(out), schema_of(into))):
            raise PlanError(f"train changed the model itself: {problem}")
        return out

    def data(
        self, table: Table, selection: Selection, device: torch.device, seed: int
    ) -> TorchData:
        """Return the table's tensors, made once per table and device."""
        key = (id(table), device)
        generator = torch.Generator().manual_seed(seed)
        if self._data is None or self._data[0] != key:
            s = table.samples(selection, np.random.default_rng(seed))
            y = np.empty((s.records, 0), np.float32) if s.y is None else s.y
            x = torch.from_numpy(s.x).to(device)
            made = TorchData(x, torch.from_numpy(y).to(device), s.features, generator)
            self._data = (key, made)
        kept = self._data[1]
        return TorchData(kept.x, kept.y, kept.features, generator)

    def units(self, dp: Dp, table: Table, column: str) -> private.Units:
        """Return whose presence a private round hides, found once per table."""
        key = (id(table), dp.level, column)
        if self._units is None or self._units[0] != key:
            self._units = (key, private.units(dp, table, column))
        return self._units[1]


def tensor_of(array: Array) -> Tensor:
    """Return a tensor that shares the memory of `array` (BFLOAT16 becomes torch.bfloat16)."""
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def array_of(name: str, tensor: Tensor) -> Array:
    """Return the array that shares the memory of a CPU `tensor`, or of its copy from a GPU."""
    plain = tensor.detach().cpu()
    if plain.is_sparse or plain.is_quantized or plain.is_complex():
        raise PlanError(
            f"tensor {name!r} is {tensor.dtype}, {tensor.layout}: that cannot travel"
        )
    if plain.dtype == torch.bfloat16:
        bits: Array = plain.contiguous().view(torch.int16).numpy()
        return bits.view(BFLOAT16)
    array: Array = plain.resolve_neg().numpy()
    return array


def _state(module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict(keep_vars=True)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise PlanError(
                f"state_dict entry {name!r} is {type(value).__name__}; only tensors travel"
            )
    return dict(state)


def _dtype(name: str, tensor: Tensor) -> tuple["np.dtype[Any]", tuple[int, ...]]:
    if tensor.dtype == torch.bfloat16:
        return BFLOAT16, tuple(tensor.shape)
    return array_of(name, torch.empty(0, dtype=tensor.dtype)).dtype, tuple(tensor.shape)


def _seed(seed: int, *, deterministic: bool) -> None:
    """Seed every generator that a plan may use: all its randomness is the task's seed."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def _pull(module: nn.Module, mu: float) -> Callable[[nn.Module], Tensor]:
    """Return the FedProx term mu/2 * ||w - w_round||^2 over trainable parameters."""
    origin = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}

    def term(moving: nn.Module) -> Tensor:
        parts = [
            (p - origin[n]).square().sum()
            for n, p in moving.named_parameters()
            if n in origin and p.requires_grad
        ]
        return torch.stack(parts).sum() * (mu / 2)

    return term


def _loop(loss: Loss, optimizer: Optimizer) -> Train:
    """Return the training loop that Consilia runs for a plan without one."""

    def train(
        module: nn.Module, data: TorchData, args: Arguments, context: Context
    ) -> Mapping[str, object]:
        epochs, size = int(args["epochs"]), int(args["batch_size"])
        if epochs < 1:
            raise PlanError(f"epochs={epochs}; needed at least 1")
        steps = optimizer(module.parameters(), args)
        total, mean = epochs * -(-data.records // size), 0.0
        done = 0
        for _ in range(epochs):
            sums = torch.zeros((), device=data.x.device)
            for x, y in data.batches(size, shuffle=True):
                steps.zero_grad()
                value = loss(module(x), y)
                (value + context.proximal(module)).backward()
                steps.step()
                sums += value.detach() * len(x)
                done += 1
                context.progress(done / total)
            mean = float(sums) / data.records
        context.progress(1.0, loss=mean)
        return {"loss": mean}

    return train
