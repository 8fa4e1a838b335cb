"""The agent in masked rounds: what it says, says again after any restart, and never says."""

import asyncio
import os
import time
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import msgspec
import numpy as np
import pytest

from consilia.core.round import Closed, Stopped
from consilia.hub import masking as hub_masking
from consilia.node import studies
from consilia.node.masking import Masking
from consilia.privacy import secagg
from consilia.wire import masks
from consilia.wire.v1 import Declined, Failed, Lease, Privacy, Result, Word, encode
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
    change = mean["w"].astype(np.float64) - x.hub.base["w"].astype(np.float64)
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
            if step != "update":
                await until(lambda: x.hub.steps_said().count(step) == 2)
            x.hub.go()
            await until(lambda: x.hub.closes)
            check_sum(x)
            x.hub.feed(Closed(2.0, 1, "b3:1"))
            await until(lambda: not x.rows())
        words: dict[str, set[bytes]] = {}
        for said, sealed in x.hub.said:
            words.setdefault(said.step, set()).add(sealed.payload + sealed.signature)
        assert {name: len(found) for name, found in words.items()} == dict.fromkeys(WHOLE, 1)
        if step in ("update", "consent", "unmask"):
            assert x.node.runs.tasks == ["job-1.1"], "it trained again what the hub has"


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
    """An agent killed between masking and storing its update: the mask is lost."""
    async with lab(tmp_path) as x:
        x.hub.hold = frozenset({"shares"})
        async with x.node.running():
            lease = x.hub.begin(base_model())
            await until(partial(did, x, lease, "shares"))
        x.hub.go()
        await until(lambda: "inbox" in [word.step for word in x.hub.words[lease.id]])
        masking = Masking(x.store, SITE, x.node.key, time.time, os.urandom)
        inbox = next(word for word in x.hub.words[lease.id] if word.step == "inbox")
        masking.hear(lease, inbox)
        base = tmp_path / "hub" / (lease.task.model or "").removeprefix("b3:")
        masking.mask(lease, base, base, tmp_path / "lost", 120, {})
        async with x.node.running():
            await until(lambda: x.hub.settled(lease.id))
            assert x.hub.settled(lease.id) == Declined(lease.id)
            assert lease.id not in x.hub.uploads
            assert (
                "masked an update of this round already" in x.node.details("release.refuse")[0]
            )
            await until(lambda: x.hub.closes)
        assert x.rows() == 0
        check_sum(x, tuple(site for site in SITES if site != SITE))


# ---- what it refuses -------------------------------------------------------------------------


async def refused(x: Lab, lease: Lease, reason: str) -> None:
    """Wait for a refusal; nothing has left but it, and the site can read why."""
    await until(lambda: x.hub.settled(lease.id))
    said = x.hub.settled(lease.id)
    assert isinstance(said, Declined)
    told = said.disclosed  # the bound of an argument may be told, and nothing else
    assert not told or told.startswith("argument "), "a reason has left the site"
    assert x.hub.uploads == {}
    details = [
        d for a in ("task.refuse", "task.stop", "release.refuse") for d in x.node.details(a)
    ]
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
        await until(lambda: isinstance(x.hub.settled(lease.id), Result | Failed))
        found = x.hub.settled(lease.id)
        assert isinstance(found, Result) == fits
        if not fits:
            assert found == Failed(lease.id, "plan-contract")
            assert x.hub.uploads == {} and x.rows() == 0
            await until(lambda: not x.node.agent.status().tasks)


# ---- a second view is never answered ---------------------------------------------------------


