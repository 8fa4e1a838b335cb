"""What an experiment would cost each site's patients, before anybody is asked. Pure.

Only a site knows what it has spent and what it still allows (privacy.ledger), so this is what
the experiment would add by itself: every round with every site, at the experiment's delta.
"""

from collections.abc import Sequence

from consilia.privacy.accountant import cost, epsilon
from consilia.privacy.noise import few_sites
from consilia.wire.people import Experiment, PrivacyEstimateView

LARGE = 10.0  # an epsilon that promises little


def estimate(experiment: Experiment, sites: Sequence[str]) -> PrivacyEstimateView:
    """Return the epsilon of a round, and of the job at each of `sites`; raise ConfigError.

    Epsilon is None where the experiment asks for no differential privacy: then no number
    bounds what its updates tell.
    """
    dp = None if experiment.privacy is None else experiment.privacy.dp
    if dp is None:
        return PrivacyEstimateView("", experiment.rounds, 0.0, None, None, {})
    whole = epsilon(cost(dp, experiment.rounds), dp.delta)
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
