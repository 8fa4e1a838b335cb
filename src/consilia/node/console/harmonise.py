"""Routes of harmonisation: where this site's table differs from the others', what mends it."""

from litestar import get, post
from litestar.params import FromPath, FromQuery, JSONBody

from consilia.data import harmonise
from consilia.data.loading import blocks
from consilia.errors import ConfigError, Conflict, NotFound, Wrong
from consilia.node import (
    approvals,
    comparing,
    datasets,
    hubline,
    loadedtwins,
    loading,
    studies,
)
from consilia.node.comparing import Compared
from consilia.node.console.guard import Who, allow
from consilia.node.console.loadings import shown
from consilia.node.console.services import Here, Services
from consilia.node.console.yamltext import checked
from consilia.node.studies import StudyRecord
from consilia.wire.console.datasets import LoadingPlanView
from consilia.wire.console.harmony import (
    AcceptProposal,
    ComparedColumn,
    DifferenceView,
    HarmonyView,
    SiteColumn,
)
from consilia.wire.v1 import MockColumn, SiteOffers

LEVELS = 12  # of one column that are shown


@get(
    "/studies/{digest:str}/harmony",
    opt=allow("data_manager", "reviewer", "dpo"),
    sync_to_thread=True,
)
def get_harmony(
    here: Here,
    digest: FromPath[str],
    dataset: FromQuery[str] = "",
    reference: FromQuery[str] = "",
) -> HarmonyView:
    """Compare a dataset here with those of the study's other sites; reads the table once."""
    record = _study(here, digest)
    known = fitting(here, record)
    if not known:
        raise NotFound(
            f"no dataset here carries the tags of the study ({', '.join(record.study.tags)})"
        )
    if dataset and dataset not in known:
        raise ConfigError(Wrong("dataset", f"{dataset[:80]!r}", f"one of {', '.join(known)}"))
    found = comparing.compare(
        here.store,
        site=here.site,
        study=record.study.name,
        dataset=dataset or known[0],
        offers=offers(here, record.study.name).offers,
        reference=reference,
    )
    return _view(here, record.study.name, dataset or known[0], known, found)


@post(
    "/studies/{digest:str}/harmony/accept",
    opt=allow("data_manager"),
    status_code=200,
    sync_to_thread=True,
)
def accept(
    here: Here, who: Who, digest: FromPath[str], data: JSONBody[AcceptProposal]
) -> LoadingPlanView:
    """Store a proposal as it was shown, and attach it for the study: both, or nothing."""
    record = _study(here, digest)
    if data.dataset not in fitting(here, record):
        raise ConfigError(f"dataset: {data.dataset[:80]!r} does not carry the study's tags")
    plan = blocks.from_yaml(checked(data.yaml), "yaml")
    loading.accept(
        here.store,
        plan,
        data.dataset,
        actor=who.name,
        now=here.now(),
        study=record.study.name,
    )
    loadedtwins.retell(here.store, now=here.now())
    here.tell_agent()
    return shown(here, loading.get(here.store, plan.name))


def fitting(here: Services, record: StudyRecord) -> tuple[str, ...]:
    """Return the datasets here that carry a study's tags."""
    wanted = set(record.study.tags)
    known = datasets.list_datasets(here.store)
    return tuple(r.dataset.name for r in known if r.enabled and wanted <= set(r.dataset.tags))


def offers(here: Services, study: str) -> SiteOffers:
    """Ask the hub what the sites of a study offer, with the node's own certificate."""
    return hubline.asked(here.directory, lambda line: line.offers(study))


def _study(here: Services, digest: str) -> StudyRecord:
    record = studies.get(here.store, digest, approvals.day(here.now()))
    if record.state != "accepted":
        raise Conflict(
            f"study {record.study.name!r} is {record.state}; the hub tells what other sites "
            "offer it once this site has accepted it"
        )
    return record


def _view(
    here: Services, study: str, dataset: str, known: tuple[str, ...], found: Compared
) -> HarmonyView:
    old = len(found.plan.plan.blocks) if found.plan else 0
    return HarmonyView(
        study,
        dataset,
        known,
        found.reference,
        tuple(sorted(name for name in found.twins if name != here.site)),
        found.silent,
        found.plan.plan.name if found.plan else "",
        found.plan.version if found.plan else 0,
        _columns(here.site, found),
        tuple(
            DifferenceView(
                d.column,
                d.about,
                d.said,
                blocks.block_yaml(d.block) if d.block is not None else "",
                d.key,
                dict(d.values),
            )
            for d in found.report.of(here.site)
        ),
        blocks.to_yaml(found.proposal) if found.proposal else "",
        len(found.proposal.blocks) - old if found.proposal else 0,
        found.report.as_in_file,
    )


def _columns(own: str, found: Compared) -> tuple[ComparedColumn, ...]:
    """Return the reference's columns with what every site has for each, this site first."""
    columns = {
        site: {c.name: c for c in twin.columns if c.role not in ("patient", "text", "ignore")}
        for site, twin in found.twins.items()
    }
    theirs = columns[found.reference]
    pairs = {
        site: {other: mine for mine, other in harmonise.matched(known, theirs).items()}
        for site, known in columns.items()
    }
    order = sorted(columns, key=lambda site: (site != own, site != found.reference, site))
    return tuple(
        ComparedColumn(
            name,
            tuple(
                _column(site, columns[site].get(pairs[site].get(name, ""))) for site in order
            ),
        )
        for name in theirs
    )


def _column(site: str, column: MockColumn | None) -> SiteColumn:
    if column is None:
        return SiteColumn(site, "")
    told = harmonise.mean_and_deviation(column)
    return SiteColumn(
        site,
        column.name,
        column.type,
        column.unit,
        harmonise.absent_share(column),
        told[0] if told else None,
        told[1] if told else None,
        tuple(sorted(column.levels))[:LEVELS],
    )


ROUTES = (get_harmony, accept)
