"""Names, digests and random ids."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.core.ids import digest, name, new_id
from consilia.errors import ConfigError


@pytest.mark.parametrize("text", ["a", "0", "charite", "site-1", "a.b_c-d", "a" * 63])
def test_good_names(text: str) -> None:
    assert name(text, "site") == text


@pytest.mark.parametrize(
    "text",
    ["", "A", "-a", "a-", ".a", "a.", "_a", "a" * 64, "a b", "a/b", "é", "a\n", "..", "a\0b"],
)
def test_bad_names(text: str) -> None:
    with pytest.raises(ConfigError, match=r"site name .* is not allowed: use 1 to 63"):
        name(text, "site")


def test_a_long_bad_name_is_cut_in_the_message() -> None:
    with pytest.raises(ConfigError) as e:
        name("X" * 10_000, "tag")
    assert len(str(e.value)) < 300


@given(st.text(max_size=70))
def test_a_name_is_safe_in_a_path_and_a_shell(text: str) -> None:
    try:
        name(text, "dataset")
    except ConfigError:
        return
    assert re.fullmatch(r"[a-z0-9._-]+", text)
    assert text[0] not in ".-"


@pytest.mark.parametrize("algorithm", ["sha256", "b3"])
def test_digests(algorithm: str) -> None:
    good = f"{algorithm}:{'0f' * 32}"
    assert digest(good) == good
    for bad in (good[:-1], good + "0", good.upper(), "md5:" + "0" * 32, "", good + "\n"):
        with pytest.raises(ConfigError, match="is not a digest"):
            digest(bad)


def test_new_id_golden() -> None:
    assert new_id("job", bytes(10)) == "job-" + "0" * 16
    assert new_id("job", b"\xff" * 10) == "job-" + "z" * 16
    assert new_id("job", bytes(9) + b"\x01") == "job-" + "0" * 15 + "1"


@given(st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
def test_new_id_keeps_all_bits_and_is_a_name(one: bytes, other: bytes) -> None:
    assert (new_id("j", one) == new_id("j", other)) == (one == other)
    assert name(new_id("j", one), "job")


@pytest.mark.parametrize("length", [0, 9, 11])
def test_new_id_wants_ten_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="needs 10 random bytes"):
        new_id("job", bytes(length))
