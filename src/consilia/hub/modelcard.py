"""A model version's card: all that is on record of how it came about, and what to beware of."""

from sqlalchemy import Connection

from consilia import __version__
from consilia.hub import records, stages, withdrawals
from consilia.hub.records import JobRecord, Version
from consilia.hub.views import model_view, round_views
from consilia.wire.people import ModelCard, StageView

FEW_SITES = 3  # fewer contribute each so much that a sum hides little


def card(db: Connection, version: Version) -> ModelCard:
    """Return the card of a version."""
    job = records.get_job(db, version.job)
    plan = records.get_plan(db, version.plan).plan
    past = stages.history(db, version.id)
    left = withdrawals.marks(db, (version,)).get(version.id, ())
    rounds = round_views(job, records.job_versions(db, version.job))
    until = tuple(r for r in rounds if r.round <= version.round)
    dp = job.experiment.privacy.dp if job.experiment.privacy else None
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
        lineage=records.lineage(db, version.id),
        epsilon=until[-1].epsilon if until else None,
        delta=dp.delta if dp else None,
        caveats=(*_left(left), *_caveats(job, version)),
        software=__version__,
    )


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
