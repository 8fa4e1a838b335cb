"""Private training: what one record or patient can change, and what leaves a round."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed (extra: torch)")
from torch import Tensor, nn  # noqa: E402  after the check

from consilia.core.weights import Weights  # noqa: E402
from consilia.data.registry import inspect_table, to_source  # noqa: E402
from consilia.data.table import Table  # noqa: E402
from consilia.errors import DataError, PlanError  # noqa: E402
from consilia.node import worker  # noqa: E402
from consilia.plans.contract import (  # noqa: E402
    Context,
    Outcome,
    TrainingPlan,
    copy_weights,
    run_task,
)
from consilia.plans.dp import (  # noqa: E402
    DpParts,
    Units,
    add_clipped,
    unit_gradients,
    units,
)
from consilia.plans.torch import torch_plan  # noqa: E402
from consilia.privacy.noise import Grid, local_grid  # noqa: E402
from consilia.wire import frames  # noqa: E402
from consilia.wire.v1 import Arguments, Dp, Plan  # noqa: E402
from consilia.wire.worker import Load, Run  # noqa: E402

RECORD = Dp("record", 1.0, 1.0, 0.2, 30)
PATIENT = Dp("patient", 1.0, 1.0, 0.3, 30)


def keyed(seed: int) -> Callable[[int], bytes]:
    """Return a stand-in for os.urandom that always gives the same key."""
    return lambda size: hashlib.shake_256(seed.to_bytes(8, "little")).digest(size)


def bce(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    return nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), y)


def small(args: Arguments) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.GroupNorm(2, 8), nn.Tanh(), nn.Linear(8, 1))


def rows(patients: int = 41, each: int = 3, seed: int = 0) -> str:
    """A table of patients with up to `each` records: pid, a, b, c, y."""
    rng = np.random.default_rng(seed)
    lines = ["pid,a,b,c,y"]
    for patient in range(patients):
        for _ in range(1 + patient % each):
            a, b, c = rng.normal(size=3).round(4)
            lines.append(f"p{patient},{a},{b},{c},{int(a + b > 0)}")
    return "\n".join([lines[0], *rng.permutation(lines[1:]).tolist(), ""])


def opened(path: Path, text: str, **types: str) -> Table:
    path.write_text(text)
    return Table(to_source(inspect_table(path, "t", (), now=0, types={"pid": "str", **types})))


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return opened(tmp_path / "t.csv", rows())


def made(model: Any = small, dp: DpParts | None = None, **more: Any) -> TrainingPlan:
    options: dict[str, Any] = {"features": ["a", "b", "c"], "target": "y", **more}
    options.setdefault("arguments", {"lr": 0.5})
    return torch_plan(model, never, dp=dp or DpParts(bce), **options)


def never(module: nn.Module, *_: object) -> None:
    raise AssertionError("the plan's own loop ran in a private round")


def start(plan: TrainingPlan, seed: int = 5) -> Weights:
    return copy_weights(run_task(plan, None, None, {}, Context(seed=seed)).weights)


def trained(
    plan: TrainingPlan,
    table: Table,
    dp: Dp = RECORD,
    weights: Weights | None = None,
    key: int = 1,
    **args: Any,
) -> Outcome:
    context = Context(seed=3, dp=dp, patient="pid", random=keyed(key))
    return run_task(plan, copy_weights(weights or start(plan)), table, args, context)


# ---- gradients of one unit -----------------------------------------------------------------


class Sequence(nn.Module):
    """A recurrent model over the features as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(1, 4, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(x.unsqueeze(2))[0][:, -1])
        return out


