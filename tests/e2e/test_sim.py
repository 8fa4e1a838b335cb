"""The simulator: the real hub and nodes in one process."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tables import PLAN, TRUTH, write

from consilia.errors import ConfigError, ConsiliaError, DataError, NotFound
from consilia.sim import simulate

SIZES = {"north": 120, "south": 60}


def test_it_learns_and_tells_its_rounds(tmp_path: Path) -> None:
    told: list[int] = []
    result = simulate(
        PLAN, write(tmp_path, SIZES), rounds=12, on_round=lambda view: told.append(view.round)
    )
    assert told == list(range(1, 13))
    assert [r.round for r in result.rounds] == told
    assert all(r.sites == ("north", "south") and r.records == 180 for r in result.rounds)
    assert result.rounds[-1].metrics["loss"] < result.rounds[0].metrics["loss"]
    np.testing.assert_allclose(
        result.get_model().weights["w"].astype(np.float64), np.array(TRUTH), atol=0.1
    )
    assert list(result.history.index) == told
    assert result.history["loss"].iloc[-1] == result.rounds[-1].metrics["loss"]


def test_each_round_has_its_model_and_saves_it(tmp_path: Path) -> None:
    result = simulate(PLAN, write(tmp_path, SIZES), rounds=2)
    first, last = result.get_model(1), result.get_model()
    assert first.view.round == 1
    assert last.view.parent == first.view.id
    assert not np.array_equal(first.weights["w"], last.weights["w"])
    saved = np.load(last.save(tmp_path / "model.npz"))
    np.testing.assert_array_equal(saved["w"], last.weights["w"])
    with pytest.raises(NotFound, match=r"no model of round 9"):
        result.get_model(9)


def test_tables_in_memory_are_the_same_as_files(tmp_path: Path) -> None:
    import pandas as pd  # noqa: PLC0415  # an extra

    paths = write(tmp_path, SIZES)
    frames = {site: pd.read_csv(path) for site, path in paths.items()}
    columns = {site: frame.to_dict("list") for site, frame in frames.items()}
    digests = {
        simulate(PLAN, tables, rounds=2, deterministic=True, seed=3).get_model().view.digest
        for tables in (paths, frames, columns)
    }
    assert len(digests) == 1


def test_it_runs_inside_a_running_loop_as_in_a_notebook(tmp_path: Path) -> None:
    tables = write(tmp_path, SIZES)

    async def cell() -> int:
        return len(simulate(PLAN, tables, rounds=1).rounds)

    assert asyncio.run(cell()) == 1


def test_fedprox_and_arguments_need_nobodys_permission(tmp_path: Path) -> None:
    def run(**settings: Any) -> str:
        tables = write(tmp_path, SIZES)
        result = simulate(PLAN, tables, rounds=2, deterministic=True, **settings)
        return result.get_model().view.digest

    assert run() != run(arguments={"lr": 0.01})
    assert run() == run(arguments={"lr": 0.05})
    assert run() != run(strategy="fedavgm")


def test_a_plan_that_raises_shows_its_own_line(tmp_path: Path) -> None:
    with pytest.raises(ConsiliaError) as caught:
        simulate(PLAN, write(tmp_path, SIZES), rounds=2, arguments={"fail": True})
    assert "the plan was asked to fail" in str(caught.value)
    assert "linear.py" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"roundz": 1}, "did you mean"),
        ({"strategy": "fedavgg"}, "fedavg"),
        ({"grace": -1}, "grace"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        simulate(PLAN, write(tmp_path, SIZES), rounds=1, **settings)


def test_no_site_and_no_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one site"):
        simulate(PLAN, {}, rounds=1)
    with pytest.raises(DataError, match="no such file"):
        simulate(PLAN, {"north": tmp_path / "missing.csv"}, rounds=1)
    with pytest.raises(ConfigError, match="of type int"):
        simulate(PLAN, {"north": 3}, rounds=1)
