"""YAML that a browser sends: looked at event by event, before anything is built from it.

What the command line reads is a file of the machine's owner. Here a text of few bytes must not
cost much: references to earlier parts (billions from a few lines) and deep nesting are refused.
"""

import yaml

from consilia.errors import ConfigError, Wrong

MOST = 128 << 10  # characters
DEPTH = 32


def checked(text: str) -> str:
    """Return `text`; ConfigError when it is long, deep, refers to itself or is no YAML."""
    if len(text) > MOST:
        raise ConfigError(Wrong("yaml", f"{len(text)} characters", f"at most {MOST}"))
    depth = 0
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            line = event.start_mark.line + 1 if event.start_mark else 0
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(f"yaml line {line}: a reference (*name); write it out")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise ConfigError(f"yaml line {line}: nested deeper than {DEPTH} levels")
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        at = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"yaml{at}: not valid YAML: {getattr(e, 'problem', e)}") from None
    return text
