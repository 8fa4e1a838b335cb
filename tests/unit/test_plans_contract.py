"""The contract of training plans: arguments, outcomes, loading from source, requirements."""

import sys
import traceback
from pathlib import Path

import numpy as np
import pytest

from consilia.core.weights import Weights
from consilia.data.registry import inspect_table, to_source
from consilia.data.table import Table
from consilia.errors import PlanError
from consilia.plans.contract import (
    Context,
    Outcome,
    TrainingPlan,
    check_arguments,
    check_declared,
    contiguous,
    numbers,
    run_task,
    select,
)
from consilia.plans.load import load_plan, location
from consilia.plans.requirements import missing_requirements
from consilia.wire.v1 import Arguments, Plan
from workkit import plan as quick

DECLARED: Arguments = {"lr": 0.1, "epochs": 1, "name": "a", "flag": False}


@pytest.fixture
def data(tmp_path: Path) -> Table:
    path = tmp_path / "t.csv"
    path.write_text("x,y\n" + "1,0\n" * 20)
    return Table(to_source(inspect_table(path, "t", (), now=0)))


# ---- arguments -------------------------------------------------------------------------------


def test_defaults_and_given_values() -> None:
    assert check_arguments(DECLARED, {}) == DECLARED
    found = check_arguments(DECLARED, {"lr": 1, "epochs": 3})
    assert found == {**DECLARED, "lr": 1.0, "epochs": 3}
    assert type(found["lr"]) is float


def test_an_unknown_argument_names_the_nearest() -> None:
    with pytest.raises(PlanError, match="no argument 'epoch'; did you mean 'epochs'"):
        check_arguments(DECLARED, {"epoch": 2})
    with pytest.raises(PlanError, match="Valid: epochs, flag, lr, name"):
        check_arguments(DECLARED, {"zzz": 2})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 1.5),
        ("epochs", True),
        ("lr", "0.1"),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("lr", True),
        ("name", 1),
        ("flag", 1),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: float | str | bool) -> None:
    with pytest.raises(PlanError, match=f"argument {name}="):
        check_arguments(DECLARED, {name: value})


def test_fedprox_is_known_to_every_plan() -> None:
    assert check_arguments({}, {"proximal_mu": 1}) == {"proximal_mu": 1.0}


def test_declared_arguments_are_scalars_with_names() -> None:
    assert check_declared({"a": 1}) == {"a": 1}
    with pytest.raises(PlanError, match="not a Python name"):
        check_declared({"a-b": 1})
    with pytest.raises(PlanError, match="'a' defaults to of type list"):
        check_declared({"a": [1]})  # type: ignore[dict-item]
    check_declared({f"a{i}": i for i in range(64)})
    with pytest.raises(PlanError, match="65 arguments"):
        check_declared({f"a{i}": i for i in range(65)})


# ---- metrics ---------------------------------------------------------------------------------


def test_numbers_takes_every_kind_of_number() -> None:
    assert numbers({"a": 1, "b": np.float32(0.5), "c": True}, "t") == {
        "a": 1.0,
        "b": 0.5,
        "c": 1.0,
    }
    assert numbers({f"m{i}": 1 for i in range(64)}, "t")["m63"] == 1.0


@pytest.mark.parametrize(
    "metrics", [None, [1], {"a": "x"}, {"a": None}, {1: 1.0}, {"": 1.0}, {"a" * 65: 1.0}]
)
def test_numbers_refuses_what_is_none(metrics: object) -> None:
    with pytest.raises(PlanError):
        numbers(metrics, "train")


def test_too_many_numbers() -> None:
    with pytest.raises(PlanError, match="65 metrics"):
        numbers({f"m{i}": 1 for i in range(65)}, "train")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan")])
def test_a_metric_that_is_not_finite(value: float) -> None:
    with pytest.raises(FloatingPointError, match="'loss'"):
        numbers({"loss": value}, "train")


# ---- running ---------------------------------------------------------------------------------


def made(outcome: object, framework: str = "numpy") -> TrainingPlan:
    def train(w: Weights, t: Table | None, a: Arguments, c: Context) -> Outcome:
        return outcome  # type: ignore[return-value]  # what plans get wrong

    return TrainingPlan(framework, lambda a, s: {"w": np.zeros(2, np.float32)}, train)


START: Weights = {"w": np.zeros(2, np.float32)}


