"""Poisson sampling: each unit is in a step or not, by a coin of its own.

The accountant's figures hold for this sampling and no other: a shuffled pass over batches of
one size is not it, and the size of a batch is random, empty at times. A unit is a record, or a
patient with all records. Coins are 64-bit words of a keyed stream, so the rate is exact within
2^-64, rounded down.

Source: Mironov, Talwar, Zhang 2019, definition 2; Abadi et al. 2016, algorithm 1.
"""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from consilia.errors import ConfigError
from consilia.privacy.noise import Stream

_BLOCK = 1 << 17  # coins thrown at once


def poisson(stream: Stream, units: int, rate: float) -> NDArray[np.int64]:
    """Return the indices below `units` in this step, rising; each with chance `rate`."""
    if not 0 < rate <= 1:
        raise ConfigError(f"sampling={rate!r}; needed a number above 0, at most 1")
    limit = int(Fraction(rate) * (1 << 64))
    if limit >> 64:
        return np.arange(units, dtype=np.int64)
    parts = [np.empty(0, np.int64)]
    for start in range(0, units, _BLOCK):
        coins = stream.words(np.uint64, min(_BLOCK, units - start))
        parts.append(np.flatnonzero(coins < np.uint64(limit)) + start)
    return np.concatenate(parts)


def subset(stream: Stream, rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return at most `most` of `rows`, each choice as likely as any other, in their order."""
    if len(rows) <= most:
        return rows
    # ties of 64-bit keys are too rare to matter, and no privacy rests on this choice
    keys = stream.words(np.uint64, len(rows))
    return rows[np.sort(np.argpartition(keys, most)[:most])]
