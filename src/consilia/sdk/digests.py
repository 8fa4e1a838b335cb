"""Digests as people write them: their first digits, as long as these fit only one."""

from collections.abc import Iterable

from consilia.errors import ConfigError, NotFound

MIN_PREFIX = 8  # hex digits


def resolve(text: str, candidates: Iterable[str], what: str, listed_by: str) -> str:
    """Return the one digest of `candidates` that `text` names, whole or by its first digits.

    `text` is a digest, or at least MIN_PREFIX of its hex digits, with or without the
    algorithm in front. Raise ConfigError when it is too short or fits several (lists them),
    NotFound when it fits none.
    """
    known = sorted(set(candidates))
    algorithm, _, digits = text.lower().rpartition(":")
    if text in known:
        return text
    if len(digits) < MIN_PREFIX:
        raise ConfigError(
            f"{text!r} is too short to name a {what}: give at least {MIN_PREFIX} of its "
            f"hex digits; {listed_by} lists them"
        )
    prefixes = {d for d in known if d.rpartition(":")[2].startswith(digits)}
    found = sorted(d for d in prefixes if not algorithm or d.startswith(algorithm + ":"))
    if len(found) > 1:
        raise ConfigError(
            f"{text!r} fits {len(found)} {what}s: {', '.join(found)}; give more digits"
        )
    if not found:
        raise NotFound(
            f"no {what} {text!r} among the {len(known)} here; {listed_by} lists them"
        )
    return found[0]
