"""Images: what an update of a convolutional network gives away, what its model remembers."""

import csv
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: torch)")
pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: sklearn)")

import privacykit as kit  # noqa: E402  after the check
from consilia.data.registry import Dataset, inspect_table  # noqa: E402
from consilia.node import evidence  # noqa: E402
from consilia.node.evidence import Asked, Measured  # noqa: E402
from consilia.node.inprocess import InProcess  # noqa: E402
from consilia.privacy import verdict  # noqa: E402
from consilia.privacy.accountant import cost, epsilon  # noqa: E402
from consilia.privacy.verdict import Claim, Findings, Subject, Verdict  # noqa: E402
from consilia.wire.v1 import Arguments, Dp, Plan  # noqa: E402
from consilia.wire.worker import Audit  # noqa: E402

SUBJECT = Subject("s", "m", "b3:0", "p", "sha256:0", "d", 60, "h", False, 1, 2, "", 0.0, "0")
SOURCE = """
from torch import nn, optim
from consilia.plans.torch import DpParts, torch_plan

def model(args):
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 10),
    )

def loss(model, x, y):
    return nn.functional.cross_entropy(model(x), y)

def train(model, data, args, context):
    optimizer = optim.SGD(model.parameters(), lr=args["lr"])
    for epoch in range(args["epochs"]):
        for x, y in data.batches(8, shuffle=True):
            optimizer.zero_grad()
            loss(model, x, y).backward()
            optimizer.step()

PLAN = torch_plan(model, train, features="*", target="digit", target_type="int64",
                  dp=DpParts(loss), arguments={"lr": 0.1, "epochs": 1})
"""
PLAN = Plan("digits", {"plan.py": SOURCE}, "plan:PLAN")
ONCE: Arguments = {"lr": 0.1, "epochs": 1}
OVERFITTED: Arguments = {"lr": 0.1, "epochs": 40}
DP = Dp("record", 4.0, 1.0, 0.3, 20)


def scans(folder: Path, records: int = 60) -> tuple[Dataset, Dataset]:
    """Write scikit-learn's digits, a column a pixel, a tenth of the outcomes wrong.

    What is right of an easy image is nothing to remember; a wrong label is.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415  slow to import

    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    y = np.where(rng.random(len(y)) < 0.1, rng.integers(10, size=len(y)), y)
    order = rng.permutation(len(y))
    found = []
    for name, rows in (("here", order[:records]), ("never-seen", order[records:400])):
        path = folder / f"{name}.csv"
        with path.open("w", newline="") as stream:
            lines = csv.writer(stream)
            lines.writerow([*(f"p{i:02}" for i in range(64)), "digit"])
            lines.writerows([*(x[i] / 8 - 1).round(3), y[i]] for i in rows)
        found.append(inspect_table(path, name, ("scans",), now=0.0))
    return found[0], found[1]


def test_an_image_is_rebuilt_from_a_plain_update_and_not_from_a_masked_one(
    tmp_path: Path,
) -> None:
    here, _ = scans(tmp_path)
    start = kit.fitted(tmp_path, PLAN, here, ONCE, None, 0)
    inside = np.zeros(60, bool)
    inside[7] = True
    worker = kit.tasks(PLAN, here)
    audit = Audit("invert", inside=np.packbits(inside).tobytes())
    found = kit.outcome(worker, audit, start, ONCE)
    assert found["correlation"][2] == 1.0  # searched for: the first layer is a convolution
    assert found["plain"][0] < verdict.NEAR
    assert found["masked"][0] > 5 * verdict.NEAR
    private = kit.outcome(worker, audit, start, ONCE, DP)
    assert private["plain"][0] > 5 * verdict.NEAR  # noise hides it from the hub as well


async def examined(folder: Path, given: Arguments, dp: Dp | None) -> Measured:
    here, never = scans(folder)
    model = kit.fitted(folder, PLAN, here, given, dp, 1)
    asked = Asked(PLAN, here, never, 0.0, model, given, 1, dp, 2, 60, 600.0)
    runner, rng = InProcess(in_thread=False), np.random.default_rng(0)
    return await evidence.measure(runner, asked, folder, rng, lambda text: None)


def judged(found: Measured, claim: Claim | None) -> Verdict:
    return verdict.judge(
        Findings(SUBJECT, claim, found.attacks, found.planted, found.inversions, found.notes)
    )


@pytest.mark.slow(30)
async def test_a_network_that_overfits_images_is_leaky_and_with_noise_bounded(
    tmp_path: Path,
) -> None:
    leaky = await examined(tmp_path, OVERFITTED, None)
    assert judged(leaky, None).word == "leaky"
    assert [(i.records, i.how, i.masked) for i in leaky.inversions] == [
        (1, "search", 0.0),
        (8, "search", 0.0),
    ]
    spent = epsilon(cost(DP), DP.delta)
    private = await examined(tmp_path, ONCE, DP)
    assert judged(private, Claim(spent, DP.delta, "record", "experiment")).word == "bounded"
