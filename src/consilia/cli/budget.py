"""`consilia node budget`: what was spent on this hospital's patients, and what may be."""

import sys
import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from consilia.cli.at_node import changing, opened
from consilia.cli.options import Json, NodeDir, actor, example, group, node_dir
from consilia.cli.output import done, listing, when

if TYPE_CHECKING:
    from consilia.node.ledger import Scope, Standing

Kind = Annotated[
    Literal["universe", "dataset", "study", "researcher"],
    typer.Argument(help="Which sort of account."),
]
Name = Annotated[str, typer.Argument(help="The account's name, as in: budget show.")]
Reason = Annotated[str, typer.Option(help="Why; it stays in the ledger for ever.")]

app = group("budget", "The privacy ledger: spent for ever, capped by this site.")
cap = group("cap", "The most that may ever be spent on one account.")
app.add_typer(cap)


@app.command(epilog=example("consilia node budget show", "consilia node budget show --json"))
def show(directory: NodeDir = None, as_json: Json = False) -> None:
    """Show each account: epsilon spent, its cap, the part used, tasks not settled yet.

    The part used is what decides. An account without a cap counts towards its universe.
    """
    from consilia.node import config, ledger

    with opened(directory) as store:
        found = ledger.standings(store, config.load(node_dir(directory)).privacy)
    _accounts(found, as_json)


