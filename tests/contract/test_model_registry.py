"""The model registry over the people's API: proposing, releasing, retiring, cards, and who
may see what of it."""

import asyncio
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
from restkit import CONFIG, RestHub, put_version, running_hub, weights

from consilia.errors import ConfigError, Conflict, NotFound, Refused
from consilia.hub import atrest, audit, modelversions, records
from consilia.hub.config import Retention
from consilia.hub.modelversions import Version
from consilia.hub.retention import surplus
from consilia.hub.stages import Decision, add
from consilia.sdk.card import comparison, markdown
from consilia.sdk.client import Client
from consilia.wire import frames
from consilia.wire.v1 import Plan, plan_digest

ROOT = Path(__file__).parents[2]
HEART = """
import torch
from torch import nn
from consilia.plans.torch import torch_plan

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.zeros(1000)), nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return x * self.w[:2] + self.b[0]

PLAN = torch_plan(
    lambda args: Scaled(), lambda *_: {}, features=["age", "bp"], target="ill",
    arguments={"lr": 0.5},
)
"""
PEOPLE = {"ada": "researcher", "bob": "researcher", "rob": "reviewer", "dan": "downstream"}


@pytest.fixture
def seeded(tmp_path: Path) -> Iterator[tuple[RestHub, Version]]:
    directory = tmp_path / "hub"
    atrest.init(directory, CONFIG)
    version = put_version(directory, "ada", weights())
    plan = Plan("heart", {"heart.py": HEART}, "heart:PLAN")
    second = replace(
        version, id=f"{version.job}.2", round=2, parent=version.id, plan=plan_digest(plan)
    )

    def enter(db: sa.Connection) -> None:
        records.add_plan(db, plan, "finished", "ada", 1.0)
        modelversions.add(db, second)

    with atrest.at_rest(directory) as (store, _):
        asyncio.run(store.write(enter))
    with running_hub(directory) as hub:
        for name, role in PEOPLE.items():
            hub.add(name, role)
        yield hub, version


@pytest.fixture
def hub(seeded: tuple[RestHub, Version]) -> RestHub:
    return seeded[0]


@pytest.fixture
def model(seeded: tuple[RestHub, Version]) -> str:
    return seeded[1].id


@pytest.fixture
def people(hub: RestHub) -> Iterator[dict[str, Client]]:
    clients = {name: hub.client(name) for name in (*PEOPLE, "operator")}
    yield clients
    for client in clients.values():
        client.close()


def test_an_alarms_site_is_for_those_who_read_the_whole_trail(tmp_path: Path) -> None:
    directory = tmp_path / "hub"
    atrest.init(directory, CONFIG)
    made = put_version(directory, "ada", weights())
    line = partial(audit.append, at=1.0, actor="hub", action="round.alarm", subject=made.id,
                   detail="norm: site charite's update is 80 times the median")  # fmt: skip
    with atrest.at_rest(directory) as (store, _):
        asyncio.run(store.write(line))
    with running_hub(directory) as hub:
        for name, role, named in (
            ("ada", "researcher", False), ("rob", "reviewer", False), ("eve", "auditor", True)
        ):  # fmt: skip
            hub.add(name, role)
            with hub.client(name) as person:
                (told,) = [x for x in person.job_audit(made.job) if x.action == "round.alarm"]
            assert ("charite" in told.detail, told.subject) == (named, made.id), role


def test_a_model_goes_through_its_stages(
    hub: RestHub, people: dict[str, Client], model: str, tmp_path: Path
) -> None:
    ada, rob, dan = people["ada"], people["rob"], people["dan"]
    assert ada.model(model).stage == ""
    assert dan.model_versions() == []
    with pytest.raises(NotFound):
        dan.model(model)
    assert ada.set_stage(model, "candidate", "best on the hold-out").stage == "candidate"
    assert [m.id for m in ada.model_versions(stage="candidate")] == [model]
    with pytest.raises(NotFound):
        dan.download_model(model, tmp_path / "early")
    assert rob.set_stage(model, "released", "checked against the protocol").stage == "released"
    assert [m.stage for m in dan.model_versions()] == ["released"]
    assert dan.model_versions(stage="candidate") == []
    dan.download_model(model, tmp_path / "frame")
    assert set(frames.read(tmp_path / "frame")) == {"w", "b"}
    assert ("user:dan", model) in hub.lines("model.read")
    rob.set_stage(model, "retired", "a better one is out")
    with pytest.raises(NotFound):
        dan.model_card(model)
    card = ada.model_card(model)
    assert [(s.stage, s.actor) for s in card.stages] == [
        ("candidate", "ada"),
        ("released", "rob"),
        ("retired", "rob"),
    ]
    assert hub.lines("model.released") == [("user:rob", model)]


def test_a_release_takes_two_people(people: dict[str, Client], model: str) -> None:
    with pytest.raises(Conflict, match="not proposed: from there it can become candidate"):
        people["rob"].set_stage(model, "released", "at once")
    people["rob"].set_stage(model, "candidate", "looks well")
    with pytest.raises(Refused, match="rob proposed model version"):
        people["rob"].set_stage(model, "released", "my own")
    with pytest.raises(Refused, match="a reviewer or an operator releases"):
        people["ada"].set_stage(model, "released", "mine")
    assert people["operator"].set_stage(model, "released", "agreed").stage == "released"
    with pytest.raises(Conflict, match="is released: from there it can become retired"):
        people["operator"].set_stage(model, "candidate", "again")


