"""What an experiment may ask of evaluations: each problem as field, what was found, needed."""

import math
from collections.abc import Iterator, Sequence

from consilia.hub.assessing import HOLDOUT
from consilia.wire.people import Evaluate, Experiment
from consilia.wire.v1 import Scalar

MOST_SUBGROUPS = 8  # columns
MOST_LEVELS = 20  # of one column
MOST_ROUNDS = 1_000_000
MAX_TEXT = 200

Problem = tuple[str, str, str]


def problems(e: Experiment) -> Iterator[Problem]:
    """Yield what is wrong with the evaluation that an experiment asks for."""
    stop = e.early_stop
    seldom = e.evaluate is None or e.evaluate.every < 1
    if stop is not None and stop.metric.startswith(HOLDOUT) and seldom:
        needed = "evaluate: {every: 1} or more, for a metric of hold-outs"
        yield "early_stop.metric", repr(stop.metric[:80]), needed
    if e.evaluate is None:
        return
    wanted = e.evaluate
    for field, found in (("every", wanted.every), ("local_rounds", wanted.local_rounds)):
        if not 0 <= found <= MOST_ROUNDS:
            yield f"evaluate.{field}", f"{found}", f"0 to {MOST_ROUNDS}"
    if e.rounds == 0 and wanted.benefit and not wanted.local_rounds:
        needed = "how many rounds each site's own model is trained, as no other is"
        yield "evaluate.local_rounds", "0", needed
    yield from _subgroups(wanted)


def strangers(e: Experiment, invited: Sequence[str]) -> Iterator[Problem]:
    """Yield the sites that an experiment names and its study does not."""
    named = {"sites": e.sites, "evaluate.at": e.evaluate.at if e.evaluate else ()}
    for field, sites in named.items():
        if odd := sorted(set(sites) - set(invited)):
            yield field, ", ".join(odd)[:200], f"sites of the study: {', '.join(invited)}"
    if e.sites and len(set(e.sites)) < max(e.min_sites, e.min_updates):
        yield "sites", f"{len(set(e.sites))}", "as many as min_sites and min_updates ask for"


def _subgroups(wanted: Evaluate) -> Iterator[Problem]:
    if len(wanted.subgroups) > MOST_SUBGROUPS:
        yield "evaluate.subgroups", f"{len(wanted.subgroups)}", f"at most {MOST_SUBGROUPS}"
    for column, values in wanted.subgroups.items():
        field = f"evaluate.subgroups.{column[:80]}"
        if not 1 <= len(column) <= MAX_TEXT:
            yield field, f"a name of {len(column)} characters", f"1 to {MAX_TEXT}"
        if not 1 <= len(values) <= MOST_LEVELS or len(set(values)) < len(values):
            yield field, f"{len(values)} values", f"1 to {MOST_LEVELS}, each once"
        elif not (all(isinstance(v, str) for v in values) or _rising(values)):
            needed = "levels, as texts, or rising cut points, as numbers"
            yield field, ", ".join(map(repr, values))[:200], needed
        elif any(isinstance(v, str) and not 0 < len(v) <= MAX_TEXT for v in values):
            yield field, "a level without a name, or with a long one", f"1 to {MAX_TEXT}"


def _rising(values: Sequence[Scalar]) -> bool:
    numbers = [
        float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)
    ]
    good = len(numbers) == len(values) and all(map(math.isfinite, numbers))
    return good and numbers == sorted(numbers)
