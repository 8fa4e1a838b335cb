"""The plan of w1 and w2: every site adds a known amount to each weight, so the mean is known.

Pure numpy and in place: what is measured is the federation, not the training. A site's
amount depends on the task's seed, which anybody can compute from job seed, round and site.
"""

import numpy as np

from consilia.plans.numpy import numpy_plan

TENSORS = 8


def init(args, seed):
    """Return `parameters` float32 values in TENSORS tensors."""
    generator = np.random.default_rng(seed)
    size = args["parameters"] // TENSORS
    return {f"w{i}": generator.standard_normal(size, np.float32) for i in range(TENSORS)}


def train(weights, data, args, context):
    """Add the site's amount of this round."""
    amount = np.float32((context.seed % 1000) / 1e6)
    for tensor in weights.values():
        np.add(tensor, amount, out=tensor)
    return {"amount": float(amount)}


PLAN = numpy_plan(init, train, arguments={"parameters": 262144})
