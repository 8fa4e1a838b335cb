"""Is a site ready to train in a job? Pure rules over what the site last said of itself."""

from collections.abc import Mapping
from dataclasses import dataclass

from consilia.core.round import JobState
from consilia.wire.v1 import Advertisement, Study

NEVER, OFFLINE = "has never been in touch", "is offline"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a job asks of its sites."""

    study: Study
    study_digest: str
    plan: str  # digest; "" for statistics, which have none


def lack(site: str, needs: Needs, said: Advertisement | None, online: bool) -> str | None:
    """Say what keeps a site from taking part, or None when it is ready."""
    if site not in needs.study.sites:
        return "is not invited to the study"
    if said is None:
        return NEVER
    tags = set(needs.study.tags)
    rules = (
        (online, OFFLINE),
        (needs.study_digest in said.studies, "has not accepted the study"),
        (not needs.plan or needs.plan in said.plans, "has not approved the plan"),
        (
            any(tags <= set(d.tags) for d in said.datasets),
            f"offers no dataset with the tags {', '.join(sorted(tags)) or '(any)'}",
        ),
    )
    return next((why for good, why in rules if not good), None)


# What people read of a lease's status; see wire.people.JobView.sites.
_SHOWN: Mapping[str, str] = {
    "accepted": "reported",
    "rejected": "failed",
    "failed": "failed",
    "declined": "refused",
    "away": "away",
    "cancelled": "ready",
}


def doing(state: JobState, lacking: Mapping[str, str | None]) -> dict[str, str]:
    """Return what every invited site does now; `lacking` tells what keeps it from more."""
    shown = {
        site: "ready" if why is None else "away" if why in (NEVER, OFFLINE) else "waiting"
        for site, why in lacking.items()
    }
    if state.phase in ("running", "closing"):
        for lease in state.leases.values():
            status = "training" if lease.delivered else "waiting"
            shown[lease.site] = _SHOWN.get(lease.status, status)
    return shown
