"""Private training: the noise of a round, what leaves it, and which plans can."""

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: torch)")
from torch import Tensor, nn  # noqa: E402  after the check

from consilia.data.registry import inspect_table, to_source  # noqa: E402
from consilia.data.table import Table  # noqa: E402
from consilia.errors import DataError, PlanError  # noqa: E402
from consilia.node import worker  # noqa: E402
from consilia.plans.contract import (  # noqa: E402
    Context,
    TrainingPlan,
    copy_weights,
    run_task,
)
from consilia.plans.dp import DpParts  # noqa: E402
from consilia.plans.torch import torch_plan  # noqa: E402
from consilia.wire import frames  # noqa: E402
from consilia.wire.v1 import Arguments, Dp, Plan  # noqa: E402
from consilia.wire.worker import Load, Run  # noqa: E402
from dpkit import (  # noqa: E402
    PATIENT,
    RECORD,
    bce,
    made,
    never,
    opened,
    rows,
    small,
    start,
    trained,
)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return opened(tmp_path / "t.csv", rows())


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
    assert trained(plan, table, PATIENT).records == 40  # of 41 patients
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

    class Keeping(Counting):
        def forward(self, x: Tensor) -> Tensor:
            self.calls.data.copy_(x.detach().sum())
            out: Tensor = self.head(x)
            return out

    with pytest.raises(PlanError, match="write to buffers"):
        trained(made(lambda a: Keeping()), table)


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
    with pytest.raises(DataError, match="no column 'nobody', named as that of patient ids"):
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
