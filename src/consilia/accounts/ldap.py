"""Sign-in by LDAP (RFC 4511 to 4515): what is put into questions, what answers mean. Pure.

A name that somebody typed goes into a filter or a distinguished name only escaped: `*)(uid=*`
is looked for as these very characters.
"""

from collections.abc import Iterable, Mapping, Sequence

_IN_FILTERS = {ord(c): f"\\{ord(c):02x}" for c in "\\*()\0"}  # RFC 4515, 3
_IN_NAMES = frozenset(',+"\\<>;=#')  # RFC 4514, 2.4
_DISABLED = 2  # userAccountControl: ACCOUNTDISABLE

Attributes = Mapping[str, Sequence[bytes]]


def in_filter(template: str, placeholder: str, text: str) -> str:
    """Return a filter's template with `text` in it, as a value and nothing else."""
    return template.replace(placeholder, text.translate(_IN_FILTERS))


def in_name(template: str, placeholder: str, text: str) -> str:
    """Return a distinguished name's template with `text` in it, as a value and nothing else."""
    escaped = "".join(
        f"\\{ord(c):02x}" if c in _IN_NAMES or ord(c) < 32 or c == " " else c for c in text
    )
    return template.replace(placeholder, escaped)


def normal(name: str) -> tuple[tuple[str, str], ...]:
    """Return a distinguished name so that two ways to write the same one are equal.

    Case and spaces around separators do not count, nor how a character is escaped. Text that
    is no distinguished name gives (), which is no group's.
    """
    parts: list[tuple[str, str]] = []
    for part in _parted(name, ",;+"):
        kind, equal, value = part.partition("=")
        if not equal or not kind.strip():
            return ()
        parts.append((kind.strip().lower(), _plain(value.strip(" ")).casefold()))
    return tuple(parts)


def roles_of(groups: Iterable[str], mapped: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return the roles that groups give, by their whole distinguished names."""
    held = {normal(group) for group in groups} - {()}
    return tuple(
        role for role, wanted in mapped.items() if held & {normal(group) for group in wanted}
    )


def switched_off(found: Attributes) -> bool:
    """Tell whether the directory has disabled a person (Active Directory, 389, OpenLDAP)."""
    control = _first(found, "userAccountControl")
    if control.isdigit() and int(control) & _DISABLED:
        return True
    return _first(found, "nsAccountLock").lower() == b"true" or bool(
        _first(found, "pwdAccountLockedTime")
    )


def subject(found: Attributes, attribute: str) -> str:
    """Return the value that names a person for ever, "" when there is not exactly one."""
    values = _values(found, attribute)
    if len(values) != 1:
        return ""
    if attribute.lower() == "objectguid":
        return values[0].hex()
    return values[0].decode("utf-8", "backslashreplace")


def texts(found: Attributes, attribute: str) -> tuple[str, ...]:
    """Return an attribute's values as text; those that are none are left out."""
    good = []
    for value in _values(found, attribute):
        try:
            good.append(value.decode())
        except UnicodeDecodeError:
            continue
    return tuple(good)


def _values(found: Attributes, attribute: str) -> Sequence[bytes]:
    wanted = attribute.lower()
    return next((v for k, v in found.items() if k.lower() == wanted), ())


def _first(found: Attributes, attribute: str) -> bytes:
    values = _values(found, attribute)
    return values[0] if values else b""


def _parted(text: str, marks: str) -> list[str]:
    """Split at marks that are not escaped."""
    parts, escaped = [""], False
    for c in text:
        if c in marks and not escaped:
            parts.append("")
            continue
        parts[-1] += c
        escaped = c == "\\" and not escaped
    return parts


def _plain(value: str) -> str:
    """Take escapes out: \\2c and \\, are both a comma; hex pairs are UTF-8."""
    raw, i = b"", 0
    while i < len(value):
        pair = value[i + 1 : i + 3]
        if (
            value[i] == "\\"
            and len(pair) == 2
            and all(c in "0123456789abcdefABCDEF" for c in pair)
        ):
            raw, i = raw + bytes.fromhex(pair), i + 3
        elif value[i] == "\\" and pair:
            raw, i = raw + pair[0].encode(), i + 2
        else:
            raw, i = raw + value[i].encode(), i + 1
    return raw.decode("utf-8", "backslashreplace")
