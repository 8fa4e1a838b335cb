"""`consilia audit`: is a trail what was written, line by line?"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from consilia.cli.options import Json, example, group
from consilia.cli.output import done, listing, short, when
from consilia.core import chain, ids
from consilia.errors import ConfigError
from consilia.wire.people import AuditCheckView, AuditView

if TYPE_CHECKING:
    from consilia.hub.store import Store as HubStore
    from consilia.node.store import Store as NodeStore

Entry = tuple[chain.Line, str]

app = group("audit", "Hash-chained audit trails, at the hub and at each node.")


@app.command(
    epilog=example(
        "consilia audit verify                      # the hub's, over its REST API",
        "consilia audit verify --hub /srv/hub       # the hub's, from its directory",
        "consilia audit verify --node /srv/consilia # a node's",
        "consilia audit verify --head 120:sha256:9f2c...  # and it still holds this head",
    )
)
def verify(
    hub: Annotated[Path | None, typer.Option(help="A hub's directory.")] = None,
    node: Annotated[Path | None, typer.Option(help="A node's directory.")] = None,
    head: Annotated[
        str,
        typer.Option(
            metavar="LENGTH:DIGEST",
            help="A head somebody kept: a hub's by its nodes, a node's by its hub.",
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Check every line against the chain; exit code 1 when one was changed or is missing.

    A chain that was rewritten from some line on is sound in itself. Only a head that somebody
    else has kept betrays it: give it with --head.
    """
    if hub is not None and node is not None:
        raise typer.BadParameter("give --hub or --node, not both")
    kept = _head(head)
    if node is not None:
        found = _node(node.absolute(), kept)
    elif hub is not None:
        found = _hub(hub.absolute(), kept)
    else:
        from consilia.sdk.client import Client

        with Client() as client:
            found = client.verify_audit(*kept)
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


@app.command(
    epilog=example(
        "consilia audit export > hub-audit.csv                      # over its REST API",
        "consilia audit export --format json --hub /srv/hub > hub-audit.jsonl",
        "consilia audit export --node /srv/consilia > site-audit.csv",
    )
)
def export(
    format: Annotated[
        Literal["csv", "json"], typer.Option(help="csv, or json: an object per line.")
    ] = "csv",
    hub: Annotated[Path | None, typer.Option(help="A hub's directory.")] = None,
    node: Annotated[Path | None, typer.Option(help="A node's directory.")] = None,
    as_json: Json = False,
) -> None:
    """Write a whole trail with its digests to standard output. --json is --format json."""
    from consilia.wire import trail

    with _lines(hub, node) as lines:
        for text in trail.export(lines, "json" if as_json else format):
            sys.stdout.write(text)


@contextmanager
def _lines(hub: Path | None, node: Path | None) -> Iterator[Iterable[Entry]]:
    """Yield the (line, digest) pairs of a hub's or a node's trail, or of the hub logged in."""
    if hub is not None and node is not None:
        raise typer.BadParameter("give --hub or --node, not both")
    if node is not None:
        from consilia.node import audit as at_node

        with _node_store(node.absolute()) as store:
            yield at_node.every(store)
    elif hub is not None:
        from consilia.hub import audit as at_hub

        with _hub_store(hub.absolute()) as store:
            yield store.read_now(lambda db: [(e.line, e.digest) for e in at_hub.lines(db)])
    else:
        from consilia.sdk.client import Client

        with Client() as client:
            yield ((_line(view), view.digest) for view in client.audit())


def _line(view: AuditView) -> chain.Line:
    return chain.Line(
        view.seq, view.at, view.actor, view.action, view.subject, view.outcome, view.detail
    )


def _head(text: str) -> tuple[int, str]:
    """Read LENGTH:DIGEST; no text is the head of an empty chain, which every one holds."""
    if not text:
        return 0, chain.GENESIS
    length, _, digest = text.partition(":")
    if not length.isascii() or not length.isdigit() or len(length) > 15:
        raise ConfigError(f"--head {text[:80]!r} is not LENGTH:DIGEST, such as 120:sha256:9f2c")
    return int(length), ids.digest(digest)


def _view(outcome: chain.Break | tuple[int, str]) -> AuditCheckView:
    if isinstance(outcome, chain.Break):
        return AuditCheckView(False, outcome.seq - 1, "", outcome.seq, outcome.reason)
    lines, head = outcome
    return AuditCheckView(True, lines, head)


@contextmanager
def _node_store(directory: Path) -> "Iterator[NodeStore]":
    from consilia.node import config
    from consilia.node.store import Store

    config.load(directory)
    store = Store.open(directory)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def _hub_store(directory: Path) -> "Iterator[HubStore]":
    from consilia.hub import config
    from consilia.hub.store import Store

    settings = config.load(directory)
    store = Store.open(config.database_url(directory, settings), migrate=False, readers=1)
    try:
        yield store
    finally:
        store.close()


def _node(directory: Path, kept: tuple[int, str]) -> AuditCheckView:
    from consilia.node import audit, config, identity

    key = identity.load(directory, config.load(directory).site).signing.public_key()
    with _node_store(directory) as store:
        return _view(audit.verify(store, *kept, public_key=key.public_bytes_raw()))


def _hub(directory: Path, kept: tuple[int, str]) -> AuditCheckView:
    from consilia.hub import audit

    with _hub_store(directory) as store:
        return _view(store.read_now(lambda db: audit.check(db, *kept)))
