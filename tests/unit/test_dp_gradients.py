"""Private training: one unit's gradient, its clipping, and what one unit can change."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed (extra: torch)")
from torch import Tensor, nn  # noqa: E402  after the check

from consilia.data.table import Table  # noqa: E402
from consilia.errors import PlanError  # noqa: E402
from consilia.plans.dp import (  # noqa: E402
    DpParts,
    Units,
    add_clipped,
    unit_gradients,
    units,
)
from consilia.privacy.noise import Grid, local_grid  # noqa: E402
from consilia.wire.v1 import Arguments, Dp  # noqa: E402
from dpkit import (  # noqa: E402
    PATIENT,
    RECORD,
    bce,
    keyed,
    made,
    opened,
    rows,
    small,
    start,
    trained,
)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return opened(tmp_path / "t.csv", rows())


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