@app.command(
    epilog=example(
        "consilia node budget history --last 50",
        "consilia node budget history --csv > ledger.csv",
    )
)
def history(
    last: Annotated[int, typer.Option(help="How many of the newest entries.")] = 20,
    csv: Annotated[bool, typer.Option("--csv", help="The whole ledger as CSV.")] = False,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Show the ledger's entries. Epsilon is of the entry alone, at its delta."""
    from consilia.node import ledgerlog

    with opened(directory) as store:
        if csv:
            for text in ledgerlog.export_csv(store):
                sys.stdout.write(text)
            return
        listing(
            ledgerlog.latest(store, last),
            {
                "seq": lambda r: r.seq,
                "at": lambda r: when(r.at),
                "what": lambda r: r.kind,
                "lease": lambda r: r.lease,
                "universe": lambda r: r.universe,
                "dataset": lambda r: r.dataset,
                "study": lambda r: r.study,
                "researcher": lambda r: r.researcher,
                "epsilon": lambda r: r.epsilon or None,
                "delta": lambda r: r.delta or None,
                "by": lambda r: r.actor,
                "detail": lambda r: r.detail,
            },
            as_json,
            "the privacy ledger is empty",
        )


@app.command(
    epilog=example(
        "consilia node budget estimate --noise 1.1 --sampling 0.01 --steps 100 --rounds 20",
        "consilia node budget estimate --noise 4 --rounds 5 --study hearts --researcher ada",
    )
)
def estimate(
    noise: Annotated[float, typer.Option(help="Noise multiplier of a step.")],
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the job.")],
    sampling: Annotated[float, typer.Option(help="Share of records a step draws.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Noisy steps of a round.")] = 1,
    dataset: Annotated[str, typer.Option(help="Look at this dataset's account too.")] = "",
    study: Annotated[str, typer.Option(help="Look at this study's account too.")] = "",
    researcher: Annotated[str, typer.Option(help="Look at this person's account too.")] = "",
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Tell how a job would leave the accounts here, and how many of its rounds fit."""
    from consilia.node import config, ledger
    from consilia.wire.v1 import Dp

    budgets = config.load(node_dir(directory)).privacy
    named: dict[Scope, str] = {
        "universe": ledger.universe_of(budgets, dataset),
        "dataset": dataset,
        "study": study,
        "researcher": researcher,
    }
    asked = {kind: name for kind, name in named.items() if name}
    with opened(directory) as store:
        each = Dp("record", noise, 1.0, sampling, steps)
        found = ledger.estimate(store, budgets, each, rounds, asked)
    if as_json:
        done("", {**_fields(found), "fits": found.fits}, True)
        return
    _accounts(list(found.after), False)
    word = "all of them" if found.fits else f"{found.rounds_left} of them"
    done(f"of {rounds} rounds the caps admit {word}", found, False)


@app.command(epilog=example("consilia node budget verify"))
def verify(directory: NodeDir = None, as_json: Json = False) -> None:
    """Check the chain of entries and that the totals are what they add up to.

    Exit code 1 when anything was changed or is missing.
    """
    from consilia.core.chain import Break
    from consilia.node import ledgerlog

    with opened(directory) as store:
        found = ledgerlog.verify(store)
    if isinstance(found, Break):
        done(f"BROKEN at entry {found.seq}: {found.reason}", found, as_json)
        raise typer.Exit(1)
    done(f"intact: {found.length} entries, head {found.digest}", found, as_json)


@app.command(
    "accept-restore",
    epilog=example("consilia node budget accept-restore --reason 'disk lost, backup of 3 May'"),
)
def accept_restore(reason: Reason, directory: NodeDir = None, as_json: Json = False) -> None:
    """Go on with a ledger that is older than the one the hub mirrors.

    What was spent since is not counted then: lower the cap by it. Where plans need two people,
    this does too: the ledger stays held until a second one has said the same.
    """
    from consilia.node import restores

    with changing(directory) as store:
        lost = restores.decide(store, actor=actor(), reason=reason, now=time.time())
    if lost is None:
        text = "waits for a second person; the ledger stays held"
        done(text, {"waits": True}, as_json)
        return
    done(f"a ledger of {lost.length} entries is given up; tasks may run again", lost, as_json)


@cap.command(
    "set",
    epilog=example(
        "consilia node budget cap set universe patients 8 --reason 'board 2026-17'",
        "consilia node budget cap set study hearts 2 --delta 1e-6 --reason 'contract'",
    ),
)
def set_(
    kind: Kind,
    name: Name,
    epsilon: Annotated[float, typer.Argument(help="The most, 0 for nothing.")],
    reason: Reason,
    delta: Annotated[
        float, typer.Option(help="At which epsilon holds; less than 1 / patients.")
    ] = 1e-5,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Cap an account, in place of the default of node.yaml."""
    from consilia.node import caps, config
    from consilia.privacy.ledger import Cap

    found = Cap(epsilon, delta)
    budgets = config.load(node_dir(directory)).privacy
    with changing(directory) as store:
        waits = caps.decide(
            store, kind, name, found, budgets, actor=actor(), reason=reason, now=time.time()
        )
    end = "waits for a second person" if waits else "for ever"
    done(f"{kind} {name}: epsilon {epsilon:g} at delta {delta:g}, {end}", found, as_json)


@cap.command(
    "remove",
    epilog=example("consilia node budget cap remove study hearts --reason 'contract ended'"),
)
def remove(
    kind: Kind, name: Name, reason: Reason, directory: NodeDir = None, as_json: Json = False
) -> None:
    """Take a cap back; the default of node.yaml holds again."""
    from consilia.node import caps, config

    budgets = config.load(node_dir(directory)).privacy
    with changing(directory) as store:
        waits = caps.decide(
            store, kind, name, None, budgets, actor=actor(), reason=reason, now=time.time()
        )
    end = "holds once a second person agrees" if waits else "holds"
    done(
        f"{kind} {name}: the default of node.yaml {end}", {"kind": kind, "name": name}, as_json
    )


def _accounts(found: "list[Standing]", as_json: bool) -> None:
    listing(
        found,
        {
            "account": lambda r: r.kind,
            "name": lambda r: r.name,
            "epsilon": lambda r: r.epsilon,
            "delta": lambda r: r.delta,
            "cap": lambda r: r.cap.epsilon if r.cap else "none",
            "used": lambda r: f"{r.used:.1%}" if r.cap else None,
            "not settled": lambda r: r.open,
        },
        as_json,
    )


def _fields(value: object) -> dict[str, object]:
    return {name: getattr(value, name) for name in getattr(value, "__slots__", ())}
