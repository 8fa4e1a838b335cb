"""`consilia node console` and `console-invite`: the hospital's web application."""

from typing import Annotated

import typer

from consilia.cli.options import Json, NodeDir, actor, example, node_dir
from consilia.cli.output import done, say


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(epilog=example("consilia node console --dir /srv/consilia"))(console)
    app.command(
        "console-invite",
        epilog=example(
            "consilia node console-invite --dir /srv/consilia",
            "consilia node console-invite --role data_manager --role reviewer --hours 24",
        ),
    )(console_invite)


def console(
    listen: Annotated[
        str, typer.Option(help="host:port in place of console.listen of node.yaml.")
    ] = "",
    directory: NodeDir = None,
) -> None:
    """Serve the console, a web application for the hospital's own staff, until told to end.

    At 127.0.0.1 unless node.yaml says otherwise. It works whether the agent runs or not. The
    first account is made with a link of: consilia node console-invite.
    """
    from consilia.node.console.serve import serve

    serve(node_dir(directory), listen, lambda origin: say(f"console: {origin}"))


def console_invite(
    role: Annotated[
        list[str] | None,
        typer.Option(
            help="data_manager, reviewer, dpo or administrator; may be given again. "
            "Without any: administrator."
        ),
    ] = None,
    hours: Annotated[float, typer.Option(help="How long the link works.")] = 24.0,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Print a link with which one person makes an account at the console, once.

    It is how the first account comes about, and the way back in when nobody can sign in.
    """
    from consilia.node.console.serve import invite

    link = invite(node_dir(directory), tuple(role or ("administrator",)), hours, actor())
    done(link.link, link, as_json)
