"""A model version's card: all that is on record of how it came about, and what to beware of."""

from sqlalchemy import Connection

from consilia import __version__
from consilia.hub import modelversions, records, stages, withdrawals
from consilia.hub.modelversions import Version
from consilia.hub.records import JobRecord
from consilia.hub.views import model_view, round_views
from consilia.privacy.estimate import evaluations, spent
from consilia.wire.people import ModelCard, Protection, StageView

FEW_SITES = 3  # fewer contribute each so much that a sum hides little


def card(db: Connection, version: Version) -> ModelCard:
    """Return the card of a version."""
    job = records.get_job(db, version.job)
    plan = records.get_plan(db, version.plan).plan
    past = stages.history(db, version.id)
    left = withdrawals.marks(db, (version,)).get(version.id, ())
    rounds = round_views(job, modelversions.of_job(db, version.job))
    until = tuple(r for r in rounds if r.round <= version.round)
    dp = job.experiment.privacy.dp if job.experiment.privacy else None
    line = modelversions.lineage(db, version.id)
    jobs = protections(db, line)
    return ModelCard(
        model=model_view(version, past[-1].stage if past else "", left),
        stages=tuple(StageView(d.stage, d.actor, d.at, d.reason) for d in past),
        study=records.get_study(db, version.study).study,
        plan=plan.name,
        description=plan.description,
        entry=plan.entry,
        requirements=plan.requirements,
        experiment=job.experiment,
        rounds=until,
        lineage=line,
        protection=jobs,
        epsilon=until[-1].epsilon if until else None,
        delta=dp.delta if dp else None,
        caveats=(*_left(left), *_caveats(job, version), *_inherited(jobs, line)),
        software=__version__,
    )


def protections(db: Connection, line: tuple[str, ...]) -> tuple[Protection, ...]:
    """Return how each job in a lineage protected its updates, newest first.

    A job counts up to the round that the model has of it. A base that somebody has uploaded,
    the last of a lineage then, is of no job.
    """
    found: dict[str, Protection] = {}
    for version in line:
        name, _, number = version.rpartition(".")
        if version.startswith("b3:") or name in found:
            continue
        found[name] = _protection(records.get_job(db, name), int(number))
    return tuple(found.values())


def _protection(job: JobRecord, round: int) -> Protection:
    privacy = job.experiment.privacy
    dp = privacy.dp if privacy else None
    epsilon = spent(job.experiment, round, evaluations(job.experiment, round))
    return Protection(
        job=job.id,
        round=round,
        aggregation=privacy.aggregation if privacy else "plain",
        bits=privacy.bits if privacy and privacy.aggregation == "secure" else None,
        level=dp.level if dp else "",
        distributed=bool(dp and dp.distributed),
        epsilon=epsilon,
        delta=dp.delta if dp else None,
    )


def _inherited(jobs: tuple[Protection, ...], line: tuple[str, ...]) -> list[str]:
    """Say what this version's own privacy does not cover: what it was trained from."""
    found = []
    open_ones = [j.job for j in jobs[1:] if j.level == ""]
    if jobs and jobs[0].level and open_ones:
        found.append(
            f"Its epsilon is of its own job: {', '.join(open_ones)}, which it was trained "
            "from, had no differential privacy."
        )
    if line and line[-1].startswith("b3:"):
        found.append("It began with an uploaded model, of which nothing is on record.")
    return found


def _left(sites: tuple[str, ...]) -> tuple[str, ...]:
    """Say which of the model's sites have left its study since."""
    if not sites:
        return ()
    return (f"Has learnt from sites that have left the study since: {', '.join(sites)}.",)


def _caveats(job: JobRecord, version: Version) -> list[str]:
    """Return what follows from the record alone and a user of the model should know."""
    found: list[str] = []
    privacy = job.experiment.privacy
    if privacy is None or privacy.dp is None:
        found.append(
            "Trained without differential privacy: nothing bounds what the weights reveal of "
            "single patients."
        )
    if privacy is not None and privacy.aggregation == "plain":
        found.append("The hub saw each site's update: they were not securely aggregated.")
    if 0 < len(version.sites) < FEW_SITES:
        found.append(
            f"Only {len(version.sites)} sites are in its last round: each of them can tell "
            "much about the others' part."
        )
    if version.rejected:
        left_out = ", ".join(sorted(version.rejected))
        found.append(f"Left out of its last round: {left_out}.")
    if version.metrics:
        found.append(
            "Its metrics are means of what the sites measured themselves, weighted by their "
            "records; they are no validation on patients of another hospital."
        )
    else:
        found.append("No site has reported a metric of it.")
    return found
