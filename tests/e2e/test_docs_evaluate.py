"""The page about evaluating and steering: every command on it, at two real hospitals."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster import Cluster, federation, online, until
from sklearn.datasets import load_breast_cancer

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/how-to/evaluate-a-model.md"
PLAN = ROOT / "examples/evaluate/tumour.py"
JOB = "job-0123456789abcdef"
_CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_YAML = re.compile(r"^```yaml\n(study: .*?)^```$", re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    blocks = _CONSOLE.findall(PAGE.read_text())
    return [line.split()[2:] for block in blocks for line in block.splitlines()]


def tables(folder: Path) -> dict[str, Path]:
    """Deal out the Wisconsin cohort that scikit-learn ships; two records a patient."""
    data: Any = load_breast_cancer()
    rng = np.random.default_rng(0)
    paths = {}
    for number, site in enumerate(("north", "south")):
        rows = ["patient,radius,texture,smoothness,symmetry,malignant,ward,part"]
        for i in range(number, 569, 2):
            x, bad = data.data[i], 1 - int(data.target[i])
            patient = i // 4
            part = "test" if patient % 3 == 0 else "train"
            values = f"{x[0]},{x[1]},{x[4]},{x[8]},{bad}"
            rows.append(f"{9000 + patient},{values},{rng.choice(['A', 'B'])},{part}")
        paths[site] = folder / f"{site}.csv"
        paths[site].write_text("\n".join(rows) + "\n")
    return paths


@pytest.mark.slow
def test_the_commands_of_the_page_work_as_written(tmp_path: Path) -> None:
    every = commands()
    with federation(tmp_path, tables(tmp_path), "tumours") as cluster:
        _govern(cluster, [words for words in every if words[0] == "dataset"])
        (tmp_path / "tumour.py").write_text(PLAN.read_text())
        (text,) = _YAML.findall(PAGE.read_text())
        (tmp_path / "judged.yaml").write_text(text)
        run, shown, again, there, masked, *steering = [w for w in every if w[0] != "dataset"]
        job = cluster.json("experiment", "run", str(tmp_path / run[2]), "--follow")["id"]
        _judged(cluster, job, shown, again, there)
        alone = cluster.run(*(job if word == JOB else word for word in masked))
        assert alone.returncode and "a sum hides nobody among 2 sites" in alone.stderr
        _steered(cluster, job, steering)


def _govern(cluster: Cluster, holdouts: list[list[str]]) -> None:
    for site in ("north", "south"):
        place = ("--dir", cluster.node(site))
        cluster.cli("dataset", "remove", "table", *place)
        path = cluster.root / f"{site}.csv"
        words = ("--name", "tumours", "--tag", "tumours", "--patient", "patient")
        cluster.cli("dataset", "add", path, *words, *place)
        for declare in holdouts:
            said = cluster.json(*declare, *place)
            assert said["held"] + said["left"] == len(path.read_text().splitlines()) - 1
            assert 50 < said["held"] < said["left"]
    sites = ("--site", "north", "--site", "south")
    about = ("--purpose", "learn", "--tag", "tumours")
    cluster.cli("study", "create", "tumours", *about, *sites)
    cluster.cli("study", "submit", "tumours")
    digest = cluster.json("plan", "submit", PLAN, "--study", "tumours")["digest"]
    for site in ("north", "south"):
        cluster.decide(site, "tumours", digest, "lr=0.01..1")


def _judged(
    cluster: Cluster, job: str, shown: list[str], again: list[str], there: list[str]
) -> None:
    first, last = cluster.json(*(job if word == JOB else word for word in shown))
    assert (first["round"], last["round"]) == (2, 4)
    assert set(last["sites"]) == {"north", "south"}
    assert last["pooled"]["auc"]["value"] > 0.85
    for told in last["sites"].values():
        assert told["measures"]["auc"]["value"] > 0.85
        # hardly anybody with a large radius is healthy: of that level nothing is told, nor of
        # the other one, from which it would follow
        assert {s["level"] for s in told["subgroups"]} == {"A", "B"}
        assert set(told["gain"]) == set(told["local"]) == {"auc", "accuracy", "f1", "brier"}
        assert told["calibration"][0]["low"] == 0
    (found,) = cluster.json(*(job if word == JOB else word for word in again))
    assert found["model"] == f"{job}.2"
    assert found["pooled"]["auc"]["value"] == first["pooled"]["auc"]["value"]
    assert all(told["gain"] for told in found["sites"].values())
    (only,) = cluster.json(*(job if word == JOB else word for word in there))
    assert set(only["sites"]) == {"north"}
    metrics = {r["round"]: r["metrics"] for r in cluster.json("jobs", job)["rounds"]}
    assert metrics[4]["holdout_auc"] == last["pooled"]["auc"]["value"]


def _steered(cluster: Cluster, job: str, steering: list[list[str]]) -> None:
    pause, change, resume, rollback, longer, branch = steering
    view = cluster.json("experiment", "branch", job, "--rounds", "400")
    long = view["id"]
    cluster.cli(*(long if word == JOB else word for word in pause))
    until("the pause", lambda: cluster.json("jobs", long)["state"] == "paused")
    closed = len(cluster.json("jobs", long)["rounds"])
    cluster.kill("hub")
    (cluster.hub / "run" / "addresses.json").unlink()  # of the one that was killed
    cluster.start_hub()
    until("the hub", lambda: online(cluster) == {"north", "south"})
    view = cluster.json("jobs", long)
    assert (view["state"], len(view["rounds"])) == ("paused", closed)
    cluster.cli(*(long if word == JOB else word for word in change))
    cluster.cli(*(long if word == JOB else word for word in resume))
    until("more rounds", lambda: len(cluster.json("jobs", long)["rounds"]) > closed)
    cluster.cli("stop", long)
    cluster.cli(*(job if word == JOB else word for word in rollback))
    cluster.cli(*(job if word == JOB else word for word in longer))
    until("round 5", lambda: cluster.json("jobs", job)["state"] == "done")
    last = cluster.json("models", "get", f"{job}.5")
    assert last["parent"] == f"{job}.2"
    other = cluster.json(*(job if word == JOB else word for word in branch))
    assert other["state"] == "done"
    assert other["experiment"]["arguments"] == {"lr": 0.2}
