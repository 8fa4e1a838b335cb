"""One HTTPS line to a hub's REST API: the only place of the SDK that sends anything.

TLS is verified against the hub's own CA, never against none. A request is repeated only when
it is a GET and the line or the hub was down for a moment. Every refusal is raised as the
`consilia.errors` class it was at the hub.
"""

import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from consilia import errors
from consilia.errors import AuthError, ConfigError, ConsiliaError, TransferError, Wrong
from consilia.wire import frames, people

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
_CHUNK = 1 << 18  # bytes moved at a time
_PAGE = 500  # records asked for at once
_TRIES = 4  # of a GET
_DOWN = (502, 503, 504)


class Api:
    """Requests of one person to one hub."""

    def __init__(  # noqa: PLR0913 - where, who, and what tests and simulations give
        self,
        url: str,
        token: str | Callable[[], str],
        ca: str,
        timeout: float,
        sleep: Callable[[float], None],
        *,
        transport: "httpx.BaseTransport | None" = None,
    ) -> None:
        """`ca` is the hub's CA certificate, as a path or PEM text; `timeout` is in seconds.

        `token` is an API key ("" for none), or gives the token that is good now. `transport`
        takes the place of the network: of a hub that is simulated in this process.
        """
        import httpx  # noqa: PLC0415  # `consilia --help` must not pay for it

        if not url.startswith("https://"):
            raise ConfigError(f"the hub's address must begin with https://, found {url!r}")
        self.url = url
        self._timeout = timeout
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=url,
            auth=_bearer(token),
            verify=_context(ca),
            timeout=timeout,
            trust_env=False,
            transport=transport,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str, kind: type[T]) -> T:
        """Return the record at `path`."""
        return decode(self.send("GET", path), kind)

    def all(
        self, path: str, page: type[people.Page[T]], query: Mapping[str, Any] | None = None
    ) -> list[T]:
        """Follow a list to its end."""
        found: list[T] = []
        asked: dict[str, Any] = {"limit": _PAGE, **(query or {})}
        while True:
            got = decode(self.send("GET", path, query=asked), page)
            found += got.items
            if got.next is None:
                return found
            asked["cursor"] = got.next

    def post(self, path: str, kind: type[T], body: object = None) -> T:
        """Send `body` and return the record that answers."""
        return decode(self.send("POST", path, body), kind)

    def send_for(self, method: str, path: str, kind: type[T], body: object) -> T:
        """Send `body` with any method and return the record that answers."""
        return decode(self.send(method, path, body), kind)

    def send(
        self,
        method: str,
        path: str,
        body: object = None,
        query: Mapping[str, Any] | None = None,
        more: float = 0.0,
    ) -> bytes:
        """Send one request; GETs are repeated while hub or line are down for a moment.

        `more`: seconds that a long poll may take on top of the time-out.
        """
        import httpx  # noqa: PLC0415

        tries = _TRIES if method == "GET" else 1
        for attempt in range(1, tries + 1):
            try:
                answer = self._http.request(
                    method,
                    "/api/v1" + path,
                    content=None if body is None else msgspec.json.encode(body),
                    headers={} if body is None else {"Content-Type": "application/json"},
                    params=query,
                    timeout=self._timeout + more,
                )
            except httpx.TransportError as e:
                if attempt == tries or _hopeless(e):
                    raise self.unreachable(e) from None
            else:
                if not answer.is_error:
                    return answer.content
                if attempt == tries or answer.status_code not in _DOWN:
                    raise problem_of(answer)
            self._sleep(0.1 * 2**attempt)
        raise AssertionError("the loop returns or raises")

    def unreachable(self, error: Exception) -> ConsiliaError:
        """Say what a person can check, by what went wrong."""
        if isinstance(error.__cause__, ssl.SSLCertVerificationError) or _hopeless(error):
            return AuthError(
                f"{self.url} did not show a certificate of the expected CA ({error}); check "
                "that the address is one of the hub's `hosts` and that the CA file is this "
                "hub's secrets/ca.pem"
            )
        return TransferError(
            f"the hub at {self.url} does not answer ({type(error).__name__}: {error}); check "
            "the address, that `consilia hub serve` runs, and that no firewall is between"
        )

    def download(
        self,
        path: str,
        total: int,
        verifier: "frames.Verifier",
        write: Callable[[bytes], object],
    ) -> None:
        """Hand the `total` bytes at `path` to `verifier` and `write`.

        A broken line is taken up where it broke.
        """
        import httpx  # noqa: PLC0415

        done, tries = 0, 0
        while done < total:
            try:
                with self._http.stream(
                    "GET",
                    "/api/v1" + path,
                    headers={"Range": f"bytes={done}-"},
                ) as answer:
                    if answer.status_code not in (200, 206):
                        answer.read()
                        raise problem_of(answer)
                    if answer.status_code == 200 and done:
                        raise TransferError(f"{self.url} does not continue downloads")
                    for chunk in answer.iter_bytes(_CHUNK):
                        verifier.feed(memoryview(chunk))
                        write(chunk)
                        done += len(chunk)
                        tries = 0
            except httpx.TransportError as e:
                tries += 1
                if tries >= _TRIES:
                    raise self.unreachable(e) from None
                self._sleep(0.2 * 2**tries)

    def upload(self, path: str, file: Path) -> bytes:
        """Send the file's bytes to `path` and return the answer."""
        import httpx  # noqa: PLC0415

        try:
            with file.open("rb") as source:
                answer = self._http.put(
                    "/api/v1" + path,
                    content=iter(lambda: source.read(_CHUNK), b""),
                    headers={
                        "Content-Length": str(file.stat().st_size),
                        "Content-Type": "application/octet-stream",
                    },
                    timeout=max(self._timeout, 300.0),
                )
        except OSError as e:
            raise ConfigError(f"{file} cannot be read: {e}") from None
        except httpx.TransportError as e:
            raise self.unreachable(e) from None
        if answer.is_error:
            raise problem_of(answer)
        return answer.content


