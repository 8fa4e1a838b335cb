"""The API and its OpenAPI document say the same: requests made from it, to a real hub."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from restkit import CONFIG, RestHub, plan, running_hub, study

from consilia.hub import atrest
from consilia.wire.people import Experiment

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
conformance = pytest.importorskip("schemathesis.specs.openapi.checks")
CHECKS = (
    schemathesis.checks.not_a_server_error,
    conformance.status_code_conformance,
    conformance.content_type_conformance,
    conformance.response_schema_conformance,
)
EXAMPLES = 4  # of each operation


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestHub]:
    directory = tmp_path_factory.mktemp("document") / "hub"
    atrest.init(directory, CONFIG)
    with running_hub(directory) as hub:
        with hub.client("operator") as client:
            client.create_study(study("heart"))
            client.submit_study("heart")
            digest = client.submit_plan("heart", plan()).digest
            client.start(Experiment(study="heart", plan=digest, rounds=3))
        yield hub


def asked(operation: Any, hub: RestHub) -> None:
    """Send an operation requests made from its description, and judge every answer."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy())
    def judge(case: Any) -> None:
        answer = case.call(
            base_url=hub.addresses.people,
            headers={"Authorization": f"Bearer {hub.tokens['operator']}"},
            verify=str(hub.directory / "secrets/ca.pem"),
            timeout=120,
        )
        case.validate_response(answer, checks=CHECKS)

    judge()


@pytest.mark.slow
def test_every_operation_answers_as_described(hub: RestHub) -> None:
    with hub.http("operator") as client:
        described = client.get("/api/v1/openapi.json").json()
    schema, wrong, count = schemathesis.openapi.from_dict(described), list[str](), 0
    for found in schema.get_all_operations():
        operation = found.ok()
        count += 1
        try:
            asked(operation, hub)
        except (Exception, ExceptionGroup) as e:
            wrong.append(f"{operation.label}: {e}")
    assert not wrong, "\n\n".join(wrong)
    assert count > 60
