"""Where the console may listen, under which names it answers, and who is let through."""

import subprocess
import sys
from pathlib import Path

import pytest

from consilia.errors import ConfigError
from consilia.node import config
from consilia.node.console import gate
from consilia.node.console.app import MISSING, described
from consilia.node.console.serve import tls_context
from consilia.node.console.settings import Console, address, loopback, origins, problems
from consilia.web.static import find, page
from consilia.wire.console import ROLES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (Console("0.0.0.0:8445"), "beyond_this_machine"),
        (Console("10.0.0.1:8445", beyond_this_machine=True), "without TLS"),
        (Console("hospital:8445"), "beyond_this_machine"),
        (Console("8445"), "needed HOST:PORT"),
        (Console("127.0.0.1:99999"), "needed HOST:PORT"),
        (Console(certificate="a.pem"), "go together"),
        (Console(data_roots=("data",)), "absolute path"),
        (Console(names=("https://x",)), "without scheme"),
        (Console(idle_minutes=0), "idle_minutes"),
        (Console(session_hours=1000), "session_hours"),
    ],
)
def test_what_would_be_open_or_senseless_is_refused(settings: Console, why: str) -> None:
    assert why in " ".join(problems(settings))


def test_what_is_allowed() -> None:
    tls = Console("10.0.0.1:443", True, "c.pem", "k.pem", ("consilia.example",))
    for settings in (Console(), Console("[::1]:8445"), Console("localhost:0"), tls):
        assert list(problems(settings)) == []
    assert address(Console("[::1]:8445")) == ("::1", 8445) and loopback("::1")
    assert "http://[::1]:8445" in origins(Console("[::1]:8445"), 8445)
    assert origins(tls, 443) == {
        *("https://consilia.example", "https://consilia.example:443"),
        *("https://10.0.0.1", "https://10.0.0.1:443"),
    }
    text = "site: a\nhub: https://h:1\nconsole: {lisen: '127.0.0.1:1'}"
    with pytest.raises(ConfigError, match="did you mean 'listen'"):
        config.parse(text)


@pytest.mark.parametrize(
    ("method", "path", "host", "origin", "site", "status"),
    [
        ("GET", "/", "localhost:8445", "", "", None),
        ("GET", "/", "LOCALHOST:8445", "", "none", None),
        ("GET", "/", "127.0.0.1:8445", "", "cross-site", None),
        ("GET", "/api/home", "127.0.0.1:8445", "", "cross-site", 403),
        ("POST", "/", "127.0.0.1:8445", "", "same-site", 403),
        ("GET", "/", "127.0.0.1", "", "", 421),
        ("GET", "/", "", "", "", 421),
        ("GET", "/", "127.0.0.1:8445.evil.example", "", "", 421),
        ("POST", "/api/session", "127.0.0.1:8445", "http://127.0.0.1:8446", "", 403),
        ("POST", "/api/session", "127.0.0.1:8445", "https://127.0.0.1:8445", "", 403),
        ("POST", "/api/session", "127.0.0.1:8445", "http://127.0.0.1:8445", "", None),
    ],
)
def test_who_is_let_through(  # noqa: PLR0917 - what a browser says
    method: str, path: str, host: str, origin: str, site: str, status: int | None
) -> None:
    found = gate.refusal(method, path, host, origin, site, origins(Console(), 8445))
    assert (found and found[0]) == status


def test_files_are_those_of_the_build_and_no_others(tmp_path: Path) -> None:
    folder = tmp_path / "static"
    (folder / "assets").mkdir(parents=True)
    (tmp_path / "secret").write_text("no")
    (folder / "index.html").write_text("home")
    (folder / "assets" / "a.js").write_text("code")
    (folder / "assets" / "link.js").symlink_to(tmp_path / "secret")
    (folder / ".hidden").write_text("no")
    files = find(folder)
    assert page(files, "/assets/a.js", MISSING).kind.startswith("text/javascript")
    assert "immutable" in page(files, "/assets/a.js", MISSING).cache
    for path in ("/", "/studies", "/../secret", "/assets/link.js", "/.hidden", "/assets/b.js"):
        assert (page(files, path, MISSING).body, page(files, path, MISSING).cache) == (
            b"home",
            "no-cache",
        )
    assert b"./run web" in page(find(tmp_path / "none"), "/", MISSING).body


def test_a_key_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    for name in ("c.pem", "k.pem"):
        (tmp_path / name).write_text("no certificate")
    settings = Console(certificate="c.pem", key="k.pem")
    (tmp_path / "k.pem").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        tls_context(settings, tmp_path)
    (tmp_path / "k.pem").chmod(0o600)
    with pytest.raises(ConfigError, match="PEM"):
        tls_context(settings, tmp_path)
    assert tls_context(Console(), tmp_path) is None


def test_every_key_is_documented() -> None:
    text = (ROOT / "docs/reference/node-config.md").read_text()
    assert [n for n in Console.__struct_fields__ if f"| `{n}` |" not in text] == []


def test_every_route_is_in_the_reference_with_its_roles() -> None:
    text = (ROOT / "docs/reference/console-api.md").read_text()
    for path, methods in described()["paths"].items():
        for method, told in methods.items():
            roles = told.get("x-roles")
            who = ", ".join(f"`{role}`" for role in roles or ())
            if roles is None or len(roles) == len(ROLES):
                who = "anybody" if roles is None else "everybody signed in"
            assert f"| `{method.upper()} {path}` | {told['summary']} | {who} |" in text


def test_the_agent_does_not_load_the_console() -> None:
    heavy = "{'litestar', 'uvicorn', 'argon2', 'structlog', 'rich'}"
    code = f"import sys, consilia.node.app; print({heavy} & {{*sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
