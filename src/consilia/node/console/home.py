"""Routes of the home page: what waits for a person's decision, in one look."""

from collections.abc import Iterator, Mapping

from litestar import get
from msgspec import convert
from msgspec.structs import replace

from consilia.accounts.store import Account
from consilia.data import registry
from consilia.data.registry import Dataset
from consilia.node import (
    approvals,
    budget,
    caps,
    datasets,
    identity,
    loading,
    restores,
    studies,
)
from consilia.node.console.guard import Who, anyone
from consilia.node.console.ledger import standings
from consilia.node.console.services import Here, Services
from consilia.node.control import poke
from consilia.node.policy import person
from consilia.node.status import AgentStatus
from consilia.wire.console.site import HomeView, Waiting

NEAR = 0.8  # of a cap: from here on it is worth a word
LOOK = 60.0  # seconds between two looks at a dataset's files
RENEWAL = 86400.0  # seconds after which a certificate that should have been renewed was not
# whose decision it is; of what is not here, everybody is told
DECIDES: Mapping[str, frozenset[str]] = {
    "study": frozenset(("data_manager", "reviewer")),
    "plan": frozenset(("reviewer",)),
    "dataset": frozenset(("data_manager",)),
    "budget": frozenset(("data_manager",)),
    "ledger": frozenset(("data_manager",)),
}
NOBODY: frozenset[str] = frozenset()
Item = tuple[Waiting, frozenset[str]]  # what waits; the people who have said their word


@get("/home", opt=anyone(), sync_to_thread=True)
def get_home(here: Here, who: Who) -> HomeView:
    """Return what waits for a decision, and how the node is."""
    return view(here, who.session.account)


def view(here: Services, account: Account) -> HomeView:
    """Return the home page's content, as the person of an account sees it."""
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
        tuple(_for(account, item, asked) for item, asked in _waiting(here, found)),
    )


def _for(account: Account, item: Waiting, asked: frozenset[str]) -> Waiting:
    """Say whether it waits for this person: who may decide it, and has not done so."""
    roles = DECIDES.get(item.kind)
    said = person(account.name) in {person(name) for name in asked}
    yours = roles is None or (bool(roles & frozenset(account.roles)) and not said)
    return replace(item, yours=yours)


def _waiting(here: Services, agent: AgentStatus) -> Iterator[Item]:
    """Yield what people should look at, the most pressing first."""
    for item in _of_the_node(here, agent):
        yield item, NOBODY
    yield from _of_the_ledger(here)
    today = approvals.day(here.now())
    for study in studies.list_studies(here.store, today):
        if study.state == "pending":
            waits = Waiting(
                "study", study.digest, study.study.name, study.study.purpose,
                study.offered, f"/studies/{study.digest}",
            )  # fmt: skip
            yield waits, NOBODY
    for plan in approvals.list_plans(here.store, today, "pending"):
        detail = f"by {plan.author or 'unknown'}, for {', '.join(plan.offered_for)}"
        link = f"/plans/{plan.digest}"
        waits = Waiting("plan", plan.digest, plan.plan.name, detail, plan.offered, link)
        yield waits, frozenset(s.reviewer for s in plan.signoffs)
    for item in _of_the_datasets(here):
        yield item, NOBODY
    yield from _of_the_caps(here)


def _of_the_node(here: Services, agent: AgentStatus) -> Iterator[Waiting]:
    now = here.now()
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


def _of_the_ledger(here: Services) -> Iterator[Item]:
    if budget.held(here.store) is None:
        return
    detail = "the node was put back to an earlier state; every charge is refused"
    asked = restores.waiting(here.store)
    said = frozenset((asked.actor,)) if asked else NOBODY
    yield (
        Waiting("ledger", "", "the privacy ledger is held", detail, 0.0, "/ledger"),
        said,
    )


def _of_the_datasets(here: Services) -> Iterator[Waiting]:
    for item in datasets.list_datasets(here.store):
        if problem := item.changed or _change(here, item.dataset):
            name = item.dataset.name
            yield Waiting("dataset", name, name, problem, 0.0, f"/datasets/{name}")
    yield from _unfit(here)


def _of_the_caps(here: Services) -> Iterator[Item]:
    for asked in caps.proposals(here.store):
        detail = f"{asked.actor} asks for a higher cap: {asked.reason}"
        title = f"{asked.kind} {asked.name}"
        waits = Waiting("budget", f"cap {title}", title, detail, asked.at, "/ledger")
        yield waits, frozenset((asked.actor,))
    for account in standings(here):
        if account.used is not None and account.used >= NEAR:
            detail = f"{account.used:.0%} of its cap of epsilon {account.cap:g} is spent"
            title = f"{account.kind} {account.name}"
            yield Waiting("budget", account.name, title, detail, 0.0, "/ledger"), NOBODY


def _unfit(here: Services) -> Iterator[Waiting]:
    """Yield the datasets on which no task runs until their plan is applied anew."""
    prepared = loading.Loading(here.store).prepared
    for item in datasets.list_datasets(here.store):
        name = item.dataset.name
        if problem := prepared(item.dataset, loading.ANY).problem:
            link = f"/datasets/{name}"
            yield Waiting("dataset", f"{name} as loaded", name, problem, 0.0, link)


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
