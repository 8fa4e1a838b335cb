"""The audit chain: any later change is found, and where."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.core.chain import GENESIS, Break, Line, link, verify

Chain = list[tuple[Line, str]]


def chain(length: int) -> Chain:
    lines: Chain = []
    head = GENESIS
    for seq in range(1, length + 1):
        line = Line(seq, 1.5 * seq, "ana", "approve", f"plan {seq}", "done", "ok")
        head = link(head, line)
        lines.append((line, head))
    return lines


def test_golden() -> None:
    """Chains written by this release must verify on every later one."""
    line = Line(1, 1700000000.25, "Zoë", "approve", "plan", "done", 'a "quoted"\nline')
    assert link(GENESIS, line) == (
        "sha256:bbcfda353e114a113b99d8cb66fa818b5d20bf94fb043066426b9cb9af0abdb7"
    )


@pytest.mark.parametrize("length", [0, 1, 7])
def test_an_honest_chain_holds(length: int) -> None:
    lines = chain(length)
    assert verify(lines) == (length, lines[-1][1] if lines else GENESIS)


CHANGES: dict[str, Callable[[Line], Line]] = {
    "at": lambda line: replace(line, at=9.0),
    "actor": lambda line: replace(line, actor="eve"),
    "action": lambda line: replace(line, action="reject"),
    "subject": lambda line: replace(line, subject="plan 99"),
    "outcome": lambda line: replace(line, outcome="refused"),
    "detail": lambda line: replace(line, detail=""),
}


@pytest.mark.parametrize("field", CHANGES)
@pytest.mark.parametrize("where", [0, 3, 6])
def test_a_changed_line_is_named(field: str, where: int) -> None:
    lines = chain(7)
    line, digest = lines[where]
    lines[where] = (CHANGES[field](line), digest)
    broken = verify(lines)
    assert isinstance(broken, Break)
    assert broken.seq == where + 1
    assert "changed" in broken.reason


def test_a_changed_line_with_its_digest_made_anew_breaks_the_next() -> None:
    lines = chain(7)
    forged = replace(lines[2][0], outcome="refused")
    lines[2] = (forged, link(lines[1][1], forged))
    assert verify(lines) == Break(
        4, "the line, or one before it, was changed after it was written"
    )


def test_a_chain_rewritten_to_its_end_has_another_head() -> None:
    lines = chain(7)
    head, forged = lines[1][1], []
    for line, _ in lines[2:]:
        changed = replace(line, actor="eve")
        head = link(head, changed)
        forged.append((changed, head))
    count, found = _held(verify([*lines[:2], *forged]))
    assert count == 7
    assert found != lines[-1][1]  # whoever kept the old head sees it


def test_a_truncated_chain_has_another_head_and_length() -> None:
    lines = chain(7)
    assert _held(verify(lines[:5])) == (5, lines[4][1])


@pytest.mark.parametrize("where", [0, 3, 5])
def test_a_removed_line_is_named(where: int) -> None:
    lines = chain(7)
    del lines[where]
    assert verify(lines) == Break(where + 1, f"line {where + 1} is missing: found {where + 2}")


def test_a_removed_and_renumbered_line_is_found() -> None:
    lines = chain(7)
    rest = [(replace(line, seq=line.seq - 1), digest) for line, digest in lines[4:]]
    broken = verify([*lines[:3], *rest])
    assert isinstance(broken, Break)
    assert broken.seq == 4


@pytest.mark.parametrize("where", [0, 2, 5])
def test_reordered_lines_are_found(where: int) -> None:
    lines = chain(7)
    lines[where], lines[where + 1] = lines[where + 1], lines[where]
    assert verify(lines) == Break(where + 1, f"line {where + 1} is missing: found {where + 2}")


@pytest.mark.parametrize("where", [1, 4, 6])
def test_an_inserted_line_is_found(where: int) -> None:
    lines = chain(7)
    line = Line(where + 1, 0.0, "eve", "approve", "plan", "done")
    lines.insert(where, (line, link(lines[where - 1][1], line)))
    broken = verify(lines)
    assert isinstance(broken, Break)
    assert broken.seq == where + 2


def test_a_later_part_is_verified_from_a_kept_head() -> None:
    lines = chain(7)
    assert verify(lines[4:], after=lines[3][1], first=5) == (3, lines[-1][1])
    broken = verify(lines[4:], after=GENESIS, first=5)
    assert isinstance(broken, Break)
    assert broken.seq == 5


texts = st.text(max_size=8)


@given(texts, texts, texts, texts)
def test_text_cannot_move_between_fields(a: str, b: str, c: str, d: str) -> None:
    one, other = Line(1, 0.0, a, b, "", ""), Line(1, 0.0, c, d, "", "")
    assert (link(GENESIS, one) == link(GENESIS, other)) == (one == other)


def _held(found: Break | tuple[int, str]) -> tuple[int, str]:
    assert isinstance(found, tuple)
    return found
