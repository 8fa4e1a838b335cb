"""`consilia login`: remember which hub, and who one is there."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from consilia.cli.options import Json, example
from consilia.cli.output import done
from consilia.errors import ConfigError


def add_to(app: typer.Typer) -> None:
    """Add the command to the main application."""
    app.command(
        epilog=example("consilia login https://hub.example.org:8443 --ca hub-ca.pem < token")
    )(login)


def login(
    url: Annotated[str, typer.Argument(help="https://host:port of the hub.")],
    ca: Annotated[
        Path, typer.Option("--ca", help="The hub's CA certificate (PEM), from its operator.")
    ],
    as_json: Json = False,
) -> None:
    """Check an API token with the hub and keep it for the other commands.

    The token is read from standard input, or asked for on a terminal, so that it appears in
    no process list and no shell history. Kept readable to you alone.
    """
    import os

    from consilia.sdk.client import Client
    from consilia.sdk.profile import Profile, profile_path, save_profile

    token = _read_token()
    try:
        pem = ca.read_text("ascii")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{ca} cannot be read as a PEM certificate: {e}") from None
    with Client(url, token, pem, environ={}) as client:
        who = client.whoami()
    path = profile_path(os.environ)
    save_profile(Profile(url=url, token=token, ca=pem), path)
    done(f"{who.name} ({who.role}) at {url}; kept in {path}", who, as_json)


def _read_token() -> str:
    if sys.stdin.isatty():
        import getpass

        token = getpass.getpass("API token: ").strip()
    else:
        token = sys.stdin.readline().strip()
    if not token:
        raise ConfigError("no API token on standard input; the hub's operator makes one")
    return token
