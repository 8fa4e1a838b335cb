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

from cryptography import x509

from consilia.core.chain import Break
from consilia.data import registry
from consilia.errors import ConsiliaError
from consilia.node import audit, config, control, datasets, identity, runner, studykeys
from consilia.node.config import NodeConfig
from consilia.node.console.settings import Console
from consilia.node.healthwords import FOUND, Finding, finding
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
        return [finding("configuration", False, "told", "configuration", text=str(e))]
    site = {"site": settings.site, "hub": settings.hub}
    found = [finding("configuration", True, "configuration", **site)]
    try:
        me = identity.load(directory, settings.site)
    except (ConsiliaError, ValueError) as e:
        found.append(finding("keys", False, "told", "keys", text=str(e)))
    else:
        found.append(finding("keys", True, "keys", place=str(me.secrets)))
        found.append(_certificate(me, now()))
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


def _certificate(me: Identity, now: float) -> Finding:
    days = round((me.not_after - now) / 86400, 1)
    if now < me.not_before:
        return finding("certificate", False, "not_yet", "first_day")
    if days <= 0:
        return finding("certificate", False, "expired", "new_token", days=-days)
    late = now > me.renew_at + 86400
    return finding("certificate", not late, "valid", "not_renewed" if late else "", days=days)


def _network(settings: NodeConfig, me: Identity, now: Callable[[], float]) -> Iterator[Finding]:
    """Name, proxy, then one request on the control road: TLS, identity and clock at once."""
    host, port = split_url(settings.hub)
    try:
        proxy = parse_proxy(config.proxy_url(me.secrets.parent, settings))
    except ConsiliaError as e:
        yield finding("proxy", False, "told", "proxy", text=str(e))
        return
    where, what = (host, port), "name_hub"
    if proxy is not None:
        where, what = (proxy.host, proxy.port), "name_proxy"
    try:
        addresses = socket.getaddrinfo(*where, type=socket.SOCK_STREAM)
    except OSError as e:
        yield finding(what, False, "told", "name", text=str(e), host=where[0])
        return
    yield finding(what, True, "name", host=where[0], address=str(addresses[0][4][0]))
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
        text = str(line_error(e, f"{host}:{port}"))
        advice, address = _line_advice(e, f"{host}:{port}", proxy, where)
        yield finding("hub", False, "told", advice, text=text, address=address)
        return
    finally:
        line.close()
    ok = answer.status == 200
    yield finding("hub", ok, "answered", "" if ok else "refused", status=answer.status)
    yield from _clock(answer.getheader("Date") or "", now())


def _line_advice(
    error: Exception, hub: str, proxy: Proxy | None, where: tuple[str, int]
) -> tuple[str, str]:
    """Return the key of what to do about a line, by its likeliest cause, and its address."""
    text, address = str(error), f"{where[0]}:{where[1]}"
    if isinstance(error, ssl.SSLCertVerificationError) and (
        "expired" in text or "not yet valid" in text
    ):
        return "true_clock", address
    if proxy is not None and "407" in text:
        return "proxy_user", address
    if proxy is not None and "Tunnel connection failed" in text:
        return "proxy_tunnel", hub
    if proxy is not None and isinstance(error, ConnectionRefusedError):
        return "proxy_silent", address
    return "outgoing", address


def _clock(date: str, now: float) -> Iterator[Finding]:
    with contextlib.suppress(ValueError):
        skew = now - parsedate_to_datetime(date).timestamp()
        ok = abs(skew) <= SKEW
        yield finding("clock", ok, "skew", "" if ok else "clock", seconds=f"{skew:+.0f}")


def _disk(directory: Path, space: int) -> Finding:
    free = shutil.disk_usage(directory).free
    if not os.access(directory, os.W_OK):
        return finding("disk", False, "unwritable", "writable", place=str(directory))
    ok, values = free >= space, {"free": round(free / 2**30, 1), "need": space >> 30}
    return finding("disk", ok, "free", "" if ok else "room", place=str(directory), **values)


def _sandbox(settings: NodeConfig, directory: Path) -> Iterator[Finding]:
    """The sandbox as a whole, then what stands behind it."""
    if settings.sandbox == "off":
        yield finding("sandbox", False, "sandbox_off", "sandbox_off")
        return
    try:
        launcher = runner.choose_launcher(settings.sandbox)
    except ConsiliaError as e:
        yield finding("sandbox", False, "told", "sandbox", text=str(e))
    else:
        said = "sandbox_says" if launcher.warning else ""
        values = {"launcher": launcher.name, "warning": launcher.warning}
        yield finding("sandbox", True, "sandbox_works", said, **values)
    yield from layers(control.running_pid(directory))


def _gpu(folder: Path) -> Finding:
    found = sorted(folder.glob("nvidia[0-9]*"))
    shut = [str(p) for p in found if not os.access(p, os.R_OK | os.W_OK)]
    if shut:
        return finding("gpu", False, "gpu_shut", "gpu_shut", files=", ".join(shut))
    if found:
        return finding("gpu", True, "told", text=", ".join(p.name for p in found))
    return finding("gpu", False, "no_gpu", "no_gpu")


def _console(console: Console, directory: Path, now: float) -> Finding:
    """Look at the certificate with which browsers are shown the console."""
    name, path = "console_certificate", directory / console.certificate
    try:
        if (directory / console.key).stat().st_mode & 0o077:
            file = str(directory / console.key)
            return finding(name, False, "open_key", "open_key", file=file)
        ends = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as e:
        return finding(name, False, "told", "certificate_file", text=f"{path}: {e}")
    days = round((ends.timestamp() - now) / 86400)
    if days <= 0:
        return finding(name, False, "expired", "new_certificate", days=-days)
    ok = days > WARN_DAYS
    return finding(name, ok, "valid", "" if ok else "new_certificate", days=days)


def _store(directory: Path) -> Iterator[Finding]:
    try:
        store = Store.open(directory)
    except ConsiliaError as e:
        yield finding("database", False, "told", "database", text=str(e))
        return
    with contextlib.closing(store):
        checked = audit.verify(store)
        if isinstance(checked, Break):
            line, why = checked.seq, checked.reason
            yield finding("audit", False, "broken", "audit", line=line, why=why)
        else:
            yield finding("audit", True, "unbroken", lines=checked[0])
        if shut := studykeys.faults(store):
            values = {"text": "; ".join(shut), "folder": studykeys.FOLDER}
            yield finding("study_keys", False, "told", "study_keys", **values)
        for r in datasets.list_datasets(store):
            name = r.dataset.name
            if what := registry.change(r.dataset):
                key, place = _changed(what)
                words = {"name": name, "place": place, "text": what}
                yield finding("dataset", False, key, "dataset", **words)
            else:
                state, records = "enabled" if r.enabled else "disabled", r.dataset.records
                yield finding("dataset", True, state, name=name, records=records)


def _changed(what: str) -> tuple[str, str]:
    """Return the key of what `registry.change` says, and the file it speaks of."""
    for key in ("changed", "new_file", "folder_now", "gone"):
        end = FOUND[key].removeprefix("{place}")
        if what.endswith(end):
            return key, what.removesuffix(end)
    return "told", ""


def _agent(directory: Path) -> Finding:
    try:
        answer = control.poke(directory, "status")
    except ConsiliaError as e:
        return finding("agent", False, "told", "agent_log", text=str(e))
    if answer is None:
        return finding("agent", False, "agent_down", "agent_start")
    if problem := str(answer.get("problem") or ""):
        return finding("agent", False, "told", "agent_problem", text=problem)
    return finding("agent", True, "agent_runs")
