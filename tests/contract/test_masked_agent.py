"""The agent in masked rounds: what it says, says again after any restart, and never says."""

import time
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

from consilia.core.round import Closed, Stopped
from consilia.node import studies
from consilia.privacy import masked, secagg
from consilia.wire.v1 import Declined, Failed, Lease, Privacy, Result, Word
from maskedkit import (
    CONFIG,
    HEARTS,
    PLAN,
    SITES,
    TOTAL,
    Lab,
    lab,
    mean_amount,
)
from nodekit import SITE, STUDY, base_model, until
from nodekit import lease as plain_lease

STEPS = ("keys", "shares", "update", "consent", "unmask")
ERROR = 8 * 2.0**-31  # of one rounding step, at the usual range
WHOLE = ["keys", "shares", "consent", "unmask"]


def did(x: Lab, lease: Lease, step: str) -> bool:
    """Tell whether the hub has what the node does in a step."""
    if step == "update":
        return isinstance(x.hub.settled(lease.id), Result) or lease.id in x.hub.updates
    return step in x.hub.state.leases[lease.id].words


def check_sum(x: Lab, sites: tuple[str, ...] = SITES) -> None:
    assert [site for site, *_ in x.hub.closes[-1].updates] == list(sites)
    mean, _ = x.hub.sum()
    change = mean["w"] - x.hub.base["w"]
    np.testing.assert_allclose(change, mean_amount(sites), atol=2 * len(sites) * ERROR)


async def test_a_masked_round_from_keys_to_the_sum(tmp_path: Path) -> None:
    async with lab(tmp_path) as x, x.node.running():
        x.hub.begin(base_model())
        await until(lambda: x.hub.closes)
        assert x.hub.steps_said() == WHOLE
        assert x.hub.heard_of == ["roster", "inbox", "survivors", "consents"]
        check_sum(x)
        _, fold = x.hub.sum()
        loss = (0.25 * 630 + 0.5 * 120) / 750
        assert fold.metrics[0] == pytest.approx(loss, abs=1e-5)
        assert fold.weight * TOTAL == pytest.approx(750, abs=1e-6)
        assert x.rows() == 1, "the secrets are needed until the round is over"
        x.hub.feed(Closed(2.0, 1, "b3:1"))
        await until(lambda: not x.rows() and not x.node.agent.status().tasks)
        assert x.node.details("mask.join") and x.node.details("mask.consent")
        assert len(x.node.details("mask.open")) == 1


# ---- restarts --------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
async def test_an_agent_restarted_in_any_step_says_the_very_same(
    tmp_path: Path, step: str
) -> None:
    async with lab(tmp_path) as x:
        x.hub.hold = frozenset({step})
        async with x.node.running():
            lease = x.hub.begin(base_model())
            await until(partial(did, x, lease, step))
        async with x.node.running():
            x.hub.go()
            await until(lambda: x.hub.closes)
            x.hub.feed(Closed(2.0, 1, "b3:1"))
            await until(lambda: not x.rows())
        words: dict[str, set[bytes]] = {}
        for said, sealed in x.hub.said:
            words.setdefault(said.step, set()).add(sealed.payload + sealed.signature)
        assert {name: len(found) for name, found in words.items()} == dict.fromkeys(WHOLE, 1)
        if step in ("consent", "unmask"):
            assert x.hub.steps_said().count(step) >= 2, "it has said nothing after its start"
            assert x.node.runs.tasks == ["job-1.1"], "it trained again what the hub has"
        check_sum(x)


@pytest.mark.parametrize("step", STEPS)
async def test_a_hub_that_comes_back_in_any_step_loses_no_word(
    tmp_path: Path, step: str
) -> None:
    async with lab(tmp_path) as x, x.node.running():
        x.hub.hold = frozenset({step})
        lease = x.hub.begin(base_model())
        await until(partial(did, x, lease, step))
        x.hub.hold = frozenset()
        x.hub.restart()
        await until(lambda: x.hub.closes)
        check_sum(x)


