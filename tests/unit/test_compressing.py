"""Compressed updates on their way: clip, coding, what is left out, and what it survives."""

import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray

from consilia.algo import compress
from consilia.algo.compress import Codec
from consilia.core import carried
from consilia.core.carried import Carried
from consilia.core.weights import Array, Weights, schema_of
from consilia.errors import ConfigError, UpdateRejected
from consilia.hub import packed
from consilia.hub.blobs import MemoryBlobs
from consilia.hub.checks import result_misfit
from consilia.node import compressing
from consilia.node.compressing import Feedback, Packed, pack
from consilia.node.studykeys import Rest
from consilia.wire import frames
from consilia.wire.v1 import Compression, Dp, Lease, Privacy, Result, Task

CODECS = [Compression(8), Compression(16), Compression(32, 0.1), Compression(8, 0.05)]


REST = Rest(lambda study: study.encode().ljust(32), os.urandom)


def lease(compression: Compression, round: int = 1, *, dp: Dp | None = None, final: bool = False
) -> Lease:  # fmt: skip
    task = Task(
        "train", "j", round, "sha256:5", "hearts", "sha256:7", {}, ("t",), "b3:0", round,
        privacy=Privacy(dp=dp, compression=replace(compression, final=final)),
    )  # fmt: skip
    return Lease(f"j.{round}.0.here", task, 60.0)


def base(rng: np.random.Generator) -> Weights:
    """Return a model of all kinds of tensors; two of them are equal."""
    return {
        "w": rng.normal(size=(70, 1001)).astype(np.float32),
        "same": np.zeros(9, np.float32),
        "zero": np.zeros(9, np.float32),
        "half": rng.normal(size=131_100).astype(np.float16),
        "wide": rng.normal(size=40_000),
        "count": np.arange(5),
        "flag": np.array([True, False]),
    }


def moved(old: Weights, rng: np.random.Generator, size: float) -> Weights:
    """Return a model that training has made of another; some tensors it leaves as they are."""
    new = {n: w.copy() for n, w in old.items()}
    for name in ("w", "half", "wide"):
        step = size * rng.normal(size=old[name].shape)
        new[name] = (old[name].astype(np.float64) + step).astype(old[name].dtype)
    new["count"] = old["count"] + 3
    return new


