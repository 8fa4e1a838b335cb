"""Masked numbers of 8 bits: what is kept for the next round, and how long an update can be."""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from consilia.core.carried import Carried
from consilia.core.weights import TensorSpec, Weights
from consilia.errors import ConfigError, Refused, UpdateRejected
from consilia.node import coarse
from consilia.node.compressing import Feedback
from consilia.node.studykeys import Rest
from consilia.privacy import masked, ring, secagg
from consilia.privacy.streams import Streams, random_of
from consilia.wire import frames
from consilia.wire.v1 import Dp, Lease, Privacy, Task

Doubles = NDArray[np.float64]
EIGHT = Privacy(aggregation="secure", bits=8, range=0.5)
REST = Rest(lambda study: study.encode().ljust(32), os.urandom)
W, D = TensorSpec("w", "float32", (90, 11)), TensorSpec("d", "float64", (7,))


def sent(
    folder: Path,
    change: Weights,
    round: int,
    weight: float,
    *,
    privacy: Privacy = EIGHT,
    bound: float = 0.0,
) -> tuple[dict[str, Doubles], Carried]:
    """Return what a site's update of one round stands for; no mask hides it here."""
    base = {n: np.zeros_like(a) for n, a in change.items()}
    frames.write(folder / "base", base)
    frames.write(folder / "new", change)
    task = Task(
        "train", "j", round, "sha256:5", "hearts", "sha256:7", {}, (), "b3:0", 1,
        privacy=privacy, cohort=("a", "b", "c"), total=100,
    )  # fmt: skip
    lease = Lease(f"j.{round}.0.a", task, 60.0)
    feedback = Feedback(folder / "f", time.time, REST)
    header, known = coarse.mask(
        lease,
        secagg.Masker(Streams((), ())),
        weight,
        (folder / "new", folder / "base", folder / "out"),
        feedback,
        bound,
        lambda spec: random_of(bytes([round, len(spec.name)]) * 16),
        no_head,
    )
    feedback.taken(lease)
    assert next(e for e in header.entries if e.name == "w").dtype == "uint8"
    found, values = frames.read(folder / "out"), {}
    for spec in (W, D):
        numbers = masked.empty("uint8" if spec is W else "uint64", spec.size)
        numbers[...] = found[spec.name].reshape(-1)
        values[spec.name] = ring.dequantise(numbers, masked.scale(spec, privacy) * weight)
    return values, known


def no_head(writer: frames.FrameWriter) -> None:
    for spec in masked.EXTRA:
        writer.append(frames.raw_bytes(np.zeros(spec.shape, np.uint64)))


def drawn(rng: np.random.Generator, size: float) -> Weights:
    return {
        "w": (size * rng.uniform(-1, 1, W.shape)).astype(np.float32),
        "d": size * rng.uniform(-1, 1, D.shape),
    }


@pytest.mark.parametrize("weight", [0.05, 0.3, 1.0])
def test_a_job_is_never_more_than_a_step_behind_what_was_trained(
    tmp_path: Path, weight: float
) -> None:
    rng = np.random.default_rng(3)
    trained, arrived = np.zeros(W.size), np.zeros(W.size)
    step = 1 / (masked.scale(W, EIGHT) * weight)
    for round in range(1, 25):
        change = drawn(rng, 0.02)
        found, _ = sent(tmp_path, change, round, weight)
        trained += change["w"].reshape(-1).astype(np.float64)
        arrived += found["w"]
        assert np.allclose(
            found["d"], change["d"].astype(np.float64), rtol=0, atol=1e-12
        )  # 64 bits lose nothing
        assert np.abs(trained - arrived).max() <= step * 1.001
    assert np.abs(arrived).max() > 0
    # what a single round would have lost each time adds up to more
    assert step > 0.004


@settings(max_examples=25, deadline=None)
@given(
    weight=st.floats(0.02, 1),
    size=st.floats(-6, -0.4),
    bound=st.sampled_from([0.0, 0.05, 1.0]),
    seed=st.integers(0, 2**30),
)
def test_the_stated_norm_bounds_what_is_sent(
    weight: float, size: float, bound: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        for round in (1, 2, 3):
            change = drawn(rng, 10.0**size)
            found, known = sent(Path(folder), change, round, weight, bound=bound)
            norm = float(np.linalg.norm(np.concatenate([found["w"], found["d"]])))
            assert norm <= known.bound
            assert (known.bound < np.inf) is (bound > 0)


def test_what_cannot_be_is_refused_with_the_figures(tmp_path: Path) -> None:
    too_far: Weights = {"w": np.full(W.shape, 0.6, np.float32), "d": np.zeros(7)}
    with pytest.raises(UpdateRejected, match=r"tensor 'w': .* carries -0.5 to 0.5"):
        sent(tmp_path, too_far, 1, 0.5)
    assert not list((tmp_path / "f").iterdir())  # nothing half-written stays
    with pytest.raises(ConfigError, match=r"33 sites .* 8 bits; at most 32 fit"):
        ring.check_sites(8, 33)
    ring.check_sites(8, 32)
    ring.check_sites(16, 1000)
    with pytest.raises(Refused, match=r"33 sites"):
        coarse.require(EIGHT, 33)
    shared = Dp("client", 1.0, 1.0, distributed=True)
    with pytest.raises(Refused, match=r"share of the noise"):
        coarse.require(Privacy(aggregation="secure", bits=8, dp=shared), 3)
