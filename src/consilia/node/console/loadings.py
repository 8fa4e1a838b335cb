"""Routes of data loading plans: how a site's tables become what a study asks for."""

from typing import Any

from litestar import get, post, put
from litestar.params import FromPath, JSONBody

from consilia.data.loading import blocks
from consilia.data.loading import preview as seen
from consilia.data.loading.preview import MAX_ROWS
from consilia.errors import ConfigError, NotFound, Wrong
from consilia.node import datasets, loadedtwins, loading
from consilia.node.console import checking
from consilia.node.console.guard import Who, allow, anyone
from consilia.node.console.services import Here, Services
from consilia.node.console.yamltext import checked
from consilia.node.loading import Stored
from consilia.wire.console.datasets import (
    AttachLoading,
    AttachmentView,
    CheckLoading,
    ColumnSummary,
    LoadingCheckView,
    LoadingPlansView,
    LoadingPlanView,
    LoadingPreviewView,
    PreviewLoading,
    PreviewView,
    SaveLoadingPlan,
)

MANAGER = allow("data_manager")


@get("/loading-plans", opt=anyone(), sync_to_thread=True)
def list_plans(here: Here) -> LoadingPlansView:
    """List the data loading plans, each in its newest version."""
    found = loading.list_plans(here.store)
    return LoadingPlansView(tuple(shown(here, stored) for stored in found))


@get("/loading-plans/{name:str}", opt=anyone(), sync_to_thread=True)
def get_plan(here: Here, name: FromPath[str]) -> LoadingPlanView:
    """Return a data loading plan in its newest version."""
    return shown(here, loading.get(here.store, name))


@get("/loading-plans/schema", opt=anyone(), sync_to_thread=True)
def schema(here: Here) -> dict[str, Any]:
    """Return the JSON schema of each kind of block."""
    return blocks.schema()


@post("/loading-plans/check", opt=MANAGER, status_code=200, sync_to_thread=True)
def check(here: Here, data: JSONBody[CheckLoading]) -> LoadingCheckView:
    """Say which columns each block of a draft finds, and where it is wrong; reads no record."""
    dataset = datasets.get(here.store, data.dataset).dataset if data.dataset else None
    return checking.check(checked(data.yaml), dataset)


@put("/loading-plans/{name:str}", opt=MANAGER, sync_to_thread=True)
def save(
    here: Here, who: Who, name: FromPath[str], data: JSONBody[SaveLoadingPlan]
) -> LoadingPlanView:
    """Save a data loading plan; what differs from the newest version makes the next one."""
    plan = blocks.from_yaml(checked(data.yaml), "yaml")
    if plan.name != name:
        raise ConfigError(f"yaml: the plan's name is {plan.name!r}, this page's is {name!r}")
    try:
        loading.get(here.store, name)
        save_as = loading.edit
    except NotFound:
        save_as = loading.create
    return shown(here, save_as(here.store, plan, actor=who.name, now=here.now()))


@post("/loading-plans/preview", opt=MANAGER, status_code=200, sync_to_thread=True)
def preview(here: Here, data: JSONBody[PreviewLoading]) -> LoadingPreviewView:
    """Show a dataset before and after a draft of a plan, for the site's own eyes."""
    if not 0 <= data.rows <= MAX_ROWS:
        raise ConfigError(Wrong("rows", f"{data.rows}", f"0 to {MAX_ROWS}"))
    plan = blocks.from_yaml(checked(data.yaml), "yaml")
    found = loading.preview(here.store, data.dataset, plan, data.rows)
    return LoadingPreviewView(
        _rows(found.before),
        _rows(found.after),
        found.before.records,
        found.after.records,
        _summary(found.before),
        _summary(found.after),
    )


@post("/loading-plans/{name:str}/attach", opt=MANAGER, status_code=200, sync_to_thread=True)
def attach(
    here: Here, who: Who, name: FromPath[str], data: JSONBody[AttachLoading]
) -> LoadingPlanView:
    """Let the newest version load a dataset, for one study or for every one."""
    loading.attach(
        here.store, name, data.dataset, actor=who.name, now=here.now(), study=data.study
    )
    loadedtwins.retell(here.store, now=here.now())
    here.tell_agent()
    return shown(here, loading.get(here.store, name))


@post("/loading-plans/{name:str}/detach", opt=MANAGER, status_code=200, sync_to_thread=True)
def detach(
    here: Here, who: Who, name: FromPath[str], data: JSONBody[AttachLoading]
) -> LoadingPlanView:
    """Load a dataset as it is again."""
    where = AttachmentView(data.dataset, data.study)
    if where not in (before := shown(here, loading.get(here.store, name))).attached:
        raise NotFound(f"dataset: {name!r} is not attached to {data.dataset[:80]!r} there")
    loading.detach(here.store, data.dataset, actor=who.name, now=here.now(), study=data.study)
    here.tell_agent()
    return shown(here, loading.get(here.store, before.name))


def _rows(view: seen.View) -> PreviewView:
    return PreviewView(tuple(c.name for c in view.columns), view.rows)


def _summary(view: seen.View) -> tuple[ColumnSummary, ...]:
    names = ColumnSummary.__struct_fields__
    return tuple(ColumnSummary(**{n: getattr(c, n) for n in names}) for c in view.columns)


def shown(here: Services, stored: Stored) -> LoadingPlanView:
    """Return a stored plan as people see it."""
    return LoadingPlanView(
        stored.plan.name,
        stored.version,
        stored.digest,
        stored.at,
        stored.actor,
        blocks.to_yaml(stored.plan),
        tuple(
            AttachmentView(a.dataset, a.study)
            for a in loading.attachments(here.store)
            if a.plan == stored.plan.name
        ),
    )


ROUTES = (list_plans, schema, check, get_plan, save, preview, attach, detach)
