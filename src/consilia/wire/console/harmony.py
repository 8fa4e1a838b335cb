"""How a site's dataset compares with those of the other sites of a study."""

from consilia.wire.console import Request, View


class SiteColumn(View, frozen=True):
    """One column at one site, from its mock twin: no record, no small count."""

    site: str
    name: str  # as the site calls it; "": it has none
    type: str = ""
    unit: str = ""
    missing: float | None = None  # share, 0 to 1; None where nothing is told
    mean: float | None = None  # of rounded counts
    deviation: float | None = None
    levels: tuple[str, ...] = ()


class ComparedColumn(View, frozen=True):
    """One column of the reference, and what each site has for it."""

    name: str
    sites: tuple[SiteColumn, ...]


class DifferenceView(View, frozen=True):
    """One way in which this site's dataset differs, and the block that would mend it."""

    column: str
    about: str  # name absent type unit scale missing categories
    said: str
    block: str  # as YAML; "": what to do has to be said by a person
    key: str = ""  # of what is `said`, for pages in other languages; "": it has none
    values: dict[str, str | int | float] = {}  # that the sentence is filled with


class HarmonyView(View, frozen=True):
    """A comparison for one study, seen from this site."""

    study: str
    dataset: str
    datasets: tuple[str, ...]  # of this site that carry the study's tags
    reference: str
    sites: tuple[str, ...]  # that can be the reference
    silent: tuple[str, ...]  # sites that tell nothing of their dataset
    plan: str  # name of the loading plan in force for the study, "" for none
    version: int  # of it, 0 for none
    columns: tuple[ComparedColumn, ...]
    differences: tuple[DifferenceView, ...]
    proposal: str  # the loading plan with the proposed blocks, as YAML; "": none are proposed
    blocks: int  # proposed
    as_in_file: tuple[str, ...] = ()  # sites of which the table in the file is compared


class AcceptProposal(Request, frozen=True):
    """Accept a proposed loading plan, as shown: its next version, attached for the study."""

    dataset: str
    yaml: str
