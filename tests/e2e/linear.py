"""A small training plan for tests: linear regression by gradient descent, in numpy."""

from typing import Any

import numpy as np

from consilia.plans.numpy import numpy_plan


def init(args: Any, seed: int) -> Any:
    return {"w": np.random.default_rng(seed).normal(size=3).astype(np.float32)}


def train(weights: Any, data: Any, args: Any, context: Any) -> dict[str, float]:
    if args["fail"]:
        raise ValueError("the plan was asked to fail")
    loss = 0.0
    for epoch in range(args["epochs"]):
        for x, y in data.batches(16, shuffle=True):
            error = x @ weights["w"] - y
            weights["w"] -= args["lr"] * (x.T @ error) / len(x)
            loss = float((error**2).mean())
        context.progress((epoch + 1) / args["epochs"], loss=loss)
    return {"loss": loss}


PLAN = numpy_plan(
    init,
    train,
    features=["a", "b", "c"],
    target="y",
    arguments={"lr": 0.05, "epochs": 2, "fail": False},
)
