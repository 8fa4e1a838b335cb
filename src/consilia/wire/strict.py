"""Plain data (YAML, JSON) into records, refusing every key that the record does not have.

A misspelt key that is silently ignored is a setting a person believes in and does not have.
So unknown keys are errors that name the nearest valid one, at any depth, with the line where
the caller knows it.
"""

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from consilia.errors import ConfigError, Wrong

T = TypeVar("T")
Path = tuple[str | int, ...]  # keys and indexes from the root
Locate = Callable[[Path], int | None]  # line (from 1) of a path, None when unknown

_AT = re.compile(r" - at `(?:key in )?\$(.*)`\Z", re.DOTALL)
_MISFIT = re.compile(r"Expected (?P<expected>.+?)(?:, got (?P<found>.+))?\Z", re.DOTALL)
_ABSENT = re.compile(r"Object missing required field `(?P<name>[^`]+)`\Z")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")


def convert(value: object, kind: type[T], what: str, locate: Locate | None = None) -> T:
    """Return `value` (dicts, lists, scalars) as a `kind`; raise ConfigError naming the place.

    `what` says in messages where the data came from: a file's name, "request body".
    """
    info = inspect.type_info(kind)
    _refuse_unknown(value, info, (), what, locate)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as e:
        said, where = _split(str(e))
        path = tuple(int(i) if i else k for k, i in _STEP.findall(where))
        place = f"{where.lstrip('.')}: " if where else ""
        if said.startswith("Invalid enum value"):
            said += _choices(said, info, path)
        words = f"{_source(what, path, locate)}: {place}{said}"
        raise ConfigError(_misfit(said, where.lstrip("."), words)) from None


def from_yaml(text: str, kind: type[T], what: str) -> T:
    """Return the one YAML document in `text` as a `kind`; raise ConfigError with the line.

    A key written twice is an error as well: one of the two would be lost.
    """
    import yaml  # noqa: PLC0415  # costs 20 ms that JSON readers need not pay

    try:
        root = yaml.compose(text, yaml.SafeLoader)
        lines: dict[Path, int] = {}
        _place(root, (), lines, what)
        value = {} if root is None else yaml.safe_load(text)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        at = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{what}{at}: not valid YAML: {getattr(e, 'problem', e)}") from None
    return convert(value, kind, what, lines.get)


def _place(node: Any, path: Path, lines: dict[Path, int], what: str) -> None:
    """Record the line of every key and item below a YAML node."""
    if node is None:
        return
    lines.setdefault(path, node.start_mark.line + 1)
    if node.id == "mapping":
        for key, item in node.value:
            here, line = (*path, key.value), key.start_mark.line + 1
            if here in lines:
                raise ConfigError(
                    f"{what} line {line}: key {key.value!r} is there twice, "
                    f"first on line {lines[here]}; keep one"
                )
            lines[here] = line
            _place(item, here, lines, what)
    elif node.id == "sequence":
        for index, item in enumerate(node.value):
            _place(item, (*path, index), lines, what)


def nearest(word: str, valid: Mapping[str, object] | tuple[str, ...]) -> str:
    """Return "; did you mean 'x'? Valid: ..." for the word a person got wrong."""
    close = get_close_matches(word, list(valid), 1, 0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"; {hint}Valid: {', '.join(sorted(valid)) or 'none'}"


def _split(message: str) -> tuple[str, str]:
    """Part msgspec's message into what is wrong and where."""
    found = _AT.search(message)
    return (message[: found.start()], found[1]) if found else (message, "")


def _misfit(said: str, field: str, words: str) -> Wrong | str:
    """Return what msgspec says of a field, in its parts where it tells them."""
    if match := _MISFIT.match(said):
        return Wrong(field, match["found"] or "something else", match["expected"], words)
    if match := _ABSENT.match(said):
        inner = f"{field}.{match['name']}" if field else match["name"]
        return Wrong(inner, "nothing", "a value", words)
    return Wrong(field, said, "a valid value", words) if field else words


def _choices(said: str, info: inspect.Type, path: Path) -> str:
    """Return "; did you mean 'x'? Valid: ..." where only some words are allowed at `path`."""
    found: tuple[inspect.Type, ...] = (info,)
    for step in path:
        found = tuple(inner for option in found for inner in _below(option, step))
    words = [str(v) for i in found if isinstance(i, inspect.LiteralType) for v in i.values]
    return nearest(said.partition("'")[2].rstrip("'"), tuple(words)) if words else ""


def _below(info: inspect.Type, step: str | int) -> tuple[inspect.Type, ...]:
    """Return what may be at key or index `step` of `info`, unions taken apart."""
    inner: tuple[inspect.Type, ...] = ()
    if isinstance(info, inspect.StructType):
        inner = tuple(f.type for f in info.fields if f.encode_name == step)
    elif isinstance(info, inspect.DictType):
        inner = (info.value_type,)
    elif isinstance(info, inspect.ListType | inspect.VarTupleType):
        inner = (info.item_type,)
    return tuple(
        option
        for kind in inner
        for option in (kind.types if isinstance(kind, inspect.UnionType) else (kind,))
    )


def _refuse_unknown(
    value: object, info: inspect.Type, path: Path, what: str, locate: Locate | None
) -> None:
    if isinstance(info, inspect.UnionType):
        for option in info.types:
            if isinstance(option, inspect.StructType | inspect.DictType) == isinstance(
                value, dict
            ):
                _refuse_unknown(value, option, path, what, locate)
    elif isinstance(info, inspect.StructType) and isinstance(value, dict):
        fields = {f.encode_name: f.type for f in info.fields}
        for key, item in value.items():
            here = (*path, key)
            if key not in fields:
                source = _source(what, here, locate)
                within = f" in {'.'.join(map(str, path))}" if path else ""
                name = repr(str(key)[:80])
                words = f"{source}: unknown key {name}{within}{nearest(str(key), fields)}"
                valid = f"one of {', '.join(sorted(fields)) or 'no key'}"
                field = ".".join(map(str, (*path, str(key)[:80])))
                raise ConfigError(Wrong(field, f"unknown key {name}", valid, words))
            _refuse_unknown(item, fields[key], here, what, locate)
    elif isinstance(info, inspect.DictType) and isinstance(value, dict):
        for key, item in value.items():
            _refuse_unknown(item, info.value_type, (*path, key), what, locate)
    elif isinstance(info, inspect.ListType | inspect.VarTupleType) and isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_unknown(item, info.item_type, (*path, index), what, locate)


def _source(what: str, path: Path, locate: Locate | None) -> str:
    line = locate(path) if locate is not None else None
    return what if line is None else f"{what} line {line}"