def forged(x: Lab, lease: Lease, step: str) -> Word:
    """Return what a hub would say to split the sites: the same step, another view of it."""
    state, three = x.hub.state, SITES[:3]
    about = hub_masking.context(state)
    match step:
        case "roster":
            keys = hub_masking.said(state, "keys")
            body = secagg.roster(about, {site: keys[site] for site in three})
            return Word(lease.id, "roster", body)
        case "inbox":
            shares = hub_masking.said(state, "shares")
            boxes = secagg.inboxes({site: shares[site] for site in three})
            return Word(lease.id, "inbox", boxes[SITE])
        case "survivors":
            return Word(lease.id, "survivors", secagg.survivors(about, three))
        case _:
            return Word(lease.id, "consents", encode(masks.Consents(bytes(32), {})))


@pytest.mark.parametrize(
    ("step", "after"),
    [
        ("roster", "shares"),
        ("inbox", "update"),
        ("survivors", "consent"),
        ("consents", "unmask"),
    ],
)
async def test_a_second_different_word_is_never_answered(
    tmp_path: Path, step: str, after: str
) -> None:
    async with lab(tmp_path) as x:
        x.hub.hold = frozenset({after})
        async with x.node.running():
            lease = x.hub.begin(base_model())
            await until(partial(did, x, lease, after))
        before = x.store.rows("SELECT heard, said, member FROM masked")
        other, words = forged(x, lease, step), x.hub.words[lease.id]
        assert other not in words
        x.hub.words[lease.id] = [other if word.step == step else word for word in words]
        told, x.hub.shouts = len(x.hub.heard_of), 2
        async with x.node.running():
            await until(lambda: len(x.hub.heard_of) > told)
            await asyncio.sleep(0.2)
        masking = Masking(x.store, SITE, x.node.key, time.time, os.urandom)
        masking.hear(lease, other)
        assert x.store.rows("SELECT heard, said, member FROM masked") == before
        bodies: dict[str, set[bytes]] = {}
        for said, _ in x.hub.said:
            bodies.setdefault(said.step, set()).add(said.body)
        assert all(len(found) == 1 for found in bodies.values())


@pytest.mark.parametrize("step", ["inbox", "survivors", "consents"])
async def test_a_word_that_comes_before_its_time_is_refused(tmp_path: Path, step: str) -> None:
    async with lab(tmp_path) as x, x.node.running():
        early: Literal["inbox", "survivors", "consents"] = next(
            known for known in get_args(Word.__annotations__["step"]) if known == step
        )
        x.hub.forge = lambda word: Word(word.lease, early, word.body)
        lease = x.hub.begin(base_model())
        await refused(x, lease, "came before the one that leads to it")
        assert x.hub.steps_said() == ["keys"]


async def test_a_lease_given_again_with_another_task_is_refused(tmp_path: Path) -> None:
    async with lab(tmp_path) as x:
        x.hub.hold = frozenset({"shares"})
        async with x.node.running():
            lease = x.hub.begin(base_model())
            await until(partial(did, x, lease, "shares"))
        task = msgspec.structs.replace(lease.task, total=130)  # it would weigh 120 of 130
        x.hub.assign(msgspec.structs.replace(lease, task=task))
        async with x.node.running():
            await refused(x, lease, "was given before, with another task")


# ---- the site's own word ---------------------------------------------------------------------


@pytest.mark.parametrize("how", ["study", "staff"])
async def test_a_site_that_leaves_before_its_update_says_nothing_more(
    tmp_path: Path, how: str
) -> None:
    async with lab(tmp_path) as x, x.node.running():
        x.hub.changes = {"arguments": {"wait": 60.0}}
        lease = x.hub.begin(base_model())
        await until(partial(did, x, lease, "shares"))
        withdraw(x, how)
        await until(lambda: x.hub.settled(lease.id))
        assert isinstance(x.hub.settled(lease.id), Declined if how == "study" else Failed)
        await until(lambda: x.hub.closes)
        assert x.hub.steps_said() == ["keys", "shares"] and x.hub.uploads == {}
        assert x.rows() == 0
        check_sum(x, tuple(site for site in SITES if site != SITE))


