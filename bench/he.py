"""`./run bench he`: what homomorphic encryption costs a node and the hub, beside masking.

No network: N sites encrypt updates of PARAMS float32 numbers with one key, the hub checks and
adds the cells, one site opens the sum, all in this process and in turn. `protect_ms` is one
node's work on its update, `hub_ms` the hub's on all of them (checked once when they arrive,
added once), `open_ms` the opener's; `bytes_ratio` is an update over float32, and what goes down
to the opener is as much again. `max_error` is against the exact weighted sum, flooding noise
included. `masking` are the figures of `./run bench secagg` at the same size, in the same run.
"""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bench import secagg
from consilia.core.weights import Schema, TensorSpec
from consilia.privacy import ckks, encrypted
from consilia.privacy.masked import EXTRA
from consilia.privacy.noise import Stream

CLIP = 0.08  # range of the changes
SESSION = bytes(32)
T = TypeVar("T")


def measure(nodes: int, params: int) -> dict[str, Any]:
    """Return the figures of `nodes` sites with `params` float32 parameters each."""
    model: Schema = (TensorSpec("w", "float32", (params,)),)
    key = ckks.make_key()
    cipher, adder = ckks.Cipher(key), ckks.Adder()
    marks = encrypted.marks(key, SESSION, sum(encrypted.counts(model)))
    sites = tuple(f"site-{number:03}" for number in range(nodes))
    exact, updates, protect = np.zeros(params), [], []
    for number, site in enumerate(sites):
        drawn = _values(params, number)
        exact += drawn / nodes
        cells, spent = _timed(_encrypting(cipher, marks, site, drawn, 1 / nodes))
        updates.append(cells)
        protect.append(spent)
    _, checked = _timed(lambda: _check(adder, updates))
    total, added = _timed(lambda: [adder.add(cells) for cells in zip(*updates, strict=True)])
    found, opened = _timed(
        lambda: np.concatenate(
            list(
                encrypted.open_sum(
                    cipher, marks, sites, total, model, reach=CLIP, stream=Stream(os.urandom)
                )
            )
        )
    )
    size = sum(spec.size for spec in EXTRA)
    error = float(np.abs(found[size:] - exact).max())
    beside = secagg.alone(nodes, params)
    return {
        "nodes": nodes,
        "params": params,
        "protect_ms": round(min(protect) * 1e3, 1),
        "hub_ms": round((checked + added) * 1e3, 1),
        "open_ms": round(opened * 1e3, 1),
        "bytes_ratio": round(sum(map(len, total)) / (4 * params), 2),
        "key_bytes": len(key),
        "max_error": error,
        "correct": error < 1e-5,
        "masking": beside,
        "times_masking": round(min(protect) * 1e3 / beside["protect_ms"], 1),
    }


def _check(adder: ckks.Adder, updates: list[list[bytes]]) -> None:
    for cells in updates:
        for cell in cells:
            adder.check(cell)


def _values(params: int, number: int) -> NDArray[np.float64]:
    drawn = np.random.default_rng(number).standard_normal(params) * 0.03
    return np.clip(drawn, -CLIP, CLIP, out=drawn)


def _encrypting(
    cipher: ckks.Cipher,
    marks: encrypted.Marks,
    site: str,
    values: NDArray[np.float64],
    weight: float,
) -> Callable[[], list[bytes]]:
    extra = np.zeros(sum(spec.size for spec in EXTRA))
    extra[0] = weight

    def pieces() -> Iterator[NDArray[np.float64]]:
        for start in range(0, values.size, 1 << 16):
            yield values[start : start + (1 << 16)] * weight

    return lambda: list(encrypted.encrypt(cipher, marks, site, ((extra,), pieces(), ())))


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    found = work()
    return found, time.perf_counter() - start
