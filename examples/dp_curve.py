"""Accuracy against epsilon: four hospitals train a heart disease model with record-level privacy.

    python examples/dp_curve.py [--data FOLDER] [--plot FILE.png] [--seeds 5]

FOLDER holds the UCI heart disease files (processed.cleveland.data, ...) and the split of the
FLamby benchmark; by default ../shared/data/heart_disease is taken where it is there, and
scikit-learn's breast cancer data in four parts otherwise. Each hospital runs Consilia's own
private loop, as in a worker, and the models are averaged by public record counts. Epsilon is
each hospital's own for its own patients, over all rounds, at DELTA. Features are scaled with
fixed reference values, not with means of the data: those would be one more release.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from consilia.core.weights import Weights
from consilia.data.registry import inspect_table, to_source
from consilia.data.table import Table
from consilia.plans.contract import Context, TrainingPlan, copy_weights, run_task
from consilia.plans.torch import DpParts, torch_plan
from consilia.privacy.accountant import cost, epsilon, noise_for
from consilia.wire.v1 import Dp

EPSILONS = (0.1, 0.3, 1.0, 3.0, 10.0)
DELTA = 1e-3  # below one over the records of every hospital
ROUNDS, STEPS, SAMPLING, CLIP, RATE = 5, 4, 0.5, 1.0, 1.0
HEART = Path("../shared/data/heart_disease")
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")

# column of the UCI files -> (reference value, spread), from clinical practice, not from the data
NUMBERS = {
    0: (55.0, 10.0), 1: (0.5, 0.5), 3: (130.0, 20.0), 4: (220.0, 60.0), 5: (0.5, 0.5),
    7: (140.0, 25.0), 8: (0.5, 0.5), 9: (1.0, 1.0),
}  # fmt: skip
CLASSES = {2: (1, 2, 3, 4), 6: (0, 1, 2)}  # chest pain, resting ECG
OUTCOME = 13


@dataclass(frozen=True)
class Hospital:
    """One hospital's records, and those that models are judged on."""

    name: str
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    test_x: NDArray[np.float32]
    test_y: NDArray[np.int64]


def heart(folder: Path) -> list[Hospital]:
    """Read the four files: complete records, split as in FLamby (Ogier du Terrail 2022)."""
    split: dict[str, list[tuple[int, str]]] = {}
    with (folder / "split_flamby_seed43.csv").open() as file:
        for row in csv.DictReader(file):
            split.setdefault(row["hospital"], []).append((int(row["row_in_file"]), row["set"]))
    found = []
    for name in HOSPITALS:
        lines = (folder / f"processed.{name}.data").read_text().split()
        parts: dict[str, list[list[float]]] = {"train": [], "test": []}
        for index, part in split[name]:
            parts[part].append(_record(lines[index].split(",")))
        train, test = (np.array(parts[p], np.float32) for p in ("train", "test"))
        found.append(
            Hospital(name, train[:, :-1], train[:, -1].astype(int),
                     test[:, :-1], test[:, -1].astype(int))
        )  # fmt: skip
    return found


def _record(values: list[str]) -> list[float]:
    numbers = [(float(values[c]) - at) / width for c, (at, width) in NUMBERS.items()]
    ones = [float(float(values[c]) == k) for c, kinds in CLASSES.items() for k in kinds]
    return [*numbers, *ones, float(float(values[OUTCOME]) > 0)]


def tumours() -> list[Hospital]:
    """Cut scikit-learn's breast cancer data into four hospitals."""
    from sklearn.datasets import load_breast_cancer  # noqa: PLC0415  only without the files

    x, y = load_breast_cancer(return_X_y=True)
    x = np.log1p(x).astype(np.float32)
    x -= np.float32(2.0)  # fixed as well
    order = np.random.default_rng(0).permutation(len(y))
    return [
        Hospital(f"part{i}", x[p[::3]], y[p[::3]], x[p[1::3]], y[p[1::3]])
        for i, p in enumerate(np.array_split(order, 4))
    ]


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return one record's loss."""
    return nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), y)


def plan(width: int) -> TrainingPlan:
    """Return logistic regression, with a plain loop of full passes where no privacy is asked."""

    def plain(model: nn.Module, data: object, args: object, context: Context) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for _ in range(STEPS):
            optimizer.zero_grad()
            torch.autograd.backward(loss(model, data.x, data.y))  # type: ignore[attr-defined]
            optimizer.step()

    def model(args: object) -> nn.Module:
        linear = nn.Linear(width, 1)
        nn.init.zeros_(linear.weight)
        return linear

    return torch_plan(
        model, plain, features="*", target="y", arguments={"lr": RATE}, dp=DpParts(loss)
    )


def federate(
    work: TrainingPlan, tables: list[Table], dp: Dp | None, random: Callable[[int], bytes] | None
) -> Weights:
    """Run the rounds and return the model."""
    weights = copy_weights(run_task(work, None, None, {}, Context()).weights)
    for number in range(ROUNDS):
        updates = []
        for site, table in enumerate(tables):
            context = Context(round=number, seed=number * 10 + site, dp=dp)
            if random is not None:
                context.random = random
            updates.append(run_task(work, copy_weights(weights), table, {}, context))
            updates[-1] = updates[-1].__class__(
                copy_weights(updates[-1].weights), updates[-1].records, {}
            )
        total = sum(u.records for u in updates)
        weights = {
            name: np.sum([u.weights[name] * np.float32(u.records / total) for u in updates], 0)
            for name in weights
        }
    return weights


def judge(weights: Weights, hospitals: list[Hospital]) -> tuple[float, float]:
    """Return the accuracy as the mean over hospitals, and over all test records."""
    right = [
        ((h.test_x @ weights["weight"][0] + weights["bias"]) > 0) == (h.test_y == 1)
        for h in hospitals
    ]
    return float(np.mean([r.mean() for r in right])), float(np.concatenate(right).mean())
