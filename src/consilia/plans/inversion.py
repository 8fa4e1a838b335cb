"""Records searched for behind an update: what a hub could try where no formula gives them.

An update of one plain step is a multiple of the gradient on its records. So records whose
gradient points the same way are what it was made of, or close to it. From several random
starts the search turns records until the cosine of their gradient with the update is largest.

It assumes the most for the attacker: the model and the loss (the hub has the plan), the number
of records and their outcomes, and how each feature is spread over the dataset. Of rounds with
several steps, with momentum or with Adam, an update is a gradient only roughly, and the search
finds less than a better one would.

Sources: Zhu et al. 2019 (records by matching gradients); Geiping et al. 2020 (by their cosine).
"""

import contextlib
import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import vmap

from consilia.privacy.evidence import Floats

LossOfOne = Callable[[nn.Module, Tensor, Tensor], Tensor]  # of one record, as a batch of one

MOST = 8  # records of an update that is searched; beyond, next to nothing is found
_PRIORS = (1e-4, 1e-3)  # what a start gives up of the cosine for a record nearer to the mean
_STEPS, _RATE = 300, 0.1  # of Adam, falling to 0 by a cosine


def search(  # noqa: PLR0913, PLR0917  what the attacker knows, all of it explicit
    module: nn.Module,
    loss: LossOfOne,
    change: Mapping[str, Floats],
    outcomes: Tensor,
    centre: Tensor,
    spread: Tensor,
    seed: int,
) -> Tensor:
    """Return as many records as there are `outcomes`, records x shape of one, float64.

    `module` is the model that the round started from, `change` what the update added to its
    tensors, `centre` and `spread` are a record's mean and deviation, feature by feature.
    """
    module = copy.deepcopy(module).cpu().double().eval()
    outcomes, centre, spread = outcomes.cpu(), centre.cpu().double(), spread.cpu().double()
    if outcomes.is_floating_point():
        outcomes = outcomes.double()
    learned = [(n, p) for n, p in module.named_parameters() if p.requires_grad and n in change]
    parameters = [parameter for _, parameter in learned]
    down = torch.cat([torch.from_numpy(-change[name]).flatten() for name, _ in learned])
    drawn = torch.Generator().manual_seed(seed)

    def one(x: Tensor, y: Tensor) -> Tensor:
        return loss(module, x[None], y[None]).reshape(())

    def missed(z: Tensor) -> Tensor:
        """Return 1 - cosine of the gradient on records z, in deviations, with the update."""
        x = centre + spread * z
        gradients = torch.autograd.grad(
            each_of(one, x, outcomes).mean(),
            parameters,
            create_graph=True,
            materialize_grads=True,
        )
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        return 1 - nn.functional.cosine_similarity(flat, down, dim=0, eps=1e-12)

    best, least = torch.zeros((len(outcomes), *centre.shape), dtype=torch.float64), math.inf
    for prior in _PRIORS:
        start = torch.randn(best.shape, generator=drawn, dtype=torch.float64)
        z, left = _descend(missed, start, prior)
        if left < least:
            best, least = z, left
    return centre + spread * best


def each_of(one: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Return what `one` makes of each record: all at once, where there are several."""
    if len(y) > 1:
        with contextlib.suppress(RuntimeError):  # a layer without a rule, such as nn.LSTM
            found: Tensor = vmap(one)(x, y)
            return found
    return torch.stack([one(a, b) for a, b in zip(x, y, strict=True)])


def _descend(
    missed: Callable[[Tensor], Tensor], start: Tensor, prior: float
) -> tuple[Tensor, float]:
    """Return where the descent from `start` ends, and what is missed there."""
    z = start.clone().requires_grad_()
    descent = torch.optim.Adam([z], lr=_RATE)
    cooling = torch.optim.lr_scheduler.CosineAnnealingLR(descent, _STEPS)
    for _ in range(_STEPS):
        z.grad = torch.autograd.grad(missed(z) + prior * (z**2).mean(), z)[0]
        descent.step()
        cooling.step()
    found = z.detach()
    left = float(missed(found.requires_grad_()).detach())
    return found.detach(), left if torch.isfinite(found).all() else math.inf
