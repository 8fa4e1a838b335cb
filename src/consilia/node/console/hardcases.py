"""The route of the hard cases: records of this site, for whoever may see records."""

from datetime import date

from litestar import post
from litestar.params import FromPath, JSONBody

from consilia.node import hardcases
from consilia.node.console import folders
from consilia.node.console.guard import Who, allow
from consilia.node.console.services import Here
from consilia.node.privacyreport import Wanted
from consilia.wire.console.datasets import (
    FindHardCases,
    HardCasesView,
    HardCaseView,
    HardPartView,
)

PARTS = 8  # values shown of a record


@post(
    "/datasets/{name:str}/hard-cases",
    opt=allow("data_manager"),
    status_code=200,
    sync_to_thread=True,
)
def find(
    here: Here, who: Who, name: FromPath[str], data: JSONBody[FindHardCases]
) -> HardCasesView:
    """Find the records a model is most wrong about, in the sandbox; seconds to minutes."""
    said: list[str] = []
    model = folders.within(data.model, here.config().console.data_roots, here.directory)
    found = hardcases.find(
        here.store,
        here.directory,
        Wanted(model, data.plan, name),
        most=data.top,
        actor=who.name,
        today=date.fromtimestamp(here.now()),
        now=here.now,
        tell=said.append,
    )
    cases = tuple(
        HardCaseView(
            case.row,
            case.patient,
            case.loss,
            case.target,
            tuple(HardPartView(p.name, p.value, p.share) for p in case.parts[:PARTS]),
        )
        for case in found.worst
    )
    return HardCasesView(found.records, found.median, cases, tuple(said))


ROUTES = (find,)
