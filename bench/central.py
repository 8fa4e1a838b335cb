"""The same work as w3 in one process: nodes x rows records, one epoch, all cores.

Prints one JSON line: {"epoch_s": ..., "threads": ...}. Run as a process of its own, so that
its memory and threads touch nothing else.
"""

import json
import sys
import time

import torch
from torch import nn, optim


def main(nodes: int, rows: int, threads: int) -> None:
    """Train one epoch of the MLP of bench/plans/mlp.py on random records in memory."""
    torch.set_num_threads(threads)
    records = nodes * rows
    x = torch.randn(records, 30)
    y = (x[:, :3].sum(1) > 0).float()
    model = nn.Sequential(
        nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)
    )
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    start = time.perf_counter()
    order = torch.randperm(records)
    for first in range(0, records, 4096):
        batch = order[first : first + 4096]
        loss = nn.functional.binary_cross_entropy_with_logits(
            model(x[batch]).squeeze(1), y[batch]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(json.dumps({"epoch_s": time.perf_counter() - start, "threads": threads}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
