"""The hub's REST API as typed Python: every route one method, every answer a record of
`wire.people`, every refusal the `consilia.errors` class it was at the hub.

    client = Client()                       # CONSILIA_URL, _TOKEN, _CA or the saved profile
    for site in client.sites():
        print(site.name, site.online)

TLS is verified against the hub's own CA, never against none. A request is repeated only when
it is a GET and the line or the hub was down for a moment.
"""

import os
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec

from consilia import errors
from consilia.errors import AuthError, ConfigError, ConsiliaError, TransferError
from consilia.wire import frames, people
from consilia.wire.v1 import Arguments, Plan, Study

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
_CHUNK = 1 << 18  # bytes moved at a time
_PAGE = 500  # records asked for at once
_TRIES = 4  # of a GET
_DOWN = (502, 503, 504)


class Profile(msgspec.Struct, frozen=True):
    """Where a person's hub is and who they are there; `ca` is PEM text."""

    url: str
    token: str
    ca: str


def profile_path(environ: Mapping[str, str]) -> Path:
    """Return where `consilia login` keeps the profile (XDG base directories)."""
    base = (
        environ.get("XDG_CONFIG_HOME")
        or Path(environ.get("HOME", "~")).expanduser() / ".config"
    )
    return Path(base) / "consilia" / "profile.json"


def save_profile(profile: Profile, path: Path) -> None:
    """Write the profile so that only its owner can read it; replaces an older one whole."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as out:
        out.write(msgspec.json.encode(profile))
    part.replace(path)


def load_profile(path: Path) -> Profile | None:
    """Read the profile; None when there is none; ConfigError when it is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Profile)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as e:
        raise ConfigError(
            f"{path} cannot be read ({e}); write it anew: consilia login"
        ) from None


