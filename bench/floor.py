"""The floor under a round: the same bytes over as many raw TLS 1.3 socket pairs, and one fold.

One server process with a thread per node, one process per node, mutual TLS 1.3 on loopback.
In a round every node receives the model and sends as many bytes back; then the server folds
one update into a running mean with numpy. No protocol, no hashing, no disk, no checks: what a
round costs beyond this is what the federation adds. As the machine's speed drifts, the floor
is measured in the same run as the workload.
"""

import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from numpy.typing import NDArray

CHUNK = 256 << 10


def measure(nodes: int, size: int, rounds: int, directory: Path) -> list[float]:
    """Return the seconds of each round after the first, for `size` bytes each way per node."""
    certificate = _self_signed(directory)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(nodes)
    port = listener.getsockname()[1]
    command = [sys.executable, __file__, str(certificate), str(port), str(size), str(rounds)]
    clients = [subprocess.Popen(command) for _ in range(nodes)]
    context = _context(ssl.PROTOCOL_TLS_SERVER, certificate)
    lines = [
        context.wrap_socket(_prompt(listener.accept()[0]), server_side=True)
        for _ in range(nodes)
    ]
    model = np.random.default_rng(0).standard_normal(size // 4, np.float32).tobytes()
    mean = np.zeros(size // 4, np.float32)
    buffers = [bytearray(CHUNK) for _ in range(nodes)]
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        threads = [
            threading.Thread(target=_serve, args=(line, model, buffer))
            for line, buffer in zip(lines, buffers, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _fold(mean, np.frombuffer(model, np.float32))
        seconds.append(time.perf_counter() - start)
    for line in lines:
        line.close()
    for client in clients:
        client.wait(30)
    return seconds[1:]


def median(nodes: int, size: int, rounds: int, directory: Path) -> float:
    """Return the median seconds of a floor round."""
    return statistics.median(measure(nodes, size, rounds, directory))


def _serve(line: ssl.SSLSocket, model: bytes, buffer: bytearray) -> None:
    line.sendall(model)
    _receive(line, len(model), buffer)


def _fold(mean: NDArray[np.float32], update: NDArray[np.float32]) -> None:
    step = 1 << 16
    for start in range(0, mean.size, step):
        part = mean[start : start + step]
        part += np.float32(0.5) * (update[start : start + step] - part)


def _receive(line: ssl.SSLSocket, size: int, buffer: bytearray) -> None:
    left = size
    while left:
        count = line.recv_into(buffer, min(left, len(buffer)))
        if not count:
            raise ConnectionError(f"the line closed with {left} of {size} bytes to come")
        left -= count


def _context(side: int, certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # a self-made certificate, pinned on both sides
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate)
    context.load_verify_locations(certificate)
    return context


def _self_signed(directory: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "floor")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "floor.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


def _prompt(line: socket.socket) -> socket.socket:
    """Send small ends of a message at once: waiting for an acknowledgement costs 40 ms."""
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return line


def _node(certificate: Path, port: int, size: int, rounds: int) -> None:
    line = _context(ssl.PROTOCOL_TLS_CLIENT, certificate).wrap_socket(
        _prompt(socket.create_connection(("127.0.0.1", port)))
    )
    update = np.random.default_rng(1).bytes(size)
    buffer = bytearray(CHUNK)
    for _ in range(rounds):
        _receive(line, size, buffer)
        line.sendall(update)
    line.close()


if __name__ == "__main__":
    _node(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
