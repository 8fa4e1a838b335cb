"""The attacks of a privacy report: on records, canaries and updates of real training."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: torch)")
pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: sklearn)")

import privacykit as kit  # noqa: E402  after the check
from consilia.data.registry import inspect_table, to_source  # noqa: E402
from consilia.data.table import Table  # noqa: E402
from consilia.errors import ConfigError, PlanError, WireError, WorkerError  # noqa: E402
from consilia.node import evidence  # noqa: E402
from consilia.node.evidence import Asked, Measured  # noqa: E402
from consilia.node.inprocess import InProcess  # noqa: E402
from consilia.plans.attack import Part  # noqa: E402
from consilia.plans.dp import units  # noqa: E402
from consilia.privacy import verdict  # noqa: E402
from consilia.privacy.accountant import cost, epsilon  # noqa: E402
from consilia.privacy.verdict import Claim, Findings, Subject  # noqa: E402
from consilia.wire import frames  # noqa: E402
from consilia.wire.v1 import Dp  # noqa: E402
from consilia.wire.worker import Audit, Run  # noqa: E402
from workkit import plan as numpy_plan  # noqa: E402

SUBJECT = Subject("s", "m", "b3:0", "p", "sha256:0", "d", 60, "h", False, 1, 4, "", 0.0, "0")


async def measured(asked: Asked, folder: Path, seed: int = 0) -> Measured:
    runner = InProcess(in_thread=False)
    rng = np.random.default_rng(seed)
    return await evidence.measure(runner, asked, folder, rng, lambda text: None)


def judged(found: Measured, claim: Claim | None = None) -> verdict.Verdict:
    return verdict.judge(
        Findings(SUBJECT, claim, found.attacks, found.planted, found.inversions, found.notes)
    )


# ---- what has to come out --------------------------------------------------------------------


async def test_an_overfitted_model_is_found_leaky(tmp_path: Path) -> None:
    found = await measured(kit.asked(tmp_path), tmp_path)
    by_name = {a.name: a for a in found.attacks}
    assert by_name["reference attack"].area.low > 0.5
    assert by_name["reference attack"].members == 60
    assert by_name["reference attack"].others == 569 - 60
    assert found.planted is not None and found.planted.accounted is None
    assert found.planted.found.epsilon > 0.5
    assert judged(found).word == "leaky"
    one, eight = found.inversions  # 64 are more than the site has
    assert (one.records, one.plain, eight.records) == (1, 1.0, 8)
    assert all(i.masked == 0.0 and abs(i.correlation) < 0.1 for i in found.inversions)
    assert sorted(p.name for p in tmp_path.glob("reference*")) == []


async def test_the_same_plan_with_noise_passes(tmp_path: Path) -> None:
    found = await measured(kit.asked(tmp_path, kit.DP, references=2, canaries=60), tmp_path)
    spent = epsilon(cost(kit.DP), kit.DP.delta)
    assert 0.5 < spent < 3
    assert found.planted is not None
    assert found.planted.accounted == pytest.approx(spent)
    assert found.planted.found.epsilon < spent
    assert judged(found, Claim(spent, 1e-5, "record", "experiment")).word == "bounded"


async def test_a_model_of_other_records_is_not_found_leaky(tmp_path: Path) -> None:
    """The null: overfitted just as much, but on other patients. No canaries: those do leak."""
    asked = dataclasses.replace(kit.asked(tmp_path), canaries=0)
    folder = tmp_path / "other"
    folder.mkdir()
    other, _ = kit.cohort(folder, seed=1)
    model = kit.fitted(folder, asked.plan, other, asked.arguments, None, 1)
    found = await measured(dataclasses.replace(asked, model=model), tmp_path)
    assert judged(found).word == "no-leak-found"


async def test_without_a_holdout_a_stand_in_is_attacked(tmp_path: Path) -> None:
    asked = dataclasses.replace(
        kit.asked(tmp_path, references=2, canaries=20), holdout=None, split=0.5
    )
    found = await measured(asked, tmp_path)
    assert {(a.members, a.others) for a in found.attacks} == {(30, 30)}
    assert (tmp_path / "stand-in.frame").exists()


# ---- tasks -----------------------------------------------------------------------------------


def test_losses_are_those_of_the_plan(tmp_path: Path) -> None:
    here, _ = kit.cohort(tmp_path)
    worker = kit.tasks(kit.plan(), here)
    model = kit.fitted(tmp_path, kit.plan(), here, kit.PRIVATE, None, 1)
    found = kit.outcome(worker, Audit("losses"), model)["losses"]
    w = {n: torch.from_numpy(a) for n, a in frames.read(model).items()}
    table = Table(to_source(here))
    names = [f"f{i:02}" for i in range(30)]
    x = torch.from_numpy(np.stack([table.column(n) for n in names], 1)).float()
    y = torch.from_numpy(table.column("malignant").astype(np.float32))
    hidden = torch.relu(x @ w["0.weight"].T + w["0.bias"])
    out = (hidden @ w["2.weight"].T + w["2.bias"]).squeeze(1)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(out, y, reduction="none")
    assert np.allclose(found, expected.numpy(), atol=1e-5)
    again = kit.outcome(worker, Audit("losses", canaries=5, seed=1), model)["losses"]
    assert len(again) == 65 and np.array_equal(again[:60], found)


def test_a_layer_that_cannot_be_batched_has_losses_too(tmp_path: Path) -> None:
    work = kit.plan(
        (
            "def model(args):\n    return nn.Sequential(nn.Linear(30, 64), nn.ReLU(), "
            "nn.Linear(64, 1))",
            "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            "        self.r, self.h = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 1)\n"
            "    def forward(self, x):\n"
            "        return self.h(self.r(x.unsqueeze(2))[0][:, -1])\n"
            "def model(args):\n    return Net()",
        )
    )
    here, _ = kit.cohort(tmp_path)
    model = kit.fitted(tmp_path, work, here, kit.PRIVATE, None, 0)
    found = kit.outcome(kit.tasks(work, here), Audit("losses"), model)["losses"]
    assert found.shape == (60,) and found.std() > 0


def test_a_fit_trains_on_what_it_is_given_and_nothing_else(tmp_path: Path) -> None:
    here, _ = kit.cohort(tmp_path)
    inside = np.zeros(60, bool)
    inside[:30] = True
    half = Audit("fit", 1, inside=np.packbits(inside).tobytes())
    worker = kit.tasks(kit.plan(), here)
    first = kit.outcome(worker, half, given=kit.PRIVATE)
    kit.outcome(worker, Audit("fit", 1), given=kit.PRIVATE)
    again = kit.outcome(worker, half, given=kit.PRIVATE)
    part = tmp_path / "part.csv"
    part.write_text("".join(Path(here.path).read_text().splitlines(keepends=True)[:31]))
    alone = inspect_table(part, "part", ("t",), now=0.0)
    only = kit.outcome(kit.tasks(kit.plan(), alone), Audit("fit", 1), given=kit.PRIVATE)
    for name in first:
        assert np.array_equal(first[name], again[name]), name
        assert np.array_equal(first[name], only[name]), name


def test_an_update_on_one_record_is_that_record(tmp_path: Path) -> None:
    """Plain: the record to 1e-3 of a standard deviation, or nothing when no neuron saw it."""
    here, _ = kit.cohort(tmp_path)
    start = kit.fitted(tmp_path, kit.plan(), here, kit.PRIVATE, None, 0)
    inside = np.zeros(60, bool)
    inside[7] = True
    worker = kit.tasks(kit.plan(), here)
    audit = Audit("invert", inside=np.packbits(inside).tobytes())
    found = kit.outcome(worker, audit, start, kit.PRIVATE)
    assert found["plain"].shape == (1,) and found["plain"][0] < 1e-3
    assert found["masked"][0] > 0.3
    correlation, numbers, searched = found["correlation"]
    assert not searched and numbers == 30 * 64 + 64 + 64 + 1
    assert abs(correlation) < 5 / math.sqrt(numbers)
    private = kit.outcome(worker, audit, start, kit.PRIVATE, kit.DP)
    assert private["plain"][0] > 0.3  # noise hides it from the hub as well


def test_without_a_formula_records_are_searched_for_in_updates_on_few(tmp_path: Path) -> None:
    here, _ = kit.cohort(tmp_path)
    work = kit.plan(("nn.Linear(30, 64)", "nn.Linear(30, 64, bias=False)"))
    start = kit.fitted(tmp_path, work, here, kit.PRIVATE, None, 0)
    with pytest.raises(PlanError, match="in updates on more than 8"):
        kit.outcome(kit.tasks(work, here), Audit("invert"), start)


def test_plans_without_a_loss_of_one_record_are_refused(tmp_path: Path) -> None:
    here, _ = kit.cohort(tmp_path)
    silent = kit.plan((", dp=DpParts(loss)", ""))
    body = "def train(weights, data, args, context):\n    return {}\n"
    for work in (silent, numpy_plan(body)):
        with pytest.raises(PlanError, match="does not tell the loss of one record"):
            kit.outcome(kit.tasks(work, here), Audit("fit"))
    with pytest.raises(WireError, match="needs to say of what"):
        kit.tasks(kit.plan(), here).run(
            Run("audit", 1, {}, None, 1, False), lambda fraction, metrics: None
        )
    with pytest.raises(PlanError, match="'losses' needs a model"):
        kit.outcome(kit.tasks(kit.plan(), here), Audit("losses"))


# ---- canaries and parts of tables ------------------------------------------------------------


def table(folder: Path) -> Table:
    path = folder / "t.csv"
    rows = "".join(f"p{i // 2},{i},{i % 2},{'' if i == 3 else i}\n" for i in range(20))
    path.write_text("pid,a,y,gap\n" + rows)
    return Table(to_source(inspect_table(path, "t", ("t",), now=0.0, patient="pid")))


def test_canaries_are_plausible_column_by_column_and_new_as_records(tmp_path: Path) -> None:
    whole = table(tmp_path)
    part = Part(whole, Audit("fit", canaries=200, seed=1), "pid")
    assert part.records == 220
    assert part.column("a")[:20].tolist() == whole.column("a").tolist()
    planted = part.column("a")[20:]
    assert set(planted) <= set(range(20)) and len(set(planted)) > 15
    assert np.corrcoef(planted, part.column("gap")[20:] == 0)[0, 1] < 0.3
    twins = (part.column("a")[20:] % 2 == part.column("y")[20:]).mean()
    assert 0.3 < twins < 0.7  # in the table y is a's parity
    people = part.column("pid").astype(str)
    assert len(set(people)) == 10 + 200  # each a patient of its own
    gaps = part.missing("gap")
    assert gaps[3] and 0 < gaps[20:].sum() < 40
    same = Part(whole, Audit("fit", canaries=200, seed=1), "pid")
    other = Part(whole, Audit("fit", canaries=200, seed=2), "pid")
    assert np.array_equal(same.column("a"), part.column("a"))
    assert not np.array_equal(other.column("a"), part.column("a"))


def test_a_part_is_the_records_that_were_chosen(tmp_path: Path) -> None:
    whole = table(tmp_path)
    inside = np.zeros(25, bool)
    inside[[0, 5, 24]] = True
    packed = np.packbits(inside).tobytes()
    part = Part(whole, Audit("fit", canaries=5, seed=1, inside=packed), "pid")
    full = Part(whole, Audit("fit", canaries=5, seed=1), "pid")
    assert part.records == 3
    for name in ("a", "y", "pid"):
        assert part.column(name).tolist() == full.column(name)[[0, 5, 24]].tolist()
    assert not part.missing("gap").any() or part.missing("gap")[2]
    nobody = Audit("fit", inside=np.packbits(np.zeros(20, bool)).tobytes())
    with pytest.raises(PlanError, match="chooses no record"):
        Part(whole, nobody)


def test_canaries_are_patients_of_their_own_in_private_training(tmp_path: Path) -> None:
    """Patient level: the units are the table's patients and one for each planted canary."""
    rng = np.random.default_rng(0)
    path = tmp_path / "p.csv"
    names = ",".join(f"f{i:02}" for i in range(30))
    rows = [
        f"p{i // 3}," + ",".join(f"{v:.3f}" for v in rng.normal(size=30)) for i in range(60)
    ]
    lines = [f"{row},{i % 2}\n" for i, row in enumerate(rows)]
    path.write_text(f"pid,{names},malignant\n" + "".join(lines))
    dataset = inspect_table(path, "p", ("t",), now=0.0, patient="pid")
    whole = Table(to_source(dataset))
    audit = Audit("fit", canaries=10, seed=1)
    patient = Dp("patient", 2.0, 1.0, 0.5, 3)
    assert units(patient, Part(whole, audit, "pid"), "pid").count == 20 + 10
    worker = kit.tasks(kit.plan(), dataset)
    first = kit.outcome(worker, audit, given=kit.PRIVATE, dp=patient)
    again = kit.outcome(worker, audit, given=kit.PRIVATE, dp=patient)
    assert not np.array_equal(first["0.weight"], again["0.weight"])  # noise is not seeded


