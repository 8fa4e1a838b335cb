"""Patients who opted out: how many, since when, and what follows. No identity is ever sent."""

from consilia.wire.console import Request, View


class OptOutChange(View, frozen=True):
    """One change of the list, as the audit trail tells it."""

    at: float
    actor: str
    added: bool
    detail: str  # counts only


class CohortView(View, frozen=True):
    """What the list does to one dataset.

    `waits` says why the next task without differential privacy waits, "" when it need not.
    """

    dataset: str
    patient: str  # its column of patient ids; "": nobody can be left out
    records: int
    left: int  # records that tasks load
    patients: int  # left out now
    changed: int | None  # patients since the last task; None: no task ran yet
    waits: str
    problem: str  # why the list does not apply yet


class OptOutView(View, frozen=True):
    """The opt-out list without identities."""

    patients: int
    k: int  # changes of fewer patients than this wait
    cohorts: tuple[CohortView, ...]
    history: tuple[OptOutChange, ...]  # newest first


class AddOptOuts(Request, frozen=True):
    """Put patients on the list: one id a line, # begins a comment."""

    ids: str


class RemoveOptOut(Request, frozen=True):
    """Take a patient off the list who takes part again."""

    id: str


class OptOutChanged(View, frozen=True):
    """What a change did. `unknown` of the given ids are in no dataset here."""

    given: int
    changed: int
    unknown: int
    problems: tuple[str, ...]  # datasets on which no task runs until this is mended
    list: OptOutView
