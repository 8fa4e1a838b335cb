"""The pages about keeping a hub: their commands run, their settings are accepted."""

import re
from pathlib import Path

import yaml

from commandkit import Commands
from consilia.hub import config as settings
from consilia.hub.config import HubConfig
from consilia.hub.sealed import load_keys
from consilia.wire import strict

HOW_TO = Path(__file__).parents[2] / "docs/how-to"
_BLOCK = re.compile(r"^```(yaml|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: str, kind: str) -> list[str]:
    return [
        text for found, text in _BLOCK.findall((HOW_TO / page).read_text()) if found == kind
    ]


def test_sealing_the_frames_works_as_written(tmp_path: Path) -> None:
    (wanted,) = blocks("seal-the-frames.md", "yaml")
    commands = "".join(blocks("seal-the-frames.md", "console")).splitlines()
    with Commands(tmp_path, folder=tmp_path) as here:
        here.cli("hub", "init", "hub", "--people", "127.0.0.1:0", "--nodes", "127.0.0.1:0")
        path = tmp_path / "hub/hub.yaml"
        path.write_text(
            yaml.safe_dump({**yaml.safe_load(path.read_text()), **yaml.safe_load(wanted)})
        )
        keys: list[bytes] = []
        for command in (*commands, *commands):  # and again, to change the key
            here.cli(*command.removeprefix("$ consilia ").split())
            keys += load_keys(tmp_path / "hub/secrets/frames.key").all
        assert len(set(keys)) == 2
        here.spawn("hub", "hub", "serve", "--dir", "hub")
        path = tmp_path / "hub/run/addresses.json"
        while not path.exists():
            assert here.processes["hub"].poll() is None, (tmp_path / "hub.log").read_text()


def test_the_settings_of_two_hubs_are_accepted() -> None:
    (text,) = blocks("run-two-hubs.md", "yaml")
    found = settings.check(strict.from_yaml(text, HubConfig, "the page"))
    assert found.replica is not None and found.replica.lease_seconds == 10