def test_init_and_train(data: Table) -> None:
    outcome = run_task(made(Outcome(START, 20, {})), None, None, {}, Context())
    assert outcome.weights["w"].shape == (2,)
    assert outcome.records == 0
    after: Weights = {"w": np.ones(2, np.float32)}
    trained = Outcome(after, 20, {"loss": 1})
    assert run_task(made(trained), START, data, {}, Context()).metrics == {"loss": 1.0}


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (None, "train returned None"),
        ({"w": 1}, "of type dict; needed an Outcome"),
        (Outcome({}, 20, {}), "of type dict as weights; needed a dict of arrays"),
        (Outcome({"w": [1.0]}, 20, {}), "tensor 'w' is of type list"),  # type: ignore[dict-item]
        (Outcome({"v": START["w"]}, 20, {}), "missing or unexpected"),
        (
            Outcome({"w": np.zeros(3, np.float32)}, 20, {}),
            r"float32\(3,\), needs float32\(2,\)",
        ),
        (Outcome({"w": np.zeros(2)}, 20, {}), "is float64"),
        (Outcome({"w": np.zeros(2, complex)}, 20, {}), "cannot travel"),
        (Outcome(START, 21, {}), "claims 21 records; the dataset has 20"),
        (Outcome(START, -1, {}), "claims -1 records"),
        (Outcome(START, 20.0, {}), "claims 20.0 records"),  # type: ignore[arg-type]
        (Outcome(START, 20, {"m": "x"}), "metric 'm'"),  # type: ignore[dict-item]
    ],
)
def test_a_broken_outcome_is_refused(data: Table, outcome: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        run_task(made(outcome), START, data, {}, Context())


def test_fedprox_must_be_used(data: Table) -> None:
    with pytest.raises(PlanError, match=r"never called context\.proximal"):
        run_task(made(Outcome(START, 20, {})), START, data, {"proximal_mu": 0.1}, Context())
    run_task(made(Outcome(START, 20, {})), START, data, {"proximal_mu": 0.0}, Context())


def test_progress() -> None:
    told: list[object] = []
    context = Context(report=lambda f, m: told.append((f, m)))
    context.progress(0)
    context.progress(1, loss=np.float64(0.5))
    assert told == [(0.0, {}), (1.0, {"loss": 0.5})]
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(PlanError, match="fraction"):
            context.progress(wrong)


def test_contiguous() -> None:
    scalar = np.zeros((), np.float32)
    assert contiguous(scalar) is scalar
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert contiguous(turned).flags.c_contiguous
    assert (contiguous(turned) == turned).all()
    big = np.arange(3, dtype=">f4")
    assert contiguous(big).tolist() == [0, 1, 2]
    assert contiguous(big).dtype == np.dtype("<f4")


def test_select() -> None:
    assert select("*", "y").features is None
    assert select(["a", "b"], ["y", "z"]).targets == ("y", "z")
    assert select(["a"], None).targets == ()
    for wrong in (["a", "a"], [], "age"):
        with pytest.raises(PlanError, match="features="):
            select(wrong, "y")
    with pytest.raises(PlanError, match="'y' is both"):
        select(["x", "y"], "y")
    with pytest.raises(PlanError, match="target_type"):
        select("*", "y", "float64")
    with pytest.raises(PlanError, match="fill"):
        select("*", "y", fill=float("nan"))


# ---- loading ---------------------------------------------------------------------------------


def test_a_plan_loads_and_its_files_find_each_other() -> None:
    files = {
        "main.py": "from .tools import steps\nimport tools.steps as same\nimport helper\n"
        "assert steps is same\nimport tools\nassert tools.steps is steps\n"
        "from helper import *\n"
        "from consilia.plans.numpy import numpy_plan\n"
        "PLAN = numpy_plan(helper.init, steps.train, arguments={'n': twice(2)})\n",
        "tools/steps.py": "def train(w, d, a, c):\n"
        "    import helper\n    return {'n': helper.twice(1)}\n",
        "helper.py": "import numpy as np\ndef twice(n): return 2 * n\n"
        "def init(args, seed): return {'w': np.full(args['n'], seed, np.float32)}\n",
    }
    found = load_plan(Plan("p", files, "main:PLAN"))
    assert found.framework == "numpy"
    assert found.arguments == {"n": 4}
    assert found.init({"n": 4}, 3)["w"].tolist() == [3, 3, 3, 3]
    assert "helper" not in sys.modules
    assert "tools" not in sys.modules


def test_two_loads_share_nothing() -> None:
    source = quick(
        "BOX = []\ndef train(w, d, a, c):\n    BOX.append(1)\n    return {'n': len(BOX)}\n"
    )
    one, two = load_plan(source), load_plan(source)
    assert one.train is not two.train


def test_dataclasses_and_inspect_work_in_a_plan() -> None:
    source = quick(
        "from __future__ import annotations\nimport dataclasses, inspect\n"
        "@dataclasses.dataclass\nclass C:\n    n: int = 1\n"
        "assert 'class C' in inspect.getsource(C)\ndef train(w, d, a, c): pass\n"
    )
    text = source.files["plan.py"].replace("from __future__ import annotations\n", "")
    load_plan(Plan("p", {"plan.py": text}, "plan:PLAN"))


@pytest.mark.parametrize(
    ("files", "entry", "message"),
    [
        ({"plan.py": "x = (\n"}, "plan:PLAN", r"plan.py, line 1: SyntaxError"),
        ({"plan.py": "\n\n1/0\n"}, "plan:PLAN", r"plan.py, line 3: ZeroDivisionError"),
        (
            {"plan.py": "import util\n", "util.py": "\nx = y\n"},
            "plan:PLAN",
            r"util.py, line 2: NameError: name 'y'",
        ),
        ({"plan.py": "PLAN = 1\n"}, "plan:PLAN", "is of type int; needed a plan made with"),
        ({"plan.py": ""}, "plan:PLAN", "'plan:PLAN' is not there"),
        ({"plan.py": ""}, "other:PLAN", "names no file of the plan; its modules are plan"),
        ({"plan.py": ""}, "plan", "not of the form module:NAME"),
        ({"plan.py": ""}, "plan:a.b", "not of the form module:NAME"),
        ({"plan.py": "", "../x.py": ""}, "plan:PLAN", "cannot be imported"),
        ({"plan.py": "", "/x.py": ""}, "plan:PLAN", "cannot be imported"),
        ({"plan.py": "", "my-plan.py": ""}, "plan:PLAN", "cannot be imported"),
        ({"plan.py": "", "data.csv": ""}, "plan:PLAN", "cannot be imported"),
        ({"plan.py": "", "numpy.py": ""}, "plan:PLAN", "would hide the package 'numpy'"),
        ({"plan.py": "", "json/x.py": ""}, "plan:PLAN", "would hide the package 'json'"),
        ({"plan.py": "x = 1\n" * 200_000}, "plan:PLAN", "larger than"),
        (
            {
                "plan.py": "from consilia.plans.numpy import numpy_plan\n"
                "numpy_plan(1, 2, features='x')"
            },
            "plan:PLAN",
            "plan.py, line 2: PlanError: features='x'",
        ),
    ],
)
def test_a_plan_that_does_not_load_says_where(
    files: dict[str, str], entry: str, message: str
) -> None:
    before = list(sys.meta_path)
    with pytest.raises(PlanError, match=message):
        load_plan(Plan("p", files, entry))
    assert sys.meta_path == before


def test_a_missing_package_is_told_apart() -> None:
    with pytest.raises(PlanError, match="No module named 'nowhere'") as caught:
        load_plan(Plan("p", {"plan.py": "import nowhere\n"}, "plan:PLAN"))
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_tracebacks_show_the_plans_lines() -> None:
    source = quick("def train(w, d, a, c):\n    raise KeyError('here')  # the guilty line\n")
    found = load_plan(source)
    path = Path("unused")
    with pytest.raises(KeyError) as caught:
        found.train(START, _Empty(), {}, Context())  # type: ignore[arg-type]
    text = "".join(traceback.format_exception(caught.value))
    assert "# the guilty line" in text
    assert location(caught.value, source).startswith("plan.py, line ")
    assert not path.exists()


class _Empty:
    records = 1


# ---- requirements ----------------------------------------------------------------------------


def test_requirements_that_are_met() -> None:
    version = np.__version__
    major = version.split(".")[0]
    met = (
        "numpy",
        f"numpy=={version}",
        f"numpy=={major}.*",
        f"numpy>={major}",
        f"numpy ~= {major}.0",
        f"numpy >= 1.0, < {int(major) + 1}",
        "numpy!=1.0",
        "numpy[extra]>1",
        "msgspec<=99",
    )
    assert missing_requirements(met) == ()


def test_requirements_that_are_not_met() -> None:
    bad = ("numpy==1.0", "numpy<1", "numpy==1.*", "numpy~=1.2", "no-such-thing>=1", "numpy>99")
    found = missing_requirements(bad)
    assert len(found) == len(bad)
    assert "no-such-thing>=1: not installed" in found
    assert f"numpy<1: installed is {np.__version__}" in found


@pytest.mark.parametrize(
    "text",
    [
        "numpy @ https://evil.test/x.whl",
        "numpy; python_version<'4'",
        "",
        "numpy>=1.*",
        "numpy ==x",
    ],
)
def test_requirements_that_are_not_understood(text: str) -> None:
    with pytest.raises(PlanError, match="not understood"):
        missing_requirements((text,))