# ---- what is asked ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"holdout": None, "split": 0.0}, "split=0; needed a share"),
        ({"holdout": None, "split": 0.1}, "54 records to recognise and 6 held out"),
        ({"references": 3}, "references=3; needed 2, 4, 6"),
        ({"rounds": 0}, "rounds=0"),
        ({"canaries": 5}, "canaries=5; needed 0 or at least 20"),
        ({"dp": Dp("client", 1.0, 1.0)}, "privacy at client level"),
    ],
)
def test_what_cannot_be_examined_is_refused(
    tmp_path: Path, change: dict[str, object], says: str
) -> None:
    here, never = kit.cohort(tmp_path)
    fine = Asked(kit.plan(), here, never, 0.0, tmp_path / "m", {}, 1, None, 2, 20, 60.0)
    evidence.check(fine)
    with pytest.raises(ConfigError, match=says):
        evidence.check(dataclasses.replace(fine, **change))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the same file"):
        evidence.check(dataclasses.replace(fine, holdout=here))


async def test_an_answer_that_was_not_asked_for_is_refused(tmp_path: Path) -> None:
    """A plan whose model is another than the delivered one."""
    asked = kit.asked(tmp_path, references=2, canaries=20)
    frames.write(asked.model, {"w": np.zeros(3, np.float32)})
    with pytest.raises(WorkerError, match="not what was asked") as caught:
        await measured(asked, tmp_path)
    assert caught.value.cause == "plan-contract"
