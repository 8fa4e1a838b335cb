"""Sealed envelopes: what was signed, by whom, for what, and nothing else."""

from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from consilia.errors import AuthError
from consilia.wire import v1
from consilia.wire.seal import open_sealed, seal

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
VECTORS = Path(__file__).parent.parent / "vectors"


@given(st.text(max_size=20), st.text(max_size=20), st.binary(max_size=100))
def test_what_was_sealed_comes_out(context: str, site: str, payload: bytes) -> None:
    sealed = seal(context, site, payload, KEY)
    again = v1.decode(v1.encode(sealed), v1.Sealed)
    assert again == sealed
    assert open_sealed(again, context, PUBLIC) == payload


def test_golden_seal() -> None:
    golden = bytes.fromhex((VECTORS / "seal-v1.hex").read_text())
    sealed = seal("report", "north", b"the payload", KEY)
    assert v1.encode(sealed) == golden
    assert open_sealed(v1.decode(golden, v1.Sealed), "report", PUBLIC) == b"the payload"


def test_another_context_is_refused() -> None:
    sealed = seal("advertisement", "north", b"payload", KEY)
    with pytest.raises(AuthError, match="for 'advertisement', needed one for 'report'"):
        open_sealed(sealed, "report", PUBLIC)
    relabelled = msgspec.structs.replace(sealed, context="report")
    with pytest.raises(AuthError, match="not signed with its registered key"):
        open_sealed(relabelled, "report", PUBLIC)


@pytest.mark.parametrize(
    "change",
    [
        {"site": "south"},
        {"payload": b"payloae"},
        {"payload": b"payload\0"},
        {"payload": b""},
        {"signature": bytes(64)},
        {"signature": b""},
        {"signature": bytes(63)},
        {"signature": bytes(65)},
    ],
)
def test_any_change_is_noticed(change: dict[str, object]) -> None:
    sealed = msgspec.structs.replace(seal("report", "north", b"payload", KEY), **change)
    with pytest.raises(AuthError):
        open_sealed(sealed, "report", PUBLIC)


def test_swapped_signatures_are_noticed() -> None:
    one, two = (seal("report", "north", p, KEY) for p in (b"one", b"two"))
    with pytest.raises(AuthError):
        open_sealed(msgspec.structs.replace(one, signature=two.signature), "report", PUBLIC)


def test_bytes_cannot_move_between_the_fields() -> None:
    """Without lengths in the framing these two would be the same bytes."""
    sealed = seal("report", "north", b"ern", KEY)
    moved = msgspec.structs.replace(sealed, site="northern", payload=b"")
    with pytest.raises(AuthError):
        open_sealed(moved, "report", PUBLIC)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(32), bytes(33)])
def test_other_keys(key: bytes) -> None:
    with pytest.raises(AuthError):
        open_sealed(seal("report", "north", b"payload", KEY), "report", key)
