"""PyTorch plans: the whole state travels, memory is shared, and seeds decide everything."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: torch)")
from torch import nn  # noqa: E402  after the check

from consilia.core.weights import BFLOAT16, Weights, schema_of, widen  # noqa: E402
from consilia.data.registry import inspect_table, to_source  # noqa: E402
from consilia.data.table import Table  # noqa: E402
from consilia.errors import PlanError  # noqa: E402
from consilia.plans.contract import (  # noqa: E402
    Context,
    TrainingPlan,
    copy_weights,
    run_task,
)
from consilia.plans.torch import TorchData, array_of, tensor_of, torch_plan  # noqa: E402
from consilia.wire.v1 import Arguments  # noqa: E402

ARGUMENTS: Arguments = {"lr": 0.1, "epochs": 2, "batch_size": 16}


@pytest.fixture
def table(tmp_path: Path) -> Table:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 3)).round(4)
    y = (x.sum(1) > 0).astype(int)
    path = tmp_path / "t.csv"
    rows = (",".join(map(str, [*r, t])) for r, t in zip(x, y, strict=True))
    path.write_text("a,b,c,y\n" + "\n".join(rows) + "\n")
    return Table(to_source(inspect_table(path, "t", (), now=0)))


def model(args: Arguments) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def train(module: nn.Module, data: TorchData, args: Any, context: Context) -> dict[str, float]:
    optimizer = torch.optim.SGD(module.parameters(), lr=args["lr"])
    for epoch in range(args["epochs"]):
        for x, y in data.batches(args["batch_size"], shuffle=True):
            loss = nn.functional.binary_cross_entropy_with_logits(module(x).squeeze(1), y)
            optimizer.zero_grad()
            (loss + context.proximal(module)).backward()
            optimizer.step()
        context.progress((epoch + 1) / args["epochs"], loss=loss.item())
    return {"loss": loss.item()}


def make(**more: Any) -> TrainingPlan:
    options = {"features": ["a", "b", "c"], "target": "y", "arguments": ARGUMENTS, **more}
    return torch_plan(model, train, **options)


def start(plan: TrainingPlan, seed: int = 5) -> Weights:
    return copy_weights(run_task(plan, None, None, {}, Context(seed=seed)).weights)


def test_the_whole_state_travels(table: Table) -> None:
    plan = make()
    weights = start(plan)
    assert list(weights) == list(model({}).state_dict())
    assert weights["1.num_batches_tracked"].dtype == np.int64
    assert weights["1.num_batches_tracked"].shape == ()
    before = copy_weights(weights)
    outcome = run_task(plan, weights, table, {}, Context(seed=1))
    assert schema_of(outcome.weights) == schema_of(before)
    assert outcome.records == 120
    assert outcome.weights["1.num_batches_tracked"] == 16  # 2 epochs of 8 batches
    assert not np.allclose(outcome.weights["1.running_mean"], before["1.running_mean"])
    assert not np.allclose(outcome.weights["0.weight"], before["0.weight"])


def test_it_equals_the_same_loop_without_consilia(table: Table) -> None:
    plan = make()
    weights = start(plan)
    ours = run_task(plan, copy_weights(weights), table, {}, Context(seed=9)).weights
    bare = model({})
    bare.load_state_dict({n: torch.from_numpy(a.copy()) for n, a in weights.items()})
    torch.manual_seed(9)
    x = torch.from_numpy(np.stack([table.column(n) for n in "abc"], 1).astype(np.float32))
    y = torch.from_numpy(table.column("y").astype(np.float32))
    generator = torch.Generator().manual_seed(9)
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
    for _ in range(2):
        order = torch.randperm(120, generator=generator)
        for i in range(0, 120, 16):
            rows = order[i : i + 16]
            loss = nn.functional.binary_cross_entropy_with_logits(
                bare(x[rows]).squeeze(1), y[rows]
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    for name, tensor in bare.state_dict().items():
        assert np.array_equal(ours[name], tensor.numpy()), name


def test_rounds_start_from_what_is_received_and_nothing_else(table: Table) -> None:
    plan, fresh = make(), make()
    weights = start(plan)
    run_task(plan, copy_weights(weights), table, {}, Context(seed=1))
    again = run_task(plan, copy_weights(weights), table, {}, Context(seed=2)).weights
    once = run_task(fresh, copy_weights(weights), table, {}, Context(seed=2)).weights
    for name in once:
        assert np.array_equal(again[name], once[name]), name


def test_memory_is_shared_on_the_cpu(table: Table) -> None:
    plan = make()
    weights = start(plan)
    addresses = {n: a.ctypes.data for n, a in weights.items()}
    outcome = run_task(plan, weights, table, {}, Context(seed=1))
    assert {n: a.ctypes.data for n, a in outcome.weights.items()} == addresses
    assert outcome.weights["0.weight"].flags.writeable


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_seed_is_all_the_randomness(table: Table, deterministic: bool) -> None:
    def noisy(module: nn.Module, data: TorchData, a: Arguments, c: Context) -> dict[str, float]:
        import random  # noqa: PLC0415  as plans do

        loss = float(torch.rand(1)) + np.random.rand() + random.random()  # noqa: S311
        return {"loss": loss}

    plan = torch_plan(model, noisy, features="*", target="y")
    weights = start(plan)
    found = [
        run_task(
            plan, copy_weights(weights), table, {}, Context(seed=s, deterministic=deterministic)
        ).metrics["loss"]
        for s in (3, 3, 4)
    ]
    assert found[0] == found[1] != found[2]
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    torch.use_deterministic_algorithms(False)


def test_init_follows_the_seed() -> None:
    plan = make()
    one, same, other = start(plan, 1), start(plan, 1), start(plan, 2)
    assert np.array_equal(one["0.weight"], same["0.weight"])
    assert not np.array_equal(one["0.weight"], other["0.weight"])


@pytest.mark.parametrize("size", [1, 16, 50, 120, 500])
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches(size: int, shuffle: bool) -> None:
    x = torch.arange(240.0).reshape(120, 2)
    data = TorchData(x, x[:, 0].clone(), ("a", "b"), torch.Generator().manual_seed(0))
    parts = list(data.batches(size, shuffle=shuffle))
    sizes = [len(a) for a, _ in parts]
    assert sizes == [size] * (120 // size) + ([120 % size] if 120 % size else [])
    assert all(torch.equal(a[:, 0], b) for a, b in parts)
    seen = torch.cat([b for _, b in parts])
    assert torch.equal(torch.sort(seen).values, x[:, 0])
    assert torch.equal(seen, x[:, 0]) is not shuffle
    for a, _ in parts:
        a.zero_()
    assert x[1, 0] == 2


def test_batches_larger_than_one_gather() -> None:
    x = torch.arange(3_000_000.0).reshape(-1, 1)
    data = TorchData(x, x[:, 0], ("a",), torch.Generator().manual_seed(0))
    seen = torch.cat([y for _, y in data.batches(7_000, shuffle=True)])
    assert [len(y) for y, _ in data.batches(7_000, drop_last=True)] == [7_000] * 428
    assert torch.equal(torch.sort(seen).values, x[:, 0])


def test_fedprox(table: Table) -> None:
    plan = make()
    weights = start(plan)

    def moved(mu: float) -> float:
        arguments = {"proximal_mu": mu, "epochs": 8}
        out = run_task(plan, copy_weights(weights), table, arguments, Context(seed=1)).weights
        return float(np.linalg.norm(np.subtract(out["3.weight"], weights["3.weight"])))

    assert moved(5.0) < moved(0.0) / 2


def test_the_fedprox_term_is_mu_half_times_the_squared_distance(table: Table) -> None:
    found: list[float] = []

    def step(module: nn.Module, data: TorchData, a: Arguments, c: Context) -> None:
        assert c.proximal(module).item() == 0.0
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.5)
        term = c.proximal(module)
        term.backward()
        found.append(term.item())
        gradient = next(module.parameters()).grad
        assert gradient is not None
        assert torch.allclose(gradient, torch.full_like(gradient, 0.2 * 0.5))

    plan = torch_plan(model, step, features="*", target="y")
    run_task(plan, start(plan), table, {"proximal_mu": 0.2}, Context())
    count = sum(p.numel() for p in model({}).parameters())
    assert found == [pytest.approx(0.1 * count * 0.25)]


def test_consilias_own_loop(table: Table) -> None:
    def loss(out: Any, y: Any) -> Any:
        return nn.functional.binary_cross_entropy_with_logits(out.squeeze(1), y)

    told: list[float] = []
    plan = torch_plan(
        model,
        features="*",
        target="y",
        loss=loss,
        optimizer=lambda parameters, args: torch.optim.Adam(parameters, lr=args["lr"]),
        arguments={"epochs": 20},
    )
    assert plan.arguments == {"lr": 0.01, "epochs": 20, "batch_size": 32}
    weights = start(plan)
    context = Context(seed=1, report=lambda f, m: told.append(f))
    outcome = run_task(plan, weights, table, {"lr": 0.05, "proximal_mu": 0.001}, context)
    assert outcome.metrics["loss"] < 0.2
    assert told[-1] == 1.0
    assert told == sorted(told)


def test_evaluate_sees_the_received_model(table: Table) -> None:
    def evaluate(module: nn.Module, data: TorchData, args: Arguments) -> dict[str, float]:
        assert not module.training
        assert not torch.is_grad_enabled()
        return {"sum": float(sum(p.sum() for p in module.parameters()))}

    plan = make(evaluate=evaluate)
    weights = start(plan)
    names = [n for n, _ in model({}).named_parameters()]
    expected = sum(float(weights[n].sum()) for n in names)
    metrics = run_task(plan, weights, table, {}, Context()).metrics
    assert metrics["received_sum"] == pytest.approx(expected, abs=1e-5)
    assert "loss" in metrics


def test_other_dtypes_travel(table: Table) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small = nn.Parameter(torch.ones(2, dtype=torch.float16))
            self.brain = nn.Parameter(torch.tensor([1.0, -2.5], dtype=torch.bfloat16))
            self.wide = nn.Parameter(torch.ones((), dtype=torch.float64))
            self.register_buffer("flag", torch.tensor([True, False]))
            self.register_buffer("count", torch.arange(3, dtype=torch.int32))
            self.register_buffer("private", torch.ones(1), persistent=False)

    def step(module: nn.Module, data: TorchData, a: Arguments, c: Context) -> None:
        with torch.no_grad():
            module.brain.mul_(2)  # type: ignore[operator]
            module.wide.add_(1)  # type: ignore[operator]

    plan = torch_plan(lambda args: Odd(), step, features="*", target="y")
    weights = start(plan)
    assert [t.dtype for t in schema_of(weights)] == [
        "float16",
        "bfloat16",
        "float64",
        "bool",
        "int32",
    ]
    assert weights["brain"].dtype == BFLOAT16
    for _ in range(2):
        weights = run_task(plan, weights, table, {}, Context()).weights
    assert widen(weights["brain"]).tolist() == [4.0, -10.0]
    assert weights["wide"] == 3.0


def test_tensor_and_array_share_memory() -> None:
    for array in (np.zeros(3, np.float32), np.zeros(3, BFLOAT16), np.zeros((), np.int64)):
        tensor = tensor_of(array)
        tensor.fill_(1)
        assert array_of("x", tensor).tobytes() == array.tobytes() != bytes(array.nbytes)


def test_tied_parameters(table: Table) -> None:
    def tied(args: Arguments) -> nn.Module:
        module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1))
        module[1].weight = module[0].weight
        return module

    plan = torch_plan(tied, train, features="*", target="y", arguments=ARGUMENTS)
    weights = start(plan)
    for seed in (1, 2):
        weights = copy_weights(run_task(plan, weights, table, {}, Context(seed=seed)).weights)
        assert np.array_equal(weights["0.weight"], weights["1.weight"])


def test_data_without_target_and_with_classes(table: Table) -> None:
    shapes: list[tuple[int, ...]] = []

    def look(module: nn.Module, data: TorchData, a: Arguments, c: Context) -> None:
        x, y = next(data.batches(10))
        assert data.features == ("a", "b", "c", "y")
        assert data.records == 120
        shapes.extend((tuple(x.shape), tuple(y.shape)))

    wide = torch_plan(lambda a: nn.Linear(4, 1), look, features="*", target=None)
    run_task(wide, start(wide), table, {}, Context())
    assert shapes == [(10, 4), (10, 0)]

    def classes(module: nn.Module, data: TorchData, a: Arguments, c: Context) -> None:
        assert data.y.dtype == torch.int64

    typed = torch_plan(
        model, classes, features=["a", "b", "c"], target="y", target_type="int64"
    )
    run_task(typed, start(typed), table, {}, Context())


def _swap(module: nn.Module, data: TorchData, a: Arguments, c: Context) -> None:
    module[0] = nn.Linear(3, 9)  # type: ignore[operator]


def _half(module: nn.Module, data: TorchData, a: Arguments, c: Context) -> None:
    module.half()


@pytest.mark.parametrize("step", [_swap, _half])
def test_a_changed_model_is_refused(table: Table, step: Callable[..., None]) -> None:
    plan = torch_plan(model, step, features=["a", "b", "c"], target="y")
    with pytest.raises(PlanError, match=r"train changed the model itself: tensor '0\.weight'"):
        run_task(plan, start(plan), table, {}, Context())


def test_a_received_model_that_does_not_fit_is_refused(table: Table) -> None:
    plan = make()
    weights = start(plan)
    del weights["0.bias"]
    with pytest.raises(PlanError, match=r"\['0.bias'\] differ"):
        run_task(plan, weights, table, {}, Context())


def test_wrong_declarations_are_refused() -> None:
    with pytest.raises(PlanError, match="needs train=, or both"):
        torch_plan(model, features="*", target="y")
    with pytest.raises(PlanError, match="not both"):
        torch_plan(model, train, features="*", target="y", loss=nn.functional.mse_loss)
    wrong = torch_plan(lambda a: 5, train, features="*", target="y")  # type: ignore[arg-type, return-value]
    with pytest.raises(PlanError, match=r"returned int; needed an nn\.Module"):
        start(wrong)


def test_state_that_is_no_tensor_is_refused() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> object:
            return {"a": 1}

    plan = torch_plan(lambda a: Extra(3, 1), train, features="*", target="y")
    with pytest.raises(PlanError, match="'_extra_state' is dict"):
        start(plan)