class Tied(nn.Module):
    """Two layers of one weight, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.frozen, self.head = nn.Linear(3, 3), nn.Linear(3, 1)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.frozen(self.two(torch.tanh(self.one(x)))))
        return out


def image(args: Arguments) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 4, 3, padding=1), nn.InstanceNorm1d(4),
        nn.ReLU(), nn.Flatten(), nn.Linear(12, 1),
    )  # fmt: skip


@pytest.mark.parametrize("make", [small, image, lambda a: Sequence(), lambda a: Tied()])
@pytest.mark.parametrize("width", [1, 3])
def test_gradients_are_those_of_each_unit_alone(
    make: Callable[[Arguments], nn.Module], width: int
) -> None:
    torch.manual_seed(0)
    module = make({})
    x, y = torch.randn(9, 3), torch.randint(0, 2, (9,)).float()
    batch = np.array([[0, 1, 2], [3, 4, -1], [5, -1, -1]])[:, :width]
    names = {n: p for n, p in module.named_parameters() if p.requires_grad}
    found = unit_gradients(module, names, x, y, batch, DpParts(bce))
    assert list(found) == list(names)
    for i, line in enumerate(batch):
        mine = line[line >= 0]
        loss = torch.stack([bce(module, x[[r]], y[[r]]) for r in mine]).mean()
        alone = torch.autograd.grad(loss, list(names.values()))
        for name, gradient in zip(names, alone, strict=True):
            assert torch.allclose(found[name][i], gradient, atol=1e-6), name
    assert all(p.grad is None for p in module.parameters())


def test_a_transform_comes_before_the_loss() -> None:
    module = nn.Linear(3, 1)
    x, y = torch.randn(4, 3), torch.zeros(4)
    batch, names = np.arange(4)[:, None], dict(module.named_parameters())
    doubled = DpParts(bce, transform=lambda a: a * 2)
    found = unit_gradients(module, names, x, y, batch, doubled)
    plain = unit_gradients(module, names, x * 2, y, batch, DpParts(bce))
    assert torch.equal(found["weight"], plain["weight"])


def test_dropout_falls_for_each_record_by_itself() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1, bias=False)).train()
    x, y = torch.ones(64, 3), torch.zeros(64)
    names = dict(module.named_parameters())
    found = unit_gradients(module, names, x, y, np.arange(64)[:, None], DpParts(bce))
    patterns = {tuple(row.tolist()) for row in (found["1.weight"].reshape(64, 3) == 0)}
    assert len(patterns) > 4


# ---- sensitivity ---------------------------------------------------------------------------


def summed(gradients: dict[str, Tensor], grid: Grid, chosen: slice | list[int]) -> Tensor:
    size = sum(g[0].numel() for g in gradients.values())
    total: Tensor = torch.zeros(size, dtype=torch.float64)
    add_clipped(total, {n: g[chosen] for n, g in gradients.items()}, grid)
    return total


@given(
    seed=st.integers(0, 2**32),
    scale=st.floats(-20, 20),
    noise=st.floats(0.05, 50),
    clip=st.floats(1e-3, 1e3),
    odd=st.sampled_from([0.0, math.nan, math.inf, -math.inf, 1e30]),
    double=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_one_unit_changes_the_sum_by_at_most_the_clip(
    *, seed: int, scale: float, noise: float, clip: float, odd: float, double: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    kind = torch.float64 if double else torch.float32
    gradients = {
        name: (torch.randn(6, *shape, generator=generator) * clip * 10**scale).to(kind)
        for name, shape in (("w", (5, 7)), ("b", (5,)), ("s", ()))
    }
    if odd:
        gradients["b"][2, 1] = odd
    grid = local_grid(Dp("record", noise, clip), 41)
    everyone = summed(gradients, grid, slice(None))
    assert torch.isfinite(everyone).all()
    for left_out in range(6):
        others = [i for i in range(6) if i != left_out]
        change = (everyone - summed(gradients, grid, others)).to(torch.int64).tolist()
        # in exact integers: steps of the grid against the clip in steps
        assert sum(c * c for c in change) <= (grid.clip / grid.step) ** 2
    if not math.isfinite(odd):
        assert not summed(gradients, grid, [2]).any()


def test_the_order_of_adding_changes_nothing() -> None:
    gradients = {"w": torch.randn(500, 40) * 10 ** torch.randn(500, 1)}
    grid = local_grid(RECORD, 40)
    whole = summed(gradients, grid, slice(None))
    for parts in (
        [range(500)],
        [range(0, 500, 2), range(1, 500, 2)],
        [[i] for i in range(500)],
    ):
        pieces = torch.stack([summed(gradients, grid, list(p)) for p in parts])
        assert torch.equal(pieces.sum(0), whole)
    # a plain float32 sum does depend on it
    assert not torch.equal(gradients["w"].sum(0), gradients["w"].flip(0).sum(0))


def test_small_gradients_pass_unclipped() -> None:
    gradients = {"w": torch.randn(50, 3) * 0.1}
    grid = local_grid(RECORD, 3)
    found = summed(gradients, grid, slice(None)) * grid.step
    assert torch.allclose(found.float(), gradients["w"].sum(0), atol=1e-6)


@pytest.mark.parametrize("dp", [RECORD, PATIENT])
def test_a_removed_record_or_patient_changes_a_round_by_at_most_the_clip(
    tmp_path: Path, dp: Dp
) -> None:
    """The whole road: with and without one unit, same key, every unit drawn, no rescaling."""
    text = rows(patients=12, each=4)
    lines = text.splitlines()
    gone = lines[-1] if dp.level == "record" else lines[-1].split(",", maxsplit=1)[0] + ","
    kept = [line for line in lines if not line.startswith(gone)]
    assert (len(lines) - len(kept) > 1) is (dp.level == "patient")
    once = Dp(dp.level, 0.5, 0.05, 1.0, 1)
    plan = made(lambda args: nn.Linear(3, 1))
    first = start(plan)
    sums = []
    for name, part in (("with", lines), ("without", kept)):
        table = opened(tmp_path / f"{name}.csv", "\n".join(part) + "\n")
        count = units(once, table, "pid").count
        after = trained(plan, table, once, first, lr=1.0).weights
        public = max(1, count - count % 5)
        moved = [np.asarray(first[n]) - np.asarray(after[n]) for n in after]
        sums.append(np.concatenate([m.ravel() for m in moved]).astype(float) * public)
    # the noise is the same, the clip 0.05 is far below a gradient: the difference is all of it
    change = float(np.linalg.norm(sums[0] - sums[1]))
    assert 0.045 < change <= 0.05 * (1 + 1e-4)  # weights are float32


# ---- units ---------------------------------------------------------------------------------


def test_patients_are_units(table: Table) -> None:
    whose = units(PATIENT, table, "pid")
    assert whose.count == 41
    names = table.column("pid").astype(str)
    seen = []
    for unit in range(whose.count):
        mine = whose.of(unit)
        assert len(set(names[mine])) == 1
        seen.extend(mine.tolist())
    assert sorted(seen) == list(range(table.records))
    alone = units(RECORD, table, "")
    assert alone.count == table.records
    assert alone.of(7).tolist() == [7]


def test_a_step_looks_at_no_more_records_of_a_patient_than_the_bound(tmp_path: Path) -> None:
    text = rows(patients=4, each=1) + "".join(f"p9,{i}.0,1.0,1.0,1\n" for i in range(50))
    table = opened(tmp_path / "t.csv", text)
    parts = DpParts(bce, patient_records=6)
    batch = _one_batch(units(PATIENT, table, "pid"), parts)
    assert batch.shape == (5, 6)
    assert ((batch >= 0).sum(1) == [1, 1, 1, 1, 6]).all()


def _one_batch(whose: Units, parts: DpParts) -> Any:
    from consilia.plans.dp import _batches  # noqa: PLC0415  what a step differentiates
    from consilia.privacy.noise import Stream  # noqa: PLC0415

    (batch,) = _batches(np.arange(whose.count), whose, parts, 4, Stream(keyed(0)))
    return batch


def test_patient_columns_that_cannot_be_are_refused(tmp_path: Path, table: Table) -> None:
    with pytest.raises(PlanError, match="declares no column of patient ids"):
        units(PATIENT, table, "")
    with pytest.raises(PlanError, match="'nobody' is not there"):
        units(PATIENT, table, "nobody")
    with pytest.raises(PlanError, match=r"'y' is int64; register it as text"):
        units(PATIENT, table, "y")
    holes = opened(tmp_path / "h.csv", "pid,a\np1,1\n,2\n,3\n")
    with pytest.raises(PlanError, match="no value in 2 records"):
        units(PATIENT, holes, "pid")


# ---- noise ---------------------------------------------------------------------------------


def flat(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    """A loss that no weight changes: what moves is noise."""
    return model(x).sum() * 0.0


def movement(plan: TrainingPlan, table: Table, dp: Dp, **more: Any) -> np.ndarray:
    first = start(plan)
    after = trained(plan, table, dp, first, **more).weights
    moved = [np.asarray(after[n]) - np.asarray(first[n]) for n in after]
    return np.concatenate([np.ravel(m) for m in moved]).astype(float)


def wide(args: Arguments) -> nn.Module:
    return nn.Linear(3, 5_000)


@pytest.mark.parametrize("level", ["record", "patient"])
@pytest.mark.parametrize("rate", [1e-12, 0.3, 1.0])  # with the first nobody is ever drawn
def test_every_step_has_the_noise_that_is_charged(
    table: Table, level: Any, rate: float
) -> None:
    steps, noise, clip = 4, 1.5, 0.7
    plan = made(wide, DpParts(flat), arguments={"lr": 1e-9})
    moved = movement(plan, table, Dp(level, noise, clip, rate, steps), lr=rate / 10)
    public = 80 if level == "record" else 40  # of 81 and 41
    one = rate / 10 * noise * clip / (rate * public)
    assert moved.std() == pytest.approx(one * math.sqrt(steps), rel=0.02)
    assert abs(moved.mean()) < 5 * moved.std() / math.sqrt(len(moved))


def test_noise_comes_from_the_key_and_not_from_the_seed(table: Table) -> None:
    plan = made()
    first = start(plan)
    same = [trained(plan, table, weights=first, key=1).weights for _ in range(2)]
    other = trained(plan, table, weights=first, key=2).weights
    for name in first:
        assert np.array_equal(same[0][name], same[1][name]), name
        assert not np.array_equal(same[0][name], other[name]), name
    context = [Context(seed=3, dp=RECORD) for _ in range(2)]  # the seed that the hub chose
    free = [run_task(plan, copy_weights(first), table, {}, c).weights for c in context]
    assert not np.array_equal(free[0]["0.weight"], free[1]["0.weight"])


def test_who_is_drawn_comes_from_the_key(table: Table) -> None:
    """The same noise-free sums would betray it: compare two keys on a loss without noise."""
    plan = made(lambda a: nn.Linear(3, 1), DpParts(bce), arguments={"lr": 1.0})
    quiet = Dp("record", 0.02, 1.0, 0.5, 1)
    first = start(plan)
    found = [trained(plan, table, quiet, first, key=k).weights["weight"] for k in range(4)]
    assert len({a.tobytes() for a in found}) == 4


# ---- what leaves a round -------------------------------------------------------------------


def test_no_metric_leaves_and_no_exact_count(table: Table) -> None:
    def evaluate(*_: object) -> dict[str, float]:
        raise AssertionError("its result would not be charged")

    told: list[tuple[float, dict[str, float]]] = []
    plan = made(evaluate=evaluate)
    context = Context(dp=RECORD, report=lambda f, m: told.append((f, m)))
    outcome = run_task(plan, start(plan), table, {}, context)
    assert table.records == 81
    assert outcome.records == 80
    assert outcome.metrics == {}
    assert told[-1] == (1.0, {})
    assert {f for f, _ in told} == {i / 10 for i in range(11)}
    assert all(m == {} for _, m in told)


def test_a_round_at_client_level_runs_the_plans_own_loop_and_tells_nothing(
    table: Table,
) -> None:
    def own(module: nn.Module, data: Any, args: Any, context: Context) -> dict[str, float]:
        for parameter in module.parameters():
            parameter.data.add_(1.0)
        context.progress(0.77, loss=0.123)
        return {"loss": 0.123}

    told: list[object] = []
    plan = torch_plan(small, own, features=["a", "b", "c"], target="y")
    assert not plan.private
    context = Context(dp=Dp("client", 1.0, 1.0), report=lambda f, m: told.append((f, m)))
    first = start(plan)
    outcome = run_task(plan, copy_weights(first), table, {}, context)
    moved = np.subtract(outcome.weights["0.weight"], first["0.weight"])
    assert np.allclose(moved, 1.0)  # to clip and noise it is the release's part
    assert (outcome.records, outcome.metrics) == (80, {})
    assert told == [(0.7, {})]


def test_a_record_that_breaks_the_loss_fails_nothing(tmp_path: Path) -> None:
    """A failure would tell the hub that this record is there."""
    text = rows() + "p99,1e30,-1e30,1e30,1\n"
    table = opened(tmp_path / "t.csv", text)

    def explosive(model: nn.Module, x: Tensor, y: Tensor) -> Any:
        return model(x * x).sum() + torch.log(x.sum() - x.sum() + y.sum())

    plan = made(lambda a: nn.Linear(3, 1), DpParts(explosive))
    outcome = trained(plan, table, Dp("record", 1.0, 1.0, 1.0, 3))
    assert all(np.isfinite(a).all() for a in outcome.weights.values())


def test_buffers_are_read_and_never_written(table: Table) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 1)
            self.calls: Tensor
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            out: Tensor = self.head(x)
            return out

    plan = made(lambda a: Counting())
    first = start(plan)
    after = trained(plan, table, weights=first).weights
    assert after["calls"] == 0
    assert not np.array_equal(first["head.weight"], after["head.weight"])


# ---- plans that cannot, and plans that can -------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (nn.BatchNorm1d(3), r"'0' is BatchNorm1d.*nn\.GroupNorm or nn\.InstanceNorm"),
        (nn.SyncBatchNorm(3), "SyncBatchNorm"),
        (nn.Sequential(nn.Sequential(nn.BatchNorm1d(3))), "'0.0.0' is BatchNorm1d"),
        (nn.InstanceNorm1d(3, track_running_stats=True), "track_running_stats=False"),
        (nn.LazyLinear(3), "whose size waits for data"),
    ],
)
def test_layers_that_mix_records_are_refused(table: Table, layer: nn.Module, says: str) -> None:
    from consilia.plans.dp import check_layers  # noqa: PLC0415

    with pytest.raises(PlanError, match=says):
        check_layers(nn.Sequential(layer, nn.Linear(3, 1)))


@pytest.mark.parametrize("level", ["record", "client"])
def test_a_plan_with_batchnorm_is_refused_at_every_level(table: Table, level: Any) -> None:
    plan = made(lambda a: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)))
    with pytest.raises(PlanError, match="GroupNorm"):
        trained(plan, table, Dp(level, 1.0, 1.0))


def test_a_plan_with_a_loop_of_its_own_is_refused(table: Table) -> None:
    plan = torch_plan(small, never, features=["a", "b", "c"], target="y")
    assert not plan.private
    with pytest.raises(PlanError, match=r"dp=DpParts\(loss=\.\.\.\)"):
        trained(plan, table)


def test_loss_and_optimizer_are_parts_enough(table: Table) -> None:
    plan = torch_plan(
        small,
        features=["a", "b", "c"],
        target="y",
        loss=lambda out, y: nn.functional.binary_cross_entropy_with_logits(out.squeeze(1), y),
        optimizer=lambda parameters, args: torch.optim.Adam(parameters, lr=args["lr"]),
    )
    assert plan.private
    first = start(plan)
    after = trained(plan, table, Dp("record", 1e-3, 1.0, 1.0, 1), first, lr=0.25).weights
    moved = np.abs(np.asarray(after["0.weight"]) - np.asarray(first["0.weight"]))
    assert moved == pytest.approx(0.25, rel=1e-3)  # the first step of Adam


def test_wrong_declarations_are_refused() -> None:
    with pytest.raises(PlanError, match="needs the argument lr"):
        made(arguments={})
    with pytest.raises(PlanError, match="patient_records=0"):
        made(dp=DpParts(bce, patient_records=0))
    free = DpParts(bce, lambda parameters, args: torch.optim.SGD(parameters, lr=1.0))
    assert made(dp=free, arguments={}).private


def _branches(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    return model(x).sum() if y.sum() > 0 else model(x).mean()


def _items(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    return model(x).sum() * y.sum().item()


@pytest.mark.parametrize("loss", [_branches, _items])
def test_a_loss_that_looks_at_values_is_refused(table: Table, loss: Any) -> None:
    with pytest.raises(PlanError, match="cannot be differentiated record by record"):
        trained(made(dp=DpParts(loss)), table, Dp("record", 1.0, 1.0, 1.0))


def test_a_loss_of_several_numbers_is_refused(table: Table) -> None:
    many = DpParts(lambda model, x, y: model(x).expand(2, 1))
    with pytest.raises(PlanError, match=r"loss of one record is \(2, 1\); needed one number"):
        trained(made(dp=many), table, Dp("record", 1.0, 1.0, 1.0))


def test_a_model_without_parameters_is_refused(table: Table) -> None:
    plan = made(lambda a: nn.Linear(3, 1).requires_grad_(False))
    with pytest.raises(PlanError, match="no parameter to train"):
        trained(plan, table)


def test_sums_that_would_not_be_exact_are_refused(table: Table) -> None:
    with pytest.raises(PlanError, match="not exact; ask for more noise"):
        trained(made(), table, Dp("record", 1e-7, 1.0))


def test_fedprox_pulls_in_private_rounds_too(table: Table) -> None:
    free = movement(made(), table, RECORD)
    held = movement(made(), table, RECORD, proximal_mu=1.0)
    assert np.linalg.norm(held) < 0.7 * np.linalg.norm(free)


PLAN = """
import torch
from torch import nn
from consilia.plans.torch import DpParts, torch_plan

