"""What an experiment would cost, asked of a real hub over its API."""

from collections.abc import Iterator

import pytest
from restkit import RestHub, running_hub, study

from consilia.errors import ConfigError, NotFound
from consilia.privacy.accountant import cost, epsilon
from consilia.wire.people import Experiment
from consilia.wire.v1 import Dp, Privacy

DP = Dp("record", 2.0, 1.0, 0.1, 20)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestHub]:
    with running_hub(tmp_path_factory.mktemp("hub")) as running:
        with running.client("operator") as operator:
            for name in ("ada", "bob"):
                token = operator.new_token(name, "researcher")
                assert token.secret is not None
                running.tokens[name] = token.secret
        yield running


def test_the_hub_and_the_client_estimate_the_same(hub: RestHub) -> None:
    asked = Experiment("costly", "sha256:" + "0" * 64, 5, privacy=Privacy(dp=DP))
    with hub.client("ada") as ada:
        ada.create_study(study("costly"))
        found = ada.estimate_privacy(asked)
        assert found == ada.estimate_privacy(asked, ["north", "south"])
        assert found.sites == dict.fromkeys(("north", "south"), epsilon(cost(DP, 5), 1e-5))
        wrong = Experiment("costly", asked.plan, 5, privacy=Privacy(dp=Dp("record", -1.0, 1.0)))
        with pytest.raises(ConfigError, match="noise_multiplier"):
            ada.estimate_privacy(wrong)
    with hub.client("bob") as bob, pytest.raises(NotFound):
        bob.estimate_privacy(asked)
