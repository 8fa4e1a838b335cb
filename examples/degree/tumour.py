"""Is the tumour malignant? Logistic regression that starts somewhere else for every seed."""

import numpy as np

from consilia.plans.numpy import numpy_plan

MIDDLE = np.array([14.0, 19.0, 0.1, 0.18], np.float32)  # of each feature, roughly
SPREAD = np.array([3.5, 4.3, 0.014, 0.027], np.float32)


def predict(weights, data, args):
    scaled = (data.x - MIDDLE) / SPREAD
    return 1 / (1 + np.exp(-(scaled @ weights["w"] + weights["b"])))


def init(args, seed):
    rng = np.random.default_rng(seed)
    return {"w": rng.normal(0, 0.1, 4).astype(np.float32), "b": np.zeros(1, np.float32)}


def train(weights, data, args, context):
    for x, y in data.batches(16, shuffle=True):
        scaled = (x - MIDDLE) / SPREAD
        error = 1 / (1 + np.exp(-(scaled @ weights["w"] + weights["b"]))) - y
        weights["w"] -= args["lr"] * scaled.T @ error / len(x)
        weights["b"] -= args["lr"] * error.mean()


PLAN = numpy_plan(
    init,
    train,
    features=["radius", "texture", "smoothness", "symmetry"],
    target="malignant",
    arguments={"lr": 0.5},
    predict=predict,
    predicts="probability",
)
