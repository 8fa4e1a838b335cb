"""`./run demo`, whole: its table, its trails, and nothing left behind, however it ends."""

import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from cluster import environment, until

pytest.importorskip("torch", reason="torch is not installed (extra: demo)")
pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: demo)")

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
SITES = ("cancer-centre", "university", "county", "screening")


class Demo:
    """One run of the demo as a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.said = folder / "said.txt"
        # as from a terminal: in a shell's background job the signal would be ignored
        python = ("env", "--default-signal=INT", sys.executable)
        with self.said.open("w") as out:
            self.process = subprocess.Popen(
                [*python, str(DEMO), "--dir", str(folder), *options],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment(folder),
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.said.read_text()

    def remains(self) -> list[str]:
        """The command lines that name the demo's folder, its own aside."""
        found = []
        for process in psutil.process_iter(["cmdline", "pid"]):
            line = " ".join(process.info["cmdline"] or ())
            if str(self.folder) in line and process.info["pid"] != self.process.pid:
                found.append(line)
        return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose processes are ended if a test fails."""
    yield tmp_path
    for process in psutil.process_iter(["cmdline"]):
        if str(tmp_path) in " ".join(process.info["cmdline"] or ()):
            process.kill()


@pytest.mark.slow(60)
def test_it_ends_with_the_table_and_leaves_only_files(folder: Path) -> None:
    demo = Demo(folder, "--rounds", "8")
    assert demo.process.wait(480) == 0, demo.text
    rows = dict(re.findall(r"^  ([a-z() -]+?)  +(\d\.\d+ +\d\.\d+)$", demo.text, re.MULTILINE))
    assert list(rows) == [
        *(f"{site} alone" for site in SITES),
        "federated",
        "pooled (forbidden)",
    ]
    scores = {name: tuple(map(float, row.split())) for name, row in rows.items()}
    assert all(auc > 0.95 for _, auc in scores.values()), scores
    assert scores["federated"][0] > 0.85, scores
    for number in range(1, 9):
        assert f"round  {number}/8  loss" in demo.text
    assert demo.text.count("intact: ") == 5
    assert "county: kill -9" in demo.text
    assert "rounds without county" in demo.text
    assert re.search(r"\d\.\d{3} s per round", demo.text)
    assert set(np.load(folder / "latest" / "model.npz")) == {
        "1.weight",
        "1.bias",
        "3.weight",
        "3.bias",
    }
    assert demo.remains() == []


@pytest.mark.slow(90)
@pytest.mark.timeout(1200)  # a minute where nothing else runs
def test_serve_leaves_everything_running_beside_another_however_that_ends(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    first = Demo(folder / "a", "--serve", "--rounds", "8")
    until("the first demo to serve", lambda: "left running" in first.text, 480)
    address = re.search(r"people +(https://\S+)", first.text)
    assert address is not None
    console = re.search(r"a hospital +(http://\S+)", first.text)
    assert console is not None
    with urllib.request.urlopen(console[1], timeout=30) as page:  # noqa: S310 - its own address
        assert page.status == 200
    assert re.search(rf"sign in +{re.escape(console[1])}/invitation#\S+", first.text)
    second = started(folder / "b")  # its ports are others
    second.process.send_signal(signal.SIGKILL)
    assert second.process.wait(60) == -signal.SIGKILL
    until("every process to be gone", lambda: second.remains() == [], 60)
    assert first.process.poll() is None
    assert len(first.remains()) >= 5
    interrupted(first)


def started(folder: Path) -> Demo:
    """Start a demo; return it when its hospitals are online."""
    demo = Demo(folder, "--rounds", "8")
    until(
        "the hospitals to be online",
        lambda: "online: " in demo.text or demo.process.poll() is not None,
        480,
    )
    assert len(demo.remains()) >= 5, demo.text
    return demo


def interrupted(demo: Demo) -> None:
    """Press Ctrl-C: nothing of it stays."""
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(120) == 130
    until("every process to be gone", lambda: demo.remains() == [], 60)
