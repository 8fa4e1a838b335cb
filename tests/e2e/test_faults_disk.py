"""Full disks, at the hub and at a node: the cause is told, nothing breaks, space lets it go on.

The disks are small tmpfs mounts, and need root.
"""

import itertools
import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from faultkit import Lab, accepted, fill, journal, small_disk, until

from consilia.hub.blobs import RESERVE
from consilia.sdk.client import Client

SITES = ("a", "b", "c")
PARAMETERS = 2 << 20
MODEL = PARAMETERS * 4  # bytes
DISK = RESERVE + 40 * MODEL  # each job leaves its models

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A federation whose hub, and whose node of site b, have small disks of their own."""
    root = tmp_path_factory.mktemp("disk")
    with small_disk(root / "hub", DISK), small_disk(root / "b", DISK), Lab(root) as lab:
        lab.open(SITES)
        yield lab


_sizes = itertools.count(PARAMETERS, 4)  # no two jobs share a model that is cached


def begin(lab: Lab, client: Client, rounds: int, wait: float, **changes: object) -> str:
    """Start a job whose sites train for `wait` seconds in round 1."""
    arguments = {"parameters": next(_sizes), "wait": wait, "slow_round": 1}
    return lab.start(client, rounds, arguments=arguments, **changes)


def readiness(lab: Lab) -> str:
    """What the hub answers to whoever asks whether it can work."""
    ca = ssl.create_default_context(cafile=lab.hub_directory / "secrets/ca.pem")
    return httpx.get(f"{lab.addresses['people']}/readyz", verify=ca, timeout=30).text


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["stays-up", "killed-meanwhile"])
def test_the_hubs_disk_is_full_in_a_round(lab: Lab, killed: bool) -> None:
    """Not a byte is left, for frames or database: updates wait at the sites, and count once."""
    with lab.client() as client:
        job = begin(lab, client, 2, wait=2.0, min_updates=3)
        for site in SITES:
            until(lab, f"{site} trains", lambda: lab.trained(site, job) == [1])  # noqa: B023
        kept = accepted(client, job)
        ballast = fill(lab.hub_directory, 0)
        try:
            until(lab, "nodes are told", lambda: "frame is held up" in lab.log("a"))
            assert "the hub could not store it; its operator finds the cause" in lab.log("a")
            assert "the disk is full: free some space" in lab.log("hub")
            assert '"disk":"failed"' in readiness(lab)
            assert accepted(client, job) == kept
            if killed:
                lab.kill("hub")
        finally:
            ballast.unlink()
        if killed:
            lab.start_hub()
        view = lab.finish(client, job)
        assert [r.sites for r in view.rounds[1:]] == [SITES] * 2
        assert len(accepted(client, job)) == 1 + 2 * len(SITES)
        for site in SITES:
            assert lab.trained(site, job) == [1, 2], f"{site} trained a round again"
        lab.check(client, view)
        lab.intact(*SITES)


@needs_root
@pytest.mark.slow
def test_the_hub_has_no_room_for_the_new_model(lab: Lab) -> None:
    """The job fails and says so; with space it is resumed, and nobody trains again."""
    with lab.client() as client:
        job = begin(lab, client, 2, wait=2.0, min_updates=3)
        until(lab, "the first model", lambda: bool(journal(client, job, "Closed")))
        ballast = fill(lab.hub_directory, RESERVE + 3 * MODEL + MODEL // 2)
        try:
            until(lab, "the job fails", lambda: client.job(job).state == "failed")
        finally:
            ballast.unlink()
        cause = client.job(job).cause
        assert cause.startswith("round 1 could not be closed: ")
        assert "the disk is full: free some space, then try again" in cause
        assert "round 1 could not be closed" in lab.log("hub")
        left = {path.name for path in (lab.hub_directory / "spool").iterdir()}
        assert left == {f"{job}.1.0.{site}" for site in SITES}, "updates stay, half a model not"
        client.resume(job)
        view = lab.finish(client, job)
        assert [r.sites for r in view.rounds[1:]] == [SITES] * 2
        for site in SITES:
            assert lab.trained(site, job) == [1, 2], f"{site} trained a round again"
        lab.check(client, view)
        lab.intact(*SITES)


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize(
    ("leave", "told"),
    [
        (30 << 20, "MiB free, an update of 8 MiB needs 64 MiB more than its size; make room"),
        (2 << 20, "the node's cache cannot take a model: No space left on device"),
    ],
    ids=["no-room-for-an-update", "no-room-for-the-model"],
)
def test_a_nodes_disk_is_full(lab: Lab, leave: int, told: str) -> None:
    """The round's record says so, the site's log says more; with space the site is back."""
    with lab.client() as client:
        ballast = fill(lab.node_directory("b"), leave)
        try:
            job = begin(lab, client, 2, wait=3.0)
            until(lab, "b gives up", lambda: gave_up(client, job, "b"))
        finally:
            ballast.unlink()
        view = lab.finish(client, job)
        assert view.rounds[1].rejected == {"b": "failed: disk"}
        assert view.rounds[1].sites == ("a", "c")
        assert view.rounds[2].sites == SITES
        assert told in lab.log("b")
        lab.check(client, view)
        lab.intact(*SITES)


def gave_up(client: Client, job: str, site: str) -> bool:
    leases = [str(e.body["lease"]) for e in journal(client, job, "Settled")]
    return f"{job}.1.0.{site}" in leases


@needs_root
@pytest.mark.slow
def test_a_node_that_cannot_even_write_that_its_disk_is_full(lab: Lab) -> None:
    """Without its audit line nothing leaves the site: it waits, the round goes on without."""
    with lab.client() as client:
        arguments = {"wait": 1.0, "slow_round": 1}  # small models: there will be many
        job = lab.start(client, 500, min_sites=2, grace=1.0, arguments=arguments)
        until(lab, "b trains", lambda: lab.trained("b", job) == [1])
        ballast = fill(lab.node_directory("b"), 0)
        try:
            until(lab, "round 1 closes", lambda: len(client.job(job).rounds) > 1)
            until(lab, "b waits", lambda: "cannot answer lease" in console(lab, "b"))
        finally:
            ballast.unlink()
        assert client.job(job).rounds[1].sites == ("a", "c")
        until(lab, "b is back", lambda: "b" in client.job(job).rounds[-1].sites)
        client.stop(job)
        lab.check(client, client.job(job))
        lab.intact(*SITES)


def console(lab: Lab, name: str) -> str:
    """What a process has printed; its log files are on the full disk."""
    path: Path = lab.root / f"{name}.log"
    return path.read_text()
