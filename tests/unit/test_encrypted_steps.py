"""Encrypted rounds: how many must go on, what fails them, who may ask for one."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from typing import Literal

import msgspec
import pytest

from consilia.core.events import JobState
from consilia.core.round import (
    Accepted,
    Close,
    CloseFailed,
    Command,
    Event,
    Joined,
    RoundConfig,
    Settled,
    Spoke,
    Started,
    Tell,
    advance,
    new_job,
)
from consilia.hub import experiments
from consilia.node import policy
from consilia.privacy import ckks
from consilia.wire.people import Experiment
from consilia.wire.v1 import Dp, Privacy, Study

SITES = ("a", "b", "c", "d")
SPOKEN: tuple[Literal["keys", "shares", "consent", "unmask"], ...] = (
    "keys",
    "shares",
    "consent",
    "unmask",
)
CKKS = Privacy(aggregation="ckks")


class Round:
    """One encrypted round of four sites, walked step by step."""

    def __init__(self) -> None:
        config = RoundConfig(1, min_updates=3, min_sites=4, masked=True, encrypted=True)
        self.state: JobState = new_job("j", config)
        for site in SITES:
            self.feed(Joined(0.0, site))
        self.commands: list[Command] = []
        self.feed(Started(0.0, "base", {}))

    def feed(self, event: Event) -> tuple[Command, ...]:
        self.state, commands = advance(self.state, event)
        return commands

    def do(self, step: str, *sites: str) -> tuple[Command, ...]:
        """Let sites do a step, in order; return what the last of them made the hub do."""
        found: tuple[Command, ...] = ()
        for site in sites:
            lease = f"j.1.0.{site}"
            if step == "update":
                found = self.feed(Accepted(1.0, lease, f"b3:{site}", 40, {}))
            for spoken in SPOKEN:
                if step == spoken:
                    found = self.feed(Spoke(1.0, lease, spoken, "word"))
        return found

    def until_unmask(self) -> "Round":
        for step in ("keys", "shares", "update"):
            self.do(step, *SITES)
        told = self.do("consent", "a", "b", "c")  # a threshold of signatures is enough
        assert {c.site for c in told if isinstance(c, Tell)} == set(SITES)
        assert self.state.step == "unmask"
        return self


@pytest.mark.parametrize("site", SITES)
def test_one_site_that_opens_the_sum_ends_the_round(site: str) -> None:
    commands = Round().until_unmask().do("unmask", site)
    (close,) = [c for c in commands if isinstance(c, Close)]
    assert [update[0] for update in close.updates] == list(SITES)


def test_the_round_fails_only_when_nobody_is_left_to_open() -> None:
    round = Round().until_unmask()
    for site in SITES[:3]:
        round.feed(Settled(2.0, f"j.1.0.{site}", "failed", "disk"))
        assert round.state.phase == "running"
    round.feed(Settled(2.0, "j.1.0.d", "failed", "disk"))
    assert round.state.phase == "failed"
    assert "found 0 of 1 sites that unmask" in round.state.cause


@pytest.mark.parametrize("steps", [("keys", "shares"), ("keys", "shares", "update")])
def test_a_hub_without_key_or_sum_fails_the_round_with_its_cause(steps: tuple[str]) -> None:
    round = Round()
    for step in steps:
        round.do(step, *SITES)
    round.feed(CloseFailed(2.0, 1, "a broken ciphertext"))
    assert (round.state.phase, round.state.model) == ("failed", "base")
    assert round.state.cause == "round 1 could not be closed: a broken ciphertext"
    assert {lease.status for lease in round.state.leases.values()} == {"cancelled"}


def test_a_failure_of_another_round_changes_nothing() -> None:
    round = Round()
    before = round.state
    assert round.feed(CloseFailed(2.0, 2, "late")) == () and round.state is before


# ---- asking for one --------------------------------------------------------------------------


def found(privacy: Privacy) -> Iterator[str]:
    experiment = Experiment(study="s", plan="sha256:" + "0" * 64, rounds=1, privacy=privacy)
    return (p.field for p in experiments.problems(experiment) if "privacy" in p.field)


def test_what_an_experiment_may_ask_for() -> None:
    pytest.importorskip("tenseal", reason="needs the extra consilia[he]")
    assert list(found(CKKS)) == []
    noise = Dp("client", 1.0, 1.0, distributed=True)
    wrong = {
        "privacy.range": Privacy("ckks", range=2 * ckks.REACH),
        "privacy.bits": Privacy("ckks", bits=16),
        "privacy.dp.distributed": Privacy("ckks", range=64.0, dp=noise),
        "range": Privacy("ckks", range=2.0, dp=Dp("client", 1.0, 1.0)),
    }
    for field, privacy in wrong.items():
        assert field in {name.removeprefix("privacy.") for name in found(privacy)} | set(
            found(privacy)
        ), field


def test_a_study_of_three_is_settled_like_a_masked_one() -> None:
    study = Study("s", "p", ("a", "b", "c"), ("t",))
    asked = Experiment(study="s", plan="p", rounds=1, privacy=CKKS, min_updates=1)
    settled = experiments.settled(asked, study)
    assert (settled.min_updates, settled.min_sites) == (3, 3)
    config = experiments.rounds_of(settled)
    assert config.masked and config.encrypted
    plain = msgspec.structs.replace(asked, privacy=Privacy())
    assert not experiments.rounds_of(plain).masked


def test_without_tenseal_the_remedy_is_named() -> None:
    """In a process of its own, where it cannot be imported: as where it is not installed."""
    code = "import sys; sys.modules['tenseal'] = None; from consilia.privacy import ckks; ckks."
    done = subprocess.run(
        [sys.executable, "-c", code + "require()"], capture_output=True, text=True, check=False
    )
    assert "ConfigError" in done.stderr and "pip install 'consilia[he]'" in done.stderr


@pytest.mark.parametrize(
    ("cohort", "problem"),
    [
        (SITES, None),
        (("a", "b"), "three are the fewest"),
        ((), "three are the fewest"),
        (("a", "b", "x"), "which the study does not invite"),
    ],
)
def test_a_site_judges_it_as_a_masked_round(
    cohort: tuple[str, ...], problem: str | None
) -> None:
    grant = policy.StudyGrant("s", frozenset(), date.max, sites=SITES)
    held = policy.Policy(studies={"d": grant})
    request = policy.Request(
        kind="train",
        study="d",
        study_name="s",
        plan="p",
        tags=frozenset(),
        arguments={},
        model="b3:1",
        timeout=9.0,
        privacy=CKKS,
        cohort=cohort,
    )
    said = "; ".join(policy.decide(request, held, date.today()).objections)
    assert problem in said if problem else "cohort" not in said and "unmasked" not in said
