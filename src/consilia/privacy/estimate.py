"""What an experiment would cost each site's patients, before anybody is asked. Pure.

Only a site knows what it has spent and what it still allows (privacy.ledger), so this is what
the experiment would add by itself: every round with every site, at the experiment's delta.
"""

from collections.abc import Sequence

from consilia.privacy.accountant import compose, cost, epsilon
from consilia.privacy.noise import few_sites
from consilia.wire.people import Experiment, PrivacyEstimateView
from consilia.wire.v1 import Dp

LARGE = 10.0  # an epsilon that promises little
CELL = 1.0  # by how much a record changes what is told of a model: it is in one cell


def noise_of(experiment: Experiment) -> Dp | None:
    """Return the mechanism of one evaluation, None where it has no noise."""
    dp, wanted = experiment.privacy.dp if experiment.privacy else None, experiment.evaluate
    if dp is None or wanted is None or not wanted.noise_multiplier > 0:
        return None
    return Dp(
        dp.level,
        wanted.noise_multiplier,
        CELL,
        delta=dp.delta,
        distributed=True,
        colluding=dp.colluding,
    )


def evaluations(experiment: Experiment, rounds: int) -> int:
    """Return how often a model is evaluated in so many rounds of all that are planned."""
    wanted = experiment.evaluate
    if wanted is None:
        return 0
    last = rounds >= experiment.rounds
    if not wanted.every:
        return int(last)
    return rounds // wanted.every + int(last and rounds % wanted.every > 0)


def spent(experiment: Experiment, rounds: int, judged: int) -> float | None:
    """Return a site's epsilon after rounds and evaluations of a job, none of them repeated.

    None without differential privacy, and where evaluations told something that no ledger was
    charged for: no epsilon covers what is not in it. A question for statistics has one release
    and no rounds; sites pay for it before they answer.
    """
    dp, noise = experiment.privacy.dp if experiment.privacy else None, noise_of(experiment)
    if dp is None or (judged and noise is None):
        return None
    if experiment.privacy is not None and experiment.privacy.statistics is not None:
        return epsilon(cost(dp), dp.delta)
    costs = [cost(dp, rounds)]
    if noise is not None:
        costs.append(cost(noise, judged))
    return epsilon(compose(costs), dp.delta)


def estimate(experiment: Experiment, sites: Sequence[str]) -> PrivacyEstimateView:
    """Return the epsilon of a round, and of the job at each of `sites`; raise ConfigError.

    Epsilon is None where the experiment asks for no differential privacy: then no number
    bounds what its updates tell.
    """
    dp = None if experiment.privacy is None else experiment.privacy.dp
    if dp is None:
        return PrivacyEstimateView("", experiment.rounds, 0.0, None, None, {})
    judged = evaluations(experiment, experiment.rounds) if noise_of(experiment) else 0
    whole = spent(experiment, experiment.rounds, judged) or 0.0
    warnings = []
    if warning := few_sites(dp, len(sites)):
        warnings.append(warning)
    if whole > LARGE:
        warnings.append(
            f"epsilon {whole:.3g} promises little; sites cap all that is ever spent on their "
            f"patients, by default at {LARGE:g}"
        )
    return PrivacyEstimateView(
        dp.level,
        experiment.rounds,
        dp.delta,
        epsilon(cost(dp), dp.delta),
        whole,
        dict.fromkeys(sorted(sites), whole),
        tuple(warnings),
    )
