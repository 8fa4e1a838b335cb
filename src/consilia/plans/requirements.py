"""Are the packages that a plan declares installed, in a fitting version?

Understands `name`, `name[extra]` and comma-separated version clauses (==, !=, >=, <=, >, <,
~=, and == with a trailing .*), which is what a plan may declare. Markers and URLs are refused:
a reviewer must be able to read what a plan runs on.
"""

import re
from importlib import metadata

from consilia.errors import PlanError

_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[[A-Za-z0-9._,\s-]*\])?\s*"
    r"(?P<clauses>.*)"
)
_CLAUSE = re.compile(
    r"(?P<op>==|!=|>=|<=|~=|>|<)\s*(?P<version>[0-9]+(?:\.[0-9]+)*)(?P<star>\.\*)?"
)


def missing_requirements(requirements: tuple[str, ...]) -> tuple[str, ...]:
    """Return, in words, each declared requirement that this environment does not meet."""
    return tuple(p for r in requirements if (p := _problem(r)) is not None)


def _problem(requirement: str) -> str | None:
    match = _REQUIREMENT.fullmatch(requirement.strip())
    if match is None:
        raise PlanError(f"requirement {requirement!r} is not understood; write name>=version")
    clauses = [_clause(c, requirement) for c in match["clauses"].split(",") if c.strip()]
    try:
        text = metadata.version(match["name"])
    except metadata.PackageNotFoundError:
        return f"{requirement}: not installed"
    found = _release(text)
    if all(_holds(found, *clause) for clause in clauses):
        return None
    return f"{requirement}: installed is {text}"


def _clause(text: str, requirement: str) -> tuple[str, tuple[int, ...], bool]:
    match = _CLAUSE.fullmatch(text.strip().strip("()"))
    if match is None or (match["star"] and match["op"] not in ("==", "!=")):
        raise PlanError(
            f"requirement {requirement!r}: {text.strip()!r} is not understood; "
            "write clauses such as >=1.5, ==2.13.0 or ==2.*"
        )
    return match["op"], _release(match["version"]), bool(match["star"])


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, without local, pre- and post-release parts."""
    head = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(int(n) for n in head[0].split(".")) if head else ()


def _holds(found: tuple[int, ...], op: str, wanted: tuple[int, ...], star: bool) -> bool:
    if star:
        return (found[: len(wanted)] == wanted) is (op == "==")
    if op == "~=":
        return found >= wanted and found[: len(wanted) - 1] == wanted[:-1]
    width = max(len(found), len(wanted))
    a, b = (v + (0,) * (width - len(v)) for v in (found, wanted))
    return {
        "==": a == b, "!=": a != b, ">=": a >= b, "<=": a <= b, ">": a > b, "<": a < b,
    }[op]  # fmt: skip
