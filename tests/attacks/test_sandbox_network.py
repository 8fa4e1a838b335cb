"""Researcher code that tries to reach somebody: network, names, sockets."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from consilia.node.launcher import Bubblewrap, PlainProcess
from sandboxkit import escaped, needs_bubblewrap, only_without_sandbox

pytestmark = needs_bubblewrap


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


async def test_tcp(tmp_path: Path, listener: int) -> None:
    await only_without_sandbox(
        tmp_path,
        """
import socket
def escape(port):
    socket.create_connection(("127.0.0.1", int(port)), 2).close()
    return True
""",
        str(listener),
    )


async def test_datagram_as_dns_would_send_it(tmp_path: Path) -> None:
    body = """
import socket
def escape(port):
    question = b"\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\7patient\\4evil\\4test\\0\\0\\1\\0\\1"
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(question, ("127.0.0.1", int(port)))
    return True
"""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)
        port = str(server.getsockname()[1])
        await escaped(tmp_path, PlainProcess(), body, port)
        assert b"patient" in server.recv(512), "the attack itself is wrong"
        await escaped(tmp_path, Bubblewrap(), body, port)
        with pytest.raises(BlockingIOError):
            server.recv(512)


async def test_name_resolution(tmp_path: Path) -> None:
    body = """
import socket
def escape(_):
    return bool(socket.getaddrinfo("example.org", 443))
"""
    assert not await escaped(tmp_path, Bubblewrap(), body)


async def test_only_loopback_exists(tmp_path: Path) -> None:
    body = """
import socket
def escape(_):
    return [name for _, name in socket.if_nameindex()] != ["lo"]
"""
    assert not await escaped(tmp_path, Bubblewrap(), body)


async def test_unix_sockets(tmp_path: Path) -> None:
    """Neither the agent's control socket nor an abstract one can be reached."""
    path = tmp_path / "control.sock"
    body = """
import socket
def escape(path):
    reached = []
    for address in (path, "\\0consilia-test-" + str(len(path))):
        try:
            socket.socket(socket.AF_UNIX).connect(address)
            reached.append(address)
        except OSError:
            pass
    return reached
"""
    with (
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        named.bind(str(path))
        abstract.bind(f"\0consilia-test-{len(str(path))}")
        named.listen()
        abstract.listen()
        await only_without_sandbox(tmp_path, body, str(path))


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_ALG"])
async def test_no_family_of_sockets_but_unix(tmp_path: Path, family: str) -> None:
    """The sandbox has no network to reach; the kernel's code for it is out of reach too."""
    body = f"""
import socket
def escape(_):
    kind = socket.SOCK_SEQPACKET if {family!r} == "AF_ALG" else socket.SOCK_STREAM
    raw = {family!r} in ("AF_NETLINK", "AF_PACKET")
    try:
        socket.socket(socket.{family}, socket.SOCK_RAW if raw else kind).close()
    except PermissionError as error:
        print(error)  # a privilege is lacking: the family itself is there
    return True
"""
    assert await escaped(tmp_path, Bubblewrap(filtered=False), body) or family == "AF_ALG"
    assert not await escaped(tmp_path, Bubblewrap(), body)


async def test_sockets_within_the_sandbox_work(tmp_path: Path) -> None:
    """Processes of one plan may talk to each other: loaders hand tensors on that way."""
    body = """
import os, socket
def escape(_):
    server = socket.socket(socket.AF_UNIX)
    server.bind("/tmp/inner")
    server.listen()
    if os.fork() == 0:
        client = socket.socket(socket.AF_UNIX)
        client.connect("/tmp/inner")
        client.send(b"tensor")
        os._exit(0)
    return server.accept()[0].recv(10) == b"tensor"
"""
    assert await escaped(tmp_path, Bubblewrap(), body)
