"""`consilia node budget` and the estimate before submission, as people use them."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from consilia.errors import ConfigError, Conflict
from consilia.node import budget, config, ledger
from consilia.node.config import NodeConfig
from consilia.node.store import Store
from consilia.privacy.accountant import cost, epsilon
from consilia.privacy.estimate import estimate
from consilia.privacy.ledger import Head
from consilia.privacy.noise import MIN_CLIENTS
from consilia.wire.people import Experiment
from consilia.wire.v1 import Dp, Privacy

DP = Dp("record", 2.0, 1.0, 0.1, 20)


@pytest.fixture
def node(tmp_path: Path) -> Path:
    config.save(tmp_path, NodeConfig("charite", "https://hub.example.org:8443"))
    store = Store.open(tmp_path)
    for lease in ("a", "b"):
        charge = ledger.charge_for(
            DP,
            lease=lease,
            job="job-1",
            universe="patients",
            dataset="hf",
            study="hearts",
            researcher="ada",
        )
        ledger.reserve(store, charge, config.load(tmp_path).privacy, now=1.0)
    ledger.settle(store, "a", now=2.0)
    store.close()
    return tmp_path


def run(node: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "consilia.cli.main", "node", "budget", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "CONSILIA_NODE": str(node)},
    )


def test_show_history_and_verify(node: Path) -> None:
    rows = json.loads(run(node, "show", "--json").stdout)
    first = rows[0]
    assert (first["kind"], first["name"], first["open"]) == ("universe", "patients", 1)
    assert (
        1 < first["epsilon"] < 3
        and 0 < first["used"] < 0.3
        and first["cap"] == {"epsilon": 10.0, "delta": 1e-5}
    )
    assert [r["kind"] for r in rows] == ["universe", "dataset", "study", "researcher"]
    shown = run(node, "show").stdout.splitlines()
    assert shown[0].split("\t")[:4] == ["account", "name", "epsilon", "delta"]
    assert shown[2].split("\t")[:2] == ["dataset", "hf"] and "none" in shown[2]
    text = run(node, "history", "--csv").stdout
    assert [r["kind"] for r in csv.DictReader(io.StringIO(text))] == [
        *("reserve", "reserve", "settle")
    ]
    last = json.loads(run(node, "history", "--last", "1", "--json").stdout)
    assert [e["kind"] for e in last] == ["settle"]
    assert run(node, "verify").stdout.startswith("intact: 3 entries")


def test_a_cap_is_set_and_taken_back(node: Path) -> None:
    done = run(node, "cap", "set", "study", "hearts", "0.5", "--reason", "board 2026-17")
    assert (done.returncode, done.stdout) == (
        0,
        "study hearts: epsilon 0.5 at delta 1e-05, for ever\n",
    )
    rows = json.loads(run(node, "show", "--json").stdout)
    assert next(r for r in rows if r["kind"] == "study")["cap"]["epsilon"] == 0.5
    asked = ("estimate", "--noise", "2", "--rounds", "1", "--study", "hearts")
    assert "the caps admit 0 of them" in run(node, *asked).stdout
    for epsilon_, reason, says in (("2000", "x", "needed 0"), ("1", " ", "a sentence")):
        bad = run(node, "cap", "set", "study", "hearts", epsilon_, "--reason", reason)
        assert bad.returncode == ConfigError.exit_code and says in bad.stderr
    assert run(node, "cap", "remove", "study", "hearts", "--reason", "done").returncode == 0
    again = run(node, "cap", "remove", "study", "hearts", "--reason", "done")
    assert again.returncode == Conflict.exit_code
    told = json.loads(run(node, *asked, "--json").stdout)
    assert told["fits"] and told["rounds_left"] > 1


def test_a_restored_node_is_let_go_on_by_a_person(node: Path) -> None:
    nothing = run(node, "accept-restore", "--reason", "disk lost")
    assert nothing.returncode == Conflict.exit_code
    store = Store.open(node)
    budget.compare(store, Head(9, "sha256:" + "9" * 64), 1.0)
    store.close()
    done = run(node, "accept-restore", "--reason", "disk lost")
    assert "a ledger of 9 entries is given up" in done.stdout
    store = Store.open(node)
    assert budget.held(store) is None
    store.close()


# ---- before submission -----------------------------------------------------------------------


def experiment(dp: Dp | None, rounds: int = 5) -> Experiment:
    return Experiment("hearts", "sha256:" + "0" * 64, rounds, privacy=Privacy(dp=dp))


def test_an_estimate_is_what_the_accountant_says() -> None:
    found = estimate(experiment(DP), ("ulm", "bonn"))
    assert found.job == epsilon(cost(DP, 5), DP.delta)
    assert found.round == epsilon(cost(DP), DP.delta)
    assert found.sites == {"bonn": found.job, "ulm": found.job}
    assert (found.level, found.delta, found.warnings) == ("record", 1e-5, ())


def test_what_is_not_dp_has_no_epsilon() -> None:
    for asked in (experiment(None), Experiment("hearts", "sha256:" + "0" * 64, 5)):
        found = estimate(asked, ("ulm",))
        assert (found.level, found.job, found.round, found.sites) == ("", None, None, {})


def test_an_estimate_warns_of_what_serves_nobody() -> None:
    client = Dp("client", 1.0, 1.0)
    few, enough = ([f"s{n}" for n in range(k)] for k in (MIN_CLIENTS - 1, MIN_CLIENTS))
    assert any("client level" in w for w in estimate(experiment(client, 1), few).warnings)
    assert estimate(experiment(client, 1), enough).warnings == ()
    large = estimate(experiment(Dp("record", 0.5, 1.0), 50), few)
    assert large.job is not None and large.job > 10 and "promises little" in large.warnings[0]
    with pytest.raises(ConfigError, match="noise_multiplier"):
        estimate(experiment(Dp("record", 0.0, 1.0)), few)
