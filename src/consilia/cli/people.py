"""`consilia people` and `consilia key`: who may do what at the hub one is signed in to."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilia.cli import factor
from consilia.cli.options import Json, example, group
from consilia.cli.output import done, listing, note, say, when
from consilia.errors import ConfigError

if TYPE_CHECKING:
    from consilia.wire.accounts import InvitationLink, UserView

app = group("people", "The people of a hub: accounts, roles, invitations, requests.")
app.add_typer(factor.app)
keys = group("key", "API keys: what a machine signs in with, in your name.")

Name = Annotated[str, typer.Argument(help="The account's name.")]
Role = Annotated[
    list[str] | None,
    typer.Option(
        "--role",
        help="operator, researcher, reviewer, data-manager, downstream or auditor; "
        "may be given again.",
    ),
]
Study = Annotated[str | None, typer.Option("--study", help="The study that the roles are for.")]
Why = Annotated[str, typer.Option("--reason", help="Why; the other person reads it.")]


@app.command("list", epilog=example("consilia people list"))
def list_(as_json: Json = False) -> None:
    """List the accounts: roles, second factor, last sign-in."""
    from consilia.sdk.client import Client

    with Client() as client:
        found = client.accounts.list()
    listing(
        found,
        {
            "name": lambda v: v.name,
            "roles": lambda v: v.roles,
            "studies": lambda v: [f"{s.study}: {', '.join(s.roles)}" for s in v.studies],
            "site": lambda v: v.site,
            "state": _state,
            "second factor": lambda v: v.second_factor,
            "last": lambda v: when(v.last),
        },
        as_json,
        "nobody has an account; see: consilia people invite --help",
    )


@app.command(
    epilog=example(
        "consilia people invite --role researcher",
        "consilia people invite --name ada --role data-manager --site north-hospital",
        "consilia people invite --role reviewer --study heart",
    )
)
def invite(
    role: Role = None,
    name: Annotated[
        str | None,
        typer.Option(help="The account's name; one that is there gets a new password."),
    ] = None,
    study: Study = None,
    site: Annotated[str | None, typer.Option(help="A data manager's own site.")] = None,
    hours: Annotated[float, typer.Option(help="How long the link can be used.")] = 72.0,
    as_json: Json = False,
) -> None:
    """Print a one-time link with which somebody makes their account. Hand it over in person."""
    from consilia.sdk.client import Client

    with Client() as client:
        view = client.accounts.invite(
            tuple(role or ()), name=name, study=study, site=site, hours=hours
        )
    _tell(view, as_json)


@app.command(
    epilog=example(
        "consilia people accept https://hub.example.org:8443 --ca hub-ca.pem --name ada"
    )
)
def accept(
    url: Annotated[str, typer.Argument(help="https://host:port of the hub.")],
    ca: Annotated[Path, typer.Option("--ca", help="The hub's CA certificate (PEM).")],
    name: Annotated[str, typer.Option(help="The name of your account from now on.")],
    as_json: Json = False,
) -> None:
    """Make your account with the code of an invitation, and sign in.

    The code and the password are asked for, or read from standard input, a line each. The code
    is what stands after # in the link.
    """
    import os
    import time

    from consilia.cli.login import TIMEOUT, read
    from consilia.sdk.client import Client
    from consilia.sdk.profile import Profile, profile_path
    from consilia.sdk.session import kept

    try:
        pem = ca.read_text("ascii")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{ca} cannot be read as a PEM certificate: {e}") from None
    code = read("Code of the invitation").rpartition("#")[2]
    password = read("Password")
    if sys.stdin.isatty() and read("Password again") != password:
        raise ConfigError("password: the two are not the same; nothing was done")
    path = profile_path(os.environ)
    with Client(url, "none", pem, environ={}, profile=path, timeout=TIMEOUT) as client:
        got = client.accounts.accept(code, name, password)
    profile = Profile(url=url.rstrip("/"), token="", ca=pem, name=name)
    kept(profile, got, path, time.time())
    done(f"{name} has an account at {url}; kept in {path}", {"name": name, "url": url}, as_json)


@app.command(
    epilog=example(
        "consilia people roles ada --role researcher --role auditor",
        "consilia people roles ada --study heart --role reviewer",
        "consilia people roles ada --study heart",
    )
)
def roles(name: Name, role: Role = None, study: Study = None, as_json: Json = False) -> None:
    """Give an account exactly these roles, at the hub or in a study; none takes them away."""
    from consilia.sdk.client import Client
    from consilia.wire.accounts import ChangeUser

    given = tuple(role or ())
    change = ChangeUser(studies={study: given}) if study else ChangeUser(roles=given)
    with Client() as client:
        view = client.accounts.change(name, change)
    _show(view, as_json)


@app.command(
    epilog=example("consilia people disable ada", "consilia people disable ada --undo")
)
def disable(
    name: Name,
    undo: Annotated[bool, typer.Option("--undo", help="Let the account in again.")] = False,
    as_json: Json = False,
) -> None:
    """Shut an account out; its sessions and keys stop on their next request."""
    from consilia.sdk.client import Client
    from consilia.wire.accounts import ChangeUser

    with Client() as client:
        view = client.accounts.change(name, ChangeUser(disabled=not undo))
    _show(view, as_json)


@app.command(epilog=example("consilia people unlock ada"))
def unlock(name: Name, as_json: Json = False) -> None:
    """Let an account be tried again that rests after too many wrong passwords."""
    from consilia.sdk.client import Client
    from consilia.wire.accounts import ChangeUser

    with Client() as client:
        view = client.accounts.change(name, ChangeUser(unlock=True))
    _show(view, as_json)


@app.command(epilog=example("consilia people remove ada"))
def remove(name: Name, as_json: Json = False) -> None:
    """Remove an account for ever, with its roles, sessions and keys; its name stays taken.

    What the person did stays on record. `disable` is what can be undone.
    """
    from consilia.sdk.client import Client

    with Client() as client:
        client.accounts.remove(name)
    done(f"{name} is removed", {"removed": name}, as_json)


@app.command("end-sessions", epilog=example("consilia people end-sessions ada"))
def end_sessions(name: Name, as_json: Json = False) -> None:
    """Sign an account out everywhere."""
    from consilia.sdk.client import Client

    with Client() as client:
        view = client.accounts.end_sessions(name)
    _show(view, as_json)


@app.command(epilog=example("consilia people ask reviewer --study heart --reason 'I read it'"))
def ask(
    role: Annotated[str, typer.Argument(help="The role you ask for.")],
    reason: Why,
    study: Study = None,
    as_json: Json = False,
) -> None:
    """Ask for a role, at the hub or in a study."""
    from consilia.sdk.client import Client

    with Client() as client:
        view = client.accounts.ask(role, reason, study)
    done(f"request {view.id}: {view.state}", view, as_json)


@app.command(epilog=example("consilia people requests"))
def requests(as_json: Json = False) -> None:
    """List requests for access: yours, and those for your studies."""
    from consilia.sdk.client import Client

    with Client() as client:
        found = client.accounts.requests()
    listing(
        found,
        {
            "request": lambda v: v.id,
            "person": lambda v: v.person,
            "role": lambda v: v.role,
            "study": lambda v: v.study,
            "reason": lambda v: v.reason,
            "state": lambda v: v.state,
            "answer": lambda v: v.answer,
        },
        as_json,
        "there is no request",
    )


@app.command(
    epilog=example("consilia people decide req-0123456789abcdef --grant --reason fine")
)
def decide(
    request: Annotated[str, typer.Argument(metavar="ID", help="The request's id.")],
    grant: Annotated[bool, typer.Option("--grant/--refuse", help="What is decided.")],
    reason: Why,
    as_json: Json = False,
) -> None:
    """Grant or refuse a request for access."""
    from consilia.sdk.client import Client

    with Client() as client:
        view = client.accounts.decide(request, reason, grant=grant)
    done(f"request {view.id} of {view.person}: {view.state}", view, as_json)


# ---- keys ------------------------------------------------------------------------------------


@keys.command(
    epilog=example("consilia key create nightly --role researcher --study heart > nightly.key")
)
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    role: Role = None,
    study: Study = None,
    days: Annotated[int, typer.Option(help="How long it is valid.")] = 90,
    as_json: Json = False,
) -> None:
    """Print a new API key with some of your own roles. It is shown once."""
    from consilia.sdk.client import Client

    with Client() as client:
        view = client.accounts.make_key(name, tuple(role or ()), study, days)
    if as_json:
        done("", view, True)
        return
    say(view.secret or "")
    note(f"key {view.id} ({', '.join(view.roles)}), valid until {when(view.expires)}")


@keys.command("list", epilog=example("consilia key list"))
def list_keys(as_json: Json = False) -> None:
    """List API keys, without their secrets: yours, or as an operator all."""
    from consilia.sdk.client import Client

    with Client() as client:
        found = client.accounts.keys()
    listing(
        found,
        {
            "key": lambda v: v.id,
            "name": lambda v: v.name,
            "owner": lambda v: v.owner,
            "roles": lambda v: v.roles,
            "study": lambda v: v.study,
            "valid until": lambda v: when(v.expires),
        },
        as_json,
        "there is no key; see: consilia key create --help",
    )


@keys.command(epilog=example("consilia key revoke key-0123456789abcdef"))
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")],
    as_json: Json = False,
) -> None:
    """Void an API key; it fails from its next request on."""
    from consilia.sdk.client import Client

    with Client() as client:
        client.accounts.revoke_key(key)
    done(f"key {key} is revoked", {"revoked": key}, as_json)


# ---- inside ----------------------------------------------------------------------------------


def _state(view: "UserView") -> str:
    if view.disabled:
        return "disabled"
    return f"rests until {when(view.resting)}" if view.resting else "in use"


def _show(view: "UserView", as_json: bool) -> None:
    held = ", ".join(view.roles) or "no role at the hub"
    within = "".join(f"; in {s.study}: {', '.join(s.roles)}" for s in view.studies)
    done(f"{view.name}: {held}{within}; {_state(view)}", view, as_json)


def _tell(view: "InvitationLink", as_json: bool) -> None:
    if as_json:
        done("", view, True)
        return
    say(view.link)
    note(f"works once, until {when(view.expires)}; or: consilia people accept URL --name NAME")