@pytest.mark.parametrize("how", ["study", "staff"])
@pytest.mark.parametrize("step", ["update", "consent"])
async def test_a_site_that_leaves_after_its_update_gives_out_no_share(
    tmp_path: Path, how: str, step: str
) -> None:
    """The update is in the sum already. The others, a threshold of them, can still open it."""
    async with lab(tmp_path) as x, x.node.running():
        x.hub.hold = frozenset({step})
        lease = x.hub.begin(base_model())
        await until(partial(did, x, lease, step))
        await until(lambda: [t.phase for t in x.node.agent.status().tasks] == ["listening"])
        withdraw(x, how)
        await until(lambda: not isinstance(x.hub.settled(lease.id), Result))
        await until(lambda: x.hub.state.leases[lease.id].cause)
        x.hub.go()
        await until(lambda: x.hub.closes)
        assert "unmask" not in x.hub.steps_said() and x.rows() == 0
        assert x.node.runs.tasks == ["job-1.1"], "the lease was taken again"
        check_sum(x)


def withdraw(x: Lab, how: str) -> None:
    if how == "staff":
        assert x.node.agent.stop_job("job-1") == 1
        return
    studies.decline(x.store, HEARTS.name, actor="mara", now=time.time())
    x.node.agent.changed()


async def test_what_is_refused_after_the_update_is_told_and_audited(tmp_path: Path) -> None:
    """Survivors without this site: it does not consent, and the round goes on without it."""
    async with lab(tmp_path) as x, x.node.running():

        def other(word: Word) -> Word:
            if word.step != "survivors":
                return word
            about = hub_masking.context(x.hub.state)
            rest = tuple(site for site in SITES if site != SITE)
            return Word(word.lease, "survivors", secagg.survivors(about, rest))

        x.hub.forge = other
        lease = x.hub.begin(base_model())
        await until(lambda: isinstance(x.hub.settled(lease.id), Declined))
        assert "and itself one of them" in x.node.details("release.refuse")[0]
        assert x.hub.steps_said() == ["keys", "shares"] and x.rows() == 0
        await until(lambda: x.hub.closes)
        check_sum(x)
        await until(lambda: not x.node.agent.status().tasks)


async def test_a_failed_task_leaves_no_work_and_no_secret_behind(tmp_path: Path) -> None:
    async with lab(tmp_path) as x, x.node.running():
        x.hub.changes = {"arguments": {"wait": "x"}}  # allowed by no range: it is declined
        lease = x.hub.begin(base_model())
        await refused(x, lease, "argument 'wait'")
        assert x.hub.said == []


async def test_keys_do_not_wait_for_a_task_of_another_job(tmp_path: Path) -> None:
    """Else two jobs, each with its site's only slot, would wait for each other for ever."""
    async with (
        lab(tmp_path, limits={"tasks": 1}, plain_updates=True) as x,
        x.node.running(),
    ):
        x.node.accept(PLAN, STUDY)
        model = x.hub.publish(base_model())
        busy = plain_lease(x.hub, PLAN, job="job-0", model=model, arguments={"wait": 30.0})
        x.hub.assign(busy)
        await until(lambda: x.node.runs.tasks == ["job-0.1"])
        lease = x.hub.begin(base_model())
        await until(partial(did, x, lease, "shares"))
        assert x.node.runs.tasks == ["job-0.1"]
        x.node.agent.stop_job("job-0")
        await until(lambda: x.hub.closes)
        check_sum(x)


async def test_a_site_waits_for_the_end_of_a_round_as_long_as_it_takes(tmp_path: Path) -> None:
    """The limit of a task is on its work, not on how long the other sites take."""
    async with lab(tmp_path, limits={"seconds": 2.0}) as x, x.node.running():
        x.hub.hold = frozenset({"update"})
        lease = x.hub.begin(base_model(), CONFIG)
        await until(partial(did, x, lease, "update"))
        await asyncio.sleep(2.5)
        x.hub.go()
        await until(lambda: x.hub.closes)
        check_sum(x)
