"""The proxy's password: in a file of its own, in no process list and in no message."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from consilia.cli import main
from consilia.errors import ConfigError
from consilia.files import first_line
from consilia.node import config
from consilia.node.config import NodeConfig, proxy_url
from consilia.node.line import parse_proxy, with_password

SECRET = "p@ss:w/ord %"  # noqa: S105 - all that a URL has a meaning for


def node(**fields: str) -> NodeConfig:
    plain = {"site": "north", "hub": "https://hub:1", **fields}
    return msgspec.convert(plain, NodeConfig)


def private(path: Path, text: str = f"{SECRET}\nsecond line\n") -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_the_password_of_the_file_reaches_the_proxy_as_it_is(tmp_path: Path) -> None:
    private(tmp_path / "pw")
    settings = node(proxy="http://node@proxy:3128", proxy_password_file="pw")  # noqa: S106
    found = parse_proxy(proxy_url(tmp_path, settings))
    by_hand = parse_proxy(with_password("http://node@proxy:3128", SECRET))
    assert found is not None
    assert found == by_hand
    assert (found.host, found.port) == ("proxy", 3128)
    assert SECRET not in str(found.headers)  # Basic, in base64
    import base64  # noqa: PLC0415

    basic = found.headers["Proxy-Authorization"].removeprefix("Basic ")
    assert base64.b64decode(basic).decode() == f"node:{SECRET}"


def test_without_a_password_file_the_proxy_is_as_written(tmp_path: Path) -> None:
    assert proxy_url(tmp_path, node()) == ""
    assert proxy_url(tmp_path, node(proxy="http://proxy:3128")) == "http://proxy:3128"


@pytest.mark.parametrize("proxy", ["", "http://proxy:3128", "http://a:b@proxy:3128"])
def test_a_password_needs_a_user_and_no_second_password(proxy: str) -> None:
    settings = node(proxy=proxy, proxy_password_file="pw")  # noqa: S106
    with pytest.raises(ConfigError, match="http://user@host:port") as e:
        config.check(settings, "node.yaml")
    assert "a:b" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("secret\n", 0o640, "readable by others"),
        ("\nsecret\n", 0o600, "nothing in its first line"),
        ("", 0o600, "nothing in its first line"),
    ],
)
def test_a_password_file_is_private_and_not_empty(
    tmp_path: Path, text: str, mode: int, said: str
) -> None:
    path = private(tmp_path / "pw", text)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=said) as e:
        first_line(path, "proxy_password_file")
    assert "secret" not in str(e.value)


def test_a_file_from_windows_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "pw"
    path.write_bytes(b"word\r\n")
    path.chmod(0o600)
    assert first_line(path, "proxy_password_file") == "word"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gone"):
        first_line(tmp_path / "gone", "proxy_password_file")


def test_a_password_on_the_command_line_is_refused_unrepeated(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "consilia.cli.main", "node", "join", "token"),
            *("--proxy", "http://node:hunter2@proxy:3128", "--dir", str(tmp_path / "n")),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"HOME": str(tmp_path), "PYTHONPATH": str(Path(main.__file__).parents[2])},
    )
    assert done.returncode == ConfigError.exit_code
    assert "--proxy-password-file" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
    assert not (tmp_path / "n").exists()
