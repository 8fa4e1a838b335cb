"""Lines that break, hang and are not there: transfers resume, rounds go on.

The last tests cut real links between network namespaces, and need root.
"""

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from consilia.errors import TransferError
from consilia.node import app
from faultkit import Lab, Relay, accepted, configure, journal, relayed, until

SITES = ("a", "b")
HUNDRED_MB = 25_000_000  # parameters


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("network")) as lab:
        lab.open(SITES)
        yield lab


@pytest.mark.slow
def test_a_transfer_of_100_mb_goes_on_where_the_line_broke(lab: Lab) -> None:
    """Each line is cut in the middle of every upload and download; no byte goes twice."""
    size = HUNDRED_MB * 4
    with relayed(lab, SITES) as relays, lab.client() as client:
        for relay in relays.values():
            relay.cut_after(up=size // 2, down=size // 2)
        job = lab.start(client, 1, arguments={"parameters": HUNDRED_MB})
        until(lab, "the first model", lambda: bool(journal(client, job, "Closed")))
        (first,) = client.job(job).rounds[0].sites
        relays[first].cut_after(up=size // 2)  # it has sent one model, and sends another
        view = lab.finish(client, job)
        assert view.rounds[1].sites == SITES
        lab.check(client, view)
        for site, relay in relays.items():
            frames_up = 2 if site == first else 1
            assert relay.cuts >= frames_up + (relay.down > size // 2)
            assert frames_up * size < relay.up < 1.05 * frames_up * size
            assert relay.down < 1.05 * size
        assert view.rounds[1].bytes_in < 1.05 * len(SITES) * size


@pytest.mark.slow
def test_a_line_that_is_cut_again_and_again(lab: Lab) -> None:
    """Every second all lines break; the job ends with the right model all the same."""
    with relayed(lab, SITES) as relays, lab.client() as client:
        stop = threading.Event()

        def cut() -> None:
            while not stop.wait(0.5):
                for relay in relays.values():
                    relay.cut()

        cutting = threading.Thread(target=cut)
        cutting.start()
        try:
            job = lab.start(client, 5, arguments={"parameters": 2_000_000, "wait": 0.5})
            view = lab.finish(client, job)
        finally:
            stop.set()
            cutting.join()
        assert [r.sites for r in view.rounds[1:]] == [SITES] * 5
        assert len(accepted(client, job)) == 1 + 5 * len(SITES)
        lab.check(client, view)
