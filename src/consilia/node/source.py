"""What can be told of a plan by reading it, without running a line: arguments, differences."""

import ast
import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from consilia.wire.planform import entry_file
from consilia.wire.v1 import MAX_ARGUMENTS, Plan, Scalar

MAX_LINES = 5000  # of a file that is compared line by line; a longer one is shown as replaced
_CONTEXT = 3  # unchanged lines around a change
Change = Literal["same", "changed", "added", "removed"]


@dataclass(frozen=True, slots=True)
class Line:
    """One row of two versions side by side. A side that has no such line has number 0."""

    change: Change
    old_number: int
    old: str
    new_number: int
    new: str


@dataclass(frozen=True, slots=True)
class FileDiff:
    """What became of one file, or of entry or requirements, between two versions."""

    path: str
    change: Change
    lines: tuple[Line, ...]  # the whole file; () when it is the same
    unified: str  # "" when it is the same


def declared_arguments(plan: Plan) -> Mapping[str, Scalar] | None:
    """Return the names and defaults in the entry's `arguments={...}`, None when not literal.

    Only a literal dict of scalars in the call that makes the entry point can be read without
    running the plan; {} when that call declares none.
    """
    file, attribute = entry_file(plan), plan.entry.rpartition(":")[2]
    try:
        tree = ast.parse(plan.files[file]) if file else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is None:
        return None
    made: ast.expr | None = None
    for node in tree.body:  # the last assignment wins, as when the module runs
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(t, ast.Name) and t.id == attribute for t in targets):
            made = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    if not isinstance(made, ast.Call) or any(k.arg is None for k in made.keywords):
        return None
    given = next((k.value for k in made.keywords if k.arg == "arguments"), None)
    return {} if given is None else _literal_arguments(given)


def difference(old: Plan, new: Plan) -> str:
    """Return a unified diff of entry, requirements and files, "" when none differs."""
    return "\n".join(d.unified for d in file_diffs(old, new) if d.unified)


def file_diffs(old: Plan, new: Plan) -> tuple[FileDiff, ...]:
    """Return what became of entry, requirements and each file, by path."""
    before, after = _parts(old), _parts(new)
    return tuple(
        _file_diff(path, before.get(path), after.get(path))
        for path in sorted(before.keys() | after.keys())
    )


def _file_diff(path: str, before: str | None, after: str | None) -> FileDiff:
    if before == after:
        return FileDiff(path, "same", (), "")
    change: Change = "added" if before is None else "removed" if after is None else "changed"
    a, b = (before or "").splitlines(), (after or "").splitlines()
    if max(len(a), len(b)) > MAX_LINES:  # matching them would take minutes
        steps: list[tuple[str, int, int, int, int]] = [("replace", 0, len(a), 0, len(b))]
        unified = [f"--- a/{path}", f"+++ b/{path}"]
        unified += [f"-{line}" for line in a] + [f"+{line}" for line in b]
    else:
        steps = [*difflib.SequenceMatcher(None, a, b, autojunk=True).get_opcodes()]
        unified = list(
            difflib.unified_diff(a, b, f"a/{path}", f"b/{path}", lineterm="", n=_CONTEXT)
        )
    if not unified:
        unified = [f"--- a/{path}", f"+++ b/{path}", "(only the ends of lines differ)"]
    lines = tuple(line for step in steps for line in _side_by_side(step, a, b))
    return FileDiff(path, change, lines, "\n".join(unified))


def _side_by_side(
    step: tuple[str, int, int, int, int], a: list[str], b: list[str]
) -> Iterator[Line]:
    what, i, i_end, j, j_end = step
    while i < i_end or j < j_end:
        left, right = i < i_end, j < j_end
        change: Change = "changed" if left and right else "removed" if left else "added"
        yield Line(
            "same" if what == "equal" else change,
            i + 1 if left else 0,
            a[i] if left else "",
            j + 1 if right else 0,
            b[j] if right else "",
        )
        i, j = i + left, j + right


def _parts(plan: Plan) -> dict[str, str]:
    head = {"(entry)": plan.entry, "(requirements)": "\n".join(sorted(plan.requirements))}
    return {**head, **plan.files}


def _literal_arguments(node: ast.expr) -> dict[str, Scalar] | None:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    if not isinstance(value, dict) or len(value) > MAX_ARGUMENTS:
        return None
    for name, default in value.items():
        if not isinstance(name, str) or not isinstance(default, bool | int | float | str):
            return None
        if isinstance(default, float) and not math.isfinite(default):
            return None
    return value