def loss(model, x, y):
    return nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), y)

def train(model, data, args, context):
    raise AssertionError("not in a private round")

PLAN = torch_plan(lambda args: nn.Linear(3, 1), train, features="*", target="y",
                  arguments={"lr": 0.5}, dp=DpParts(loss))
"""


@pytest.mark.parametrize("dp", [RECORD, PATIENT])
def test_a_worker_runs_it_from_its_messages(tmp_path: Path, dp: Dp) -> None:
    path = tmp_path / "t.csv"
    path.write_text(rows().replace("\np", "\n"))  # ids that look like numbers
    dataset = inspect_table(path, "t", (), now=0, patient="pid")
    assert dataset.columns["pid"] == "str"
    load = Load(Plan("p", {"plan.py": PLAN}, "plan:PLAN"), to_source(dataset), 1, cuda=False)
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(load), type=Load)
    tasks = worker.Tasks(decoded)
    assert tasks.ready.private
    first = tasks.run(Run("init", 0, {}, None, 1, False), lambda f, m: None).weights
    assert first["weight"].shape == (1, 3)  # the patient column is no feature
    frame = tmp_path / "model"
    frames.write(frame, first)
    run = Run("train", 1, {}, str(frame), 1, False, dp)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(run), type=Run)
    found = [
        {n: a.copy() for n, a in tasks.run(again, lambda f, m: None).weights.items()}
        for _ in range(2)
    ]
    assert not np.array_equal(found[0]["weight"], found[1]["weight"])  # noise of its own


def test_a_patient_column_is_declared_at_registration(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,a\n1,0.5\n1,0.25\n,0.75\n")
    with pytest.raises(DataError, match="1 records have no value in 'id'"):
        inspect_table(path, "t", (), now=0, patient="id")
    with pytest.raises(DataError, match="'nobody', which is no column"):
        inspect_table(path, "t", (), now=0, patient="nobody")
    path.write_text("id,a\n1,0.5\n1,0.25\n2,0.75\n")
    source = to_source(inspect_table(path, "t", (), now=0, patient="id"))
    assert (source.patient, source.columns["id"]) == ("id", "str")
    assert to_source(inspect_table(path, "t", (), now=0)).patient == ""


@pytest.mark.parametrize("dp", [RECORD, PATIENT])
def test_it_learns(tmp_path: Path, dp: Dp) -> None:
    table = opened(tmp_path / "t.csv", rows(patients=600))
    plan = made(lambda a: nn.Linear(3, 1))
    after = trained(plan, table, Dp(dp.level, 1.0, 1.0, 0.2, 60), lr=2.0).weights
    x = np.stack([table.column(n) for n in "abc"], 1)
    right = (x @ after["weight"][0] + after["bias"] > 0) == (table.column("y") == 1)
    assert right.mean() > 0.9
