"""A simulated federation that stays: the SDK's own experiments in one process."""

import re
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tables import PLAN, write

from consilia import Study
from consilia.errors import ConfigError, Conflict, ConsiliaError
from consilia.sim import Federation, simulate

EXAMPLE = Path(__file__).parents[2] / "examples" / "simulate"
SIZES = {"north": 120, "south": 60}
SETTINGS: dict[str, Any] = {"seed": 11, "deterministic": True, "arguments": {"lr": 0.03}}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write(tmp_path_factory.mktemp("tables"), SIZES)


@pytest.fixture(scope="module")
def simulated(tables: dict[str, Path]) -> Iterator[Federation]:
    with Federation(tables) as found:
        yield found


def test_the_federation_and_simulate_agree(
    simulated: Federation, tables: dict[str, Path]
) -> None:
    alone = simulate(PLAN, tables, rounds=3, **SETTINGS)
    run = simulated.experiment(PLAN, rounds=3, **SETTINGS).start()
    assert [round for round, _ in run.stream_metrics()] == [1, 2, 3]
    assert list(run.history["loss"]) == list(alone.history["loss"])
    assert run.get_model().view.digest == alone.get_model().view.digest
    assert run.job.id in [view.id for view in simulated.client.jobs()]


def test_what_a_plan_raised_is_shown_and_the_next_job_runs(simulated: Federation) -> None:
    run = simulated.experiment(PLAN, rounds=2, arguments={"fail": True}).start()
    with pytest.raises(ConsiliaError, match=r"(?s)failed in round 1.*asked to fail") as caught:
        run.wait()
    assert "linear.py" in str(caught.value)
    run.change(fail=False).resume()
    assert run.wait().state == "done"


def test_a_model_is_evaluated_at_the_sites(tables: dict[str, Path]) -> None:
    source = PLAN.read_text().replace(
        'target="y",', 'target="y", predict=predict, predicts="number",'
    )
    source = source.replace(
        "PLAN =", "def predict(w, d, a):\n    return d.x @ w['w']\n\n\nPLAN ="
    )
    plan = tables["north"].with_name("judged.py")
    plan.write_text(source)
    with Federation(tables, holdout=0.5) as simulated:
        run = simulated.experiment(plan, rounds=8).start()
        run.wait()
        found = run.evaluate(4).start()
        found.wait()
        (view,) = found.evaluations
    assert view.model == run.rounds[3].model
    assert set(view.sites) == set(SIZES)
    assert view.pooled["mae"].value < 5.0
    simulated.close()  # again: nothing is left to do
    with pytest.raises(ConfigError, match="closed"):
        run.refresh()


def test_errors_say_what_is_there(simulated: Federation) -> None:
    with pytest.raises(ConfigError, match="at least one site"):
        Federation({})
    with pytest.raises(ConfigError, match="did you mean 'min_sites'"):
        simulated.experiment(PLAN, rounds=1, min_site=2)
    study = Study("other", "a test", ("north", "west"), ("linear",))
    with pytest.raises(ConfigError, match=r"names the site 'west'; simulated are north, south"):
        simulated.experiment(PLAN, rounds=1, study=study).start()
    run = simulated.experiment(PLAN, rounds=1).start()
    run.wait()
    with pytest.raises(Conflict, match="runs already"):
        run.start()


def test_the_how_to_works_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in EXAMPLE.glob("*.py"):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("steer.py")
    said = capsys.readouterr()
    assert "done" in said.err
    assert re.search(r"^25 +2 ", said.out, re.MULTILINE)
    with np.load("pulse.npz") as model:
        np.testing.assert_allclose(model["w"], [70, -3, 20], atol=1.5)
