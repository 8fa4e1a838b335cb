"""The `consilia` command: one word for the party or the thing, one for what to do with it.

Exit codes are those of `consilia.errors`; 2 is also a wrong option, 70 a defect of Consilia,
130 Ctrl-C. Modules that take time to import are imported inside the commands that need them.
"""

import os
import sys
import time
from pathlib import Path

import typer

from consilia.cli import (
    acceptance,
    audit,
    budget,
    compare,
    console,
    dataset,
    experiment,
    hardcases,
    harmonise,
    holdout,
    hub,
    loading,
    login,
    models,
    node,
    optout,
    peers,
    people,
    plan,
    policy,
    pool,
    privacy,
    review,
    statistics,
    steer,
    study,
)
from consilia.cli.blame import in_options
from consilia.cli.output import json_text, note
from consilia.errors import ConsiliaError

DEFECT = 70  # EX_SOFTWARE of sysexits.h

app = typer.Typer(
    name="consilia",
    help="Hospitals learn together; patients' data stay at home.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich takes longer to import than the rest of --help
    pretty_exceptions_enable=False,
)
for group in (
    hub,
    node,
    dataset,
    loading,
    pool,
    plan,
    study,
    experiment,
    models,
    audit,
    privacy,
):
    app.add_typer(group.app)
app.add_typer(people.app)
app.add_typer(people.keys)
node.app.add_typer(budget.app)
node.app.add_typer(optout.app)
review.add_to(node.app)
acceptance.add_to(node.app)
node.app.add_typer(policy.app)
peers.add_to(node.app)
harmonise.add_to(study.app)
compare.add_to(study.app)
privacy.add_to(node.app)
hardcases.add_to(node.app)
console.add_to(node.app)
holdout.add_to(dataset.app)
steer.add_to(app, experiment.app)
statistics.add_to(app)
for module in (experiment, login):
    module.add_to(app)


def main() -> None:
    """Run the command line; never shows a traceback."""
    try:
        app(prog_name="consilia")
    except ConsiliaError as e:
        _complain(type(e).__name__, in_options(e, sys.argv[1:]))
        sys.exit(e.exit_code)
    except Exception as e:
        where = _keep(e)
        _complain("Defect", f"{type(e).__name__}: {e}. Please report it with {where}")
        sys.exit(DEFECT)


def _complain(error: str, detail: str) -> None:
    if "--json" in sys.argv:
        note(json_text({"error": error, "detail": detail}))
    else:
        note(f"consilia: {detail}")


def _keep(error: Exception) -> str:
    """Write the traceback where its owner finds it; return where."""
    import traceback

    text = "".join(traceback.format_exception(error))
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(state, "consilia", f"defect-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.log")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_text(text)
    except OSError:
        note(text)
        return "the traceback above"
    return str(path)


if __name__ == "__main__":
    main()
