"""Lines that break, hang and are not there: transfers resume, rounds go on.

The last tests cut real links between network namespaces, and need root.
"""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from faultkit import ConnectProxy, Lab, accepted, configure, journal, relayed, until

from consilia.node import app

SITES = ("a", "b")
HUNDRED_MB = 25_000_000  # parameters


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("network")) as lab:
        lab.open(SITES, presence=20.0)  # no line is down for so long, however busy the machine
        yield lab


@pytest.mark.slow
def test_a_transfer_of_100_mb_goes_on_where_the_line_broke(lab: Lab) -> None:
    """Each line is cut in the middle of an update and of a download; no byte goes twice."""
    size = HUNDRED_MB * 4
    with relayed(lab, SITES) as relays, lab.client() as client:
        for relay in relays.values():
            relay.cut_after(down=size // 2)
        job = lab.start(client, 1, arguments={"parameters": HUNDRED_MB})
        until(lab, "the first model", lambda: bool(journal(client, job, "Closed")))
        (first,) = client.job(job).rounds[0].sites
        for relay in relays.values():
            relay.cut_after(up=size // 2)
        view = lab.finish(client, job)
        assert view.rounds[1].sites == SITES
        lab.check(client, view)
        for site, relay in relays.items():
            frames_up = 2 if site == first else 1
            assert relay.cuts >= 1 + (relay.down > size // 2)
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


@pytest.mark.slow
def test_a_line_that_hangs_without_a_word(lab: Lab) -> None:
    """Bytes vanish for some seconds and no end of a line is told: nothing is lost."""
    with relayed(lab, SITES) as relays, lab.client() as client:
        job = lab.start(client, 3, arguments={"wait": 0.5})
        until(lab, "the first model", lambda: bool(journal(client, job, "Closed")))
        for relay in relays.values():
            relay.hold_after(0)
        time.sleep(3)
        for relay in relays.values():
            relay.release()
        view = lab.finish(client, job)
        assert [r.sites for r in view.rounds[1:]] == [SITES] * 3
        lab.check(client, view)


# ---- behind a proxy ------------------------------------------------------------------------

HUB = "hub.test"  # a name that nothing on this machine resolves: only the proxy knows it
PROXY_USER = "Basic c2l0ZTpwQHNz"  # site:p@ss


class BehindProxy(Lab):
    """Nodes that reach the hub through a CONNECT proxy or not at all."""

    proxy: str = ""

    def make_hub(self) -> None:
        """Make the hub, known to others by HUB."""
        super().make_hub()
        configure(self.hub_directory / "hub.yaml", hosts=[HUB, "127.0.0.1"])

    def join(self, site: str) -> None:
        """Invite a site and let its node join through the proxy."""
        with self.client() as client:
            token = client.invite(site).token
        password = "p@ss"  # noqa: S105 - of the test's own proxy
        where = self.node_directory(site)
        app.join(token, where, proxy=self.proxy, proxy_password=password)


@pytest.mark.slow
def test_nodes_behind_a_connect_proxy(tmp_path: Path) -> None:
    with (
        ConnectProxy(HUB, PROXY_USER) as proxy,
        BehindProxy(tmp_path, hub_options=("--host", HUB)) as lab,
    ):
        lab.proxy = f"http://site@127.0.0.1:{proxy.port}"
        lab.open(SITES)
        with lab.client() as client:
            token = client.invite("direct").token
            why = lab.refused_join(token, tmp_path / "direct")
            assert "Cannot connect to host hub.test" in why and "not known" in why
            wrong = tmp_path / "wrong"
            wrong.write_text("guess\n")
            wrong.chmod(0o600)
            given = ("--proxy", lab.proxy, "--proxy-password-file", str(wrong))
            why = lab.refused_join(token, tmp_path / "direct", *given)
            assert "Proxy Authentication Required" in why and "guess" not in why
            refused = proxy.refused
            proxy.cut_after(up=2_000_000, down=2_000_000)
            job = lab.start(client, 2, arguments={"parameters": 1_000_000})
            view = lab.finish(client, job)
            assert [r.sites for r in view.rounds[1:]] == [SITES] * 2
            lab.check(client, view)
        assert refused == 1 == proxy.refused
        assert proxy.cuts == 2
        port = lab.addresses["nodes"].rsplit(":", 1)[1]
        assert set(proxy.asked) == {f"{HUB}:{port}"}
        for site in SITES:
            assert lab.listening(site) == [], "nothing may be able to call a node"


# ---- separate networks ---------------------------------------------------------------------

# A network for each process that tests, of RFC 2544's range: they run beside each other.
OWN = os.getpid() % 65536
NET = f"198.{18 + OWN // 256 % 2}.{OWN % 256}"
HUB_ADDRESS = f"{NET}.1"


def ip(*words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Run ip(8)."""
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


class Network:
    """A namespace for the hub, with a bridge, and one for each site, linked to it."""

    def __init__(self, sites: tuple[str, ...]) -> None:
        self.names = {who: f"consilia-{OWN}-{who}" for who in ("hub", *sites)}

    def __enter__(self) -> "Network":
        try:
            hub = self.names["hub"]
            for name in self.names.values():
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
            ip("-n", hub, "link", "add", "br0", "type", "bridge")
            ip("-n", hub, "addr", "add", f"{HUB_ADDRESS}/24", "dev", "br0")
            ip("-n", hub, "link", "set", "br0", "up")
            for number, (who, name) in enumerate(self.names.items(), 2):
                if who != "hub":
                    self._wire(f"to-{who}", ("netns", name), f"{NET}.{number}")
            self._wire(f"cns{OWN}", (), f"{NET}.254")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names.values():
            ip("netns", "del", name, check=False)
        ip("link", "del", f"cns{OWN}", check=False)

    def _wire(self, end: str, place: tuple[str, ...], address: str) -> None:
        """Lay a cable from the hub's bridge to `place`, called `end` there."""
        hub = self.names["hub"]
        port = f"p{address.rsplit('.', 1)[1]}"
        ip("link", "add", end, *place, "type", "veth", "peer", "name", port, "netns", hub)
        ip("-n", hub, "link", "set", port, "master", "br0", "up")
        there = ("-n", place[1]) if place else ()
        ip(*there, "addr", "add", f"{address}/24", "dev", end)
        ip(*there, "link", "set", end, "up")

    def inside(self, who: str) -> tuple[str, ...]:
        """What a command is prefixed with to run there."""
        return ("ip", "netns", "exec", self.names[who])

    def link(self, who: str, state: str) -> None:
        """Pull the cable of a site ("down") or put it back ("up")."""
        ip("-n", self.names[who], "link", "set", f"to-{who}", state)

    def drop_inbound(self, who: str) -> None:
        """Drop every packet into a site that does not answer one of its own."""
        rules = (
            "add table inet guard; add chain inet guard input "
            "{ type filter hook input priority 0; policy drop; }; "
            "add rule inet guard input ct state established accept"
        )
        subprocess.run([*self.inside(who), "nft", rules], check=True, capture_output=True)

    def sockets(self, who: str) -> list[str]:
        """What listens, or takes datagrams, anywhere in a site's network."""
        table = subprocess.run(
            [*self.inside(who), "ss", "-Htuln"], check=True, capture_output=True, text=True
        )
        return table.stdout.splitlines()


class SeparateNetworks(Lab):
    """Every process in the network of its party."""

    network: Network

    def spawn(self, name: str, *arguments: object, prefix: Sequence[str] = ()) -> None:
        """Start a command in its party's network."""
        super().spawn(name, *arguments, prefix=(*self.network.inside(name), *prefix))


def why_no_networks() -> str | None:
    """Say why network namespaces cannot be tested here, or None."""
    for tool in ("ip", "ss", "nft"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (Debian: apt-get install iproute2 nftables)"
    try:
        with Network(("probe",)) as network:
            network.drop_inbound("probe")
    except subprocess.CalledProcessError as e:
        return f"network namespaces need root and nftables: {e.stderr or e}"
    return None


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeparateNetworks]:
    if reason := why_no_networks():
        pytest.skip(reason)
    root = tmp_path_factory.mktemp("apart")
    with Network(SITES) as network, SeparateNetworks(root, host=HUB_ADDRESS) as lab:
        lab.network = network
        for site in SITES:
            network.drop_inbound(site)
        lab.open(SITES, presence=20.0)  # no line is down for so long, however busy the machine
        yield lab


@pytest.mark.slow
@pytest.mark.network
def test_a_partition_delays_a_round_and_loses_nothing(apart: SeparateNetworks) -> None:
    """Links are down for some seconds while nodes train and send: the round goes on."""
    lab = apart
    with lab.client() as client:
        arguments = {"parameters": 2_000_000, "wait": 1.0}
        job = lab.start(client, 2, arguments=arguments)
        for number, site in enumerate(SITES, 1):
            until(lab, f"{site} trains", lambda: lab.trained(site, job)[-1:] == [number])  # noqa: B023
            lab.network.link(site, "down")
            time.sleep(3)
            lab.network.link(site, "up")
        view = lab.finish(client, job)
        assert [r.sites for r in view.rounds[1:]] == [SITES] * 2
        for site in SITES:
            assert lab.trained(site, job) == [1, 2], f"{site} trained a round again"
        lab.check(client, view)
        lab.intact(*SITES)


@pytest.mark.slow
@pytest.mark.network
def test_a_cut_off_site_is_done_without_and_comes_back(apart: SeparateNetworks) -> None:
    lab = apart
    with lab.client() as client:
        job = lab.start(client, 500, min_updates=1, min_sites=1, grace=0.3)
        until(lab, "a first round", lambda: len(client.job(job).rounds) > 2)
        lab.network.link("b", "down")
        cut = len(client.job(job).rounds)
        until(lab, "rounds without b", lambda: len(client.job(job).rounds) > cut + 5)
        assert [r.sites for r in client.job(job).rounds[cut + 2 :]] == [("a",)] * (
            len(client.job(job).rounds) - cut - 2
        )
        lab.network.link("b", "up")
        until(lab, "b is back", lambda: "b" in client.job(job).rounds[-1].sites)
        client.stop(job)
        lab.check(client, client.job(job))


@pytest.mark.network
def test_nothing_can_call_a_node(apart: SeparateNetworks) -> None:
    """A node's whole network has no socket that takes a call; all else was dropped anyway."""
    for site in SITES:
        assert apart.network.sockets(site) == []
        assert apart.listening(site) == []
