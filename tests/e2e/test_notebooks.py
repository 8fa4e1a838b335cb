"""The notebooks run from the first cell to the last, as a reader would run them."""

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from cluster import Cluster, federation, until

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "examples" / "notebooks"
SITES = ("cancer-centre", "university", "county")

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (extra: dev)")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (extra: dev)")


def _run(name: str, variables: Mapping[str, str]) -> list[str]:
    """Run every cell in a kernel of its own; return what was printed."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    client = nbclient.NotebookClient(
        notebook, timeout=400, resources={"metadata": {"path": str(NOTEBOOKS)}}
    )
    client.execute(env=dict(variables))
    return [
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream"
    ]


@pytest.fixture
def quiet(tmp_path: Path) -> Mapping[str, str]:
    """The environment of a kernel: no window, no reader's own settings, one thread."""
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("CONSILIA_")},
        "MPLBACKEND": "agg",
        "MPLCONFIGDIR": str(tmp_path / "matplotlib"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "src"),
    }


@pytest.mark.slow(30)
@pytest.mark.parametrize("name", ["1-try-a-plan-on-this-machine", "2-privacy-before-you-train"])
def test_a_notebook_of_one_machine(name: str, quiet: Mapping[str, str]) -> None:
    _run(name, quiet)  # its last cell asserts on what it has found


@pytest.mark.slow(60)
def test_the_notebook_at_the_hospitals(tmp_path: Path, quiet: Mapping[str, str]) -> None:
    tables = _tables(tmp_path / "data")
    with federation(tmp_path, tables, "breast-cancer") as cluster:
        staff = threading.Thread(target=_staff, args=(cluster,))
        staff.start()
        try:
            printed = _run(
                "3-at-the-hospitals",
                {**quiet, **{k: v for k, v in cluster.env.items() if "CONSILIA" in k}},
            )
        finally:
            staff.join()
    assert any("round 10" in text for text in printed)
    assert any("rounds:" in text and "30/30" in text for text in printed), "no progress bar"


def _tables(folder: Path) -> dict[str, Path]:
    code = f"from pathlib import Path; import judge; judge.write_cohort(Path({str(folder)!r}))"
    source = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "examples", env=source, check=True)
    return {site: folder / f"{site}.csv" for site in SITES}


def _staff(cluster: Cluster) -> None:
    """What each hospital's staff do in their own time."""
    first = cluster.node(SITES[0])

    def offered() -> list[dict[str, str]]:
        plans: list[dict[str, str]] = cluster.json("node", "plans", "--dir", first)
        return plans

    until("the notebook's plan to be offered", lambda: bool(offered()))
    digest = offered()[0]["digest"]
    for site in SITES:
        cluster.decide(site, "notebook", digest, "lr=0.001..0.5")
