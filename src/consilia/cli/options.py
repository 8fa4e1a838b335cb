"""Options and small habits that every command shares."""

import math
import os
import pwd
import sys
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from consilia.errors import ConfigError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
HubDir = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        envvar="CONSILIA_HUB",
        show_default="~/.consilia/hub",
        help="The hub's directory.",
    ),
]
NodeDir = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        envvar="CONSILIA_NODE",
        show_default="~/.consilia/node",
        help="The node's directory.",
    ),
]
Reason = Annotated[str, typer.Option(help="Why, for the audit trail.")]
Until = Annotated[str, typer.Option(help="Last day, YYYY-MM-DD; without it, no end.")]

_LOGIN = Path("/proc/self/loginuid")
_NOBODY = 2**32 - 1  # what stands there for a process that no login began


def group(name: str, purpose: str) -> typer.Typer:
    """Return an empty command group."""
    return typer.Typer(name=name, help=purpose, no_args_is_help=True, rich_markup_mode=None)


def example(*lines: str) -> str:
    """Return the examples that end a command's --help; an indented line goes on."""
    shown = (f"    {line}" if line.startswith(" ") else f"  $ {line}" for line in lines)
    return "\b\nExample:\n" + "\n".join(shown)


def hub_dir(given: Path | None) -> Path:
    """Return the hub's directory: the one given, or the default."""
    return (given or Path.home() / ".consilia" / "hub").absolute()


def node_dir(given: Path | None) -> Path:
    """Return the node's directory: the one given, or the default."""
    return (given or Path.home() / ".consilia" / "node").absolute()


def actor() -> str:
    """Return who is at the keyboard, as the site's audit trail names people: user:<login>."""
    try:
        login = int(_LOGIN.read_text("ascii"))
    except (OSError, ValueError):  # no such file: a kernel without audit
        login = _NOBODY
    return f"user:{login_name(login, os.getuid(), os.environ.get('SUDO_UID', ''))}"


def login_name(login: int, uid: int, sudo: str) -> str:
    """Return the name of the account that a person signed in with at this machine.

    The kernel keeps it (`login`) through su and sudo. Where it knows none, as in containers and
    for services, `sudo` (the user id that sudo tells) counts, then the process's own `uid`.
    LOGNAME and USER do not: whoever types a command sets them as they like, and two names would
    be two people. This keeps honest people apart, no others: a user namespace shows another
    login. Whoever can do that as the node's user can write to the node's files as well.
    """
    found = uid
    if login != _NOBODY:
        found = login
    elif sudo.isascii() and sudo.isdigit():
        found = int(sudo)
    try:
        return pwd.getpwuid(found).pw_name
    except (KeyError, OverflowError):  # a user id without a name, as in some containers
        return f"uid-{found}"


def text_of(file: Path) -> str:
    """Return the text of a file that a person named; - is standard input."""
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{file} cannot be read: {e}") from None


def parse_day(text: str) -> date | None:
    """Return the day of an --until option, None for none."""
    if not text:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--until {text!r} is not a day: write YYYY-MM-DD") from None


def pairs(items: Iterable[str], option: str) -> dict[str, str]:
    """Return NAME=VALUE options as a mapping; raise ConfigError for any other form."""
    found: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"{option} {item!r} is not NAME=VALUE")
        if name.strip() in found:
            raise ConfigError(f"{option} {name.strip()!r} is given twice")
        found[name.strip()] = value.strip()
    return found


def scalar(text: str) -> bool | int | float | str:
    """Read one argument value: 3 is a number, true a truth value, anything else text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text) if math.isfinite(float(text)) else text
    except ValueError:
        return text
