"""Accuracy against epsilon: four hospitals, heart disease, privacy at record level.

    python examples/dp_curve.py [--data FOLDER] [--plot FILE.png] [--runs 20]

FOLDER holds the UCI heart disease files (processed.cleveland.data, ...) and the split of the
FLamby benchmark; by default ../shared/data/heart_disease is taken where it is there, and
scikit-learn's breast cancer data in four parts otherwise. Each hospital runs Consilia's own
private loop, as in a worker, and the models are averaged by public record counts. Epsilon is
each hospital's own for its own patients, over all rounds, at DELTA. Features are scaled with
fixed reference values, not with means of the data: those would be one more release. The noise
comes from numbered keys, so that the figures can be repeated; a hospital's never does.
"""

import argparse
import csv
import hashlib
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
DELTA = 1e-4  # well below one over the records of every hospital
ROUNDS, STEPS, SAMPLING, CLIP, RATE = 5, 2, 0.5, 1.0, 0.5
HEART = Path("../shared/data/heart_disease")
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")

# column of the UCI files -> (reference value, spread), of clinical practice, not of the data
NUMBERS = {
    0: (55.0, 10.0), 1: (0.5, 0.5), 3: (130.0, 20.0), 4: (220.0, 60.0), 5: (0.5, 0.5),
    7: (140.0, 25.0), 8: (0.5, 0.5), 9: (1.0, 1.0),
}  # fmt: skip
Scores = NDArray[np.float64]  # runs x 2: mean over hospitals, all test records
CLASSES = {2: (1, 2, 3, 4), 6: (0, 1, 2)}  # chest pain, resting ECG
OUTCOME = 13
# a usual value of each of the 30 columns of the breast cancer data, to two digits
TYPICAL = np.array([
    14, 19, 92, 650, 0.096, 0.1, 0.089, 0.049, 0.18, 0.063, 0.41, 1.2, 2.9, 40, 0.007,
    0.025, 0.032, 0.012, 0.021, 0.0038, 16, 26, 107, 880, 0.13, 0.25, 0.27, 0.11, 0.29, 0.084,
])  # fmt: skip


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
    x = np.log2(x / TYPICAL + 0.1).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(y))
    found = []
    for i, part in enumerate(np.array_split(order, 4)):
        test, train = part[::3], np.setdiff1d(part, part[::3])
        found.append(Hospital(f"part{i}", x[train], y[train], x[test], y[test]))
    return found


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return one record's loss."""
    return nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), y)


def plan(width: int) -> TrainingPlan:
    """Return logistic regression, with a plain loop of full passes for rounds without dp."""

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


def federate(work: TrainingPlan, tables: list[Table], dp: Dp | None, key: int) -> Weights:
    """Run the rounds and return the model."""
    weights = copy_weights(run_task(work, None, None, {}, Context()).weights)
    for number in range(ROUNDS):
        updates = []
        for site, table in enumerate(tables):
            random = keyed(f"{key} {number} {site}")
            context = Context(round=number, seed=number, dp=dp, random=random)
            found = run_task(work, copy_weights(weights), table, {}, context)
            updates.append((copy_weights(found.weights), found.records))
        total = sum(records for _, records in updates)
        weights = {
            name: np.sum([w[name] * np.float32(n / total) for w, n in updates], axis=0)
            for name in weights
        }
    return weights


def keyed(name: str) -> Callable[[int], bytes]:
    """Return bytes that can be had again, for figures only."""
    return lambda size: hashlib.shake_256(name.encode()).digest(size)


def judge(weights: Weights, hospitals: list[Hospital]) -> tuple[float, float]:
    """Return the accuracy as the mean over hospitals, and over all test records."""
    right = [
        (h.test_x @ weights["weight"][0] + weights["bias"] > 0) == (h.test_y == 1)
        for h in hospitals
    ]
    return float(np.mean([r.mean() for r in right])), float(np.concatenate(right).mean())


