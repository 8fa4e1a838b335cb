"""`consilia node policy`: the site's policy: show, check, apply, and its JSON schema."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilia.cli.at_node import changing, opened
from consilia.cli.options import Json, NodeDir, actor, example, group, node_dir, text_of
from consilia.cli.output import done, listing, note, record, say, short, when

if TYPE_CHECKING:
    from consilia.node.config import NodeConfig
    from consilia.node.policy import Policy
    from consilia.node.policyhistory import Proposal
    from consilia.node.store import Store

Proposed = Annotated[Path, typer.Argument(metavar="FILE", help="The proposed node.yaml.")]

app = group("policy", "The site's policy, node.yaml: show, check and change it.")


@app.callback(
    invoke_without_command=True, epilog=example("consilia node policy --schema > policy.json")
)
def policy(
    context: typer.Context,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of node.yaml.")
    ] = False,
) -> None:
    """Show, check and change the site's policy, node.yaml."""
    if schema:
        from consilia.node import policyschema

        say(policyschema.text().rstrip())
    elif context.invoked_subcommand is None:
        say(context.get_help())


@app.command(epilog=example("consilia node policy show", "consilia node policy show --history"))
def show(
    history: Annotated[
        bool, typer.Option("--history", help="List the policies that held, newest first.")
    ] = False,
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Show the policy in force, every key with its value."""
    from consilia.node import config, policyhistory

    with opened(directory) as store:
        past = policyhistory.history(store)
    if history:
        columns = {
            "policy": lambda p: p.seq,
            "since": lambda p: when(p.at),
            "by": lambda p: p.actor,
            "digest": lambda p: short(p.digest),
        }
        listing(past, columns, as_json, "no policy was applied yet")
        return
    found = config.load(node_dir(directory))
    record(found, dict(_dotted("", found)), as_json)


def _dotted(key: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield each setting by the name that messages give it: limits.seconds, arguments.lr."""
    import msgspec

    inner = value if isinstance(value, Mapping) else None
    if isinstance(value, msgspec.Struct):
        inner = msgspec.structs.asdict(value)
    if not inner:
        yield key, value
        return
    for name, item in inner.items():
        yield from _dotted(f"{key}.{name}" if key else str(name), item)


@app.command(epilog=example("consilia node policy check proposed.yaml"))
def check(file: Proposed, directory: NodeDir = None, as_json: Json = False) -> None:
    """Check a proposed policy, and what it would have decided otherwise in 30 days."""
    from consilia.node import policyhistory

    where = node_dir(directory)
    with opened(directory) as store:
        found = policyhistory.propose(store, where, text_of(file), str(file), _under(store))
    _tell(found, "nothing was changed", as_json)


@app.command(epilog=example("consilia node policy apply proposed.yaml"))
def apply(file: Proposed, directory: NodeDir = None, as_json: Json = False) -> None:
    """Put a policy in force. A running agent follows at once; the audit trail says who."""
    from consilia.node import policyhistory

    where = node_dir(directory)
    with changing(directory) as store:
        found = policyhistory.apply(
            store,
            where,
            text_of(file),
            str(file),
            _under(store),
            actor=actor(),
            now=time.time(),
        )
    _tell(found, "the policy is in force", as_json)


def _under(store: "Store") -> "Callable[[NodeConfig], Policy]":
    """Return the site's decisions as a function of its settings."""
    from consilia.node.standing import policy_of

    return partial(policy_of, store)


def _tell(found: "Proposal", outcome: str, as_json: bool) -> None:
    if as_json:
        done("", found, True)
        return
    say(f"changes: {', '.join(found.keys) or 'nothing'}")
    if found.restart:
        note(f"from the agent's next start: {', '.join(found.restart)}")
    say(f"{found.asked} tasks were asked for in 30 days; decided otherwise:")
    columns = {
        "day": lambda d: d.day,
        "study": lambda d: d.study,
        "plan": lambda d: short(d.plan),
        "task": lambda d: d.kind,
        "tasks": lambda d: d.count,
        "would be": lambda d: "allowed" if d.allowed else "refused",
        "because": lambda d: "; ".join(d.reasons),
    }
    listing(found.differs, columns, False, "none")
    note(outcome)
