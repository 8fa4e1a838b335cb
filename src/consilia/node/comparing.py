"""A site's dataset beside those of the other sites of a study, and the blocks it lacks.

What the others are like is their mock twins, which the hub passes on: as their loading plans
make the tables, where they tell that, else as in the file. What the own one is like is a twin
made here of the table as the loading plan in force reads it. So what a plan has
already mended is no difference any more, and a proposal is added to that plan's end. The own
twin stays at the site: comparing tells nobody anything.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from consilia.data import harmonise
from consilia.data.harmonise import Report
from consilia.data.loading import preview
from consilia.data.loading.blocks import LoadingPlan
from consilia.data.profile import profile
from consilia.data.registry import Dataset, schema_of, table_of
from consilia.errors import ConfigError, DataError
from consilia.node import datasets, loading, measuring
from consilia.node.loadedtwins import schema_after
from consilia.node.loading import Stored
from consilia.node.store import Store
from consilia.node.twin import make
from consilia.wire.strict import nearest
from consilia.wire.v1 import MockTwin, SiteOffer

MAX_NAME = 63  # characters of a plan's name


@dataclass(frozen=True, slots=True)
class Compared:
    """What a comparison found, for one dataset of this site."""

    reference: str
    twins: dict[str, MockTwin]  # by site, or site/dataset; this site's own under its name
    silent: tuple[str, ...]  # that tell nothing of theirs
    report: Report
    plan: Stored | None  # that loads the dataset for the study now
    proposal: LoadingPlan | None  # its next version, None where nothing is proposed


def compare(  # noqa: PLR0913 - by keyword
    store: Store,
    *,
    site: str,
    study: str,
    dataset: str,
    offers: Iterable[SiteOffer],
    reference: str = "",
) -> Compared:
    """Compare dataset `dataset` of this site with what other sites offer a study.

    `reference` is the site to agree with, "" the one whose columns most others have. Reads the
    table once. Raises DataError when no other site tells anything, ConfigError for no such
    site.
    """
    told = harmonise.told(((o.site, o.dataset) for o in offers if o.site != site), study)
    others, silent = dict(told.twins), told.silent
    if not others:
        could = f" ({', '.join(silent)} could)" if silent else ""
        raise DataError(
            f"no other site of study {study!r} lets the consortium see what its dataset is "
            f"like{could}; each decides by itself whether it offers a mock twin of it"
        )
    if reference and reference not in others:
        raise ConfigError(f"reference: no site {reference[:80]!r}{nearest(reference, others)}")
    known = datasets.get(store, dataset).dataset
    stored = loading.attached_to(store, dataset, (study,))
    twins = {**others, site: twin_as_loaded(store, known, stored)}
    name = f"harmonise-{study}"[:MAX_NAME]
    reference = reference or _usual(others, name)
    mine = {reference: others[reference], site: twins[site]}
    in_file = told.as_in_file if stored else (*told.as_in_file, site)
    report = harmonise.compare(mine, name, reference, in_file)
    found = report.plans.get(site)
    if found is not None and stored is not None:
        found = extended(stored.plan, found)
    return Compared(reference, twins, silent, report, stored, found)


def extended(old: LoadingPlan, proposed: LoadingPlan) -> LoadingPlan:
    """Return the plan in force with the proposed blocks after its own."""
    blocks = (*old.blocks, *proposed.blocks)
    return LoadingPlan(old.name, blocks, old.description or proposed.description)


def twin_as_loaded(store: Store, dataset: Dataset, stored: Stored | None) -> MockTwin:
    """Return what a twin would tell of a dataset as a plan loads it; told to nobody."""
    datasets.check_unchanged(dataset)
    rules = measuring.site_rules(store)
    without, _ = loading.left_out(store, dataset)
    if stored is None and not without:
        schema = schema_of(dataset)
        return make(profile(table_of(dataset), schema, dataset.patient), schema, rules)
    plan = stored.plan if stored else None
    schema = schema_of(dataset) if plan is None else schema_after(dataset, plan)
    table = preview.opened(dataset, plan, without)
    return make(profile(table, schema, dataset.patient), schema, rules)


def _usual(twins: dict[str, MockTwin], name: str) -> str:
    """Return the site whose columns most others have."""
    if len(twins) == 1:
        return next(iter(twins))
    return harmonise.compare(twins, name).reference
