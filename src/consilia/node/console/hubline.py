"""A line to the hub of the console's own, for what a page asks at once, beside the agent's."""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from consilia.errors import Conflict
from consilia.node import config, identity
from consilia.node.console.services import Services
from consilia.node.line import Credentials
from consilia.node.link import HttpLink

T = TypeVar("T")
PATIENCE = 20.0  # seconds for one answer


def asked(
    here: Services, step: Callable[[HttpLink], Awaitable[T]], patience: float = PATIENCE
) -> T:
    """Run a step with a line to the hub, under the node's own certificate. Blocks.

    Conflict where the hub does not answer within `patience` seconds.
    """
    return asyncio.run(_run(here, step, patience))


async def _run(here: Services, step: Callable[[HttpLink], Awaitable[T]], patience: float) -> T:
    settings = here.config()
    secrets = identity.load(here.directory, settings.site).secrets
    link = HttpLink(
        settings.hub,
        Credentials(secrets / "tls.pem", secrets / "tls.key", secrets / "ca.pem"),
        random=random.Random(int.from_bytes(os.urandom(8), "big")).random,  # noqa: S311 - jitter
        proxy=config.proxy_url(here.directory, settings),
    )
    try:
        async with asyncio.timeout(patience):
            return await step(link)
    except TimeoutError:
        raise Conflict("the hub does not answer now; see the health page") from None
    finally:
        await link.close()
