"""What may be wrong with a node, looked for one by one; each finding says what to do about it.

Nothing is changed, and the hub learns no more than from any other connection.
"""

import contextlib
import http.client
import os
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import msgspec
from cryptography import x509

from consilia.core.chain import Break
from consilia.errors import ConsiliaError, DataError
from consilia.node import audit, config, control, datasets, identity, runner, studykeys
from consilia.node.config import NodeConfig
from consilia.node.console.settings import Console
from consilia.node.identity import Identity
from consilia.node.layers import layers
from consilia.node.line import Credentials, Proxy, client_context, line_error, parse_proxy
from consilia.node.store import Store
from consilia.wire import hello
from consilia.wire.token import split_url

SKEW = 300.0  # seconds a clock may differ before it is worth a word
SPACE = 2 << 30  # bytes of disk that a node should have free
WARN_DAYS = 14  # before the console's certificate ends
PATIENCE = 10.0  # seconds for a connection


class Finding(msgspec.Struct, frozen=True):
    """One check: whether it is well, what was found, and what to do when it is not."""

    check: str
    ok: bool
    found: str
    advice: str = ""


def examine(
    directory: Path,
    now: Callable[[], float],
    devices: Path = Path("/dev"),
    space: int = SPACE,
) -> list[Finding]:
    """Check everything the node needs, in an order in which one thing explains the next.

    `devices` is where the kernel shows GPUs, `space` how many bytes the disk should have free.
    """
    try:
        settings = config.load(directory)
    except ConsiliaError as e:
        return [Finding("configuration", False, str(e), "correct node.yaml, or join a hub")]
    found = [Finding("configuration", True, f"site {settings.site}, hub {settings.hub}")]
    try:
        me = identity.load(directory, settings.site)
    except (ConsiliaError, ValueError) as e:
        advice = "restore secrets/ from a backup, or join again with a new token"
        found.append(Finding("keys", False, str(e), advice))
    else:
        found.append(Finding("keys", True, f"in {me.secrets}, private"))
        found += _certificate(me, now())
        found += _network(settings, me, now)
    found.append(_disk(directory, space))
    found += _sandbox(settings, directory)
    if settings.cuda:
        found.append(_gpu(devices))
    if settings.console.certificate:
        found.append(_console(settings.console, directory, now()))
    found += _store(directory)
    found.append(_agent(directory))
    return found


def _certificate(me: Identity, now: float) -> Iterator[Finding]:
    days = (me.not_after - now) / 86400
    if now < me.not_before:
        advice = "set this machine's clock (NTP): it lies before the certificate's first day"
        yield Finding("certificate", False, "not valid yet", advice)
    elif days <= 0:
        advice = "ask the hub's operator for a new token, and join in a new directory"
        yield Finding("certificate", False, f"expired {-days:.1f} days ago", advice)
    else:
        late = now > me.renew_at + 86400
        advice = (
            "the agent renews it while it serves: start it, and see its log" if late else ""
        )
        yield Finding("certificate", not late, f"valid for {days:.1f} days more", advice)


def _network(settings: NodeConfig, me: Identity, now: Callable[[], float]) -> Iterator[Finding]:
    """Name, proxy, then one request on the control road: TLS, identity and clock at once."""
    host, port = split_url(settings.hub)
    try:
        proxy = parse_proxy(config.proxy_url(me.secrets.parent, settings))
    except ConsiliaError as e:
        yield Finding("proxy", False, str(e), "correct proxy and proxy_password_file")
        return
    where, what = (host, port), "hub"
    if proxy is not None:
        where, what = (proxy.host, proxy.port), "proxy"
    try:
        addresses = socket.getaddrinfo(*where, type=socket.SOCK_STREAM)
    except OSError as e:
        advice = f"check the name in node.yaml and this machine's DNS: {where[0]}"
        yield Finding(f"name of the {what}", False, str(e), advice)
        return
    yield Finding(f"name of the {what}", True, f"{where[0]} is {addresses[0][4][0]}")
    context = client_context(
        hello.CONTROL,
        (me.secrets / "ca.pem").read_text("ascii"),
        Credentials(me.secrets / "tls.pem", me.secrets / "tls.key", me.secrets / "ca.pem"),
    )
    line = http.client.HTTPSConnection(*where, timeout=PATIENCE, context=context)
    if proxy is not None:
        line.set_tunnel(host, port, headers=dict(proxy.headers))
    try:
        line.request("GET", "/v1/catalogue")
        answer = line.getresponse()
        answer.read(1 << 16)
    except (OSError, http.client.HTTPException) as e:
        found = str(line_error(e, f"{host}:{port}"))
        yield Finding("hub", False, found, _line_advice(e, f"{host}:{port}", proxy, where))
        return
    finally:
        line.close()
    ok = answer.status == 200
    advice = "" if ok else "the hub answers but refuses this node: ask its operator"
    yield Finding("hub", ok, f"answered with status {answer.status} over TLS 1.3", advice)
    yield from _clock(answer.getheader("Date") or "", now())


