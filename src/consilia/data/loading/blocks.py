"""The records of a data loading plan, and the YAML that people write and exchange.

    name: glucose-si
    description: Laboratory values in SI units
    blocks:
      - {block: rename, columns: {GLUC: glucose}}
      - {block: unit, column: glucose, from: mg/dL, to: mmol/L, substance: glucose}
      - {block: missing, columns: [glucose], do: median, indicator: true}

Blocks are applied in the order written. A plan is named by the digest of its blocks; its name
and description are free. What a block means for the columns of a table is in
data.loading.stages; each has an entry in docs/reference/loading-plans.md.
"""

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from consilia.core import ids
from consilia.errors import ConfigError
from consilia.wire import strict
from consilia.wire.v1 import Scalar

MAX_BLOCKS = 200
MAX_BYTES = 256 << 10  # of a plan as YAML
MAX_DEPTH = 16  # of nesting


class Block(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of all blocks."""


class Rename(Block, frozen=True, tag_field="block", tag="rename"):
    """Give columns other names, all at once: two may be exchanged."""

    columns: dict[str, str]  # as it is -> as it will be


class Cast(Block, frozen=True, tag_field="block", tag="cast"):
    """Read columns as another type of data.contract."""

    columns: dict[str, str]  # name -> type
    unfit: Literal["error", "missing"] = "error"  # a value that the type cannot hold


class MapValues(Block, frozen=True, tag_field="block", tag="map"):
    """Replace values by others; all new ones are of one type."""

    column: str
    values: dict[str, Scalar]  # a value, as text -> what it becomes
    other: Literal["error", "keep", "missing"] = "error"  # a value that is not listed


class ConvertUnit(Block, frozen=True, tag_field="block", tag="unit"):
    """Turn a number from one unit into another; see data.loading.units."""

    column: str
    to: str
    source: str = msgspec.field(default="", name="from")  # "": the unit the dataset declares
    substance: str = ""


class Filter(Block, frozen=True, tag_field="block", tag="filter"):
    """Keep the records for which an expression is true; false and missing ones are left out."""

    where: str


class Derive(Block, frozen=True, tag_field="block", tag="derive"):
    """Make a column of an expression, a new one or in the place of one that is there."""

    column: str
    expression: str
    type: str = ""  # "": float64, bool, str or date, as the expression is


class Missing(Block, frozen=True, tag_field="block", tag="missing"):
    """Say what a missing value becomes; before, which codes mean that it is missing."""

    columns: tuple[str, ...]
    do: Literal["keep", "drop", "constant", "median"] = "keep"
    value: Scalar | None = None  # with `constant`
    codes: tuple[Scalar, ...] = ()  # values that mean "none", such as -9
    indicator: bool = False  # adds NAME_missing, true where it was missing


class Categories(Block, frozen=True, tag_field="block", tag="categories"):
    """Declare the set of values of a column, and how it is written as numbers, if at all."""

    column: str
    levels: tuple[str, ...]
    other: str = ""  # the level for every value not listed; "": such a value is an error
    encode: Literal["text", "index", "indicators"] = "text"


class Keep(Block, frozen=True, tag_field="block", tag="keep"):
    """Leave out every column but these."""

    columns: tuple[str, ...]


class Modality(msgspec.Struct, frozen=True, omit_defaults=True):
    """What makes one modality: columns of the table."""

    columns: tuple[str, ...]


class Modalities(Block, frozen=True, tag_field="block", tag="modalities"):
    """Say which columns are which modality; `Table.modalities` tells the training plan."""

    modalities: dict[str, Modality]


AnyBlock = (
    Rename
    | Cast
    | MapValues
    | ConvertUnit
    | Filter
    | Derive
    | Missing
    | Categories
    | Keep
    | Modalities
)
KINDS: Mapping[str, type[AnyBlock]] = MappingProxyType(
    {
        "rename": Rename,
        "cast": Cast,
        "map": MapValues,
        "unit": ConvertUnit,
        "filter": Filter,
        "derive": Derive,
        "missing": Missing,
        "categories": Categories,
        "keep": Keep,
        "modalities": Modalities,
    }
)


class LoadingPlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """A data loading plan: blocks in the order in which they are applied."""

    name: str
    blocks: tuple[AnyBlock, ...]
    description: str = ""


class _Text(msgspec.Struct, frozen=True):
    """A plan as it is written; its blocks are looked at one by one."""

    name: str
    blocks: list[dict[Scalar, object]]
    description: str = ""


def from_yaml(text: str, what: str) -> LoadingPlan:
    """Return the plan written in `text`; `what` names the file in messages.

    Raises ConfigError naming block, key, the value found and what is valid.
    """
    if len(text.encode()) > MAX_BYTES:
        raise ConfigError(f"{what}: more than {MAX_BYTES} bytes; a plan is smaller")
    _refuse_costly(text, what)
    found = strict.from_yaml(text, _Text, what)
    if not 1 <= len(found.blocks) <= MAX_BLOCKS:
        raise ConfigError(f"{what}: {len(found.blocks)} blocks; needed 1 to {MAX_BLOCKS}")
    blocks = tuple(_block(b, f"{what}: block {i}") for i, b in enumerate(found.blocks, 1))
    return LoadingPlan(ids.name(found.name, "loading plan"), blocks, found.description)


def to_yaml(plan: LoadingPlan) -> str:
    """Return `plan` as YAML that `from_yaml` takes, here or at another site."""
    import yaml  # noqa: PLC0415  # costs 20 ms that most processes need not pay

    plain = msgspec.to_builtins(plan)
    blocks = plain.pop("blocks")
    text: str = yaml.safe_dump(
        {**plain, "blocks": blocks}, sort_keys=False, allow_unicode=True, width=96
    )
    return text


def block_yaml(block: AnyBlock) -> str:
    """Return one block as people read it in a plan."""
    import yaml  # noqa: PLC0415

    text: str = yaml.safe_dump(
        msgspec.to_builtins(block), sort_keys=False, allow_unicode=True, width=96
    )
    return text.rstrip()


def schema() -> dict[str, Any]:
    """Return the JSON schema of each kind of block, by its word, for forms and editors."""
    (_, *_), parts = msgspec.json.schema_components(
        (LoadingPlan,), ref_template="#/$defs/{name}"
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Blocks of a data loading plan",
        "properties": {word: parts[kind.__name__] for word, kind in KINDS.items()},
        "$defs": {"Modality": parts["Modality"]},
    }


def to_bytes(plan: LoadingPlan) -> bytes:
    """Return `plan` as the worker receives it."""
    return msgspec.msgpack.encode(plan)


def from_bytes(data: bytes) -> LoadingPlan:
    """Return what `to_bytes` made; ConfigError when it is none."""
    try:
        return msgspec.msgpack.decode(data, type=LoadingPlan)
    except msgspec.MsgspecError as e:
        raise ConfigError(f"a stored loading plan cannot be read: {e}") from None


def plan_digest(plan: LoadingPlan) -> str:
    """Name what a plan does: the digest of its blocks, `sha256:<hex>`."""
    body = msgspec.json.encode(plan.blocks, order="sorted")
    return "sha256:" + hashlib.sha256(b"consilia loading plan\0" + body).hexdigest()


def mixes(plan: LoadingPlan) -> bool:
    """Tell whether a plan gives records values that follow from other records."""
    return any(isinstance(block, Missing) and block.do == "median" for block in plan.blocks)


def kind(block: AnyBlock) -> str:
    """Return the word a block is written with."""
    return str(block.__struct_config__.tag)


def _refuse_costly(text: str, what: str) -> None:
    """Refuse what a few bytes of another site's file could cost: references, deep nesting."""
    import yaml  # noqa: PLC0415

    depth = 0
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
                at = f" line {event.start_mark.line + 1}" if event.start_mark else ""
                raise ConfigError(
                    f"{what}{at}: a reference (*name), or nested deeper than {MAX_DEPTH}; "
                    "a plan has neither"
                )
    except yaml.YAMLError:
        return  # said with its place by whoever reads it next


def _block(body: dict[Scalar, object], what: str) -> AnyBlock:
    word = body.get("block")
    if word is None:
        raise ConfigError(f"{what}: needed a key `block`, one of {', '.join(sorted(KINDS))}")
    if not isinstance(word, str) or word not in KINDS:
        raise ConfigError(
            f"{what}: there is no block {str(word)[:60]!r}{strict.nearest(str(word), KINDS)}"
        )
    place = f"{what} ({word})"
    rest = {key: value for key, value in body.items() if key != "block"}
    return strict.convert(_keyed(rest, place), KINDS[word], place)


def _keyed(value: object, what: str) -> object:
    """Return `value` with every key as text: YAML reads 1: and yes: as other things."""
    if isinstance(value, list):
        return [_keyed(item, what) for item in value]
    if not isinstance(value, dict):
        return value
    found: dict[str, object] = {}
    for key, item in value.items():
        if isinstance(key, bool) or not isinstance(key, str | int | float):
            raise ConfigError(
                f"{what}: YAML reads a key as {key!r}; put it in quotes: 'yes', 'true'"
            )
        text = str(key)
        if text in found:
            raise ConfigError(f"{what}: key {text!r} is there twice; keep one")
        found[text] = _keyed(item, what)
    return found
