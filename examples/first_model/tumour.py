"""Is the tumour malignant? Logistic regression on 30 measured properties of its cells."""

import torch
from torch import nn

from consilia.plans.torch import torch_plan


def model(args):
    return nn.Sequential(nn.BatchNorm1d(30), nn.Linear(30, 1))


def train(model, data, args, context):
    optimizer = torch.optim.Adam(model.parameters(), lr=args["lr"])
    for x, y in data.batches(16, shuffle=True, drop_last=True):
        loss = nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"loss": loss.item()}


PLAN = torch_plan(model, train, features="*", target="malignant", arguments={"lr": 0.02})
