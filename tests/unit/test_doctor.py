"""What the doctor finds when one thing is wrong, and what it says to do about it."""

import contextlib
import os
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from consilia.hub.access import Access
from consilia.node.doctor import SPACE, examine
from consilia.node.healthwords import Finding
from consilia.node.store import Store
from consolekit import make_node


def found(
    directory: Path, now: Callable[[], float] = time.time, devices: Path = Path("/dev")
) -> dict[str, Finding]:
    return {f.check: f for f in examine(directory, now, devices)}


@contextlib.contextmanager
def proxy(answer: bytes) -> Iterator[int]:
    """Answer one CONNECT on a port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                line, _ = server.accept()
                with line:
                    line.recv(4096)
                    line.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
    thread.join(5)


EXAMINE = """
import pathlib, sys, time
from consilia.node.doctor import examine
directory, devices = map(pathlib.Path, sys.argv[1:])
print(*examine(directory, time.time, devices), sep="\\n")
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    make_node(tmp_path / "node")
    return tmp_path / "node"


def settings(directory: Path, text: str) -> None:
    with (directory / "node.yaml").open("w") as file:
        file.write(f"site: charite\nhub: https://hub.invalid:1\nsandbox: 'off'\n{text}")


def test_a_name_that_is_not_known_is_told_with_the_dns(directory: Path) -> None:
    finding = found(directory)["name of the hub"]
    assert not finding.ok and "DNS: hub.invalid" in finding.advice


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "proxy_password_file"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "let CONNECT hub.invalid:1 through"),
    ],
)
def test_a_proxy_that_refuses_is_told_apart(
    directory: Path, answer: bytes, advice: str
) -> None:
    with proxy(answer) as port:
        settings(directory, f"proxy: http://127.0.0.1:{port}\n")
        checks = found(directory)
    assert checks["name of the proxy"].ok
    assert not checks["hub"].ok and advice in checks["hub"].advice


