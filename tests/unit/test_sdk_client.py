"""The SDK's client alone: where it finds its hub, what it repeats, how it explains failure."""

import os
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from consilia import errors
from consilia.errors import AuthError, ConfigError, ConsiliaError, TransferError, WireError
from consilia.hub.keyfiles import Secrets
from consilia.sdk.client import Client
from consilia.sdk.experiment import Experiment as Running
from consilia.sdk.profile import Profile, load_profile, profile_path, save_profile
from consilia.wire.people import Experiment, JobView, ProblemView, WhoamiView

Answer = tuple[int, bytes]
WHO = msgspec.json.encode(WhoamiView(name="ada", role="researcher", hub="hub", version="1"))


def problem(status: int, kind: str, detail: str) -> Answer:
    view = ProblemView(title="t", status=status, detail=detail, error=kind)
    return status, msgspec.json.encode(view)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("secrets")
    directory.chmod(0o700)
    Secrets.create(directory, ("localhost", "127.0.0.1"), "test", time.time(), os.urandom)
    return directory


@contextmanager
def server(secrets: Path, answer: Callable[[int], Answer]) -> Iterator[tuple[str, list[str]]]:
    """Serve TLS; `answer(n)` is the n-th answer. Yields the address and the requests seen."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(f"{self.command} {self.path} {self.headers['Authorization']}")
            status, body = answer(len(seen))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(secrets / "server.pem", secrets / "server.key")
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.socket = context.wrap_socket(http.socket, server_side=True)
    thread = threading.Thread(target=http.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"https://127.0.0.1:{http.server_port}", seen
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def test_arguments_win_over_environment_over_profile(secrets: Path, tmp_path: Path) -> None:
    ca = (secrets / "ca.pem").read_text()
    home = tmp_path / "home"
    with server(secrets, lambda _: (200, WHO)) as (url, seen):
        environ = {"HOME": str(home)}
        path = profile_path(environ)
        assert path == home / ".config" / "consilia" / "profile.json"
        save_profile(Profile(url, "saved", ca), path)
        for more, given, token in (
            ({}, None, "saved"),
            ({"CONSILIA_TOKEN": "environment"}, None, "environment"),
            ({"CONSILIA_TOKEN": "environment"}, "argument", "argument"),
        ):
            with Client(token=given, environ=environ | more) as client:
                assert client.whoami().name == "ada"
            assert seen[-1] == f"GET /api/v1/whoami Bearer {token}"


@pytest.mark.parametrize("named", ["own.py", "./own.py", "."])
def test_a_hub_that_names_a_file_in_a_plans_place_gets_nothing_of_it(
    secrets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """It would be read, and submitted to the hub, by whoever goes on from such a job."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("SECRET = 1\n")
    asked = Experiment(study="s", plan=named, rounds=1)
    told = msgspec.json.encode(JobView("job-1", asked, "done", 1, "", "ada", 0.0, {}, {}))
    with (
        server(secrets, lambda _: (200, told)) as (url, seen),
        Client(url, ca=secrets / "ca.pem", environ={"CONSILIA_TOKEN": "t"}) as client,
        pytest.raises(WireError, match="plan of job job-1, as the hub tells it"),
    ):
        Running.attach(client, "job-1").branch().start()
    assert len(seen) == 1


def test_the_profile_is_for_its_owner_only(tmp_path: Path) -> None:
    path = profile_path({"XDG_CONFIG_HOME": str(tmp_path)})
    made = Profile("https://a", "t", "c")
    save_profile(Profile("https://old", "t", "c"), path)
    save_profile(made, path)
    assert load_profile(path) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["profile.json"]
    path.write_text("{")
    with pytest.raises(ConfigError, match="consilia login"):
        load_profile(path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    with pytest.raises(ConfigError, match="CONSILIA_URL"):
        Client(environ=environ)
    with pytest.raises(ConfigError, match="CONSILIA_TOKEN"):
        Client("https://a", environ=environ)
    with pytest.raises(ConfigError, match="CONSILIA_CA"):
        Client("https://a", "t", environ=environ)
    with pytest.raises(ConfigError, match="must begin with https"):
        Client("http://a", "t", "x", environ=environ)
    with pytest.raises(ConfigError, match=r"secrets/ca\.pem"):
        Client("https://a", "t", tmp_path / "none.pem", environ=environ)


def test_a_get_is_repeated_and_nothing_else(secrets: Path) -> None:
    slept: list[float] = []
    down = problem(503, "StorageError", "the disk is full")

    def answer(count: int) -> Answer:
        return (200, WHO) if count == 3 else down

    with (
        server(secrets, answer) as (url, seen),
        Client(url, "t", secrets / "ca.pem", environ={}, sleep=slept.append) as client,
    ):
        assert client.whoami().name == "ada"
        assert (len(seen), len(slept)) == (3, 2)
        with pytest.raises(errors.StorageError, match="the disk is full"):
            client.invite("north")
        assert len(seen) == 4


@pytest.mark.parametrize(
    "kind",
    [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, ConsiliaError)],
)
def test_an_error_comes_back_as_what_it_was(secrets: Path, kind: type[ConsiliaError]) -> None:
    with (
        server(secrets, lambda _: problem(400, kind.__name__, "why, and what to do")) as (
            url,
            _,
        ),
        Client(url, "t", secrets / "ca.pem", environ={}) as client,
        pytest.raises(kind, match="why, and what to do") as caught,
    ):
        client.whoami()
    assert type(caught.value) is kind


def test_an_error_class_from_elsewhere_is_not_made(secrets: Path) -> None:
    with (
        server(secrets, lambda _: problem(400, "__loader__", "d")) as (url, _),
        Client(url, "t", secrets / "ca.pem", environ={}) as client,
        pytest.raises(ConsiliaError, match=r"t \(400\): d"),
    ):
        client.whoami()


def test_answers_of_strangers_are_explained(secrets: Path) -> None:
    with (
        server(secrets, lambda n: (200, b"{}") if n == 1 else (404, b"<html>")) as (url, _),
        Client(url, "t", secrets / "ca.pem", environ={}) as client,
    ):
        with pytest.raises(WireError, match="of one release"):
            client.whoami()
        with pytest.raises(TransferError, match="another service"):
            client.whoami()


def test_another_hubs_certificate_is_refused(secrets: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    Secrets.create(tmp_path / "other", ("localhost",), "other", time.time(), os.urandom)
    slept: list[float] = []
    with (
        server(secrets, lambda _: (200, WHO)) as (url, seen),
        Client(
            url, "t", tmp_path / "other" / "ca.pem", environ={}, sleep=slept.append
        ) as client,
        pytest.raises(AuthError, match="certificate of the expected CA"),
    ):
        client.whoami()
    assert (seen, slept) == ([], [])


def test_names_cannot_leave_their_place_in_the_address(secrets: Path) -> None:
    with (
        server(secrets, lambda _: problem(404, "NotFound", "no")) as (url, seen),
        Client(url, "t", secrets / "ca.pem", environ={}) as client,
    ):
        with pytest.raises(errors.NotFound):
            client.study("../tokens?x=1#y")
        assert seen[0].startswith("GET /api/v1/studies/..%2Ftokens%3Fx%3D1%23y ")
