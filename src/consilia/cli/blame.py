"""Errors in the words of the command line: the option that was typed, not the API's field."""

import re
from collections.abc import Sequence

from consilia.errors import ConsiliaError, wrong_in

_FIELD = re.compile(r"([a-z][\w.\[\]]*): ")  # how a sentence about one field begins


def in_options(error: ConsiliaError, words: Sequence[str]) -> str:
    """Return what an error says, its field named as the option that gave it.

    `words` are those of the command line. A field that came from a file, or that no option of
    this line is called like, keeps its name: `--rounds` is blamed only where it was typed.
    """
    text, wrong = str(error), wrong_in(error)
    begun = _FIELD.match(text)
    field = wrong.field if wrong is not None else begun[1] if begun else ""
    last = re.sub(r"\[\d*\]", "", field).rpartition(".")[2]
    option = "--" + last.replace("_", "-")
    given = {word.partition("=")[0] for word in words}
    if not last or option not in given:
        return text
    if text.startswith(f"{field}:"):
        return option + text.removeprefix(field)
    return text if option in text else f"{option}: {text}"
