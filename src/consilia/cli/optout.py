"""`consilia node optout`: patients whose records no task may load."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilia.cli.at_node import changing, opened
from consilia.cli.options import Json, NodeDir, actor, example, group, text_of
from consilia.cli.output import done, listing, note, when

if TYPE_CHECKING:
    from consilia.node.store import Store

app = group("optout", "Patients who opted out: their records are left out of every task.")


@app.command(epilog=example("consilia node optout add 4711"))
def add(
    patient: Annotated[
        list[str], typer.Argument(help="Patient ids, as the datasets have them.")
    ],
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Put patients on the list. Ids are kept as keyed hashes only."""
    _add(patient, directory, as_json)


@app.command("import", epilog=example("consilia node optout import optouts.txt"))
def import_(
    file: Annotated[
        Path, typer.Argument(help="One patient id a line; - reads standard input.")
    ],
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Put the patients of a file on the list; who is on it already stays."""
    from consilia.errors import ConfigError
    from consilia.node import optout

    patients = optout.read_ids(text_of(file).splitlines())
    if not patients:
        raise ConfigError(f"{file}: no patient id in it; needed one a line")
    _add(patients, directory, as_json)


@app.command(epilog=example("consilia node optout remove 4711"))
def remove(
    patient: Annotated[str, typer.Argument(help="The id of a patient who takes part again.")],
    directory: NodeDir = None,
    as_json: Json = False,
) -> None:
    """Take a patient off the list."""
    from consilia.node import optout

    with changing(directory) as store:
        secret = optout.key(store.path.parent)
        optout.remove(store, patient, secret, actor=actor(), now=time.time())
        _apply(store)
    done("1 patient is off the list", {"removed": 1}, as_json)


@app.command("list", epilog=example("consilia node optout list"))
def list_(directory: NodeDir = None, as_json: Json = False) -> None:
    """List when who put how many on the list. Ids cannot be read back."""
    from consilia.node import optout

    with opened(directory) as store:
        rows = [{"mark": e.mark, "since": e.at, "by": e.actor} for e in optout.entries(store)]
    listing(
        rows,
        {
            "mark": lambda r: r["mark"],
            "since": lambda r: when(float(str(r["since"]))),
            "by": lambda r: r["by"],
        },
        as_json,
        "nobody is on the opt-out list",
    )


def _add(patients: list[str], directory: Path | None, as_json: bool) -> None:
    from consilia.node import optout

    with changing(directory) as store:
        secret = optout.key(store.path.parent)
        new = optout.add(store, patients, secret, actor=actor(), now=time.time())
        if _apply(store):
            _tell_missing(store, {optout.hashed(p, secret) for p in patients})
    who = "1 patient is" if new == 1 else f"{new} patients are"
    done(f"{who} new on the list", {"added": new}, as_json)


def _apply(store: "Store") -> bool:
    """Find the patients in the datasets; tasks on a dataset where that fails are refused."""
    from consilia.node import loadedtwins

    problems = loadedtwins.after_change(store, now=time.time(), opt_out=True)
    for problem in problems:
        note(f"not applied yet, and no task runs on it: {problem}")
    return not problems


def _tell_missing(store: "Store", given: set[bytes]) -> None:
    """Say when ids just given are in no dataset: an id written otherwise leaves nobody out."""
    from consilia.node import datasets, loading

    known = [d.dataset for d in datasets.list_datasets(store) if d.dataset.patient]
    if not known:
        note(
            "no dataset here declares its column of patient ids, so nobody is left out yet: "
            "consilia dataset add --patient COLUMN"
        )
        return
    prepared = loading.Loading(store).prepared
    left_out = {patient for d in known for patient in prepared(d, "").patients}
    if missing := len(given - left_out):
        note(
            f"{missing} of the {len(given)} given are in no dataset here now; an id has to be "
            "written as it stands in the column of patient ids"
        )