@pytest.mark.parametrize("step", STEPS)
async def test_hub_and_agent_restart_together(tmp_path: Path, step: str) -> None:
    async with lab(tmp_path) as x:
        x.hub.hold = frozenset({step})
        async with x.node.running():
            lease = x.hub.begin(base_model())
            await until(partial(did, x, lease, step))
        x.hub.hold = frozenset()
        x.hub.restart()
        async with x.node.running():
            await until(lambda: x.hub.closes)
        check_sum(x)


@pytest.mark.parametrize("step", STEPS)
async def test_an_agent_whose_round_ended_while_it_was_away_forgets_it(
    tmp_path: Path, step: str
) -> None:
    async with lab(tmp_path) as x:
        x.hub.hold = frozenset({step})
        async with x.node.running():
            lease = x.hub.begin(base_model())
            await until(partial(did, x, lease, step))
        assert x.rows() == 1
        x.hub.feed(Stopped(2.0, "by a person"))
        said = len(x.hub.said)
        async with x.node.running():
            await until(lambda: not x.rows())
            await until(lambda: not x.node.agent.status().tasks)
        assert len(x.hub.said) <= said + 1, "it spoke on in a round that was over"
        assert not x.store.rows("SELECT 1 FROM leases WHERE settled = 0")


async def test_a_mask_that_was_used_is_not_used_again(tmp_path: Path) -> None:
    """An agent killed between masking and storing its update: the mask is lost, and it leaves."""
    async with lab(tmp_path) as x:
        x.hub.hold = frozenset({"shares"})
        async with x.node.running():
            lease = x.hub.begin(base_model())
            await until(partial(did, x, lease, "shares"))
        x.hub.go()
        await until(lambda: "inbox" in [word.step for word in x.hub.words[lease.id]])
        masking = x.node.agent._release.masking  # as the killed agent's own thread did
        inbox = next(word for word in x.hub.words[lease.id] if word.step == "inbox")
        masking.hear(lease, inbox)
        base = tmp_path / "hub" / (lease.task.model or "").removeprefix("b3:")
        masking.mask(lease, base, base, tmp_path / "lost", 120, {})
        async with x.node.running():
            await until(lambda: x.hub.settled(lease.id))
            assert x.hub.settled(lease.id) == Declined(lease.id)
            assert lease.id not in x.hub.uploads
            assert "masked an update of this round already" in x.node.details("release.refuse")[0]
            await until(lambda: x.hub.closes)
        assert x.rows() == 0
        check_sum(x, tuple(site for site in SITES if site != SITE))


# ---- what it refuses -------------------------------------------------------------------------


async def refused(x: Lab, lease: Lease, reason: str) -> None:
    """Wait for a refusal; nothing has left but it, and the site can read why."""
    await until(lambda: x.hub.settled(lease.id))
    assert x.hub.settled(lease.id) == Declined(lease.id), "a reason has left the site"
    assert x.hub.uploads == {}
    details = [d for a in ("task.refuse", "task.stop", "release.refuse") for d in x.node.details(a)]
    assert [d for d in details if reason in d], details
    await until(lambda: not x.node.agent.status().tasks)
    assert x.rows() == 0


async def test_a_site_that_is_not_pinned_is_refused(tmp_path: Path) -> None:
    async with lab(tmp_path, pinned=False) as x, x.node.running():
        lease = x.hub.begin(base_model())
        await refused(x, lease, "the keys of aachen, charite, leuven, oslo are not pinned")
        assert x.hub.said == []


