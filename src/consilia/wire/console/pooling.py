"""A dataset of this site in a study's data centre: who asks, who gets it, what was sent."""

from typing import Literal

from consilia.wire.console import Request, View


class LeavingView(View, frozen=True):
    """What would leave of one dataset: as tasks load it."""

    dataset: str
    records: int
    plan: str  # the loading plan in force with its version, "" for none
    problem: str  # why it cannot be sent now, "" when it can


class PooledView(View, frozen=True):
    """One copy, as this node knows it."""

    site: str  # whose records
    state: str  # preparing sent withdrawn held deleted
    dataset: str  # here
    records: int
    digest: str  # of the table
    at: float  # Unix seconds
    by: str


class PoolView(View, frozen=True):
    """The pool of one study, seen from this site."""

    digest: str
    study: str
    state: str  # of the study here
    role: Literal["none", "asked", "data_centre", "other"]  # what this site is in it
    data_centre: str  # "": the study has none
    pooled: tuple[str, ...]  # the sites asked
    words: str  # of the data centre's pinned key, "" for none
    key: str  # pinned changed new unknown own: how the data centre's key stands here
    open: bool  # at the data centre: whether it takes copies
    leaving: tuple[LeavingView, ...]  # datasets here that the study could be sent
    copies: tuple[PooledView, ...]


class ArrivalView(View, frozen=True):
    """A sealed copy of a site that lies at the hub, for the data centre to take."""

    site: str
    upload: str
    records: int  # as its site tells it, rounded
    bytes: int
    taken: bool


class ArrivalsView(View, frozen=True):
    """What the sites of a study have sent to this data centre."""

    arrivals: tuple[ArrivalView, ...]


class SendCopy(Request, frozen=True):
    """Let a copy of a dataset leave this site; `to` names who gets it, once more."""

    dataset: str
    to: str
    reason: str


class TakeCopy(Request, frozen=True):
    """At the data centre: take a site's copy in."""

    site: str
    reason: str