class Site:
    """A folder with a model, an update of it, and memories."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.feedback = Feedback(folder / "feedback", time.time, REST)

    def pack(self, new: Weights, old: Weights, lease: Lease, bound: float = 0.0) -> Packed:
        header = frames.write(self.folder / "old", old)
        frames.write(self.folder / "new", new, {e.digest for e in header.entries if e.stored})
        with (
            frames.opened(self.folder / "new") as a,
            frames.opened(self.folder / "old") as b,
        ):
            return pack(a, b, lease, self.feedback, self.folder / "out", bound)

    def restored(self, old: Weights, codec: Codec) -> Weights:
        """Return what the hub makes of the packed update."""
        parts = frames.read(self.folder / "out")
        read = compress.restored(
            codec,
            lambda s: iter([parts[s.name].ravel()]),
            lambda s: iter([old[s.name].ravel()]),
        )
        return {s.name: np.concatenate(list(read(s))).reshape(s.shape) for s in schema_of(old)}

    def memory(self, job: str = "j") -> Weights:
        path = self.feedback.memory(job)
        if not path.exists():
            return {}
        with REST.opened("sha256:5", path, f"feedback of job {job}") as fd:
            return frames.read(fd)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def floats(weights: Weights) -> dict[str, NDArray[np.float64]]:
    return {n: w.astype(np.float64) for n, w in weights.items() if w.dtype.kind == "f"}


def norm(a: Weights, b: Weights) -> float:
    left, right = floats(a), floats(b)
    return math.sqrt(sum(float(np.sum((left[n] - right[n]) ** 2)) for n in left))


@pytest.mark.parametrize("asked", CODECS, ids=lambda c: compress.name(Codec(c.bits, c.keep)))
def test_what_is_left_out_waits_and_goes_with_the_next_update(
    site: Site, asked: Compression
) -> None:
    rng, codec = np.random.default_rng(0), compressing.codec_of(asked)
    old = base(rng)
    # The same step again and again: what arrives comes ever nearer to all that was meant.
    step = moved(old, rng, 0.01)
    meant = {n: floats(step)[n] - floats(old)[n] for n in floats(old)}
    arrived = {n: np.zeros(v.shape) for n, v in meant.items()}
    rounds = 12
    for round in range(1, rounds + 1):
        now = lease(asked, round)
        found = site.pack(step, old, now)
        assert found.header.schema == compress.compressed(schema_of(old), codec)
        back = site.restored(old, codec)
        for name in arrived:
            arrived[name] += back[name].astype(np.float64) - floats(old)[name]
        for name in ("count", "flag"):
            np.testing.assert_array_equal(back[name], step[name])
        site.feedback.taken(now)
    left = site.memory()
    for name, value in meant.items():
        # float16 models round what is restored for them: the base's precision, not ours.
        loose = 2e-3 * rounds if name == "half" else 1e-5
        np.testing.assert_allclose(
            arrived[name] + floats(left)[name], rounds * value, atol=loose, rtol=1e-4
        )
    assert [t.name for t in schema_of(left)] == list(floats(old))
    assert oct(site.feedback.memory("j").stat().st_mode)[-3:] == "600"


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(CODECS), st.floats(-4, 3), st.floats(0.01, 100.0), st.integers(0, 2**30))
def test_the_stated_bound_holds_for_what_arrives_whatever_was_fed_back(
    tmp_path_factory: pytest.TempPathFactory,
    asked: Compression,
    size: float,
    bound: float,
    seed: int,
) -> None:
    rng, codec = np.random.default_rng(seed), compressing.codec_of(asked)
    site = Site(tmp_path_factory.mktemp("site"))
    old: Weights = {"w": np.zeros(3000, np.float32), "v": np.zeros((40, 3))}
    for round in (1, 2, 3):
        step = {n: (w + rng.normal(size=w.shape) * 10.0**size).astype(w.dtype)
                for n, w in old.items()}  # fmt: skip
        if rng.random() < 0.3:
            step["w"][rng.integers(3000)] = 1e6
        found = site.pack(step, old, lease(asked, round), bound)
        back = site.restored(old, codec)
        assert norm(back, old) <= found.carried.bound
        assert found.carried.bound <= bound * compress.expansion(codec)
        assert found.carried.path[:2] == ("feedback", f"clip {bound:g}")
        site.feedback.taken(lease(asked, round))


def test_only_what_the_hub_has_taken_changes_the_memory(site: Site) -> None:
    rng = np.random.default_rng(1)
    old, asked = base(rng), Compression(8)
    site.pack(moved(old, rng, 0.1), old, lease(asked, 1))
    assert site.memory() == {}  # not sent yet: the agent may be killed and do it again
    site.feedback.taken(lease(asked, 1))
    before = site.memory()
    assert np.any(before["w"])
    site.feedback.taken(lease(asked, 1))  # a restarted agent delivers it again
    np.testing.assert_array_equal(site.memory()["w"], before["w"])
    site.pack(moved(old, rng, 0.1), old, lease(asked, 2))
    site.feedback.lost(lease(asked, 2))  # taken back by the hub, or refused
    np.testing.assert_array_equal(site.memory()["w"], before["w"])
    assert len(list(site.feedback.memory("j").parent.iterdir())) == 1
    site.pack(moved(old, rng, 0.1), old, lease(asked, 3, final=True))
    site.feedback.taken(lease(asked, 3, final=True))
    assert list(site.feedback.memory("j").parent.iterdir()) == []


def test_a_killed_agent_makes_the_very_same_update_again(site: Site) -> None:
    rng = np.random.default_rng(2)
    old, asked = base(rng), Compression(8, 0.3)
    new = moved(old, rng, 0.1)
    first = site.pack(new, old, lease(asked)).header.digest
    assert site.pack(new, old, lease(asked)).header.digest == first


@pytest.mark.parametrize("broken", ["cut", "changed", "another model", "empty"])
def test_a_memory_that_is_damaged_is_worth_nothing(site: Site, broken: str) -> None:
    rng = np.random.default_rng(3)
    old, asked = base(rng), Compression(8)
    new = moved(old, rng, 0.1)
    clean = site.pack(new, old, lease(asked, 2)).header.digest
    site.pack(new, old, lease(asked, 1))
    site.feedback.taken(lease(asked, 1))
    path = site.feedback.memory("j")
    whole = path.read_bytes()
    if broken == "cut":
        path.write_bytes(whole[:-100])
    elif broken == "changed":
        path.write_bytes(whole[:-5000] + bytes([whole[-5000] ^ 1]) + whole[-4999:])
    elif broken == "another model":
        frames.write(path, {"w": np.ones(3, np.float32)})
    else:
        path.write_bytes(b"")
    assert site.pack(new, old, lease(asked, 2)).header.digest == clean


def test_old_memories_go_by_themselves(site: Site) -> None:
    rng = np.random.default_rng(4)
    old = base(rng)
    for job in ("a", "b"):
        site.feedback.prepare()
        frames.write(site.feedback.memory(job), {"w": np.ones(3, np.float32)})
    stale = time.time() - compressing.KEPT - 60
    os.utime(site.feedback.memory("a"), (stale, stale))
    site.pack(old, old, lease(Compression(8)))
    assert not site.feedback.memory("a").exists()
    assert site.feedback.memory("b").exists()


def test_training_that_diverged_is_said_to_have(site: Site) -> None:
    old: Weights = {"w": np.zeros(4)}
    new: Weights = {"w": np.full(4, 1e300)}  # finite, and beyond float32
    with pytest.raises(UpdateRejected, match="diverged"):
        site.pack(new, old, lease(Compression(8)))


def test_noise_at_client_level_comes_first_and_is_kept_by_what_follows(site: Site) -> None:
    rng = np.random.default_rng(5)
    old, dp = base(rng), Dp("client", 2.0, 1.0)
    found = site.pack(moved(old, rng, 0.1), old, lease(Compression(8), dp=dp)).carried
    assert found.path[0].startswith("clip 1") or found.path[0].startswith("clip 0.99")
    assert found.path[2:] == ("noise", "feedback", "int8")
    assert found.noise >= dp.noise_multiplier and found.bound <= dp.clip


# ---- the record that goes with an update -----------------------------------------------------


def test_an_order_that_would_break_a_promise_is_refused() -> None:
    bounded = carried.clipped(Carried(), 1.0)
    with pytest.raises(ConfigError, match=r"it comes before"):
        carried.fed_back(bounded)
    with pytest.raises(ConfigError, match=r"no noise fits them"):
        carried.gridded(carried.coded(bounded, "int8", 1.25), 0.1, 4, nearest=True)
    with pytest.raises(ConfigError, match=r"clipped and on a grid"):
        carried.noised(bounded, 1.0)
    with pytest.raises(ConfigError, match=r"clipped and on a grid"):
        carried.noised(carried.gridded(Carried(), 0.1, 4, nearest=True), 1.0)
    once = carried.noised(carried.gridded(bounded, 0.1, 4, nearest=True), 2.2)
    assert once.bound == pytest.approx(1.1) and once.noise == pytest.approx(2.0)
    with pytest.raises(ConfigError, match=r"not noised before"):
        carried.noised(once, 1.0)
    with pytest.raises(ConfigError, match=r"needed a number above 0"):
        carried.clipped(Carried(), math.inf)
    after = carried.coded(carried.clipped(carried.fed_back(once), 5.0), "int8", 1.25)
    assert (after.bound, after.noise) == (once.bound, once.noise)
    assert after.text() == (
        "clip 1 > grid 0.1 > noise > feedback > clip 5 > int8, norm at most 1.1, noise 2 of it"
    )


# ---- what the hub takes ----------------------------------------------------------------------


def test_an_update_that_is_not_compressed_as_asked_is_refused(site: Site) -> None:
    rng = np.random.default_rng(6)
    old = base(rng)
    model = frames.write(site.folder / "model", old)

    def judged(header: frames.Header, asked: Compression) -> str | None:
        task = lease(asked).task
        result = Result("j.1.0.here", "j", 1, header.digest, 10)
        return result_misfit(result, task, header, model, 100)

    asked = Compression(8)
    header = site.pack(moved(old, rng, 0.1), old, lease(asked)).header
    assert judged(header, asked) is None
    assert "does not have the model's shape" in (judged(header, Compression(16)) or "")
    assert "does not have the model's shape" in (judged(model, asked) or "")
    twice: Weights = {"w": np.zeros(3, np.float32), "w/scale": np.zeros(1, np.float32)}
    model = frames.write(site.folder / "twice", twice)
    assert "a part would have their name" in (judged(header, asked) or "")


def test_codecs_have_names() -> None:
    names = ["int8", "int16", "top-5%", "int8+top-0.5%", "int16+top-50%"]
    for text in names:
        codec = compress.named(text)
        assert codec is not None and compress.name(codec) == text
    assert compress.named("none") is None
    for text in ("", "int4", "int8+", "top-5", "top-0%", "top-99%", "int8+top-101%", "INT8"):
        with pytest.raises(ConfigError, match="compress"):
            compress.named(text)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=9), st.integers(1, 12))
def test_cut_anew_nothing_is_lost(sizes: list[int], size: int) -> None:
    whole: Array = np.arange(sum(sizes))
    pieces = (p.copy() for p in np.split(whole, np.cumsum(sizes)[:-1]) if True) if sizes else ()
    found = list(compress.recut(iter(pieces), size))
    assert all(p.size == size for p in found[:-1]) and all(p.size for p in found)
    assert np.concatenate([whole[:0], *found]).tolist() == whole.tolist()


@pytest.mark.parametrize("wrong", ["scale", "place"])
def test_an_update_that_would_break_the_fold_is_refused_while_it_can_be(
    tmp_path: Path, wrong: str
) -> None:
    blobs, asked = MemoryBlobs(), Compression(8, 0.5)
    old: Weights = {"w": np.ones(100, np.float32), "h": np.ones(8, np.float16)}
    site = Site(tmp_path)
    site.pack({n: w + 1 for n, w in old.items()}, old, lease(asked))
    parts = frames.read(tmp_path / "out")
    with blobs.open_spool("base") as spool:
        base = frames.write(spool.fd, old)
    blobs.adopt("base", base.digest)

    def judged(weights: Weights) -> str | None:
        with blobs.open_spool("j.1.0.here") as spool:
            frames.write(spool.fd, weights)
        return packed.misfit(blobs, base.digest, "j.1.0.here", lease(asked).task)

    assert judged(parts) is None
    if wrong == "scale":
        parts["h/scale"] = np.array([1e6], np.float32)  # finite, and beyond float16
        assert "'h' is not finite" in (judged(parts) or "")
    else:
        parts["w/at"] = parts["w/at"][::-1].copy()
        assert "not ascending" in (judged(parts) or "")