def _line_advice(
    error: Exception, hub: str, proxy: Proxy | None, where: tuple[str, int]
) -> str:
    """Return what to do about a line that does not come about: by its likeliest cause."""
    text = str(error)
    if isinstance(error, ssl.SSLCertVerificationError) and (
        "expired" in text or "not yet valid" in text
    ):
        return (
            "compare this machine's clock with a true one (NTP) first; if it is right, the "
            "hub's certificate has run out: tell its operator"
        )
    if proxy is not None and "407" in text:
        return "the proxy asks for a user: set http://USER@... and proxy_password_file"
    if proxy is not None and "Tunnel connection failed" in text:
        return f"ask who runs the proxy to let CONNECT {hub} through, unopened"
    if proxy is not None and isinstance(error, ConnectionRefusedError):
        return f"nothing answers at the proxy {where[0]}:{where[1]}: check proxy in node.yaml"
    return (
        f"outgoing TCP to {where[0]}:{where[1]} must be allowed, and nothing on the way "
        "may open TLS; ask the hub's operator if the hub runs and this site is enrolled"
    )


def _clock(date: str, now: float) -> Iterator[Finding]:
    with contextlib.suppress(ValueError):
        skew = now - parsedate_to_datetime(date).timestamp()
        ok = abs(skew) <= SKEW
        advice = "" if ok else "set this machine's clock (NTP); approvals end by its calendar"
        yield Finding("clock", ok, f"{skew:+.0f} seconds against the hub's", advice)


def _disk(directory: Path, space: int) -> Finding:
    free = shutil.disk_usage(directory).free
    if not os.access(directory, os.W_OK):
        advice = "let the node's user write to it: chown -R consilia: " + str(directory)
        return Finding("disk", False, f"{directory} cannot be written", advice)
    ok = free >= space
    advice = "" if ok else f"make room: models and updates need {space >> 30} GiB or more"
    return Finding("disk", ok, f"{free / 2**30:.1f} GiB free in {directory}", advice)


def _sandbox(settings: NodeConfig, directory: Path) -> Iterator[Finding]:
    """The sandbox as a whole, then what stands behind it."""
    if settings.sandbox == "off":
        advice = "set sandbox: required in node.yaml; plans can read what this user can"
        yield Finding("sandbox", False, "switched off in node.yaml", advice)
        return
    try:
        launcher = runner.choose_launcher(settings.sandbox)
    except ConsiliaError as e:
        yield Finding("sandbox", False, str(e), "see docs/how-to/sandbox.md")
    else:
        found = f"{launcher.name} works"
        advice = f"every run says: {launcher.warning}" if launcher.warning else ""
        yield Finding("sandbox", True, found, advice)
    for layer in layers(control.running_pid(directory)):
        yield Finding(layer.name, layer.present, layer.found, layer.remedy)


def _gpu(folder: Path) -> Finding:
    found = sorted(folder.glob("nvidia[0-9]*"))
    shut = [str(p) for p in found if not os.access(p, os.R_OK | os.W_OK)]
    if shut:
        advice = "let the node's user open them: see the group of these files (often video)"
        return Finding("gpu", False, f"{', '.join(shut)} cannot be opened", advice)
    if found:
        return Finding("gpu", True, ", ".join(p.name for p in found))
    advice = (
        "install the NVIDIA driver, or set cuda: false; tasks run on the processor meanwhile"
    )
    return Finding("gpu", False, "cuda: true in node.yaml, and no /dev/nvidia0", advice)


def _console(console: Console, directory: Path, now: float) -> Finding:
    """Look at the certificate with which browsers are shown the console."""
    name, advice = "console certificate", "put the hospital's new one in place, restart it"
    path = directory / console.certificate
    try:
        if (directory / console.key).stat().st_mode & 0o077:
            said = f"{directory / console.key} is readable by others"
            return Finding(name, False, said, f"chmod 600 {directory / console.key}")
        ends = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as e:
        return Finding(name, False, f"{path}: {e}", "see console.certificate in node.yaml")
    days = (ends.timestamp() - now) / 86400
    said = f"valid for {days:.0f} days more" if days > 0 else f"expired {-days:.0f} days ago"
    return Finding(name, days > WARN_DAYS, said, "" if days > WARN_DAYS else advice)


def _store(directory: Path) -> Iterator[Finding]:
    try:
        store = Store.open(directory)
    except ConsiliaError as e:
        yield Finding("database", False, str(e), "restore node.sqlite from a backup")
        return
    with contextlib.closing(store):
        checked = audit.verify(store)
        if isinstance(checked, Break):
            advice = "somebody changed the trail; compare with a backup before going on"
            found = f"broken at line {checked.seq}: {checked.reason}"
            yield Finding("audit trail", False, found, advice)
        else:
            yield Finding("audit trail", True, f"{checked[0]} lines, unbroken")
        if shut := studykeys.faults(store):
            advice = (
                f"restore {studykeys.FOLDER} and secrets from one backup, or purge the study"
            )
            yield Finding("study keys", False, "; ".join(shut), advice)
        for r in datasets.list_datasets(store):
            name = f"dataset {r.dataset.name}"
            try:
                datasets.check_unchanged(r.dataset)
            except DataError as e:
                advice = (
                    "put the file back, or accept it as it is: consilia dataset refresh NAME"
                )
                yield Finding(name, False, str(e), advice)
            else:
                state = "enabled" if r.enabled else "disabled"
                yield Finding(name, True, f"{r.dataset.records} records, {state}")


def _agent(directory: Path) -> Finding:
    try:
        answer = control.poke(directory, "status")
    except ConsiliaError as e:
        return Finding("agent", False, str(e), "see log/agent.log; restart it if it hangs")
    if answer is None:
        return Finding("agent", False, "does not run", "start it: consilia node serve")
    problem = str(answer.get("problem") or "")
    return Finding("agent", not problem, problem or "runs, connected", "see log/agent.log")
