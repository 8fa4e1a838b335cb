"""`consilia people second-factor`: one's own, and an operator's way to take a lost one away."""

import sys
from typing import Annotated

import typer

from consilia.cli.options import Json, example, group
from consilia.cli.output import done, note, say

app = group("second-factor", "The code that signing in asks for besides the password.")


@app.command("set-up", epilog=example("consilia people second-factor set-up"))
def set_up(as_json: Json = False) -> None:
    """Print a new secret for your authenticator app; a code of it puts it in force.

    On a terminal the code is asked for at once. Elsewhere, and with --json, give it to
    `consilia people second-factor confirm`.
    """
    from consilia.sdk.client import Client

    with Client() as client:
        made = client.accounts.second_factor()
        if as_json:
            done("", made, True)
            return
        say(made.secret)
        note(f"Type this into your authenticator app, or open there: {made.uri}")
        if not sys.stdin.isatty():
            note("then give a code of it to: consilia people second-factor confirm")
            return
        client.accounts.confirm_second_factor(_code())
    note("The second factor is in force; your other sessions have ended.")


@app.command(epilog=example("consilia people second-factor confirm < code"))
def confirm(as_json: Json = False) -> None:
    """Put the secret of `set-up` in force with a code of it; your other sessions end."""
    from consilia.sdk.client import Client

    code = _code()
    with Client() as client:
        view = client.accounts.confirm_second_factor(code)
    done(f"{view.name}: the second factor is in force", view, as_json)


@app.command(
    epilog=example(
        "consilia people second-factor remove", "consilia people second-factor remove ada"
    )
)
def remove(
    name: Annotated[
        str, typer.Argument(help="Whose, if they have lost it (operator). Without it, yours.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Take a second factor away.

    Your own with your password and a code, asked for on a terminal or read from standard
    input, a line each. Another person's sessions end with it.
    """
    from consilia.cli.login import read
    from consilia.sdk.client import Client
    from consilia.wire.accounts import ChangeUser

    with Client() as client:
        if name:
            view = client.accounts.change(name, ChangeUser(remove_second_factor=True))
            done(f"{view.name}: the second factor is removed", view, as_json)
            return
        me = client.accounts.remove_second_factor(read("Password"), _code())
    done(f"{me.name}: the second factor is removed", me, as_json)


def _code() -> str:
    from consilia.cli.login import read

    return read("Code of the second factor").replace(" ", "")
