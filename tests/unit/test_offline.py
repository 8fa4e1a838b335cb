"""Commands that need no network: what they import, and how long a person waits for them."""

import asyncio
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from consilia.cli import main
from consilia.hub import atrest
from consilia.hub.config import Directory, HubConfig
from consilia.node import config, identity
from consilia.node.config import NodeConfig
from consilia.node.store import Store
from consilia.wire.token import decode_token
from consilia.wire.v1 import Enrol

# Each costs 0.1 s or more, and serves only what listens, trains or migrates.
HEAVY = (
    *("torch", "pandas", "duckdb"),
    *("litestar", "uvicorn", "aiohttp", "httpx", "alembic", "structlog", "prometheus_client"),
)
AT_THE_HUB = (
    "hub init {new} --json",
    "hub sites --dir {hub} --json",
    "hub invite south --dir {hub} --json",
    "hub revoke north --dir {hub} --json",
    "hub token list --dir {hub} --json",
    "hub token create ada --role researcher --dir {hub} --json",
    "audit verify --hub {hub} --json",
)
AT_THE_NODE = (
    "node status --dir {node} --json",
    "node plans --dir {node} --json",
    "node studies --dir {node} --json",
    "node log --dir {node} --json",
    "dataset list --dir {node} --json",
    "audit verify --node {node} --json",
)
READS_A_TABLE = "dataset add {table} --name {name} --tag t --dir {node} --json"
LIBRARIES = "import asyncio, cryptography.x509, msgspec, sqlalchemy, typer, yaml"
PROBE = """\
import os, sys
from consilia.cli.main import main
sys.argv = ["consilia", *sys.argv[1:]]
try:
    main()
finally:
    found = [m for m in os.environ["HEAVY"].split() if m in sys.modules]
    sys.stderr.write("\\n" + " ".join(found))
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A hub at rest and a node that has joined it."""
    home = tmp_path_factory.mktemp("home")
    hub, node = home / "hub", home / "node"
    atrest.init(hub, HubConfig())
    with atrest.at_rest(hub) as (_, access):
        token = decode_token(asyncio.run(access.invite("north")).token)
        keys = identity.new_keys()
        asked = Enrol(
            "north", token.secret, identity.request(keys.tls, "north"), keys.signing_public
        )
        enrolled = asyncio.run(access.enrol(asked))
    node.mkdir(mode=0o700)
    identity.create(node, "north", keys, enrolled, token.ca)
    config.save(node, NodeConfig("north", token.url))
    Store.open(node).close()
    (home / "table.csv").write_text("age,sick\n50,0\n60,1\n")
    yield {"home": home, "hub": hub, "node": node, "table": home / "table.csv"}


def words(command: str, places: dict[str, Path], fresh: Path) -> list[str]:
    return command.format(new=fresh, name=fresh.name, **places).split()


def consilia(*command: str, home: Path) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CONSILIA_")}
    source = str(Path(main.__file__).parents[2])
    more = {"HOME": str(home), "PYTHONPATH": source, "HEAVY": " ".join(HEAVY)}
    return subprocess.run(
        [sys.executable, "-c", PROBE, *command],
        capture_output=True,
        text=True,
        check=False,
        env={**clean, **more},
        timeout=60,
    )


@pytest.mark.parametrize("command", (*AT_THE_HUB, *AT_THE_NODE))
def test_an_offline_command_imports_nothing_that_only_serving_needs(
    command: str, places: dict[str, Path], tmp_path: Path
) -> None:
    done = consilia(*words(command, places, tmp_path / "new"), home=places["home"])
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    assert done.stderr.splitlines()[-1] == ""


def cpu_seconds(run: Callable[[], object]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    "command", (AT_THE_HUB[0], AT_THE_HUB[2], AT_THE_NODE[0], READS_A_TABLE)
)
def test_an_offline_command_takes_less_than_a_second(
    command: str, places: dict[str, Path], tmp_path: Path
) -> None:
    """Of the processor. On a busy machine: less than thrice what its libraries need there."""

    def libraries() -> None:
        subprocess.run([sys.executable, "-c", LIBRARIES], check=True, timeout=60)

    def quick(attempt: int) -> bool:
        new = tmp_path / f"new{attempt}"

        def whole() -> None:
            done = consilia(*words(command, places, new), home=places["home"])
            assert done.returncode == 0, done.stderr

        taken = cpu_seconds(whole)
        return taken < 1.0 or taken < 3 * cpu_seconds(libraries)

    assert any(quick(attempt) for attempt in range(3))


def test_a_migration_is_run_when_it_is_due(places: dict[str, Path], tmp_path: Path) -> None:
    """The quick way in must not skip what an older database needs."""
    from consilia.hub import database, tables  # noqa: PLC0415

    made = database.open_database(tmp_path / "old.sqlite", 1, lambda: 0.0)
    database.downgrade(made, "r0001")
    made.close()
    again = database.open_database(tmp_path / "old.sqlite", 1, lambda: 0.0)
    assert database.revision(again) == tables.HEAD
    again.close()
    assert Directory(places["hub"]).operator_token.exists()
