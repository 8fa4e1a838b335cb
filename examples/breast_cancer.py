"""A training plan: is the tumour malignant, judged from 30 measured properties of its cells?

This file is what every hospital reads and approves; nothing else of the researcher's code
runs there. It looks like a local PyTorch program, because inside each hospital it is one.
"""

import torch
from torch import nn

from consilia.plans.torch import torch_plan

# Lowest and highest value of each property as published with the cohort (Wolberg, Street and
# Mangasarian 1995): agreed constants, so that no hospital's own values scale the model.
RANGES = {
    "mean_radius": (6.981, 28.11),
    "mean_texture": (9.71, 39.28),
    "mean_perimeter": (43.79, 188.5),
    "mean_area": (143.5, 2501.0),
    "mean_smoothness": (0.053, 0.163),
    "mean_compactness": (0.019, 0.345),
    "mean_concavity": (0.0, 0.427),
    "mean_concave_points": (0.0, 0.201),
    "mean_symmetry": (0.106, 0.304),
    "mean_fractal_dimension": (0.05, 0.097),
    "radius_error": (0.112, 2.873),
    "texture_error": (0.36, 4.885),
    "perimeter_error": (0.757, 21.98),
    "area_error": (6.802, 542.2),
    "smoothness_error": (0.002, 0.031),
    "compactness_error": (0.002, 0.135),
    "concavity_error": (0.0, 0.396),
    "concave_points_error": (0.0, 0.053),
    "symmetry_error": (0.008, 0.079),
    "fractal_dimension_error": (0.001, 0.03),
    "worst_radius": (7.93, 36.04),
    "worst_texture": (12.02, 49.54),
    "worst_perimeter": (50.41, 251.2),
    "worst_area": (185.2, 4254.0),
    "worst_smoothness": (0.071, 0.223),
    "worst_compactness": (0.027, 1.058),
    "worst_concavity": (0.0, 1.252),
    "worst_concave_points": (0.0, 0.291),
    "worst_symmetry": (0.156, 0.664),
    "worst_fractal_dimension": (0.055, 0.208),
}


class Scale(nn.Module):
    """Bring every property from its published range to -1..1."""

    def __init__(self):
        super().__init__()
        low, high = torch.tensor(list(RANGES.values())).T
        self.register_buffer("low", low, persistent=False)  # constants do not travel
        self.register_buffer("high", high, persistent=False)

    def forward(self, x):
        """Scale a batch of records."""
        return 2 * (x - self.low) / (self.high - self.low) - 1


def model(args):
    """Return the untrained network: 30 properties in, one logit out."""
    return nn.Sequential(
        Scale(), nn.Linear(len(RANGES), args["hidden"]), nn.ReLU(), nn.Linear(args["hidden"], 1)
    )


def train(model, data, args, context):
    """Train on one hospital's records for `epochs`; the same loop as without a federation."""
    optimizer = torch.optim.SGD(model.parameters(), lr=args["lr"], momentum=0.9)
    for epoch in range(args["epochs"]):
        for x, y in data.batches(args["batch_size"], shuffle=True):
            logit = model(x).squeeze(1)
            loss = nn.functional.binary_cross_entropy_with_logits(logit, y)
            optimizer.zero_grad()
            (loss + context.proximal(model)).backward()
            optimizer.step()
        context.progress((epoch + 1) / args["epochs"], loss=loss.item())
    return {"loss": loss.item()}


PLAN = torch_plan(
    model,
    train,
    features=list(RANGES),
    target="malignant",
    arguments={"lr": 0.05, "epochs": 2, "batch_size": 16, "hidden": 16},
)
