"""A line to the hub under the node's own certificate: the agent's, or one for a single step.

A step is what a command or a page of the console asks at once, beside the agent.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from consilia.errors import Conflict
from consilia.node import config, identity
from consilia.node.config import NodeConfig
from consilia.node.line import Credentials
from consilia.node.link import HttpLink

T = TypeVar("T")
PATIENCE = 20.0  # seconds for one answer


def connect(
    directory: Path, settings: NodeConfig, secrets: Path, jitter: Callable[[], float]
) -> HttpLink:
    """Return the link of the node in `directory`, whose keys are in `secrets`.

    `jitter`, from 0 to below 1, spreads its retries.
    """
    return HttpLink(
        settings.hub,
        Credentials(secrets / "tls.pem", secrets / "tls.key", secrets / "ca.pem"),
        random=jitter,
        proxy=config.proxy_url(directory, settings),
    )


def asked(
    directory: Path,
    step: Callable[[HttpLink], Awaitable[T]],
    patience: float | None = PATIENCE,
) -> T:
    """Run a step with a line of its own to the hub. Blocks.

    Conflict where it has not ended within `patience` seconds; None waits as long as it takes.
    """
    return asyncio.run(_run(directory, step, patience))


async def _run(
    directory: Path, step: Callable[[HttpLink], Awaitable[T]], patience: float | None
) -> T:
    settings = config.load(directory)
    secrets = identity.load(directory, settings.site).secrets
    link = connect(directory, settings, secrets, random.SystemRandom().random)
    try:
        async with asyncio.timeout(patience):
            return await step(link)
    except TimeoutError:
        raise Conflict("the hub does not answer now; see the health page") from None
    finally:
        await link.close()
