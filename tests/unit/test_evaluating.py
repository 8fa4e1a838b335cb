"""What leaves a site of an evaluation: measured by the agent, under the site's rules."""

import os

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from consilia.core.weights import Weights, schema_of
from consilia.errors import Refused, WorkerError
from consilia.node.evaluating import Predictions, measured, taken
from consilia.node.inprocess import MemoryOutput
from consilia.privacy.disclosure import Rules, silent
from consilia.stats.sums import names_of
from consilia.wire import frames
from consilia.wire.v1 import Evaluation, Subgroups
from consilia.wire.worker import Done, WorkerTensor

EXACT = Rules(k=5, rounded=False, digits=17)


def output(arrays: Weights) -> MemoryOutput:
    """Return what a worker gives of `arrays`."""
    fd = os.memfd_create("predictions")
    for array in arrays.values():
        os.write(fd, bytes(frames.raw_bytes(array)))
    os.lseek(fd, 0, os.SEEK_SET)
    tensors = tuple(WorkerTensor(t.name, t.dtype, t.shape) for t in schema_of(arrays))
    return MemoryOutput(Done(0, {}, tensors), fd, 0.0)


def arrays(count: int, kind: str = "probability") -> Weights:
    """Return sound predictions for `count` records."""
    rng = np.random.default_rng(2)
    cases = (rng.random((count, 1)) < 0.5).astype(np.float64)
    scores = np.clip(rng.normal(0.3 + 0.4 * cases, 0.25), 0, 1)
    return {f"kind:{kind}": np.zeros((0, 1)), "scores": scores, "targets": cases}


def test_the_agent_measures_what_scikit_learn_would() -> None:
    given = arrays(200)
    found = measured(taken(output(given), Evaluation(), 200), Evaluation(), EXACT, True, silent)
    expected = roc_auc_score(given["targets"], given["scores"])
    assert found.measures["auc"].value == pytest.approx(expected)
    assert found.records == 200
    rounded = measured(
        taken(output(given), Evaluation(), 200), Evaluation(), Rules(), False, silent
    )
    assert rounded.measures["auc"].value == pytest.approx(expected, abs=5e-4)
    assert len(f"{rounded.measures['auc'].value}") <= len("0.123")


@pytest.mark.parametrize(
    "lie",
    [
        {"scores": np.zeros((9, 1))},  # of other records than it was asked for
        {"scores": np.zeros((10, 1), np.float32)},
        {"patients": np.zeros((10, 1))},
        {"levels": np.zeros((10, 1), np.int64)},
        {"kind:number": np.zeros((0, 1))},
        {"kind:names": np.zeros((0, 1))},
        {"targets": np.full((10, 1), 3.0)},
        {"scores": np.full((10, 1), np.nan)},
    ],
)
def test_a_worker_that_gives_something_else_is_not_believed(lie: Weights) -> None:
    given = {**arrays(10), **lie}
    with pytest.raises(WorkerError) as caught:
        found = taken(output(given), Evaluation(), 10)
        measured(found, Evaluation(), EXACT, True, silent)
    assert caught.value.cause == "plan-contract"


def test_few_records_or_few_cases_tell_nothing() -> None:
    asked, said = Evaluation(), list[str]()
    with pytest.raises(Refused, match="too small"):
        measured(taken(output(arrays(4)), asked, 4), asked, EXACT, True, said.append)
    one = arrays(60)
    one["targets"][:] = 0
    one["targets"][:3] = 1  # three cases: an AUC would be about three patients
    with pytest.raises(Refused, match="too small"):
        measured(taken(output(one), asked, 60), asked, EXACT, True, said.append)
    assert any("at least 5 are needed" in line for line in said)


def grouped(counts: tuple[int, ...], rules: Rules, exact: bool) -> list[str]:
    """Return which levels are told of; the last count is of records in none."""
    asked = Evaluation((Subgroups("ward", tuple("ABC")),))
    levels = np.repeat([0, 1, 2, -1], counts)[:, None]
    given = arrays(len(levels))
    given["targets"][:] = np.arange(len(levels))[:, None] % 2  # both kinds in every level
    given["levels"] = levels
    found = measured(taken(output(given), asked, len(levels)), asked, rules, exact, silent)
    return [s.level for s in found.subgroups]


def test_subgroups_keep_to_k_and_hide_what_would_follow() -> None:
    for rules, exact in ((Rules(), False), (EXACT, True)):
        # the hidden ones are together k, and k of both kinds; none is named, but all are there
        assert grouped((40, 30, 3, 2), rules, exact) == ["A"]
        assert grouped((40, 30, 8, 2), rules, exact) == ["A", "B"]
        assert grouped((40, 30, 3, 0), rules, exact) == ["A"]
    assert grouped((40, 30, 20, 0), Rules(), False) == ["A", "B", "C"]
    assert grouped((40, 30, 0, 0), Rules(), False) == ["A", "B"]
    assert grouped((40, 30, 20, 0), EXACT, True) == ["A", "B"]  # empty and rare look alike


def test_three_digits_do_not_hide_three_patients() -> None:
    """Of 50 records, the shares of the whole and of 47 give that of the other 3 exactly."""
    asked = Evaluation((Subgroups("ward", tuple("AB")),))
    given = arrays(50, "classes")
    wrong = np.zeros(50, np.bool_)
    wrong[:2] = wrong[-2:] = True  # two of the 47, and two of the 3
    right = np.arange(50) % 2 == 1
    given["targets"][:] = right[:, None]
    given["scores"] = np.eye(2)[np.where(wrong, ~right, right).astype(np.int64)]
    given["levels"] = np.repeat([0, 1], (47, 3))[:, None]
    found = measured(taken(output(given), asked, 50), asked, Rules(), False, silent)
    assert found.measures["accuracy"].value == 0.92  # 46 of 50: no other share looks so
    assert [s.level for s in found.subgroups] == []


@pytest.mark.parametrize("others", [0, 3])
def test_a_level_of_cases_alone_looks_like_one_of_rare_others(others: int) -> None:
    """Otherwise the level beside it would say of everybody in it that they are cases."""
    asked = Evaluation((Subgroups("age", cuts=(60.0,)),))
    given = arrays(100)
    given["targets"][:] = (np.arange(100) % 2)[:, None]
    given["targets"][60:] = 1
    given["targets"][60 : 60 + others] = 0
    given["levels"] = np.repeat([0, 1], (60, 40))[:, None]
    found = measured(taken(output(given), asked, 100), asked, Rules(), False, silent)
    assert found.measures and not found.subgroups


def test_subgroups_have_names_that_no_record_chose() -> None:
    assert names_of(Subgroups("age", cuts=(40.0, 62.5))) == (
        "below 40", "40 to 62.5", "from 62.5"
    )  # fmt: skip
    assert names_of(Subgroups("sex", ("F", "M"))) == ("F", "M")


def test_a_gain_is_of_the_same_records() -> None:
    asked = Evaluation(local=3)
    given = arrays(100)
    given["local"] = 1 - given["scores"]
    found = taken(output(given), asked, 100)
    assert isinstance(found, Predictions)
    told = measured(found, asked, EXACT, True, silent)
    auc = told.measures["auc"].value
    assert told.local["auc"].value == pytest.approx(1 - auc)
    assert told.gain["auc"].value == pytest.approx(2 * auc - 1)
