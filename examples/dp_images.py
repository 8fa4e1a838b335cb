"""Accuracy against epsilon on images: a small convolutional network on chest X-rays.

    python examples/dp_images.py [--data FILE.npz] [--plot FILE.svg] [--runs 3]

FILE.npz is PneumoniaMNIST (MedMNIST v2, CC BY 4.0): normal or pneumonia, 28 x 28 pixels, here
averaged to 14 x 14. Without it scikit-learn's handwritten digits (8 x 8, is the digit odd?) are
taken, and the program says so. Four hospitals hold equal parts; a part that no hospital trains
on is the judge. Each hospital runs Consilia's own private loop at record level, as in a worker;
the models are averaged by public record counts. Epsilon is each hospital's own, over all
rounds, at DELTA. Pixels are scaled by fixed numbers, not by statistics of the data.
"""

import argparse
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from dp_curve import keyed
from numpy.typing import NDArray
from torch import Tensor, nn

from consilia.core.weights import Weights
from consilia.data.registry import inspect_table, to_source
from consilia.data.table import Table
from consilia.plans.contract import Context, TrainingPlan, copy_weights, run_task
from consilia.plans.torch import DpParts, TorchData, tensor_of, torch_plan
from consilia.privacy.accountant import cost, epsilon, noise_for
from consilia.privacy.evidence import area
from consilia.wire.v1 import Dp

EPSILONS = (0.3, 1.0, 3.0, 10.0)
DELTA = 1e-4  # well below one over the records of a hospital
ROUNDS, STEPS, SAMPLING, CLIP, RATE = 10, 3, 0.3, 1.0, 1.0
XRAY = Path("../shared/data/pneumoniamnist/pneumoniamnist_train_val.npz")
SITES = 4
WIDE, HIGH, LEFT, FOOT, LOW = 560, 330, 60, 50, 0.4  # of the plot; LOW is its least score
Scores = NDArray[np.float64]  # runs x 2: AUC, balanced accuracy
Row = tuple[float | None, float, Scores]  # epsilon (None: not private), noise, scores


@dataclass(frozen=True)
class Images:
    """Images of one kind: pixels about -1 to 1, n x side x side; outcomes 0 or 1."""

    title: str
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    test_x: NDArray[np.float32]
    test_y: NDArray[np.int64]


def xrays(path: Path) -> Images:
    """Read PneumoniaMNIST and average 2 x 2 pixels; the validation part is the judge."""
    with np.load(path, allow_pickle=False) as file:
        parts = {name: file[name] for name in file.files}

    def pixels(name: str) -> NDArray[np.float32]:
        raw = parts[name].astype(np.float32).reshape(-1, 14, 2, 14, 2).mean((2, 4))
        return (raw / 255 - 0.5) * 4

    y, test_y = (parts[f"{name}_labels"].ravel().astype(int) for name in ("train", "val"))
    return Images("Chest X-rays", pixels("train_images"), y, pixels("val_images"), test_y)


def digits() -> Images:
    """Read scikit-learn's digits: is it odd?"""
    from sklearn.datasets import load_digits  # noqa: PLC0415  only without the X-rays

    x, y = load_digits(return_X_y=True)
    x = ((x / 16 - 0.5) * 2).astype(np.float32).reshape(-1, 8, 8)
    held = np.arange(len(y)) % 4 == 0
    return Images("Handwritten digits", x[~held], y[~held] % 2, x[held], y[held] % 2)