def test_who_made_it_cannot_release_it_in_another_role(hub: RestHub, model: str) -> None:
    """One person with two tokens is one person."""
    with hub.client("operator") as operator:
        hub.tokens["ada-reviews"] = operator.new_token("ada", "reviewer").secret or ""
        operator.set_stage(model, "candidate", "well")
    with (
        hub.client("ada-reviews") as client,
        pytest.raises(Refused, match="ada made model version"),
    ):
        client.set_stage(model, "released", "mine, under another hat")


def test_others_do_not_decide(hub: RestHub, people: dict[str, Client], model: str) -> None:
    with pytest.raises(NotFound):
        people["bob"].set_stage(model, "candidate", "not even seen")
    with pytest.raises(Refused, match="is downstream"):
        people["dan"].set_stage(model, "candidate", "please")
    for reason in ("", "   ", "x" * 2001):
        with pytest.raises(ConfigError, match="a decision needs a reason"):
            people["ada"].set_stage(model, "candidate", reason)
    with hub.http("ada") as client:
        path = f"/api/v1/models/{model}/stage"
        answer = client.post(path, json={"stage": "live", "reason": "x"})
        assert answer.status_code == 400 and "stage" in answer.json()["detail"]
        assert client.get("/api/v1/models?stage=live").status_code == 400
    assert people["ada"].model(model).stage == ""


def test_the_card_tells_what_is_on_record(people: dict[str, Client], model: str) -> None:
    card = people["ada"].model_card(model)
    assert card.model.id == model and card.plan == "finished" and card.lineage == (model,)
    assert [r.round for r in card.rounds] == [1]
    assert card.epsilon is None and any("differential privacy" in c for c in card.caveats)
    (own,) = card.protection
    assert (own.job, own.round, own.aggregation, own.bits) == (card.model.job, 1, "plain", None)
    assert (own.level, own.distributed, own.epsilon) == ("", False, None)
    assert any("Only 2 sites" in c for c in card.caveats)
    text = markdown(card)
    for words in (
        f"# Model {model}".replace("_", "\\_"),
        "to test",
        "| 1 | 2 | 0.5 |",
        "Beware",
    ):
        assert words in text
    (row,) = comparison([card.model])
    assert row["loss"] == 0.5 and "argument lr" not in row


def test_two_versions_are_compared_by_what_differs(
    model: str, people: dict[str, Client]
) -> None:
    first = people["ada"].model(model)
    second = msgspec.structs.replace(
        first, id="other.1", arguments={"lr": 0.5}, metrics={"auc": 0.9}
    )
    rows = comparison([first, second])
    assert [r["argument lr"] for r in rows] == [0.1, 0.5]
    assert [(r["loss"], r["auc"]) for r in rows] == [(0.5, None), (None, 0.9)]


def test_the_how_to_works_as_written(hub: RestHub, model: str, tmp_path: Path) -> None:
    """Each section is run by the person it is for; the last one by the reviewer."""
    page = (ROOT / "docs/how-to/release-a-model.md").read_text("utf-8")
    ca = tmp_path / "ca.pem"
    ca.write_text(hub.ca)
    (tmp_path / "heart.py").write_text(HEART)
    wrote: list[str] = []
    for person, section in zip(
        ("ada", "rob", "dan", "dan", "rob"), page.split("\n## ")[1:], strict=True
    ):
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            "CONSILIA_URL": hub.addresses.people,
            "CONSILIA_TOKEN": hub.tokens[person],
            "CONSILIA_CA": str(ca),
        }
        for line in section.splitlines():
            if line.startswith("$ consilia "):
                wrote.append(_typed(line, environ, tmp_path))
    assert len(wrote) == 11
    assert model in wrote[0] and "loss" in wrote[1] and "candidate" in wrote[3]
    assert "Beware" in (tmp_path / "CARD.md").read_text("utf-8")
    assert "released by rob" in wrote[7]
    assert (tmp_path / "heart.safetensors").stat().st_size > 4000
    assert (tmp_path / "heart.onnx").stat().st_size > 1000
    with hub.client("dan") as dan:
        assert dan.model_versions() == []


def _typed(line: str, environ: dict[str, str], folder: Path) -> str:
    words = shlex.split(line)[2:]
    command = [sys.executable, "-m", "consilia.cli.main", *words]
    done = subprocess.run(
        command, env=environ, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return done.stdout


def test_lineage_goes_back_to_the_uploaded_base(tmp_path: Path) -> None:
    directory = tmp_path / "hub"
    atrest.init(directory, CONFIG)
    first = put_version(directory, "ada", weights())

    def enter(db: sa.Connection) -> tuple[str, ...]:
        for number in (2, 3):
            id, parent = f"{first.job}.{number}", f"{first.job}.{number - 1}"
            modelversions.add(db, replace(first, id=id, round=number, parent=parent))
        db.execute(sa.text("UPDATE versions SET parent = 'b3:base' WHERE round = 1"))
        assert len(modelversions.lineage(db, f"{first.job}.3", most=2)) == 2
        # the rule gives up the first two; a candidate and a released one it may not
        rule = Retention(versions=1)
        assert [v.round for v in surplus(db, rule)] == [2, 1]
        add(db, f"{first.job}.1", Decision(1, "candidate", "ada", 1.0, "x"))
        add(db, f"{first.job}.1", Decision(2, "released", "rob", 2.0, "x"))
        assert [v.round for v in surplus(db, rule)] == [2]
        add(db, f"{first.job}.1", Decision(3, "retired", "rob", 3.0, "x"))
        assert [v.round for v in surplus(db, rule)] == [2, 1]
        return modelversions.lineage(db, f"{first.job}.3")

    with atrest.at_rest(directory) as (store, _):
        found = asyncio.run(store.write(enter))
    assert found == (f"{first.job}.3", f"{first.job}.2", f"{first.job}.1", "b3:base")
