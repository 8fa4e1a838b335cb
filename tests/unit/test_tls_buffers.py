"""asyncio still reads as much at once as it is told to."""

import asyncio
import ssl
from asyncio import sslproto

from consilia.web import tlsbuffers


async def test_a_connection_gets_the_buffer_that_is_set() -> None:
    before = sslproto.SSLProtocol.max_size
    assert before > tlsbuffers.SIZE, "asyncio's own is small enough: web/tlsbuffers can go"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    loop = asyncio.get_running_loop()
    try:
        tlsbuffers.bound()
        made = sslproto.SSLProtocol(loop, asyncio.Protocol(), context, loop.create_future())
        assert len(made.get_buffer(-1)) == tlsbuffers.SIZE
        made.connection_lost(None)
    finally:
        tlsbuffers.bound(before)
