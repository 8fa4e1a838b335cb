"""`consilia node studies, accept, leave, ...`: which studies a hospital takes part in."""

import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilia.cli.at_node import changing, opened
from consilia.cli.options import (
    Json,
    NodeDir,
    Reason,
    Until,
    actor,
    example,
    node_dir,
    parse_day,
)
from consilia.cli.output import day, done, fields, listing, note, record, short, size
from consilia.sdk.digests import resolve

if TYPE_CHECKING:
    from consilia.node.store import Store
    from consilia.node.studies import StudyRecord

StudyName = Annotated[str, typer.Argument(help="The study's name or digest.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for name, command, *lines in (
        ("studies", studies, "consilia node studies", "consilia node studies heart-failure"),
        ("study-diff", study_diff, "consilia node study-diff heart-failure"),
        ("accept", accept, "consilia node accept heart-failure --reason 'contract 2026-4'"),
        ("decline", decline, "consilia node decline heart-failure --reason 'no capacity'"),
        ("leave", leave, "consilia node leave heart-failure --reason 'contract ended'"),
        ("purge", purge, "consilia node purge heart-failure --reason 'study is over'"),
    ):
        app.command(name, epilog=example(*lines))(command)


def studies(
    name: Annotated[str, typer.Argument(help="Show this study whole.")] = "",
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """List the studies this site is invited to, or show one."""
    from consilia.node import studies as here

    with opened(directory) as store:
        if name:
            found = here.get(store, _study(store, name), date.today())
            record(
                found,
                {
                    "digest": found.digest,
                    **fields(found.study),
                    "state": found.state,
                    "until": day(found.until),
                    "datasets": found.datasets or "any that has the tags",
                    "decided by": found.actor,
                    "reason": found.reason,
                },
                as_json,
            )
            return
        listing(
            here.list_studies(store, date.today()),
            {
                "study": lambda r: r.study.name,
                "digest": lambda r: short(r.digest),
                "state": lambda r: r.state,
                "purpose": lambda r: r.study.purpose,
                "tags": lambda r: r.study.tags,
                "sites": lambda r: r.study.sites,
                "until": lambda r: day(r.until),
            },
            as_json,
            "this site has been invited to no study",
        )


def study_diff(name: StudyName, directory: NodeDir = None, as_json: Json = False) -> None:
    """Show, field by field, what changed in a study since this site accepted it."""
    from consilia.node import studies as here

    with opened(directory) as store:
        found = here.get(store, _study(store, name), date.today())
        changes = here.difference(store, found.digest, date.today())
    columns = {
        "field": lambda c: c.field,
        "accepted": lambda c: c.old,
        "now": lambda c: c.new,
    }
    listing(changes, columns, as_json, "nothing differs from what was accepted here")
    if changes:
        note(f"to agree: consilia node accept {found.digest}")


def accept(
    name: StudyName,
    reason: Reason = "",
    until: Until = "",
    dataset: Annotated[
        list[str] | None, typer.Option(help="Only this dataset; may be given again.")
    ] = None,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Take part in a study: its approved plans may use datasets that carry its tags."""
    from consilia.node import studies as here

    with changing(directory) as store:
        found = here.accept(
            store,
            _study(store, name),
            actor=actor(),
            now=time.time(),
            reason=reason,
            until=parse_day(until),
            datasets=tuple(dataset or ()),
        )
    _taken(found, as_json)


def decline(
    name: StudyName, reason: Reason = "", directory: NodeDir = None, as_json: Json = False
) -> None:
    """Decline a study, or leave one that was accepted."""
    from consilia.node import studies as here

    with changing(directory) as store:
        found = here.decline(
            store, _study(store, name), actor=actor(), now=time.time(), reason=reason
        )
    _taken(found, as_json)


def leave(
    name: StudyName,
    reason: Annotated[str, typer.Option(help="Why; it stays in this site's audit trail.")],
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Leave a study that was accepted. Its tasks stop; the hub marks the models it made."""
    from consilia.node import studies as here

    with changing(directory) as store:
        found = here.leave(
            store, _study(store, name), actor=actor(), now=time.time(), reason=reason
        )
    _taken(found, as_json)


def purge(
    name: StudyName, reason: Reason = "", directory: NodeDir = None, as_json: Json = False
) -> None:
    """Delete what a study that is over has left here: logs, models, secrets, pinned keys.

    The audit trail and the privacy ledger stay.
    """
    from consilia.node import purge as purging

    where = node_dir(directory)
    with changing(directory) as store:
        found = purging.purge(
            store,
            where,
            _study(store, name),
            actor=actor(),
            now=time.time(),
            empty_cache=lambda: _empty_cache(where),
            reason=reason,
        )
    text = (
        f"study {found.study}: {found.files} files of {len(found.jobs)} jobs, "
        f"{found.secrets} secrets and {size(found.cache_bytes)} of models are deleted"
    )
    done(text, found, as_json)


# ---- inside ----------------------------------------------------------------------------------


def _empty_cache(where: Path) -> int:
    """Have the running agent empty its cache; without one, do it here."""
    from consilia.node import config, control
    from consilia.node.cache import Cache

    answer = control.poke(where, "empty-cache")
    if answer is not None:
        return int(str(answer.get("bytes", 0)))
    return Cache(where / "cache", config.load(where).cache_bytes).clear()


def _study(store: "Store", text: str) -> str:
    """Return a study's name as it is, or the digest that a prefix with sha256: names."""
    from consilia.node import studies as here

    if not text.startswith("sha256:"):
        return text
    known = [r.digest for r in here.list_studies(store, date.today())]
    return resolve(text, known, "study", "consilia node studies")


def _taken(found: "StudyRecord", as_json: bool) -> None:
    done(f"study {found.study.name} ({short(found.digest)}): {found.state}", found, as_json)
