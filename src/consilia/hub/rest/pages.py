"""The dashboard: the pages that people's browsers get from the hub itself.

They are files of the package and the same for everybody; whatever they show, they ask the
REST API for, with the right of whoever has signed in. A page runs scripts of this hub only,
and speaks with this hub only.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from litestar import Request, Response, get
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler

from consilia.hub.rest.guard import open_to_all
from consilia.web.static import Shelf, find, missing

STATIC = Path(__file__).parents[1] / "static"
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; font-src 'self'; connect-src 'self'; manifest-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


def make(folder: Path = STATIC) -> HTTPRouteHandler:
    """Return the route of all pages below `folder`; it stands behind every other route."""
    shelf = Shelf(find(folder), missing("The dashboard's pages", "the hub"))

    @get(["/", "/{path:path}"], opt=open_to_all())
    async def pages(request: Request[Any, Any, Any]) -> Response[bytes]:
        """Answer the browser's part of the hub."""
        path = request.url.path
        if path == "/api" or path.startswith("/api/"):
            raise NotFoundException
        known = request.headers.get("if-none-match", "")
        encodings = request.headers.get("accept-encoding", "")
        found = await asyncio.to_thread(shelf.answer, path, known, encodings)
        return Response(
            found.body,
            status_code=found.status,
            media_type=found.kind,
            headers={**HEADERS, **found.headers},
        )

    return pages
