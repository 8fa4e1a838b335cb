"""Which records a model is most wrong about, and which of their values make it so.

The share of a value in a record's loss is its integrated gradient from the mean record: the
loss's gradient along the straight line from there, times the distance (Sundararajan, Taly, Yan
2017, arXiv:1703.01365). The shares of a record sum to its loss minus the mean record's, up to
the error of STEPS steps. What comes of it is for the site's own eyes (node.hardcases).
"""

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from consilia.core.weights import Array, Weights
from consilia.data.table import Table
from consilia.plans.attack import Attacked, Probe, losses
from consilia.plans.contract import Context
from consilia.privacy.evidence import Floats

STEPS = 64  # of the midpoint rule along the line


def explain(
    attacked: Attacked, weights: Weights, table: Table, context: Context, most: int
) -> Weights:
    """Return the `most` records of highest loss, worst first, with what explains them.

    `losses` [records]; `rows` [k], places in the table; of these `values`, `shares` [k,
    features] and `targets` [k, targets]; `names` and `patients`, UTF-8 lines of the features'
    names and the rows' patient ids (none without a patient column).
    """
    found = losses(attacked, weights, table, context)
    rows = np.argsort(-found, kind="stable")[:most]
    probe = attacked.probed(weights, table, context)
    x, y = probe.x[rows], probe.y[rows]
    values = _flat(x)
    return {
        "losses": found,
        "rows": rows.astype(np.int64),
        "values": values,
        "shares": _shares(probe, x, y),
        "targets": _flat(y),
        "names": _lines(_names(probe, values.shape[1])),
        "patients": _lines(_patients(table, context.patient, rows)),
    }


def _shares(probe: Probe, x: Tensor, y: Tensor) -> Floats:
    """Return the integrated gradients of the loss, records x features."""
    module, mean = probe.module.eval(), probe.x.mean(0)
    along = (torch.arange(STEPS, dtype=x.dtype, device=x.device) + 0.5) / STEPS

    def one(record: Tensor, target: Tensor) -> Tensor:
        return probe.parts.loss(module, record[None], target[None]).reshape(())

    slope = grad(one)
    found = []
    for record, target in zip(x, y, strict=True):
        way = record - mean
        points = mean + along.reshape(-1, *([1] * way.ndim)) * way
        try:
            slopes = vmap(slope, in_dims=(0, None))(points, target)
        except RuntimeError:  # a layer that vmap has no rule for, such as nn.LSTM
            slopes = torch.stack([slope(point, target) for point in points])
        found.append(slopes.mean(0) * way)
    return _flat(torch.stack(found)) if found else np.empty((0, probe.x[0].numel()))


def _names(probe: Probe, count: int) -> list[str]:
    if len(probe.features) == count:
        return list(probe.features)
    return [str(i) for i in range(count)]  # of images: the pixel's number


def _patients(table: Table, patient: str, rows: Array) -> list[str]:
    if not patient:
        return []
    ids, _ = table._read({patient: "str"}, narrow=False)[patient]
    return [str(ids[row]) for row in rows]


def _lines(texts: list[str]) -> Array:
    body = "\n".join(" ".join(text.splitlines()) for text in texts).encode()
    return np.frombuffer(body, np.uint8)


def _flat(values: Tensor) -> Floats:
    flat: Floats = values.detach().double().cpu().numpy().reshape(len(values), -1)
    return flat