def _bearer(
    token: str | Callable[[], str],
) -> "Callable[[httpx.Request], httpx.Request]":
    """Return what puts the token that is good now on a request."""

    def sign(request: "httpx.Request") -> "httpx.Request":
        secret = token if isinstance(token, str) else token()
        if secret:
            request.headers["Authorization"] = f"Bearer {secret}"
        return request

    return sign


def _hopeless(error: BaseException) -> bool:
    return "CERTIFICATE_VERIFY_FAILED" in str(error)


def _context(ca: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        pem = ca if ca.lstrip().startswith("-----BEGIN") else Path(ca).read_text("ascii")
        context.load_verify_locations(cadata=pem)
    except (OSError, ValueError, ssl.SSLError) as e:
        raise ConfigError(
            f"the hub's CA certificate cannot be read ({e}); it is secrets/ca.pem at the hub"
        ) from None
    return context


def decode(body: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Return the record that an answer holds; WireError when it is of another release."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as e:
        raise errors.WireError(
            f"the answer is not what this version expects ({e}); "
            "are hub and SDK of one release?"
        ) from None


def _words(
    detail: str, field: str | None, found: str | None, expected: str | None
) -> str | Wrong:
    return detail if field is None else Wrong(field, found or "", expected or "", detail)


def problem_of(answer: "httpx.Response") -> ConsiliaError:
    """Return the error of an answer as the class it was raised as at the hub."""
    try:
        problem = msgspec.json.decode(answer.content, type=people.ProblemView)
    except msgspec.DecodeError:
        return TransferError(
            f"{answer.url.host} answered {answer.status_code} and not in the hub's manner; "
            "is there a proxy or another service at this address?"
        )
    kind = getattr(errors, problem.error, None)
    if isinstance(kind, type) and issubclass(kind, ConsiliaError):
        said = problem.detail, problem.field, problem.found, problem.expected
        error: ConsiliaError = kind(_words(*said))
        return error
    return ConsiliaError(f"{problem.title} ({problem.status}): {problem.detail}")
