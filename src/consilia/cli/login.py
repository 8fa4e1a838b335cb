"""`consilia login` and `logout`: remember which hub, and who one is there."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilia.cli.options import Json, example
from consilia.cli.output import done
from consilia.errors import ConfigError, SecondFactorNeeded

if TYPE_CHECKING:
    from consilia.sdk.profile import Profile
    from consilia.wire.accounts import SignedIn

TIMEOUT = 30.0  # seconds


def add_to(app: typer.Typer) -> None:
    """Add the commands to the main application."""
    app.command(
        epilog=example(
            "consilia login https://hub.example.org:8443 --ca hub-ca.pem --name ada",
            "consilia login https://hub.example.org:8443 --ca hub-ca.pem < key",
        )
    )(login)
    app.command(epilog=example("consilia logout"))(logout)


def login(
    url: Annotated[str, typer.Argument(help="https://host:port of the hub.")],
    ca: Annotated[
        Path, typer.Option("--ca", help="The hub's CA certificate (PEM), from its operator.")
    ],
    name: Annotated[
        str, typer.Option(help="Sign in as this account; without it, with an API key.")
    ] = "",
    provider: Annotated[
        str, typer.Option(help="The directory that knows the name and password.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Sign in, and keep it for the other commands in a file that only you can read.

    With --name, password and code are asked for on a terminal, or read from standard input,
    a line each. Without it an API key is. So none appears in a process list or a history.
    """
    import os
    import time

    from consilia.sdk.client import Client
    from consilia.sdk.profile import Profile, profile_path, save_profile
    from consilia.sdk.session import kept

    try:
        pem = ca.read_text("ascii")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{ca} cannot be read as a PEM certificate: {e}") from None
    path = profile_path(os.environ)
    if name:
        fresh = Profile(url=url.rstrip("/"), token="", ca=pem, name=name)
        profile = kept(fresh, _signed_in(fresh, provider), path, time.time())
    else:
        profile = Profile(url=url, token=read("API key"), ca=pem)
    with Client(url, profile.token, pem, environ={}, profile=path) as client:
        who = client.whoami()
    if not name:
        save_profile(profile, path)
    roles = ", ".join(who.roles) or "no role at the hub yet"
    done(f"{who.name} ({roles}) at {url}; kept in {path}", who, as_json)


def logout(as_json: Json = False) -> None:
    """End the session at the hub and forget who one is there."""
    import os

    from consilia.sdk.profile import load_profile, profile_path
    from consilia.sdk.session import sign_out

    path = profile_path(os.environ)
    saved = load_profile(path)
    if saved is None:
        raise ConfigError(f"nobody is signed in here: there is no {path}")
    path.unlink(missing_ok=True)  # first: the person is out here whatever the hub says
    if saved.refresh:
        sign_out(saved, TIMEOUT)
    done(f"signed out of {saved.url}", {"url": saved.url}, as_json)


def _signed_in(profile: "Profile", provider: str) -> "SignedIn":
    from consilia.sdk.session import sign_in
    from consilia.wire.accounts import Login

    said = Login(profile.name, read("Password"), provider=provider)
    try:
        return sign_in(profile, said, TIMEOUT)
    except SecondFactorNeeded:
        code = read("Code of the second factor")
        with_code = Login(profile.name, said.password, code, provider=provider)
        return sign_in(profile, with_code, TIMEOUT)


def read(what: str) -> str:
    """Return a secret from the terminal, unseen, or the next line of standard input."""
    if sys.stdin.isatty():
        import getpass

        said = getpass.getpass(f"{what}: ").strip()
    else:
        said = sys.stdin.readline().strip()
    if not said:
        raise ConfigError(f"no {what.lower()} on standard input; the hub's operator helps")
    return said
