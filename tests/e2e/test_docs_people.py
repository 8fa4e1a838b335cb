"""The page about people and roles: every command on it, at a real hub, as people type it."""

import contextlib
import json
import re
import time
from pathlib import Path

import pytest
from cluster import Cluster, until
from typer.testing import CliRunner

from consilia.accounts import totp
from consilia.cli.main import app
from consilia.errors import AuthError

PAGE = Path(__file__).parents[2] / "docs/how-to/people-and-roles.md"
PASSWORDS = {
    "olga": "four unrelated words here",
    "ada": "quite another four words",
    "nora": "seven herons on one roof",
}
_CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"https://\S+/invitation#\S+")


def commands() -> list[str]:
    blocks = _CONSOLE.findall(PAGE.read_text())
    return [line[2:] for block in blocks for line in block.splitlines() if line[:2] == "$ "]


def stdin(cluster: Cluster, words: list[str], printed: list[str]) -> str:
    """What the person at the keyboard answers: a link and a password, a password, a code."""
    if words[:3] == ["people", "second-factor", "confirm"]:
        return totp.code(printed[-1].strip(), int(time.time()) // totp.STEP)
    if words[:2] != ["people", "accept"] and words[0] != "login":
        return ""
    name = words[words.index("--name") + 1]
    if words[0] == "login":
        return PASSWORDS[name] + "\n"
    kept = cluster.root / f"{name}.link"
    link = kept.read_text() if kept.exists() else _LINK.findall(printed[0])[0]
    return f"{link.strip()}\n{PASSWORDS[name]}\n"


def run(cluster: Cluster, words: list[str], said: str = "") -> str:
    """Run one command in this process, to save its start."""
    with contextlib.chdir(cluster.root):
        done = CliRunner().invoke(
            app, words, input=said, env=cluster.env, catch_exceptions=False
        )
    assert done.exit_code == 0, f"{words}: {done.output}"
    return done.stdout


def typed(cluster: Cluster, command: str, printed: list[str]) -> str:
    """Run one line as the page has it, with ports, hosts and ids of this machine."""
    here = command.replace("hub.example.org", "localhost").replace("0.0.0.0", "127.0.0.1")  # noqa: S104
    here = here.replace(":8443", f":{cluster.people}").replace(":8444", f":{cluster.nodes}")
    for kind in ("req", "key"):
        if (written := f"{kind}-0123456789abcdef") in here:
            found = re.findall(rf"\b{kind}-[0-9a-z]{{16}}\b", "\n".join(printed))
            here = here.replace(written, found[-1])
    line, _, target = here.removesuffix(" < code").partition(" > ")
    words = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", line)][1:]
    if words[-1] == "&":
        cluster.spawn("hub", *words[:-1])
        until("the hub to serve", (cluster.root / "hub/run/addresses.json").exists)
        return ""
    answer = run(cluster, words, stdin(cluster, words, printed))
    if target:
        (cluster.root / target).write_text(answer)
    return answer


@pytest.mark.slow
def test_the_commands_work_as_written(tmp_path: Path) -> None:
    printed: list[str] = []
    with Cluster(tmp_path) as cluster:
        for command in commands():
            printed.append(typed(cluster, command, printed))
        people = {v["name"]: v for v in json.loads(run(cluster, ["people", "list", "--json"]))}
        profile = tmp_path / ".config/consilia/profile.json"
        assert profile.stat().st_mode & 0o077 == 0
        login = next(c for c in commands() if "login" in c and "ada" in c)
        with pytest.raises(AuthError):  # she is shut out
            typed(cluster, login, printed)
    assert len(printed) >= 24
    assert "nora" not in people
    assert not people["ada"]["second_factor"]
    assert people["ada"]["roles"] == ["researcher", "downstream"]
    assert people["ada"]["disabled"]
    assert people["olga"]["roles"] == ["operator"]
    assert "four unrelated" not in cluster.log("hub")
