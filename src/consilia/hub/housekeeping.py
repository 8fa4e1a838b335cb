"""What a serving hub does from time to time: frames and uploads nobody needs, its certificate.

A failure is logged and tried again at the next round; it ends nothing.
"""

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from consilia.errors import ConsiliaError
from consilia.hub.access import Access
from consilia.hub.pool.ending import Ending
from consilia.hub.retention import Collector
from consilia.hub.telemetry import Log


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """The hub's own certificate: the names it is for, and the contexts that show it."""

    access: Access
    hosts: Sequence[str]
    contexts: Sequence[ssl.SSLContext]

    def renew(self) -> bool:
        """Issue it anew at two thirds of its life, and show it on new connections. Blocks.

        Connections that are open go on: both sides have checked each other already.
        """
        if not self.access.renew_server(self.hosts):
            return False
        for context in self.contexts:
            context.load_cert_chain(self.access.server_chain, self.access.server_key)
        return True


async def keep_house(
    collector: Collector,
    uploads: Ending,
    certificate: ServerCertificate,
    log: Log,
    every: float,
) -> None:
    """Until cancelled, do what is due; `every` so many seconds."""
    while True:
        await asyncio.sleep(every)
        try:
            if await asyncio.to_thread(certificate.renew):
                log.info("the hub's server certificate was renewed")
        except (ConsiliaError, OSError) as e:  # ssl.SSLError is an OSError
            log.error("the server certificate could not be renewed", cause=str(e))
        try:
            swept = await collector.sweep()
        except (ConsiliaError, OSError) as e:
            log.error("frames could not be swept", cause=str(e))
        else:
            if swept.versions or swept.uploads or swept.files:
                log.info(
                    "frames swept",
                    versions=len(swept.versions),
                    uploads=len(swept.uploads),
                    files=len(swept.files),
                )
        try:
            gone = await uploads.sweep()
        except (ConsiliaError, OSError) as e:
            log.error("uploads of ended studies could not be swept", cause=str(e))
        else:
            if gone:
                log.info("uploads of ended studies deleted", uploads=len(gone))
