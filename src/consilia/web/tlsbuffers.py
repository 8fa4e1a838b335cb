"""How much memory asyncio sets aside for a TLS connection."""

from asyncio import sslproto

SIZE = 32 << 10  # bytes; a TLS record holds 16 KiB


def bound(size: int = SIZE) -> None:
    """Let every TLS connection that is made from now on read `size` bytes at once.

    For the whole process. asyncio would set aside, and clear, 256 KiB for each connection and
    ask for as much at each read: a hub with 1,000 sites has 2,000 such lines, and as many again
    with 1,000 who watch. What few lines with much to carry lose by it could not be measured.
    """
    sslproto.SSLProtocol.max_size = size
