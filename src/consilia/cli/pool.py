"""`consilia pool`: a dataset leaves its site for a study's data centre, and comes back out.

The only commands by which records leave a hospital. Each names who gets them.
"""

import time
from datetime import date
from typing import Annotated

import typer

from consilia.cli.at_node import changing, opened
from consilia.cli.options import Json, NodeDir, actor, example, group, node_dir
from consilia.cli.output import done, listing, note, short

Name = Annotated[str, typer.Argument(help="The study's name or digest.")]
Why = Annotated[str, typer.Option(help="Why; it stays in this site's audit trail.")]

app = group("pool", "Copies of datasets at a study's data centre, for sites that agree.")


@app.command("open", epilog=example("consilia pool open heart-failure --reason 'contract 7'"))
def open_(name: Name, reason: Why, directory: NodeDir = None, as_json: Json = False) -> None:
    """At the data centre: take uploads of a study's sites. Each comes in by `pool take`."""
    import os

    from consilia.node.pool import decisions

    with changing(directory) as store:
        record = decisions.open_channel(
            store, name, os.urandom(32), actor=actor(), now=time.time(), reason=reason
        )
    sites = ", ".join(record.study.pooled)
    done(f"study {record.study.name}: open for uploads of {sites}", record, as_json)


@app.command(
    epilog=example(
        "consilia pool send heart-failure --dataset heart --to centre --reason 'DPO, 2026-11'"
    )
)
def send(
    name: Name,
    dataset: Annotated[str, typer.Option(help="The dataset of which a copy leaves.")],
    to: Annotated[str, typer.Option(help="The data centre, by name: you say who gets it.")],
    reason: Why,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """At a hospital: let a copy of a dataset LEAVE this site, to the study's data centre.

    It leaves as tasks would load it, sealed to the data centre's key; the hub cannot open it.
    After a broken line, run it again: it goes on where it was.
    """
    import os

    from consilia.node import hubline, peers
    from consilia.node.pool import decisions, transfer

    asked = transfer.Consent(name, dataset, to, reason, actor(), time.time())
    with changing(directory) as store:
        record = decisions.in_force(store, name, date.today())
        key = decisions.partner_key(store, record, to) if to in record.study.sites else b""
        words = f" (key: {peers.words(key)})" if key else ""
        note(f"RECORDS LEAVE THIS SITE: a copy of dataset {dataset} goes to {to}{words}")
        found = hubline.asked(
            node_dir(directory),
            lambda line: transfer.send(store, line, asked, os.urandom, _progress),
            patience=None,
        )
    text = f"{found.records} records of {dataset} lie at the hub, sealed to {to}"
    done(f"{text}; to take them back: consilia pool withdraw {name}", found, as_json)


@app.command(epilog=example("consilia pool take heart-failure --site north --reason 'signed'"))
def take(
    name: Name,
    site: Annotated[str, typer.Option(help="Whose upload.")],
    reason: Why,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """At the data centre: open a site's upload and make it part of the dataset pool-STUDY."""
    from consilia.node import hubline
    from consilia.node.pool import transfer

    with changing(directory) as store:
        found = hubline.asked(
            node_dir(directory),
            lambda line: transfer.take(
                store,
                line,
                name,
                site,
                actor=actor(),
                now=time.time(),
                reason=reason,
                shown=_progress,
            ),
            patience=None,
        )
    done(f"{found.records} records of {site} are in dataset {found.dataset}", found, as_json)


@app.command(epilog=example("consilia pool withdraw heart-failure --reason 'consent ended'"))
def withdraw(name: Name, reason: Why, directory: NodeDir = None, as_json: Json = False) -> None:
    """At a hospital: take the consent back. The data centre deletes its copy and says so."""
    from consilia.node.pool import decisions

    with changing(directory) as store:
        found = decisions.withdraw(store, name, actor=actor(), now=time.time(), reason=reason)
    done(f"dataset {found.dataset}: {found.state}; see consilia pool status", found, as_json)


@app.command(epilog=example("consilia pool status"))
def status(directory: NodeDir = None, as_json: Json = False) -> None:
    """List what this node has sent or holds."""
    from consilia.node import studies
    from consilia.node.pool import decisions

    with opened(directory) as store:
        names = {s.digest: s.study.name for s in studies.list_studies(store, date.today())}
        listing(
            decisions.every(store),
            {
                "study": lambda p: names.get(p.study, short(p.study)),
                "site": lambda p: p.site,
                "state": lambda p: p.state,
                "dataset": lambda p: p.dataset,
                "records": lambda p: p.records,
                "table": lambda p: short(p.digest),
                "by": lambda p: p.actor,
            },
            as_json,
            "this node has pooled nothing and holds nothing of others",
        )


# ---- inside ----------------------------------------------------------------------------------


def _progress(done_: int, of: int) -> None:
    if of > 1 and (done_ == of or done_ % 64 == 0):
        note(f"piece {done_} of {of}")
