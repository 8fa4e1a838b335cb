"""The same vector through the protection of other systems, from their own packages.

Run by bench/secagg.py under an interpreter that has them:

    python bench/secagg_peers.py NODES VECTOR.npy

It imports nothing of Consilia. Prints one JSON object: for each peer what one node spends to
protect the float32 numbers of VECTOR.npy among NODES nodes (the better of two runs) and how
many bytes it sends for each byte of float32, or why it is absent. What is timed is what their
clients do between a trained vector and the bytes to send: quantising, masks or encryption,
serialising.
"""

import contextlib
import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

REPEATS = 2
Vector = NDArray[np.float32]
Protect = Callable[[], int]  # protects the vector once, returns the bytes to send


def flower(nodes: int, vector: Vector) -> Protect:
    """Flower's SecAgg+: weight, quantise, one private and NODES - 1 pair masks, modulo."""
    kit = importlib.import_module("flwr.common.secure_aggregation.ndarrays_arithmetic")
    quantise = importlib.import_module("flwr.common.secure_aggregation.quantization").quantize
    utils = importlib.import_module("flwr.common.secure_aggregation.secaggplus_utils")
    to_bytes = importlib.import_module("flwr.common").ndarray_to_bytes
    seeds = [os.urandom(32) for _ in range(nodes)]

    def protect() -> int:
        scaled = kit.parameters_multiply([vector], 0.1)
        found = quantise(scaled, 8.0, 1 << 22)
        found = kit.factor_combine(100, found)
        shapes = [array.shape for array in found]
        for number, seed in enumerate(seeds):
            mask = utils.pseudo_rand_gen(seed, 1 << 32, shapes)
            add = kit.parameters_addition if number % 2 == 0 else kit.parameters_subtraction
            found = add(found, mask)
        found = kit.parameters_mod(found, 1 << 32)
        return sum(len(to_bytes(array)) for array in found)

    return protect


def fedbiomed(nodes: int, vector: Vector) -> Protect:
    """Fed-BioMed's LOM: quantise, NODES - 1 pair masks of ChaCha20, 64-bit integers."""
    crypter = importlib.import_module("fedbiomed.common.secagg").SecaggLomCrypter("bench")
    ids = [f"node-{number}" for number in range(nodes)]
    secrets = {name: os.urandom(32) for name in ids}

    def protect() -> int:
        found = crypter.encrypt(
            current_round=1,
            node_id=ids[0],
            params=vector.tolist(),
            pairwise_secrets=secrets,
            node_ids=ids,
            clipping_range=3,
            weight=100,
        )
        return 8 * len(found)

    return protect


def tenseal(nodes: int, vector: Vector) -> Protect:
    """TenSEAL's CKKS: degree 8192, moduli of 60, 40 and 40 bits, 4096 numbers a ciphertext."""
    kit = importlib.import_module("tenseal")
    context = kit.context(
        kit.SCHEME_TYPE.CKKS, poly_modulus_degree=8192, coeff_mod_bit_sizes=[60, 40, 40]
    )
    context.global_scale = 2**40

    def protect() -> int:
        starts = range(0, vector.size, 4096)
        parts = (vector[start : start + 4096].tolist() for start in starts)
        return sum(len(kit.ckks_vector(context, part).serialize()) for part in parts)

    return protect


def main(nodes: int, vector: Vector) -> dict[str, dict[str, Any]]:
    """Measure every peer that can be imported."""
    logging.disable()
    found: dict[str, dict[str, Any]] = {}
    for prepare in (flower, fedbiomed, tenseal):
        try:
            with contextlib.redirect_stdout(sys.stderr):
                protect = prepare(nodes, vector)
        except ImportError as e:
            found[prepare.__name__] = {"absent": str(e)}
            continue
        best, size = float("inf"), 0
        for _ in range(REPEATS):
            start = time.perf_counter()
            with contextlib.redirect_stdout(sys.stderr):
                size = protect()
            best = min(best, time.perf_counter() - start)
        found[prepare.__name__] = {
            "protect_ms": round(best * 1e3, 1),
            "bytes_ratio": round(size / vector.nbytes, 2),
        }
    return found


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), np.load(sys.argv[2]))))
