"""How a node slows down: for a hub that wastes its time, and for nobody else."""

from consilia.node.backoff import Restraint


def test_an_idle_hub_that_holds_each_poll_slows_nobody_down() -> None:
    restraint = Restraint()
    assert {restraint.pause(False, 25.0, 0) for _ in range(200)} == {0.0}
    assert {restraint.pause(False, Restraint.QUICK, 0) for _ in range(200)} == {0.0}


def test_useless_answers_at_once_slow_the_node_down_more_and_more() -> None:
    restraint = Restraint()
    pauses = [restraint.pause(False, 0.0, 0) for _ in range(20)]
    assert pauses[: Restraint.PATIENCE] == [0.0] * Restraint.PATIENCE
    assert pauses[Restraint.PATIENCE :][:3] == [0.1, 0.2, 0.4]
    assert pauses[-1] == Restraint.LONGEST


def test_one_useful_answer_makes_up_for_all() -> None:
    restraint = Restraint()
    for _ in range(10):
        restraint.pause(False, 0.0, 0)
    assert restraint.pause(True, 0.0, 0) == 0.0
    assert restraint.pause(False, 0.0, 0) == 0.0


def test_tasks_that_are_refused_here_count_whatever_else_is_useful() -> None:
    restraint = Restraint()
    assert restraint.pause(True, 0.0, Restraint.PATIENCE) == 0.0
    assert restraint.pause(True, 0.0, Restraint.PATIENCE + 1) == 0.1
