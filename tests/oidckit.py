"""A real OpenID Connect provider (oidc-provider from npm) for tests, and a person at its pages.

It is installed by `./run test`, or by `npm --prefix tests/oidc ci`; tests skip without it.
"""

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin

import httpx
import pytest

FOLDER = Path(__file__).parent / "oidc"
CLIENT = "consilia"
SECRET = "a secret of the tests: not one"  # noqa: S105
CALLBACK = "http://127.0.0.1:8445/oidc/callback"


@dataclass
class Provider:
    """The provider's process. `issuer` is its address."""

    process: "subprocess.Popen[str]"
    issuer: str

    def tell(self, **said: Any) -> None:
        """Set `users` (subject -> claims), the `client`'s metadata or the signature `keys`."""
        _pipe(self.process.stdin).write(json.dumps(said) + "\n")
        _pipe(self.process.stdin).flush()
        while (line := _pipe(self.process.stdout).readline()) != "done\n":
            assert line, "the provider has ended"  # what it says of errors goes there, too

    def client(self, redirect: str, **more: Any) -> None:
        """Register where browsers are sent back to."""
        self.tell(client={"redirect_uris": [redirect], **more})

    def users(self, **users: Mapping[str, Any]) -> None:
        """Let these people exist, and nobody else."""
        self.tell(users=users)


@contextlib.contextmanager
def oidc_provider() -> Iterator[Provider]:
    """Run a provider for the time of a block; skip where it is not installed."""
    node = shutil.which("node")
    if node is None or not (FOLDER / "node_modules").is_dir():
        pytest.skip(
            "oidc-provider is not installed: npm --prefix tests/oidc ci (needs Node.js)"
        )
    with subprocess.Popen(
        [node, "provider.mjs"],
        cwd=FOLDER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            issuer = _pipe(process.stdout).readline().strip()
            assert issuer.startswith("http://127.0.0.1:"), issuer
            yield Provider(process, issuer)
        finally:
            process.kill()


async def at_the_provider(url: str, login: str) -> str:
    """Sign in as `login` at the page of `url`, agree, and return where the browser is sent."""
    async with httpx.AsyncClient() as browser:
        answer = await browser.get(url)
        for _ in range(12):
            if answer.is_redirect:
                there = urljoin(str(answer.url), answer.headers["location"])
                if "/oidc/" in there:  # back at the console or the hub
                    return there
                answer = await browser.get(there)
                continue
            assert answer.status_code == 200, answer.text
            form = re.search(r'<form[^>]*action="([^"]+)"', answer.text)
            hidden = dict(
                re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]+)"', answer.text)
            )
            assert form is not None, answer.text
            if hidden.get("prompt") == "login":
                hidden |= {"login": login, "password": "any"}
            answer = await browser.post(form[1], data=hidden)
    raise AssertionError("the provider never sent the browser back")


def _pipe(found: "IO[str] | None") -> "IO[str]":
    assert found is not None
    return found
