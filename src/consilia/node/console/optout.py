"""Routes of the opt-out list: change it, see what it does. No identity is ever sent out."""

from litestar import get, post
from litestar.params import JSONBody

from consilia.data.registry import Dataset
from consilia.errors import ConfigError
from consilia.node import datasets, loadedtwins, loading, optout
from consilia.node.console.guard import Who, allow, anyone
from consilia.node.console.services import Here, Services
from consilia.node.console.trail import newest
from consilia.wire.console.patients import (
    AddOptOuts,
    CohortView,
    OptOutChange,
    OptOutChanged,
    OptOutView,
    RemoveOptOut,
)

MANAGER = allow("data_manager")
HISTORY = 50  # changes shown


@get("/opt-outs", opt=anyone(), sync_to_thread=True)
def get_list(here: Here) -> OptOutView:
    """Return how many opted out, what that does to each dataset, and when it changed."""
    return view(here)


@post("/opt-outs", opt=MANAGER, status_code=200, sync_to_thread=True)
def add(here: Here, who: Who, data: JSONBody[AddOptOuts]) -> OptOutChanged:
    """Put patients on the list; ids are kept as keyed hashes only."""
    given = optout.read_ids(data.ids.splitlines())
    if not given:
        raise ConfigError("ids: no patient id in it; needed one a line, as in the datasets")
    secret = optout.key(here.directory)
    new = optout.add(here.store, given, secret, actor=who.name, now=here.now())
    problems = _applied(here)
    hashes = {optout.hashed(patient, secret) for patient in given}
    unknown = 0 if problems else len(hashes - _left_out(here))
    return OptOutChanged(len(hashes), new, unknown, problems, view(here))


@post("/opt-outs/remove", opt=MANAGER, status_code=200, sync_to_thread=True)
def remove(here: Here, who: Who, data: JSONBody[RemoveOptOut]) -> OptOutChanged:
    """Take a patient off the list who takes part again."""
    secret = optout.key(here.directory)
    optout.remove(here.store, data.id, secret, actor=who.name, now=here.now())
    return OptOutChanged(1, 1, 0, _applied(here), view(here))


def view(here: Services) -> OptOutView:
    """Return the list as people see it."""
    k = here.config().disclosure.k
    prepared = loading.Loading(here.store).prepared
    known = [r.dataset for r in datasets.list_datasets(here.store)]
    return OptOutView(
        len(optout.listed(here.store)),
        k,
        tuple(_cohort(here, d, prepared(d, loading.ANY), k) for d in known),
        _history(here),
    )


def _cohort(here: Services, dataset: Dataset, ready: loading.Prepared, k: int) -> CohortView:
    before = optout.last_used(here.store, dataset.name)
    return CohortView(
        dataset.name,
        dataset.patient,
        dataset.records,
        ready.dataset.records,
        len(ready.patients),
        None if before is None else len(before ^ ready.patients),
        optout.wait(before, ready.patients, k, private=False) or "",
        ready.problem,
    )


def _history(here: Services) -> tuple[OptOutChange, ...]:
    found = newest(here.store, ["substr(action, 1, 7) = ?"], ["optout."], HISTORY)
    return tuple(
        OptOutChange(at, actor, action == "optout.add", detail)
        for _, at, actor, action, _, _, detail, _ in found[:HISTORY]
    )


def _left_out(here: Services) -> set[bytes]:
    """Return everybody who is left out of some dataset."""
    prepared = loading.Loading(here.store).prepared
    known = [r.dataset for r in datasets.list_datasets(here.store) if r.dataset.patient]
    return {patient for d in known for patient in prepared(d, loading.ANY).patients}


def _applied(here: Services) -> tuple[str, ...]:
    """Find the patients in the datasets; tell where that fails, and let the agent know."""
    problems = loadedtwins.after_change(here.store, now=here.now(), opt_out=True)
    here.tell_agent()
    return tuple(problems)


ROUTES = (get_list, add, remove)
