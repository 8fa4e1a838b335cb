"""A draft of a data loading plan, looked at block by block while somebody writes it.

The rules are those of data.loading; what is found here is where: which block, and which of its
fields a message is about, so that a form can show it there. No record is read.
"""

import re
from collections.abc import Iterator

import msgspec

from consilia.data.loading import blocks, stages
from consilia.data.loading.blocks import AnyBlock, LoadingPlan
from consilia.data.registry import Dataset, to_source
from consilia.errors import ConfigError, ConsiliaError
from consilia.wire.console.datasets import LoadingCheckView, StepColumn

_QUOTED = re.compile(r"'([^']+)'")


def check(yaml: str, dataset: Dataset | None) -> LoadingCheckView:
    """Return the columns before each block and at the end, up to the first mistake."""
    try:
        plan = blocks.from_yaml(yaml, "plan")
    except ConfigError as e:
        return _unread(str(e))
    if dataset is None:
        return LoadingCheckView(())
    steps: list[tuple[StepColumn, ...]] = [_columns(dataset, LoadingPlan(plan.name, ()))]
    for number in range(1, len(plan.blocks) + 1):
        try:
            steps.append(_columns(dataset, LoadingPlan(plan.name, plan.blocks[:number])))
        except ConsiliaError as e:
            said = str(e).partition(f"block {number} (")[2].partition("): ")[2] or str(e)
            place = field_of(plan.blocks[number - 1], said)
            return LoadingCheckView(tuple(steps), said, number, place)
    return LoadingCheckView(tuple(steps))


def field_of(block: AnyBlock, said: str) -> str:
    """Return which field of a block a message is about, "" when it is about the whole block.

    A message begins with the field's name, or shows in quotes what the field holds.
    """
    names = [f.encode_name for f in msgspec.structs.fields(type(block))]
    for name in names:
        if said.startswith((f"{name}:", f"{name},")):
            return name
    plain = msgspec.to_builtins(block)
    held = [(name, text) for name in names for text in _texts(plain.get(name)) if text]
    whole = [(said.find(repr(text)), name) for name, text in held]
    if shown := [(at, name) for at, name in whole if at >= 0]:
        return min(shown)[1]
    words = _QUOTED.findall(said)  # a part of what the field holds, such as one unit of two
    return next((name for word in words for name, text in held if word in text), "")


def _texts(value: object) -> Iterator[str]:
    """Yield every text that a field holds, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _columns(dataset: Dataset, plan: LoadingPlan) -> tuple[StepColumn, ...]:
    source = to_source(dataset)
    found = stages.check(plan, source.columns, patient=dataset.patient, units=source.units)
    return tuple(StepColumn(n, t, found.units.get(n, "")) for n, t in found.columns.items())


def _unread(said: str) -> LoadingCheckView:
    """Place a mistake of writing: "plan: block 2 (rename): columns: needed ..."."""
    rest = said.removeprefix("plan").lstrip(": ")
    if not rest.startswith("block "):
        return LoadingCheckView((), rest)
    head, _, what = rest.partition(": ")
    digits = head.removeprefix("block ").partition(" ")[0].rstrip(":")
    number = int(digits) if digits.isdecimal() else 0
    field = what.partition(":")[0].partition(".")[0].partition("[")[0]
    known = {
        f.encode_name for kind in blocks.KINDS.values() for f in msgspec.structs.fields(kind)
    }
    return LoadingCheckView((), what or rest, number, field if field in known else "")
