"""`consilia node`: what a hospital's own staff do at their node.

The commands work on the node's directory, whether its agent runs or not; a running agent is
told of a change and acts on it at once.
"""

import sys
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from consilia.cli.at_node import changing, opened
from consilia.cli.options import Json, NodeDir, actor, example, group, node_dir, pairs
from consilia.cli.output import done, listing, note, record, say, short, when
from consilia.errors import ConfigError
from consilia.sdk.digests import resolve

if TYPE_CHECKING:
    from consilia.node.approvals import PlanRecord
    from consilia.node.policy import Allowed
    from consilia.node.store import Store
    from consilia.node.studies import StudyRecord

Digest = Annotated[str, typer.Argument(help="The plan's digest, or 8 or more of its digits.")]
StudyName = Annotated[str, typer.Argument(help="The study's name or digest.")]
Reason = Annotated[str, typer.Option(help="Why, for the audit trail.")]
Until = Annotated[str, typer.Option(help="Last day, YYYY-MM-DD; without it, no end.")]

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
        Literal["required", "off"],
        typer.Option(help="off: run researchers' code without a sandbox. Dangerous."),
    ] = "required",
    as_json: Json = False,
) -> None:
    """Join a hub: make this site's keys here and have them certified.

    The token works once. It is a secret until then: with - it stays out of the process list.
    """
    from consilia.node.app import join as join_hub
    from consilia.node.config import read_password

    text = sys.stdin.read() if token == "-" else token  # noqa: S105  # no password
    where = node_dir(directory)
    _no_password(proxy)
    password = read_password(proxy_password_file) if proxy_password_file else ""
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
    record(found, _fields(found), as_json)


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
    epilog=example("consilia node plans", "consilia node plans 3f9a1c2b  # source and findings")
)
def plans(
    digest: Annotated[str, typer.Argument(help="Show this plan whole, for review.")] = "",
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """List the training plans offered to this site, or show one for review."""
    from consilia.node import approvals

    with opened(directory) as store:
        if digest:
            _review(store, _digest(store, digest), as_json)
            return
        listing(
            approvals.list_plans(store, date.today()),
            {
                "plan": lambda r: short(r.digest),
                "name": lambda r: r.plan.name,
                "state": lambda r: r.state,
                "studies": lambda r: r.offered_for,
                "author": lambda r: r.author,
                "offered": lambda r: when(r.offered),
                "until": lambda r: _day(r.until),
                "reviewer": lambda r: r.reviewer,
            },
            as_json,
            "no plan has been offered to this site",
        )


@app.command(
    epilog=example(
        "consilia node approve 3f9a1c2b --reason 'ethics board 2026-17' --until 2027-06-30",
        "consilia node approve 3f9a1c2b --allow lr=0.001..0.1 --allow epochs=1,2,5",
    )
)
def approve(
    digest: Digest,
    reason: Reason = "",
    until: Until = "",
    allow: Annotated[
        list[str] | None,
        typer.Option(help="NAME=LOW..HIGH or NAME=A,B,C: values a researcher may set."),
    ] = None,
    study: Annotated[
        list[str] | None, typer.Option(help="Only for this study; may be given again.")
    ] = None,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Approve a plan: from now on its code may run here, in the studies you accepted.

    What may be set: the arguments keep the plan's own values, or take those allowed here or in
    node.yaml.
    """
    from consilia.node import approvals

    with changing(directory) as store:
        found = approvals.approve(
            store,
            _digest(store, digest),
            actor=actor(),
            now=time.time(),
            reason=reason,
            until=_parse_day(until),
            arguments={n: _allowed(v) for n, v in pairs(allow or (), "--allow").items()},
            studies=tuple(study or ()),
        )
    _decided(found, as_json)


@app.command(epilog=example("consilia node reject 3f9a1c2b --reason 'reads files'"))
def reject(
    digest: Digest, reason: Reason = "", directory: NodeDir = None, as_json: Json = False
) -> None:
    """Reject a plan that awaits review."""
    from consilia.node import approvals

    with changing(directory) as store:
        found = approvals.reject(
            store, _digest(store, digest), actor=actor(), now=time.time(), reason=reason
        )
    _decided(found, as_json)


@app.command(epilog=example("consilia node revoke 3f9a1c2b --reason 'study suspended'"))
def revoke(
    digest: Digest, reason: Reason = "", directory: NodeDir = None, as_json: Json = False
) -> None:
    """Withdraw an approval; what runs under it is stopped."""
    from consilia.node import approvals

    with changing(directory) as store:
        found = approvals.revoke(
            store, _digest(store, digest), actor=actor(), now=time.time(), reason=reason
        )
    _decided(found, as_json)


@app.command(epilog=example("consilia node studies", "consilia node studies heart-failure"))
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
                    **_fields(found.study),
                    "state": found.state,
                    "until": _day(found.until),
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
                "until": lambda r: _day(r.until),
            },
            as_json,
            "this site has been invited to no study",
        )


@app.command(epilog=example("consilia node accept heart-failure --reason 'contract 2026-4'"))
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
            until=_parse_day(until),
            datasets=tuple(dataset or ()),
        )
    _taken(found, as_json)


@app.command(epilog=example("consilia node decline heart-failure --reason 'no capacity'"))
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


def _digest(store: "Store", text: str) -> str:
    from consilia.node import approvals

    known = [r.digest for r in approvals.list_plans(store, date.today())]
    return resolve(text, known, "plan", "consilia node plans")


def _study(store: "Store", text: str) -> str:
    """Return a study's name as it is, or the digest that a prefix with sha256: names."""
    from consilia.node import studies as here

    if not text.startswith("sha256:"):
        return text
    known = [r.digest for r in here.list_studies(store, date.today())]
    return resolve(text, known, "study", "consilia node studies")


def _review(store: "Store", digest: str, as_json: bool) -> None:
    from consilia.node import approvals, source

    today = date.today()
    found = approvals.get(store, digest, today)
    findings = source.findings(found.plan)
    before = approvals.previous(store, digest, today)
    if as_json:
        done("", {**_fields(found), "findings": findings}, True)
        return
    record(
        found,
        {
            "plan": found.digest,
            "name": found.plan.name,
            "state": found.state,
            "offered by": found.author,
            "for studies": found.offered_for,
            "entry": found.plan.entry,
            "requires": found.plan.requirements or "nothing beyond Consilia",
            "description": found.plan.description,
            "decided by": found.reviewer,
            "reason": found.reason,
        },
        False,
    )
    for path, text in sorted(found.plan.files.items()):
        say(f"\n==== {path}")
        say(text.rstrip())
    say("\n==== what to look at (advice, not a verdict)")
    for finding in findings:
        say(str(finding))
    if before is not None:
        say(f"\n==== changed since the approved {short(before.digest)}")
        say(approvals.diff(store, digest, today) or "nothing")


def _decided(found: "PlanRecord", as_json: bool) -> None:
    text = f"plan {short(found.digest)} ({found.plan.name}): {found.state}"
    ends = found.state == "approved" and found.until != date.max
    done(f"{text} until {found.until}" if ends else text, found, as_json)


def _taken(found: "StudyRecord", as_json: bool) -> None:
    done(f"study {found.study.name} ({short(found.digest)}): {found.state}", found, as_json)


def _allowed(text: str) -> "Allowed":
    from consilia.cli.options import scalar
    from consilia.node.policy import Interval, OneOf

    low, dots, high = text.partition("..")
    if not dots:
        return OneOf(tuple(scalar(item.strip()) for item in text.split(",")))
    try:
        interval = Interval(float(low), float(high))
    except ValueError:
        raise ConfigError(f"--allow {text!r}: needed LOW..HIGH, such as 0.001..0.1") from None
    if not interval.least <= interval.greatest:
        raise ConfigError(f"--allow {text!r} is an empty range: write the smaller number first")
    return interval


def _parse_day(text: str) -> date | None:
    if not text:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--until {text!r} is not a day: write YYYY-MM-DD") from None


def _day(day: date) -> str:
    return "-" if day == date.max else day.isoformat()


def _fields(value: object) -> dict[str, object]:
    """Return a record's fields by name."""
    from dataclasses import fields, is_dataclass

    if is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return {name: getattr(value, name) for name in getattr(value, "__struct_fields__", ())}
