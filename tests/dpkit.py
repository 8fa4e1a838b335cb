"""Plans, tables and tasks for tests of private training. Imports torch."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from consilia.core.weights import Weights
from consilia.data.registry import inspect_table, to_source
from consilia.data.table import Table
from consilia.plans.contract import Context, Outcome, TrainingPlan, copy_weights, run_task
from consilia.plans.dp import DpParts
from consilia.plans.torch import torch_plan
from consilia.wire.v1 import Arguments, Dp

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
