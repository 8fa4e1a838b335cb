"""The plan of w3: a small MLP on 30 columns, plain SGD, one epoch at batch 4096."""

from torch import nn, optim

from consilia.plans.torch import torch_plan

COLUMNS = [f"x{i}" for i in range(30)]


def model(args):
    """30-64-32-1."""
    return nn.Sequential(
        nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)
    )


def train(model, data, args, context):
    """One epoch over the site's records."""
    optimizer = optim.SGD(model.parameters(), lr=args["lr"])
    for x, y in data.batches(args["batch_size"], shuffle=True):
        loss = nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"loss": loss.item()}


PLAN = torch_plan(
    model, train, features=COLUMNS, target="y", arguments={"lr": 0.1, "batch_size": 4096}
)
