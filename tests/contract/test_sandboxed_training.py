"""What the sandbox takes away, training does not miss: torch, scikit-learn, numpy, duckdb."""

from pathlib import Path

import pytest

from consilia.node.config import Limits
from consilia.node.launcher import Bubblewrap, Container, Launcher
from workkit import plan, site, table

pytest.importorskip("torch", reason="torch is not installed (extra: torch)")
pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: sklearn)")

LIBRARIES = """
import concurrent.futures, warnings
import duckdb, torch
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # joblib tells that it may start no processes
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 32
    def __getitem__(self, index):
        return torch.full((3, 32, 32), float(index))

def asked(number):
    with duckdb.connect() as database:
        return database.sql(f"select {number}").fetchall()[0][0]

def threads():
    x = np.random.default_rng(1).normal(size=(400, 10))
    y = (x[:, 0] > 0).astype(int)
    score = RandomForestClassifier(10, n_jobs=2).fit(x, y).score(x, y)
    score = min(score, LogisticRegression().fit(x, y).score(x, y))
    torch.set_num_threads(2)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(),
                                torch.nn.Linear(8 * 30 * 30, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    first = last = None
    for _ in range(5):
        loss = (model(torch.ones(8, 3, 32, 32)) - 3).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = first or loss.item(), loss.item()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        total = sum(pool.map(asked, range(5)))
    np.linalg.svd(np.ones((200, 200)))
    return {"score": score, "improved": float(last < first), "total": total}
"""
PROCESSES = """
import multiprocessing, subprocess
def processes():
    loaded = sum(batch[0, 0, 0, 0].item() for batch in torch.utils.data.DataLoader(
        Images(), batch_size=1, num_workers=2))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pooled = sum(pool.map(abs, [-1, -2]))
    torch.save({"x": torch.ones(3)}, "/tmp/checkpoint")
    kept = torch.load("/tmp/checkpoint", weights_only=True)["x"].sum().item()
    said = subprocess.check_output(["echo", "fine"], text=True).strip()
    return {"loaded": loaded, "pooled": pooled, "kept": kept, "said": float(said == "fine")}
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [Bubblewrap(), Container()], ids=lambda one: str(one.name))
async def test_libraries_work_inside(launcher: Launcher, tmp_path: Path) -> None:
    """Loaders with processes of their own need bubblewrap; threads work in both."""
    if reason := launcher.available():
        pytest.skip(reason)
    whole = launcher.name == "bubblewrap"
    calls = "{**threads(), **processes()}" if whole else "threads()"
    work = f"\ndef train(weights, data, args, context):\n    return {calls}\n"
    body = plan(LIBRARIES + (PROCESSES if whole else "") + work)
    async with site(tmp_path / "node", launcher, Limits(threads=2)) as here:
        dataset = table(tmp_path / "cohort.csv")
        model = await here.init(body, timeout=120)
        done, _ = await here.train(body, dataset, model, timeout=120)
        found = dict(done.metrics)
        assert found.pop("score") > 0.95
        expected = {"improved": 1.0, "total": 10.0}
        if whole:
            expected |= {"loaded": 496.0, "pooled": 3.0, "kept": 3.0, "said": 1.0}
        assert found == expected


async def test_each_layer_is_really_on(tmp_path: Path) -> None:
    """The kernel's own word, from inside."""
    body = plan("""
        def train(weights, data, args, context):
            text = open("/proc/self/status").read()
            status = dict(line.split(":\\t", 1) for line in text.splitlines())
            return {"seccomp": int(status["Seccomp"]), "strict": int(status["NoNewPrivs"])}
    """)
    for launcher in (Bubblewrap(), Container()):
        if launcher.available():
            continue
        async with site(tmp_path / launcher.name, launcher) as here:
            dataset = table(tmp_path / "cohort.csv")
            model = await here.init(body)
            done, _ = await here.train(body, dataset, model)
            assert done.metrics == {"seccomp": 2.0, "strict": 1.0}
            log = (tmp_path / launcher.name / "log/jobs/job.log").read_text()
            lacking = [line for line in log.splitlines() if "runs without" in line]
            assert len(lacking) == 2 * len(launcher.lacks()), "said once by each worker"