def network(side: int) -> nn.Module:
    """Return two convolutions with group norms, and one linear layer."""
    return nn.Sequential(
        nn.Unflatten(1, (1, side, side)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.GroupNorm(4, 8),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * (side // 4) ** 2, 1),
    )


def plan(side: int) -> TrainingPlan:
    """Return the plan, with a plain loop of steps for rounds without dp."""

    def model(args: object) -> nn.Module:
        return network(side)

    def plain(model: nn.Module, data: TorchData, args: object, context: Context) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        x, y = data.x, data.y
        for _ in range(STEPS):
            drawn = torch.rand(len(y)) < SAMPLING
            optimizer.zero_grad()
            torch.autograd.backward(loss(model, x[drawn], y[drawn]))
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()

    return torch_plan(
        model, plain, features="*", target="y", arguments={"lr": RATE}, dp=DpParts(loss)
    )


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean loss of some images."""
    return nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), y)


def registered(images: Images, folder: Path) -> list[Table]:
    """Deal the images to the hospitals and register each part, as a data manager would."""
    order = np.random.default_rng(0).permutation(len(images.y))
    tables = []
    for site, part in enumerate(np.array_split(order, SITES)):
        rows = np.column_stack([images.x[part].reshape(len(part), -1), images.y[part]])
        names = [*(f"x{i:03d}" for i in range(rows.shape[1] - 1)), "y"]
        path = folder / f"site{site}.csv"
        np.savetxt(path, rows, "%.4g", ",", header=",".join(names), comments="")
        tables.append(Table(to_source(inspect_table(path, f"site{site}", (), now=0))))
    return tables


def federate(work: TrainingPlan, tables: list[Table], dp: Dp | None, key: int) -> Weights:
    """Run the rounds and return the model."""
    weights = copy_weights(run_task(work, None, None, {}, Context(seed=key)).weights)
    for number in range(ROUNDS):
        updates = []
        for site, table in enumerate(tables):
            random = keyed(f"{key} {number} {site}")
            context = Context(round=number, seed=1000 * key + number, dp=dp, random=random)
            found = run_task(work, copy_weights(weights), table, {}, context)
            updates.append((copy_weights(found.weights), found.records))
        total = sum(records for _, records in updates)
        weights = {
            name: np.sum([w[name] * np.float32(n / total) for w, n in updates], axis=0)
            for name in weights
        }
    return weights


def judge(weights: Weights, images: Images) -> tuple[float, float]:
    """Return AUC and balanced accuracy on the images that nobody trained on."""
    module = network(images.x.shape[1])
    module.load_state_dict({name: tensor_of(array) for name, array in weights.items()})
    with torch.no_grad():
        x = torch.from_numpy(images.test_x.reshape(len(images.test_y), -1))
        sure = module.eval()(x).squeeze(1).double().numpy()
    ill = images.test_y == 1
    right = ((sure > 0) == ill).astype(float)
    return area(sure[ill], sure[~ill], 0.95).value, (right[ill].mean() + right[~ill].mean()) / 2


def measure(images: Images, runs: int) -> list[Row]:
    """Return the scores of `runs` trainings without privacy, and at each epsilon."""
    work = plan(images.x.shape[1])
    settings: list[tuple[float | None, float, Dp | None]] = [(None, 0.0, None)]
    for wanted in EPSILONS:
        noise = noise_for(wanted, DELTA, SAMPLING, STEPS, ROUNDS)
        dp = Dp("record", noise, CLIP, SAMPLING, STEPS, DELTA)
        settings.append((epsilon(cost(dp, ROUNDS), DELTA), noise, dp))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        tables = registered(images, Path(folder))
        for spent, noise, dp in settings:
            made = [federate(work, tables, dp, key) for key in range(runs)]
            rows.append((spent, noise, np.array([judge(w, images) for w in made])))
    return rows


def show(rows: list[Row]) -> None:
    """Print the table of the docs."""
    print("| epsilon | noise multiplier | AUC | balanced accuracy |")
    print("|---|---|---|---|")
    for spent, noise, scores in rows:
        both = zip(scores.mean(0), scores.std(0), strict=True)
        auc, accuracy = (f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in both)
        told = "not private" if spent is None else f"{spent:.2f}"
        print(f"| {told} | {noise:.4g} | {auc} | {accuracy} |")


@dataclass(frozen=True)
class Plot:
    """A drawing area in SVG pixels; x is log10 of epsilon, y a score from LOW to 1."""

    first: float
    last: float

    def x(self, epsilon: float) -> float:
        """Return where an epsilon stands."""
        share = (math.log10(epsilon) - self.first + 0.1) / (self.last - self.first + 0.2)
        return LEFT + share * (WIDE - LEFT - 20)

    def y(self, score: float) -> float:
        """Return where a score stands."""
        return HIGH - FOOT - (score - LOW) / (1 - LOW) * (HIGH - FOOT - 40)


def axes(plot: Plot, title: str, epsilons: list[float]) -> list[str]:
    """Return the plot without its curves."""
    parts = [f'<text x="{LEFT}" y="22" font-size="15">{title}: four hospitals</text>']
    for tick in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        at = plot.y(tick)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDE - 20}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tick:.1f}</text>'
        )
    for spent in epsilons:
        at, below = plot.x(spent), HIGH - FOOT + 20
        parts.append(f'<text x="{at:.1f}" y="{below}" text-anchor="middle">{spent:.2g}</text>')
    name = f"epsilon of each hospital at delta = {DELTA:g}; dotted: without privacy"
    middle = (LEFT + WIDE - 20) / 2
    return [*parts, f'<text x="{middle}" y="{HIGH - 8}" text-anchor="middle">{name}</text>']


def curve(plot: Plot, rows: list[Row], column: int, name: str, colour: str) -> list[str]:
    """Return one score over epsilon: mean, deviation, and what it is without privacy."""
    without = plot.y(float(rows[0][2][:, column].mean()))
    line = f"M{LEFT} {without:.1f}H{WIDE - 20}"
    parts = [f'<path d="{line}" stroke="{colour}" stroke-dasharray="3 4"/>']
    points = []
    for spent, _, scores in rows:
        if spent is None:
            continue
        at, mean, deviation = plot.x(spent), scores[:, column].mean(), scores[:, column].std()
        points.append(f"{at:.1f},{plot.y(mean):.1f}")
        bar = f"M{at:.1f} {plot.y(mean - deviation):.1f}V{plot.y(mean + deviation):.1f}"
        parts.append(f'<path d="{bar}" stroke="{colour}"/>')
        parts.append(f'<circle cx="{at:.1f}" cy="{plot.y(mean):.1f}" r="4" fill="{colour}"/>')
    parts.append(
        f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" '
        'stroke-width="2"/>'
    )
    at = HIGH - FOOT - 30 + 18 * column
    return [*parts, f'<text x="{WIDE - 180}" y="{at}" fill="{colour}">{name}</text>']


def draw(rows: list[Row], path: Path, title: str) -> None:
    """Write the curve as a small SVG image."""
    epsilons = [spent for spent, _, _ in rows if spent is not None]
    plot = Plot(math.log10(epsilons[0]), math.log10(epsilons[-1]))
    parts = [
        *axes(plot, title, epsilons),
        *curve(plot, rows, 0, "AUC", "#2457a6"),
        *curve(plot, rows, 1, "balanced accuracy", "#b3261e"),
    ]
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {HIGH}" width="{WIDE}" '
        f'height="{HIGH}" font-family="sans-serif" font-size="13">'
        f'<rect width="{WIDE}" height="{HIGH}" fill="white"/>{"".join(parts)}</svg>\n'
    )
    print(f"written: {path}")


def main() -> None:
    """Measure, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=XRAY, help="PneumoniaMNIST as .npz")
    parser.add_argument("--plot", type=Path, help="write the curve as an SVG image")
    parser.add_argument("--runs", type=int, default=3, help="trainings for each epsilon")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.data.is_file():
        images = xrays(given.data)
    else:
        images = digits()
        print(f"X-rays skipped: {given.data} is not there; scikit-learn's digits instead")
    print(f"{images.title}: {len(images.y)} to train on, {len(images.test_y)} held out")
    rows = measure(images, given.runs)
    show(rows)
    if given.plot:
        draw(rows, given.plot, images.title)


if __name__ == "__main__":
    main()
