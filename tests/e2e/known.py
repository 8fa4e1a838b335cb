"""A training plan whose result anybody can compute, with waits where a test wants them.

Each site adds an amount to every weight that follows from its task's seed (job seed, round and
site), so the model of a round is the one before plus the record-weighted mean of the amounts.
"""

import signal
import sys
import time

import numpy as np

from consilia.plans.numpy import numpy_plan

TENSORS = 4


def init(args, seed):
    """Return `parameters` float32 values in TENSORS tensors."""
    generator = np.random.default_rng(seed)
    size = args["parameters"] // TENSORS
    return {f"w{i}": generator.random(size, np.float32) for i in range(TENSORS)}


def train(weights, data, args, context):
    """Add the site's amount; wait before, where and when the arguments say so.

    `slow` names the site that waits by its number of records (0: every site), `slow_round` the
    round (0: every round). It waits `wait` seconds, or until its process gets SIGUSR1.
    """
    here = args["slow"] in (0, data.records) and args["slow_round"] in (0, context.round)
    released = []
    if here:
        signal.signal(signal.SIGUSR1, lambda *_: released.append(True))
    sys.stdout.write(f"training {context.site} round {context.round} at {time.monotonic()}\n")
    end = time.monotonic() + args["wait"] * here
    while time.monotonic() < end and not released:
        context.progress(0.5)
        time.sleep(0.05)
    amount = np.float32(context.seed % 1000 / 1000)
    for tensor in weights.values():
        np.add(tensor, amount, out=tensor)
    return {"amount": float(amount)}


PLAN = numpy_plan(
    init, train, arguments={"parameters": 8192, "wait": 0.0, "slow": 0, "slow_round": 0}
)
