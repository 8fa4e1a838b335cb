"""Alarms of a watched job where its people look: history, progress, `consilia jobs JOB`."""

from collections.abc import Sequence

import pytest

from consilia.cli.experiment import _show
from consilia.errors import NotFound
from consilia.sdk.progress import display, summary
from consilia.sdk.results import Model, Results
from consilia.wire.people import Experiment, JobView, RoundView

STEP = "step: the model moved by 9, the median of the 3 moves before is 1"
ROUNDS = (
    RoundView(1, 0.1, ("a",), 10, {"loss": 0.5}, "job-1.1"),
    RoundView(2, 0.1, ("a",), 10, {"loss": 0.9}, "job-1.2", alarms=(STEP, "back to the model")),
)
JOB = JobView("job-1", Experiment("s", "p", 2), "done", 2, "", "ada", 0.0, {}, {}, ROUNDS)


class Run(Results):
    def __init__(self, rounds: Sequence[RoundView]) -> None:
        self._rounds = rounds

    @property
    def rounds(self) -> Sequence[RoundView]:
        return self._rounds

    def get_model(self, round: int | None = None) -> Model:
        raise NotFound("this run has no model")


def test_history_has_a_column_for_alarms_where_there_were_some() -> None:
    pytest.importorskip("pandas", reason="pandas is not installed (extra: notebook)")
    assert list(Run(ROUNDS).history["alarms"]) == ["", f"{STEP}; back to the model"]
    assert "alarms" not in Run(ROUNDS[:1]).history


def test_lines_of_progress_tell_each_alarm_once(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ipykernel", reason="ipykernel is not installed (extra: dev)")
    with display(True, JOB) as show:  # no notebook, though its package is imported
        show(JOB)
        show(JOB)
    said = capsys.readouterr().err
    assert said.count(f"ALARM in round 2: {STEP}") == 1
    assert "round 2/2: loss 0.9000  1 sites  10 records  0.10 s  2 ALARMS" in said


def test_a_private_round_tells_its_epsilon() -> None:
    private = RoundView(3, 0.1, ("a",), 10, {}, "job-1.3", epsilon=1.55414)
    assert summary(private) == "1 sites  10 records  0.10 s  epsilon 1.55"


def test_a_job_is_shown_with_its_alarms(capsys: pytest.CaptureFixture[str]) -> None:
    _show(JOB, as_json=False)
    assert f"ALARM in round 2: {STEP}" in capsys.readouterr().out