class Client:
    """A connection to one hub as one person. Close it, or use it as a context manager."""

    def __init__(  # noqa: PLR0913 - where, who, and what tests give
        self,
        url: str | None = None,
        token: str | None = None,
        ca: str | Path | None = None,
        *,
        environ: Mapping[str, str] = os.environ,
        profile: Path | None = None,
        timeout: float = 30.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Arguments win over environment, environment over profile.

        `ca` is the path of the hub's CA certificate, or its PEM text. `timeout` bounds, in
        seconds, every wait for the hub, except the wait a long poll asks for.
        """
        import httpx  # noqa: PLC0415  # `consilia --help` must not pay for it

        saved = load_profile(profile or profile_path(environ))
        self.url = _needed("URL", url, environ, saved.url if saved else None).rstrip("/")
        secret = _needed("TOKEN", token, environ, saved.token if saved else None)
        pem = _needed("CA", str(ca) if ca else None, environ, saved.ca if saved else None)
        if not self.url.startswith("https://"):
            raise ConfigError(f"the hub's address must begin with https://, found {self.url!r}")
        self._timeout = timeout
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {secret}"},
            verify=_context(pem),
            timeout=timeout,
            trust_env=False,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self.close()

    # ---- people and sites --------------------------------------------------------------------

    def whoami(self) -> people.WhoamiView:
        """Tell whose token this is."""
        return self._get("/whoami", people.WhoamiView)

    def tokens(self) -> list[people.TokenView]:
        """List API tokens, without their secrets (operator)."""
        return self._all("/tokens", people.Page[people.TokenView])

    def new_token(self, name: str, role: str, days: int = 90) -> people.TokenView:
        """Make an API token; its secret is in the answer, once (operator)."""
        return self._post(
            "/tokens", people.TokenView, people.NewToken(name=name, role=role, days=days)
        )

    def revoke_token(self, id: str) -> None:
        """Revoke an API token; it fails from its next request on (operator)."""
        self._send("DELETE", f"/tokens/{_part(id)}")

    def sites(self) -> list[people.SiteView]:
        """List the sites with their state."""
        return self._all("/sites", people.Page[people.SiteView])

    def invite(self, site: str, hours: float = 72.0) -> people.JoinTokenView:
        """Make a one-time join token for a site (operator)."""
        return self._post("/sites", people.JoinTokenView, people.Invite(site=site, hours=hours))

    def revoke_site(self, site: str) -> people.SiteView:
        """Shut a site out; works on its next request (operator)."""
        return self._post(f"/sites/{_part(site)}/revoke", people.SiteView)

    # ---- studies and plans -------------------------------------------------------------------

    def studies(self) -> list[people.StudyView]:
        """List the studies the caller may see."""
        return self._all("/studies", people.Page[people.StudyView])

    def study(self, name: str) -> people.StudyView:
        """Return one study."""
        return self._get(f"/studies/{_part(name)}", people.StudyView)

    def create_study(self, study: Study) -> people.StudyView:
        """Make a draft."""
        return self._post("/studies", people.StudyView, study)

    def edit_study(self, study: Study) -> people.StudyView:
        """Replace a draft of that name."""
        body = self._send("PUT", f"/studies/{_part(study.name)}", study)
        return msgspec.json.decode(body, type=people.StudyView)

    def submit_study(self, name: str) -> people.StudyView:
        """Lock the draft and offer it to its sites."""
        return self._post(f"/studies/{_part(name)}/submit", people.StudyView)

    def close_study(self, name: str) -> people.StudyView:
        """End a study: no job starts in it any more."""
        return self._post(f"/studies/{_part(name)}/close", people.StudyView)

    def plans(self, study: str | None = None) -> list[people.PlanView]:
        """List the plans of one study, or of all the caller may see."""
        return self._all(
            "/plans", people.Page[people.PlanView], {"study": study} if study else {}
        )

    def plan(self, digest: str) -> people.PlanView:
        """Return one plan with its source."""
        return self._get(f"/plans/{_part(digest)}", people.PlanView)

    def submit_plan(self, study: str, plan: Plan) -> people.PlanView:
        """Offer a plan to the sites of a study."""
        return self._post("/plans", people.PlanView, people.SubmitPlan(study=study, plan=plan))

    # ---- jobs --------------------------------------------------------------------------------

    def validate(self, experiment: people.Experiment) -> people.ValidationView:
        """Tell what would keep the experiment from starting, without starting it."""
        return self._post("/experiments/validate", people.ValidationView, experiment)

    def estimate_privacy(
        self, experiment: people.Experiment, sites: Sequence[str] | None = None
    ) -> people.PrivacyEstimateView:
        """Tell the epsilon that the experiment would add at each site of its study.

        With `sites` the hub is not asked: it computes here, for a study not submitted yet.
        """
        if sites is None:
            return self._post("/experiments/privacy", people.PrivacyEstimateView, experiment)
        from consilia.privacy.estimate import estimate  # noqa: PLC0415  # numpy takes time

        return estimate(experiment, sites)

    def start(self, experiment: people.Experiment) -> people.JobView:
        """Run an experiment: make a job."""
        return self._post("/jobs", people.JobView, experiment)

    def jobs(self) -> list[people.JobView]:
        """List the jobs the caller may see, newest first."""
        return self._all("/jobs", people.Page[people.JobView])

    def job(self, id: str) -> people.JobView:
        """Return one job with its rounds."""
        return self._get(f"/jobs/{_part(id)}", people.JobView)

    def stop(self, id: str) -> people.JobView:
        """Stop a job; accepted updates of its open round are kept."""
        return self._post(f"/jobs/{_part(id)}/stop", people.JobView)

    def resume(self, id: str, rounds: int | None = None) -> people.JobView:
        """Go on with a stopped or failed job, perhaps with more rounds."""
        return self._post(
            f"/jobs/{_part(id)}/resume", people.JobView, people.ResumeJob(rounds=rounds)
        )

    def change_arguments(self, id: str, arguments: Arguments) -> people.JobView:
        """Set arguments from the next round on; the others stay."""
        return self._post(
            f"/jobs/{_part(id)}/arguments",
            people.JobView,
            people.ChangeArguments(arguments=arguments),
        )

    def events(
        self,
        id: str,
        after: int = 0,
        wait: float = 0.0,
    ) -> list[people.EventView]:
        """Return a job's events after number `after`, waiting up to `wait` s for the first."""
        body = self._send(
            "GET",
            f"/jobs/{_part(id)}/events",
            query={"after": after, "wait": wait},
            timeout=self._timeout + wait,
        )
        return list(_decode(body, people.Page[people.EventView]).items)

    # ---- models ------------------------------------------------------------------------------

    def models(self, job: str | None = None) -> list[people.ModelView]:
        """List model versions of one job, or of all the caller may see."""
        return self._all("/models", people.Page[people.ModelView], {"job": job} if job else {})

    def model(self, id: str) -> people.ModelView:
        """Return one model version with its lineage."""
        return self._get(f"/models/{_part(id)}", people.ModelView)

    def download_model(self, id: str, path: Path) -> people.ModelView:
        """Write a model version's frame to `path`, checked byte by byte against its digest.

        A broken line is taken up where it broke. `path` appears only when it is whole.
        """
        view = self.model(id)
        part = path.with_name(path.name + ".part")
        verifier = frames.Verifier(view.bytes, expected=view.digest)
        try:
            with part.open("wb") as out:
                self._download(id, view.bytes, verifier, out.write)
                out.flush()
                os.fsync(out.fileno())
            if not verifier.complete:
                raise TransferError(f"model {id} arrived cut short; try again")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return view

    def _download(
        self,
        model: str,
        total: int,
        verifier: "frames.Verifier",
        write: Callable[[bytes], object],
    ) -> None:
        import httpx  # noqa: PLC0415

        done, tries = 0, 0
        while done < total:
            try:
                with self._http.stream(
                    "GET",
                    f"/api/v1/models/{_part(model)}/frame",
                    headers={"Range": f"bytes={done}-"},
                ) as answer:
                    if answer.status_code not in (200, 206):
                        answer.read()
                        raise _problem(answer)
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
                    raise self._unreachable(e) from None
                self._sleep(0.2 * 2**tries)

    def upload_frame(self, path: Path) -> people.FrameView:
        """Upload a base model's frame; answers its digest."""
        import httpx  # noqa: PLC0415

        try:
            with path.open("rb") as source:
                answer = self._http.put(
                    "/api/v1/frames",
                    content=iter(lambda: source.read(_CHUNK), b""),
                    headers={
                        "Content-Length": str(path.stat().st_size),
                        "Content-Type": "application/octet-stream",
                    },
                    timeout=max(self._timeout, 300.0),
                )
        except OSError as e:
            raise ConfigError(f"{path} cannot be read: {e}") from None
        except httpx.TransportError as e:
            raise self._unreachable(e) from None
        if answer.is_error:
            raise _problem(answer)
        return msgspec.json.decode(answer.content, type=people.FrameView)

    # ---- audit -------------------------------------------------------------------------------

    def audit(self, after: int = 0, limit: int | None = None) -> Iterator[people.AuditView]:
        """Yield the hub's audit lines after number `after` (operator, auditor)."""
        left = limit
        while left is None or left > 0:
            size = _PAGE if left is None else min(_PAGE, left)
            body = self._send("GET", "/audit", query={"after": after, "limit": size})
            page = _decode(body, people.Page[people.AuditView])
            yield from page.items
            if page.next is None:
                return
            after = int(page.next)
            left = None if left is None else left - len(page.items)

    def verify_audit(
        self, length: int | None = None, digest: str = ""
    ) -> people.AuditCheckView:
        """Have the hub check its whole chain (operator, auditor).

        `length` and `digest` are a head that was kept earlier: the chain must still hold it.
        """
        query = None if length is None else {"length": length, "digest": digest}
        body = self._send("GET", "/audit/verify", query=query)
        return _decode(body, people.AuditCheckView)

    # ---- the one way out ---------------------------------------------------------------------

    def _get(self, path: str, kind: type[T]) -> T:
        return _decode(self._send("GET", path), kind)

    def _all(
        self, path: str, page: type[people.Page[T]], query: Mapping[str, Any] | None = None
    ) -> list[T]:
        """Follow a list to its end."""
        found: list[T] = []
        asked: dict[str, Any] = {"limit": _PAGE, **(query or {})}
        while True:
            got = _decode(self._send("GET", path, query=asked), page)
            found += got.items
            if got.next is None:
                return found
            asked["cursor"] = got.next

    def _post(self, path: str, kind: type[T], body: object = None) -> T:
        return _decode(self._send("POST", path, body), kind)

    def _send(
        self,
        method: str,
        path: str,
        body: object = None,
        query: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> bytes:
        """Send one request; GETs are repeated while hub or line are down for a moment."""
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
                    timeout=timeout or self._timeout,
                )
            except httpx.TransportError as e:
                if attempt == tries or _hopeless(e):
                    raise self._unreachable(e) from None
            else:
                if not answer.is_error:
                    return answer.content
                if attempt == tries or answer.status_code not in _DOWN:
                    raise _problem(answer)
            self._sleep(0.1 * 2**attempt)
        raise AssertionError("the loop returns or raises")

    def _unreachable(self, error: Exception) -> ConsiliaError:
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


def _hopeless(error: BaseException) -> bool:
    return "CERTIFICATE_VERIFY_FAILED" in str(error)


def _needed(what: str, given: str | None, environ: Mapping[str, str], saved: str | None) -> str:
    value = given or environ.get(f"CONSILIA_{what}") or saved
    if not value:
        raise ConfigError(
            f"the hub's {what} is not known: give it, set CONSILIA_{what}, or run: "
            "consilia login"
        )
    return value


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


def _part(text: str) -> str:
    """Return `text` as one segment of a path, whatever is in it."""
    from urllib.parse import quote  # noqa: PLC0415

    return quote(text, safe="")


def _decode(body: bytes | msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as e:
        raise errors.WireError(
            f"the answer is not what this version expects ({e}); "
            "are hub and SDK of one release?"
        ) from None


def _problem(answer: "httpx.Response") -> ConsiliaError:
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
        error: ConsiliaError = kind(problem.detail)
        return error
    return ConsiliaError(f"{problem.title} ({problem.status}): {problem.detail}")
