"""How does the pulse follow from age and effort? Linear regression by gradient descent."""

import numpy as np

from consilia.plans.numpy import numpy_plan


def init(args, seed):
    return {"w": np.zeros(3, np.float32)}


def train(weights, data, args, context):
    error = data.x @ weights["w"] - data.y
    weights["w"] -= args["lr"] * data.x.T @ error / len(data.y)
    return {"loss": float((error**2).mean())}


def predict(weights, data, args):
    return data.x @ weights["w"]


PLAN = numpy_plan(
    init,
    train,
    features=["one", "age", "effort"],
    target="pulse",
    arguments={"lr": 0.5},
    predict=predict,
    predicts="number",
)
