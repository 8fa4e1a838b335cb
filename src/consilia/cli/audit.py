"""`consilia audit`: is a trail what was written, line by line?"""

from pathlib import Path
from typing import Annotated

import typer

from consilia.cli.options import Json, example, group
from consilia.cli.output import done, listing, short, when
from consilia.core import chain
from consilia.wire.people import AuditCheckView

app = group("audit", "Hash-chained audit trails, at the hub and at each node.")


@app.command(
    epilog=example(
        "consilia audit verify                      # the hub's, over its REST API",
        "consilia audit verify --hub /srv/hub       # the hub's, from its directory",
        "consilia audit verify --node /srv/consilia # a node's",
    )
)
def verify(
    hub: Annotated[Path | None, typer.Option(help="A hub's directory.")] = None,
    node: Annotated[Path | None, typer.Option(help="A node's directory.")] = None,
    as_json: Json = False,
) -> None:
    """Check every line against the chain; exit code 1 when one was changed or is missing."""
    if hub is not None and node is not None:
        raise typer.BadParameter("give --hub or --node, not both")
    if node is not None:
        found = _node(node.absolute())
    elif hub is not None:
        found = _hub(hub.absolute())
    else:
        from consilia.sdk.client import Client

        with Client() as client:
            found = client.verify_audit()
    if found.intact:
        done(f"intact: {found.lines} lines, head {found.head}", found, as_json)
        return
    done(f"BROKEN at line {found.broken_at}: {found.reason}", found, as_json)
    raise typer.Exit(1)


@app.command("list", epilog=example("consilia audit list --after 100 --limit 50"))
def list_(
    after: Annotated[int, typer.Option(help="Only lines after this number.")] = 0,
    limit: Annotated[int, typer.Option(help="At most this many lines.")] = 100,
    as_json: Json = False,
) -> None:
    """List lines of the hub's audit trail, over its REST API."""
    from consilia.sdk.client import Client

    with Client() as client:
        lines = list(client.audit(after, limit))
    listing(
        lines,
        {
            "seq": lambda v: v.seq,
            "at": lambda v: when(v.at),
            "actor": lambda v: v.actor,
            "action": lambda v: v.action,
            "subject": lambda v: short(v.subject),
            "outcome": lambda v: v.outcome,
            "detail": lambda v: v.detail,
        },
        as_json,
        "no lines",
    )


def _view(outcome: chain.Break | tuple[int, str]) -> AuditCheckView:
    if isinstance(outcome, chain.Break):
        return AuditCheckView(False, outcome.seq - 1, "", outcome.seq, outcome.reason)
    lines, head = outcome
    return AuditCheckView(True, lines, head)


def _node(directory: Path) -> AuditCheckView:
    from consilia.node import audit, config
    from consilia.node.store import Store

    config.load(directory)
    store = Store.open(directory)
    try:
        return _view(audit.verify(store))
    finally:
        store.close()


def _hub(directory: Path) -> AuditCheckView:
    from consilia.hub import audit, config
    from consilia.hub.store import Store

    settings = config.load(directory)
    store = Store.open(config.database_url(directory, settings), migrate=False, readers=1)
    try:
        return _view(store.read_now(audit.check))
    finally:
        store.close()
