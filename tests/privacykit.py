"""A real dataset, a plan that overfits, and a model of it, for tests of the privacy report."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from consilia.data.registry import Dataset, inspect_table, to_source
from consilia.node.evidence import Asked
from consilia.node.worker import Tasks
from consilia.wire import frames
from consilia.wire.v1 import Arguments, Dp, Plan
from consilia.wire.worker import Audit, Load, Run

SOURCE = """
from torch import nn, optim
from consilia.plans.torch import DpParts, torch_plan

def model(args):
    return nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 1))

def loss(model, x, y):
    return nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), y)

def train(model, data, args, context):
    optimizer = optim.SGD(model.parameters(), lr=args["lr"], momentum=0.9)
    for epoch in range(args["epochs"]):
        for x, y in data.batches(8, shuffle=True):
            optimizer.zero_grad()
            loss(model, x, y).backward()
            optimizer.step()

PLAN = torch_plan(model, train, features="*", target="malignant", dp=DpParts(loss),
                  arguments={"lr": 0.05, "epochs": 10})
"""
OVERFITTED: Arguments = {"lr": 0.05, "epochs": 10}
PRIVATE: Arguments = {"lr": 0.5, "epochs": 1}
DP = Dp("record", 4.0, 1.0, 0.3, 20)


def plan(*changes: tuple[str, str]) -> Plan:
    """Return the plan, its source changed by replacements."""
    source = SOURCE
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    return Plan("tumour", {"plan.py": source}, "plan:PLAN")


def cohort(folder: Path, records: int = 60, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Write scikit-learn's breast cancer data: `records` to train on, the others held out."""
    from sklearn.datasets import load_breast_cancer  # noqa: PLC0415  slow to import

    data: Any = load_breast_cancer()
    x = (data.data - data.data.mean(0)) / data.data.std(0)
    order = np.random.default_rng(seed).permutation(len(x))
    found = []
    for name, rows in (("here", order[:records]), ("never-seen", order[records:])):
        path = folder / f"{name}.csv"
        with path.open("w", newline="") as stream:
            lines = csv.writer(stream)
            lines.writerow([*(f"f{i:02}" for i in range(30)), "malignant"])
            lines.writerows([*x[i].round(6), 1 - data.target[i]] for i in rows)
        found.append(inspect_table(path, name, ("cancer",), now=0.0))
    return found[0], found[1]


def tasks(work: Plan, dataset: Dataset) -> Tasks:
    """Return a worker's tasks without a process."""
    return Tasks(Load(work, to_source(dataset), 1, cuda=False, site="here"))


def outcome(  # noqa: PLR0917
    worker: Tasks,
    audit: Audit,
    model: Path | None = None,
    given: Arguments | None = None,
    dp: Dp | None = None,
    seed: int = 3,
) -> Mapping[str, Any]:
    """Run one audit task and return its arrays."""
    run = Run("audit", 1, given or {}, str(model) if model else None, seed, False, dp, audit)
    return worker.run(run, lambda fraction, metrics: None).weights


def fitted(  # noqa: PLR0917
    folder: Path, work: Plan, dataset: Dataset, given: Arguments, dp: Dp | None, rounds: int
) -> Path:
    """Train a model at the site and keep it as a frame."""
    weights = outcome(tasks(work, dataset), Audit("fit", rounds), given=given, dp=dp)
    frames.write(folder / "model.frame", weights)
    return folder / "model.frame"


def mislabelled(folder: Path, work: Plan, rows: Sequence[int]) -> None:
    """Write model.npz of 80 right labels, and cohort.csv, in which those of `rows` are wrong.

    Its patients are p001 and so on.
    """
    here, _ = cohort(folder, 80)
    model = fitted(folder, work, here, {"lr": 0.1, "epochs": 20}, None, 1)
    np.savez(folder / "model.npz", **frames.read(model))  # type: ignore[arg-type]
    lines = (folder / "here.csv").read_text().splitlines()
    for row in rows:
        values, _, label = lines[row].rpartition(",")
        lines[row] = f"{values},{1 - int(label)}"
    named = [f"{'patient' if i == 0 else f'p{i:03}'},{line}" for i, line in enumerate(lines)]
    (folder / "cohort.csv").write_text("\n".join(named) + "\n")


def asked(
    folder: Path,
    dp: Dp | None = None,
    *,
    rounds: int = 1,
    references: int = 4,
    canaries: int = 100,
    work: Plan | None = None,
) -> Asked:
    """Return what is asked of a model trained on 60 records, leaky unless `dp`."""
    here, never = cohort(folder)
    work = work or plan()
    given = OVERFITTED if dp is None else PRIVATE
    model = fitted(folder, work, here, given, dp, rounds)
    return Asked(work, here, never, 0.0, model, given, rounds, dp, references, canaries, 600.0)
