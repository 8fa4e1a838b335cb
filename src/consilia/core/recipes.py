"""What differs between the kinds of rounds: quorum, whom they ask, how long they wait."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from consilia.core.events import JobState, Kind, RoundConfig
from consilia.core.select import Selection, order, select


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one kind of round needs."""

    quorum: Callable[[RoundConfig], int]  # updates it closes with at least
    grace: Callable[[RoundConfig], float]  # seconds it waits for the rest after quorum
    ask: Callable[[JobState], Iterable[str]]  # sites to lease to when it opens
    replaces: bool  # whether a site that cannot go on is replaced by another ready one


def able(state: JobState) -> frozenset[str]:
    """Return the ready sites that the open round, or the one to open next, may ask."""
    judging = state.config.evaluating
    chosen = state.config.trainers
    if state.evaluating:
        chosen = judging.sites if judging is not None else ()
    return state.ready & frozenset(chosen) if chosen else state.ready


def _ask_one(state: JobState) -> Iterable[str]:
    """Return the first ready site, by seeded rank, not yet asked since the round opened."""
    asked = {lease.site for lease in state.leases.values()}
    return order(able(state) - asked, state.config.seed, state.round)[:1]


def _ask_many(state: JobState) -> Iterable[str]:
    """Return the selected sites without those whose update was kept from before a resume."""
    rule, config = state.config.selection, state.config
    rule = Selection(rule.fraction, max(rule.minimum, config.min_updates))
    kept = {lease.site for lease in state.leases.values()}
    chosen = select(able(state) | kept, rule, config.seed, state.round)
    return (site for site in chosen if site not in kept)


def _ask_all(state: JobState) -> Iterable[str]:
    """Return the ready sites that may evaluate, without those that already have."""
    return sorted(able(state) - {lease.site for lease in state.leases.values()})


RECIPES: Mapping[Kind, Recipe] = {
    "init": Recipe(lambda _: 1, lambda _: 0.0, _ask_one, replaces=True),
    "train": Recipe(lambda c: c.min_updates, lambda c: c.grace, _ask_many, replaces=False),
    # Every site counts for itself: all that are there are waited for (steps.expected).
    "evaluate": Recipe(lambda _: 1, lambda c: c.deadline, _ask_all, replaces=False),
    "statistics": Recipe(lambda c: c.min_updates, lambda c: c.grace, _ask_all, replaces=False),
}
