"""The model cache: bounded, least recently used first, never what is in use."""

from pathlib import Path

import numpy as np
import pytest

from consilia.errors import ConfigError
from consilia.node.cache import Cache
from consilia.wire import frames


def bring(cache: Cache, fill: int, size: int = 10_000) -> str:
    draft = Path(str(cache.path("b3:" + "0" * 64))).with_suffix(".part")
    header = frames.write(draft, {"w": np.full(size, fill, np.float32)})
    draft.replace(cache.path(header.digest))
    cache.adopt(header.digest)
    return header.digest


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 100_000)  # two frames of 40 kB, and a bit
    a, b = bring(cache, 1), bring(cache, 2)
    with cache.using(a) as path:
        assert path is not None
    c = bring(cache, 3)
    assert not cache.path(b).exists() and cache.bytes <= 100_000
    assert [p.exists() for p in (cache.path(a), cache.path(c))] == [True, True]
    again = Cache(tmp_path / "cache", 100_000)
    assert again.bytes == cache.bytes and len(again.paths()) == 2


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 50_000)
    a = bring(cache, 1)
    with cache.using(a) as path, cache.using(a):
        bring(cache, 2)
        assert path is not None and path.exists()
    bring(cache, 3)
    assert not cache.path(a).exists()


def test_a_damaged_frame_is_fetched_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 1 << 30)
    a = bring(cache, 1)
    with cache.path(a).open("r+b") as file:
        file.truncate(20_000)
    with cache.using(a) as path:
        assert path is None
    assert not cache.path(a).exists() and cache.bytes == 0
    with cache.using(a) as path:
        assert path is None  # absent
    b = bring(cache, 2)
    cache.path(b).replace(cache.path(a))  # a frame under another's name
    with cache.using(a) as path:
        assert path is None


@pytest.mark.parametrize("digest", ["../x", "b3:..", "sha256:", "", "b3:" + "g" * 64])
def test_only_a_digest_becomes_a_file_name(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ConfigError):
        Cache(tmp_path / "cache", 1000).path(digest)
