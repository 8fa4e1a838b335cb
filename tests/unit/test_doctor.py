"""What the doctor finds when one thing is wrong, and what it says to do about it."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from consilia.node.doctor import Finding, examine
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
