"""What machines ask: is the process up, can it work, its figures, its description."""

import asyncio
from typing import Any

import msgspec
from litestar import Response, get
from litestar.di import NamedDependency
from litestar.params import SkipValidation

from consilia.hub.rest.services import Hub, Services

READY_SECONDS = 5.0  # that all probes may take together


@get("/healthz")
async def healthz() -> dict[str, str]:
    """The process is up and its event loop turns."""
    return {"status": "up"}


@get("/readyz")
async def readyz(hub: Hub) -> Response[bytes]:
    """The hub can work: database writable, listeners up, room on the disk. 503 when not.

    Whoever asks learns which part is wrong; why stands in the log.
    """
    states = await asked_parts(hub)
    ready = "failed" not in states.values() and not hub.stopping.is_set()
    body = {"status": "ready" if ready else "not ready", **states}
    return Response(
        msgspec.json.encode(body),
        status_code=200 if ready else 503,
        media_type="application/json",
    )


async def asked_parts(hub: Services) -> dict[str, str]:
    """Ask what readiness asks; return each part's "ok" or "failed"."""
    states: dict[str, str] = {}
    for name, probe in hub.probes.items():
        try:
            why = await asyncio.wait_for(probe(), READY_SECONDS)
        except Exception as e:  # a probe that breaks is an answer, too
            why = f"{type(e).__name__}: {e}"
        states[name] = "ok" if why is None else "failed"
        if why is not None:
            hub.log.warning("not ready", part=name, cause=why)
    return states


@get("/metrics")
async def metrics(hub: Hub) -> Response[bytes]:
    """The hub's figures for Prometheus."""
    text, kind = await asyncio.to_thread(hub.metrics.render)
    return Response(text, media_type=kind)


@get("/openapi.json")
async def openapi(
    described: NamedDependency[SkipValidation[dict[str, Any]]],
) -> Response[bytes]:
    """Describe this API as OpenAPI, from which clients are generated."""
    return Response(
        msgspec.json.encode(described), media_type="application/vnd.oai.openapi+json"
    )