def registered(hospital: Hospital, folder: Path) -> Table:
    """Write and register a hospital's training records, as its data manager would."""
    path = folder / f"{hospital.name}.csv"
    names = [f"x{i:02d}" for i in range(hospital.x.shape[1])]
    rows = np.column_stack([hospital.x, hospital.y])
    np.savetxt(path, rows, delimiter=",", header=",".join([*names, "y"]), comments="")
    return Table(to_source(inspect_table(path, hospital.name, (), now=0)))


def measure(hospitals: list[Hospital], runs: int) -> list[tuple[float | None, float, Scores]]:
    """Return (epsilon, noise multiplier, one pair of accuracies a run) for each epsilon."""
    work = plan(hospitals[0].x.shape[1])
    found: list[tuple[float | None, float, Scores]] = []
    with tempfile.TemporaryDirectory() as folder:
        tables = [registered(h, Path(folder)) for h in hospitals]
        found.append((None, 0.0, np.array([judge(federate(work, tables, None, 0), hospitals)])))
        for wanted in EPSILONS:
            noise = noise_for(wanted, DELTA, SAMPLING, STEPS, ROUNDS)
            dp = Dp("record", noise, CLIP, SAMPLING, STEPS, DELTA)
            spent = epsilon(cost(dp, ROUNDS), DELTA)
            scores = [judge(federate(work, tables, dp, key), hospitals) for key in range(runs)]
            found.append((spent, noise, np.array(scores)))
    return found


def show(rows: list[tuple[float | None, float, Scores]]) -> None:
    """Print the table of the docs."""
    print("| epsilon | noise multiplier | mean over hospitals | all test records |")
    print("|---|---|---|---|")
    for spent, noise, scores in rows:
        mean, deviation = scores.mean(0), scores.std(0)
        cells = [f"{m:.3f} ± {d:.3f}" for m, d in zip(mean, deviation, strict=True)]
        if spent is None:
            cells = [f"{m:.3f}" for m in mean]
        told = "not private" if spent is None else f"{spent:.2f}"
        print(f"| {told} | {noise:g} | {cells[0]} | {cells[1]} |")


def draw(rows: list[tuple[float | None, float, Scores]], path: Path, title: str) -> None:
    """Plot accuracy over epsilon."""
    import matplotlib as mpl  # noqa: PLC0415  only for --plot

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(6, 3.6), dpi=110)
    private = [(s, scores) for s, _, scores in rows if s is not None]
    for column, name, colour in ((0, "mean over hospitals", "C0"), (1, "all records", "C1")):
        x = [s for s, _ in private]
        y = np.array([scores[:, column].mean() for _, scores in private])
        spread = np.array([scores[:, column].std() for _, scores in private])
        axes.plot(x, y, marker="o", color=colour, label=name)
        axes.fill_between(x, y - spread, y + spread, alpha=0.2, color=colour)
        axes.axhline(rows[0][2][0, column], linestyle=":", color=colour)
    axes.set(xscale="log", xlabel=f"epsilon at delta = {DELTA:g}", ylabel="test accuracy")
    axes.set_title(title + " (dotted: not private)", fontsize=10)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    print(f"written: {path}")


def main() -> None:
    """Measure, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=HEART, help="folder of the UCI files")
    parser.add_argument("--plot", type=Path, help="write the curve as an image (matplotlib)")
    parser.add_argument("--runs", type=int, default=20, help="keys of noise for each epsilon")
    given = parser.parse_args()
    torch.set_num_threads(1)
    real = given.data.is_dir()
    hospitals = heart(given.data) if real else tumours()
    title = "Heart disease, four hospitals" if real else "Breast cancer, four parts"
    print(f"{title}: {', '.join(f'{h.name} {len(h.y)}/{len(h.test_y)}' for h in hospitals)}")
    rows = measure(hospitals, given.runs)
    show(rows)
    if given.plot:
        draw(rows, given.plot, title)


if __name__ == "__main__":
    main()
