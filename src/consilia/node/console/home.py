"""Routes of the home page: what waits for a person's decision, in one look."""

from collections.abc import Iterator

from litestar import get
from msgspec import convert

from consilia.data import registry
from consilia.data.registry import Dataset
from consilia.node import approvals, budget, caps, datasets, identity, loading, studies
from consilia.node.console.guard import anyone
from consilia.node.console.ledger import standings
from consilia.node.console.services import Here, Services
from consilia.node.control import poke
from consilia.node.status import AgentStatus
from consilia.wire.console.site import HomeView, Waiting

NEAR = 0.8  # of a cap: from here on it is worth a word
LOOK = 60.0  # seconds between two looks at a dataset's files
RENEWAL = 86400.0  # seconds after which a certificate that should have been renewed was not


@get("/home", opt=anyone(), sync_to_thread=True)
def get_home(here: Here) -> HomeView:
    """Return what waits for a decision, and how the node is."""
    return view(here)


def view(here: Services) -> HomeView:
    """Return the home page's content."""
    settings = here.config()
    answer = poke(here.directory, "status")
    found = (
        AgentStatus(False, None, "the agent does not run", (), 0)
        if answer is None
        else convert(answer, AgentStatus)
    )
    return HomeView(
        settings.site,
        settings.hub,
        answer is not None,
        found.connected,
        found.contact,
        found.problem,
        len(found.tasks),
        tuple(_waiting(here, found)),
    )


def _waiting(here: Services, agent: AgentStatus) -> Iterator[Waiting]:
    """Yield what a person should look at, the most pressing first."""
    now = here.now()
    today = approvals.day(now)
    if not agent.connected:
        advice = f"{agent.problem}; see the health page"
        yield Waiting(
            "hub", "", "not connected to the hub", advice, agent.contact or 0.0, "/health"
        )
    me = identity.load(here.directory, here.site)
    if now > me.renew_at + RENEWAL:
        days = (me.not_after - now) / 86400
        detail = f"it was not renewed and ends in {days:.0f} days"
        yield Waiting("health", "", "the node's certificate", detail, me.renew_at, "/health")
    if budget.held(here.store) is not None:
        detail = "the node was put back to an earlier state; every charge is refused"
        yield Waiting("ledger", "", "the privacy ledger is held", detail, now, "/ledger")
    for study in studies.list_studies(here.store, today):
        if study.state == "pending":
            yield Waiting(
                "study", study.digest, study.study.name, study.study.purpose,
                study.offered, f"/studies/{study.digest}",
            )  # fmt: skip
    for plan in approvals.list_plans(here.store, today, "pending"):
        detail = f"by {plan.author or 'unknown'}, for {', '.join(plan.offered_for)}"
        yield Waiting(
            "plan", plan.digest, plan.plan.name, detail, plan.offered, f"/plans/{plan.digest}"
        )
    for item in datasets.list_datasets(here.store):
        if problem := item.changed or _change(here, item.dataset):
            name = item.dataset.name
            yield Waiting("dataset", name, name, problem, now, f"/datasets/{name}")
    yield from _unfit(here)
    for asked in caps.proposals(here.store):
        detail = f"{asked.actor} asks for a higher cap: {asked.reason}"
        title = f"{asked.kind} {asked.name}"
        yield Waiting("budget", f"cap {title}", title, detail, asked.at, "/ledger")
    for account in standings(here):
        if account.used is not None and account.used >= NEAR:
            detail = f"{account.used:.0%} of its cap of epsilon {account.cap:g} is spent"
            title = f"{account.kind} {account.name}"
            yield Waiting("budget", account.name, title, detail, now, "/ledger")


def _unfit(here: Services) -> Iterator[Waiting]:
    """Yield the datasets on which no task runs until their plan is applied anew."""
    prepared = loading.Loading(here.store).prepared
    for item in datasets.list_datasets(here.store):
        name = item.dataset.name
        if problem := prepared(item.dataset, loading.ANY).problem:
            link = f"/datasets/{name}"
            yield Waiting("dataset", f"{name} as loaded", name, problem, here.now(), link)


def _change(here: Services, dataset: Dataset) -> str:
    """Return what `registry.change` says, looked at anew once a minute.

    It reads a file whole whose time alone has changed, and this is asked every second.
    """
    key = f"{dataset.digest} {dataset.path}"
    at, found = here.looked.get(key, (0.0, ""))
    if abs(here.now() - at) > LOOK:
        found = registry.change(dataset)
        here.looked[key] = here.now(), found
    return found


ROUTES = (get_home,)