def test_a_proxy_that_is_not_there_and_a_password_that_is_missing(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    settings(directory, f"proxy: http://127.0.0.1:{port}\n")
    assert "check proxy in node.yaml" in found(directory)["hub"].advice
    settings(directory, f"proxy: http://u@127.0.0.1:{port}\nproxy_password_file: none\n")
    finding = found(directory)["proxy"]
    assert not finding.ok and "proxy_password_file" in finding.advice


@contextlib.contextmanager
def hub(directory: Path, date: str, at: float | None = None) -> Iterator[int]:
    """Answer one request as the hub that the node trusts, whose clock says `date`.

    `at` is when the hub's certificate was made, Unix seconds.
    """
    made = directory.parent / "hub"
    Access.create(
        made, ["127.0.0.1"], name="hub", at=time.time() if at is None else at,
        random_bytes=os.urandom,
    )  # fmt: skip
    (directory / "secrets" / "ca.pem").write_bytes((made / "ca.pem").read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made / "server.pem", made / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                raw, _ = server.accept()
                with raw, context.wrap_socket(raw, server_side=True) as line:
                    line.recv(4096)
                    line.sendall(f"HTTP/1.1 200 OK\r\nDate: {date}\r\n\r\n".encode())

        thread = threading.Thread(target=serve)
        thread.start()
        port = server.getsockname()[1]
        with (directory / "node.yaml").open("w") as file:
            file.write(f"site: charite\nhub: https://127.0.0.1:{port}\nsandbox: 'off'\n")
        yield port
    thread.join(5)


@pytest.mark.parametrize(("late", "well"), [(-7200.0, False), (0.0, True), (7200.0, False)])
def test_a_clock_that_is_not_the_hubs(directory: Path, late: float, well: bool) -> None:
    with hub(directory, formatdate(time.time() - late, usegmt=True)):
        checks = found(directory)
    assert checks["hub"].ok and checks["clock"].ok is well
    assert ("NTP" in checks["clock"].advice) is not well
    told = float(checks["clock"].found.split()[0])
    assert abs(told - late) < 30


def test_a_hub_whose_certificate_has_run_out(directory: Path) -> None:
    with hub(directory, "", time.time() - 20 * 365 * 86400):
        finding = found(directory)["hub"]
    assert not finding.ok and "compare this machine's clock" in finding.advice


def test_a_disk_without_room_or_leave_to_write(directory: Path) -> None:
    assert found(directory)["disk"].ok is (shutil.disk_usage(directory).free >= SPACE)
    (full,) = (f for f in examine(directory, time.time, space=1 << 60) if f.check == "disk")
    assert not full.ok and "make room" in full.advice and "GiB free" in full.found


def test_a_sandbox_that_is_off_or_absent(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings(directory, "")
    off = found(directory)["sandbox"]
    assert not off.ok and "switched off" in off.found
    text = (directory / "node.yaml").read_text().replace("'off'", "required")
    (directory / "node.yaml").write_text(text)
    monkeypatch.setenv("PATH", str(tmp_path))  # a machine without bubblewrap
    absent = found(directory)["sandbox"]
    assert not absent.ok and "how-to/sandbox.md" in absent.advice


def test_a_trail_that_somebody_changed(directory: Path) -> None:
    with contextlib.closing(Store.open(directory)) as store:
        for i in range(3):
            with store.write() as tx:
                tx.audit(float(i), "me", "test", "s", "ok")
    assert found(directory)["audit trail"].ok
    with contextlib.closing(sqlite3.connect(directory / "node.sqlite")) as bare, bare:
        bare.execute("DROP TRIGGER audit_stays")
        bare.execute("UPDATE audit SET actor = 'eve' WHERE seq = 2")
    finding = found(directory)["audit trail"]
    assert not finding.ok and "line 2" in finding.found and "backup" in finding.advice


def test_certificates_clock_and_keys(directory: Path) -> None:
    month = 86400 * 31.0
    assert "clock (NTP)" in found(directory, lambda: time.time() - month)["certificate"].advice
    assert "new token" in found(directory, lambda: time.time() + month)["certificate"].advice
    late = found(directory, lambda: time.time() + 27 * 86400)["certificate"]
    assert not late.ok and "agent renews it" in late.advice
    (directory / "secrets" / "tls.key").unlink()
    assert "join again" in found(directory)["keys"].advice


def test_a_gpu_that_is_absent_or_closed(directory: Path, tmp_path: Path) -> None:
    settings(directory, "cuda: true\n")
    devices = tmp_path / "dev"
    devices.mkdir()
    assert "driver" in found(directory, devices=devices)["gpu"].advice
    (devices / "nvidia0").touch()
    assert found(directory, devices=devices)["gpu"].ok
    (devices / "nvidia0").chmod(0)
    # The one right of root's that opens any file is given up, as the node's own user has none.
    unprivileged = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    done = subprocess.run(
        [
            *(unprivileged if os.geteuid() == 0 else ()),
            *(sys.executable, "-c", EXAMINE, directory, devices),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    line = next(li for li in done.stdout.splitlines() if "check='gpu'" in li)
    assert "ok=False" in line and "nvidia0 cannot be opened" in line and "group" in line


def test_the_console_s_own_certificate(directory: Path) -> None:
    pair = "certificate: secrets/tls.pem, key: secrets/tls.key"
    settings(directory, f"console: {{{pair}}}\n")
    assert found(directory)["console certificate"].ok
    soon = found(directory, lambda: time.time() + 20 * 86400)["console certificate"]
    assert not soon.ok and "9 days" in soon.found
    (directory / "secrets" / "tls.key").chmod(0o644)
    assert "chmod 600" in found(directory)["console certificate"].advice
    settings(directory, "console: {certificate: none.pem, key: secrets/tls.key}\n")
    (directory / "secrets" / "tls.key").chmod(0o600)
    assert "none.pem" in found(directory)["console certificate"].found


def test_a_file_that_says_nonsense_is_the_first_thing_told(directory: Path) -> None:
    settings(directory, "memroy: 1\n")
    (finding,) = examine(directory, time.time)
    assert finding.check == "configuration" and "memroy" in finding.found