async def test_a_key_that_changed_since_it_was_pinned_is_refused(tmp_path: Path) -> None:
    async with lab(tmp_path) as x, x.node.running():
        with x.store.write() as tx:
            tx.execute("UPDATE pins SET key = ? WHERE site = 'leuven'", (bytes(32),))
        lease = x.hub.begin(base_model())
        await refused(x, lease, "keys of site 'leuven' are not signed with the key accepted")
        assert x.hub.steps_said() == ["keys"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cohort": SITES[:2]}, "a cohort of 2 sites cannot be masked"),
        ({"cohort": (SITE, SITE, SITE)}, "cannot be masked"),
        ({"cohort": ()}, "a cohort of 0 sites cannot be masked"),
        ({"cohort": ("aachen", "leuven", "oslo")}, "this one among them"),
        ({"cohort": (*SITES, "phantom")}, "which the study does not invite"),
        ({"privacy": Privacy()}, "would leave unmasked"),
        ({"privacy": Privacy(aggregation="ckks")}, "unknown here"),
    ],
)
async def test_a_round_that_protects_nobody_is_refused(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    async with lab(tmp_path) as x, x.node.running():
        x.hub.changes = changes
        lease = x.hub.begin(base_model())
        await refused(x, lease, reason)
        assert x.hub.said == [] and x.node.runs.tasks == []


async def test_an_update_that_would_weigh_more_than_all_is_refused(tmp_path: Path) -> None:
    async with lab(tmp_path) as x, x.node.running():
        x.hub.changes = {"total": 119}
        lease = x.hub.begin(base_model())
        await refused(x, lease, "120 records would be weighed against 119")


@pytest.mark.parametrize(("reach", "fits"), [(1.0, True), (0.999, False)])
async def test_a_change_beyond_the_range_fails_and_leaves_nothing(
    tmp_path: Path, reach: float, fits: bool
) -> None:
    async with lab(tmp_path) as x, x.node.running():
        x.hub.privacy = Privacy(aggregation="secure", range=reach)
        x.hub.hold = frozenset({"update"})  # the others' changes are larger
        lease = x.hub.begin(base_model())
        await until(lambda: x.hub.settled(lease.id) and not isinstance(x.hub.reports[-1], type(None)))
        await until(lambda: isinstance(x.hub.settled(lease.id), Result | Failed))
        found = x.hub.settled(lease.id)
        assert isinstance(found, Result) == fits
        if not fits:
            assert found == Failed(lease.id, "plan-contract")
            assert x.hub.uploads == {} and x.rows() == 0
            await until(lambda: not x.node.agent.status().tasks)


# ---- a second view is never answered ---------------------------------------------------------


@pytest.mark.parametrize("step", ["roster", "inbox", "survivors", "consents"])
@pytest.mark.parametrize("restart", [False, True])
async def test_a_second_different_word_changes_nothing(
    tmp_path: Path, step: str, restart: bool
) -> None:
    after = {"roster": "shares", "inbox": "update", "survivors": "consent", "consents": "unmask"}
    async with lab(tmp_path) as x:
        x.hub.hold = frozenset({after[step]})
        async with x.node.running():
            lease = x.hub.begin(base_model())
            await until(partial(did, x, lease, after[step]))
            before = x.store.rows("SELECT heard, said, member FROM masked")
            other = Word(lease.id, decode_step(step), forged(x, lease, step))
            words = x.hub.words[lease.id]
            x.hub.words[lease.id] = [other if w.step == step else w for w in words]
            if not restart:
                x.hub.words[lease.id] = [*words, other]
                x.hub.restart_polls()
                await until(lambda: x.hub.polls >= 1)
                polls = x.hub.polls
                x.hub.restart_polls()
                await until(lambda: x.hub.polls > polls)
        if restart:
            async with x.node.running():
                polls = x.hub.polls
                await until(lambda: x.hub.polls >= polls + 2)
        assert x.store.rows("SELECT heard, said, member FROM masked") == before
        payloads = {said.step: set[bytes]() for said, _ in x.hub.said}
        for said, _ in x.hub.said:
            payloads[said.step].add(said.body)
        assert all(len(bodies) == 1 for bodies in payloads.values())


def decode_step(step: str) -> "masked_step":
    raise NotImplementedError(step)
