"""`consilia node`: what a hospital's own staff do at their node.

The commands work on the node's directory, whether its agent runs or not; a running agent is
told of a change and acts on it at once.
"""

import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from consilia.cli.at_node import opened
from consilia.cli.options import Json, NodeDir, example, group, node_dir
from consilia.cli.output import done, fields, listing, note, record, short, when
from consilia.errors import ConfigError

app = group("node", "A hospital's node: join a hub, serve, decide what may run.")


@app.command(
    epilog=example(
        "consilia node join - --dir /srv/consilia < token",
        "consilia node join - --proxy http://proxy.hospital.example:3128 < token",
        "consilia node join - --proxy http://node@proxy:3128 --proxy-password-file pw < token",
    )
)
def join(
    token: Annotated[
        str, typer.Argument(help="The join token from the hub; - reads standard input.")
    ],
    directory: NodeDir = None,
    proxy: Annotated[
        str, typer.Option(help="http://[user@]host:port of an HTTP CONNECT proxy.")
    ] = "",
    proxy_password_file: Annotated[
        Path | None,
        typer.Option(
            envvar="CONSILIA_PROXY_PASSWORD_FILE",
            help="File (mode 600) with the password of the proxy's user, in its first line.",
        ),
    ] = None,
    sandbox: Annotated[
        Literal["required", "container", "off"],
        typer.Option(
            help="container: this is one, where bubblewrap cannot work. off: run researchers' "
            "code without a sandbox. Dangerous."
        ),
    ] = "required",
    as_json: Json = False,
) -> None:
    """Join a hub: make this site's keys here and have them certified.

    The token works once. It is a secret until then: with - it stays out of the process list.
    """
    from consilia.files import first_line
    from consilia.node.app import join as join_hub
    from consilia.wire.token import decode_token

    text = sys.stdin.read() if token == "-" else token  # noqa: S105  # no password
    where = node_dir(directory)
    _no_password(proxy)
    password = (
        first_line(proxy_password_file, "--proxy-password-file") if proxy_password_file else ""
    )
    # People compare it with what the hub's operator reads out, so it is told whatever follows.
    note(f"the hub's CA fingerprint is {decode_token(text).ca_fingerprint}")
    config = join_hub(text.strip(), where, proxy or None, sandbox, password)
    if sandbox == "off":
        note("consilia: WARNING: the sandbox is off: approved code can read what this user can")
    done(
        f"site {config.site} has joined {config.hub}\nnext: consilia node serve --dir {where}",
        config,
        as_json,
    )


@app.command(epilog=example("consilia node serve --dir /srv/consilia"))
def serve(directory: NodeDir = None) -> None:
    """Run the node's agent until it is told to end. It calls the hub; nothing calls in."""
    from consilia.node.app import serve as serve_node

    serve_node(node_dir(directory))


@app.command(epilog=example("consilia node status --dir /srv/consilia"))
def status(directory: NodeDir = None, as_json: Json = False) -> None:
    """Tell whether the agent runs, reaches the hub, and what it works on."""
    from consilia.node.status import status as node_status

    found = node_status(node_dir(directory), time.time())
    shown = fields(found)
    for time_of in ("contact", "certificate_expires"):
        shown[time_of] = when(getattr(found, time_of))
    record(found, shown, as_json)


@app.command(epilog=example("consilia node doctor --dir /srv/consilia"))
def doctor(directory: NodeDir = None, as_json: Json = False) -> None:
    """Check what the node needs (hub, clock, disk, sandbox, data) and say what to do."""
    from consilia.node.doctor import examine

    findings = examine(node_dir(directory), time.time)
    listing(
        findings,
        {
            "check": lambda f: f.check,
            "well": lambda f: f.ok,
            "found": lambda f: f.found,
            "advice": lambda f: f.advice,
        },
        as_json,
    )
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command(
    epilog=example("consilia node log --last 50", "consilia node log --export csv > audit.csv")
)
def log(
    last: Annotated[int, typer.Option(help="How many of the newest lines.")] = 20,
    export: Annotated[
        Literal["none", "csv", "json"], typer.Option(help="The whole trail in this format.")
    ] = "none",
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Show the site's audit trail: who did what here, asked by whom, with which outcome."""
    from consilia.node import audit

    with opened(directory) as store:
        if export != "none":
            for text in audit.export(store, export):
                sys.stdout.write(text)
            return
        listing(
            [line for line, _ in audit.latest(store, last)],
            {
                "seq": lambda r: r.seq,
                "at": lambda r: when(r.at),
                "actor": lambda r: r.actor,
                "action": lambda r: r.action,
                "subject": lambda r: short(r.subject),
                "outcome": lambda r: r.outcome,
                "detail": lambda r: r.detail,
            },
            as_json,
            "the audit trail is empty",
        )


@app.command(
    "job-log",
    epilog=example(
        "consilia node job-log --level warning",
        "consilia node job-log job-7 --last 50",
    ),
)
def job_log(
    job: Annotated[str, typer.Argument(help="Of this job only.")] = "",
    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option(help="The least important that is shown."),
    ] = "info",
    last: Annotated[int, typer.Option(help="How many of the newest lines.")] = 100,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Show what plans printed and what the agent said of their jobs. It stays at the site."""
    from consilia.node import config, joblogs

    where = node_dir(directory)
    config.load(where)  # says so when this is no node's directory
    listing(
        joblogs.read(where, job=job, level=level, last=last),
        {
            "at": lambda r: when(r.at),
            "level": lambda r: r.level,
            "job": lambda r: r.job,
            "who": lambda r: r.who,
            "text": lambda r: r.text,
        },
        as_json,
        "nothing was said" + (f" of job {job}" if job else ""),
    )


@app.command("hub-audit", epilog=example("consilia node hub-audit --dir /srv/consilia"))
def hub_audit(directory: NodeDir = None, as_json: Json = False) -> None:
    """Show what the hub has signed of its own audit trail; exit code 1 when it broke it.

    Give the head to an auditor: consilia audit verify --head LENGTH:DIGEST then tells whether
    the hub's trail still holds it.
    """
    from consilia.node import heads

    with opened(directory) as store:
        newest, unsound = heads.newest(store), heads.unsound(store)
    kept = f"{newest.length}:{newest.digest}" if newest else ""
    record(
        {"head": kept, "since": newest.at if newest else None, "broken": unsound},
        {
            "head": kept or "the hub has signed none yet",
            "since": when(newest.at if newest else None),
            "broken": "\n".join(f"{when(h.at)} {h.problem}" for h in unsound) or "never",
        },
        as_json,
    )
    if unsound:
        raise typer.Exit(1)


# ---- inside ----------------------------------------------------------------------------------


def _no_password(proxy: str) -> None:
    """Refuse a password on the command line, where every user of the machine reads it."""
    from urllib.parse import urlsplit

    try:
        password = urlsplit(proxy).password
    except ValueError:  # no URL at all, of which the node's own check says more
        return
    if password is not None:
        raise ConfigError(
            "--proxy holds a password, which all users of this machine can see: give "
            "http://user@host:port and --proxy-password-file, and change that password"
        )
