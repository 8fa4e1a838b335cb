"""Before anything else: under which name is the console asked, from which page, how often.

A page of the internet can make a browser call 127.0.0.1, and can let its own name point there
(DNS rebinding). So the names under which the console answers are a closed list, and what a
page of another origin asks is refused, whatever cookie goes along.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from consilia.accounts.lockout import Bucket, drawn
from consilia.node.console.services import Place
from consilia.wire.people import ProblemView

HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; font-src 'self'; connect-src 'self'; manifest-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
RATE, BURST = 50.0, 300.0  # requests a second of one address, and at once
TRIES, TRY_BURST = 0.5, 10.0  # the same for attempts to get in
OPENINGS = ("/api/session", "/api/invitation")  # where strangers may try secrets
CALLBACK = "/oidc/callback"  # where the hospital's sign-in page sends browsers back to
_ADDRESSES = 1000  # remembered


def refusal(  # noqa: PLR0913, PLR0917 - what a browser says, in the order of looking
    method: str, path: str, host: str, origin: str, site: str, origins: frozenset[str]
) -> tuple[int, str] | None:
    """Return status and reason when a request is not from a page of this console, else None.

    `site` is the header Sec-Fetch-Site; pages cannot forge it, old browsers do not send it.
    """
    hosts = {known.partition("://")[2] for known in origins}
    if host.lower() not in hosts:
        return 421, (
            f"the console does not answer under the name {host[:80]!r}; a name that is meant "
            "is set in node.yaml: console.names"
        )
    if origin and origin.lower() not in origins:
        return 403, f"a page of {origin[:80]!r} asks; only the console's own pages may"
    foreign = site not in ("", "same-origin", "none")
    inner = path.startswith(("/api", "/oidc")) and path != CALLBACK
    if foreign and (method != "GET" or inner):
        return 403, "a page of another site asks; only the console's own pages may"
    return None


class Gate:
    """Lets through what `refusal` has nothing against, at a bounded rate for each address."""

    def __init__(self, app: ASGIApp, place: Place, clock: Callable[[], float]) -> None:
        """`clock` never goes back (seconds)."""
        self._app = app
        self._place = place
        self._clock = clock
        self._buckets: OrderedDict[tuple[str, bool], Bucket] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != ScopeType.HTTP:  # lifespan; the server speaks no WebSocket
            await self._app(scope, receive, send)
            return
        said = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        found = refusal(
            scope["method"],
            scope["path"],
            said.get("host", ""),
            said.get("origin", ""),
            said.get("sec-fetch-site", ""),
            self._place.origins,
        )
        client = scope.get("client")
        address = client[0] if client else ""
        post = scope["method"] == "POST" and scope["path"].startswith(OPENINGS)
        trying = post or scope["path"] == CALLBACK
        if found is None and not (
            self._take(address, False) and (not trying or self._take(address, True))
        ):
            found = 429, "too many requests from this address; wait a few seconds"
        if found is not None:
            await _refuse(send, *found)
            return
        await self._app(scope, receive, send)

    def _take(self, address: str, trying: bool) -> bool:
        rate, size = (TRIES, TRY_BURST) if trying else (RATE, BURST)
        now = self._clock()
        key = (address, trying)
        before = self._buckets.pop(key, Bucket(size, now))
        self._buckets[key], free = drawn(before, now, rate, size)
        if len(self._buckets) > _ADDRESSES:
            self._buckets.popitem(last=False)
        return free


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = msgspec.json.encode(ProblemView("Refused", status, detail, "Refused"))
    headers: list[tuple[bytes, bytes]] = [
        (name.lower().encode(), value.encode()) for name, value in HEADERS.items()
    ]
    headers += [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if status == 429:
        headers.append((b"retry-after", b"5"))
    start: Any = {"type": "http.response.start", "status": status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body, "more_body": False})
