"""Which values the arguments of a task may have: what approval and site let them be."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from consilia.wire.v1 import Scalar

FRAMEWORK_ARGUMENTS: Mapping[str, Scalar] = {"proximal_mu": 0.0}  # set by strategies, not plans
MAX_TEXT = 200  # characters of a text argument


@dataclass(frozen=True, slots=True)
class Interval:
    """Numbers from `least` to `greatest`, both included."""

    least: float
    greatest: float


@dataclass(frozen=True, slots=True)
class OneOf:
    """A choice of values."""

    values: tuple[Scalar, ...]


Allowed = Interval | OneOf


def allowed_values(values: list[Scalar]) -> Allowed:
    """Read a list of node.yaml: two numbers are a range, anything else a choice of values."""
    if len(values) == 2:
        least, greatest = _number(values[0]), _number(values[1])
        if least is not None and greatest is not None:
            return Interval(least, greatest)
    return OneOf(tuple(values))


def admits(allowed: Allowed, value: Scalar) -> bool:
    """Tell whether a value lies in a range or among a choice. NaN lies nowhere."""
    if isinstance(allowed, OneOf):
        return any(_same(value, v) for v in allowed.values)
    number = _number(value)
    return number is not None and allowed.least <= number <= allowed.greatest


def describe(allowed: Allowed) -> str:
    """Return the range or choice as a person reads it."""
    if isinstance(allowed, OneOf):
        return "one of " + ", ".join(repr(v) for v in allowed.values)
    return f"{allowed.least:g} to {allowed.greatest:g}"


def argument_problem(
    arguments: Mapping[str, Scalar],
    declared: Mapping[str, Allowed | None],
    defaults: Mapping[str, Scalar],
    ranges: Mapping[str, Allowed],
) -> str | None:
    """Say which argument plan and site do not allow, None when all may be set as they are.

    `declared` are those the plan's approval names, with what its reviewer lets each be;
    `defaults` those in the plan's source; `ranges` the site's, for any plan.
    """
    known = {**FRAMEWORK_ARGUMENTS, **defaults}
    for name, value in sorted(arguments.items()):
        if problem := _value_problem(value):
            return f"argument {name[:40]!r} {problem}"
        if name not in declared and name not in FRAMEWORK_ARGUMENTS:
            return f"argument {name[:40]!r} is not among those the approval names"
        if name in known and _same(value, known[name]):
            continue  # the reviewer has read and approved this very value
        bounds = [b for b in (declared.get(name), ranges.get(name)) if b is not None]
        if not bounds:
            return f"argument {name!r} = {value!r}: this site lets it keep its default only"
        broken = [describe(b) for b in bounds if not admits(b, value)]
        if broken:
            return f"argument {name!r} = {value!r}, allowed here: {' and '.join(broken)}"
    return None


def _value_problem(value: Scalar) -> str | None:
    """Say why a value can be no argument at all, or None."""
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a finite number"
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return f"is a text of {len(value)} characters, limit {MAX_TEXT}"
    return None


def _number(value: Scalar) -> int | float | None:
    """Return a number as it is; None for texts and truth values."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _same(a: Scalar, b: Scalar) -> bool:
    """Equal and of one sort: 1 and 1.0 are the same number, 1 and True are not the same."""
    numbers = _number(a) is not None and _number(b) is not None
    return (numbers or type(a) is type(b)) and a == b
