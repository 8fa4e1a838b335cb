"""What a program reads of an error beside the words: a field, what it holds and needs."""

import httpx
import msgspec
import pytest

from consilia.errors import ConfigError, ConsiliaError, TooMany, Wrong, wrong_in
from consilia.sdk.api import problem_of
from consilia.web.problems import view
from consilia.wire import strict
from consilia.wire.people import EarlyStop, Experiment, ProblemView

GOOD = {"study": "heart", "plan": "sha256:x", "rounds": 3}


@pytest.mark.parametrize(
    ("change", "field", "found", "expected"),
    [
        ({"rounds": "3"}, "rounds", "`str`", "`int`"),
        ({"early_stop": {"rounds": None}}, "early_stop.rounds", "`null`", "`int`"),
        ({"sites": ["north", 7]}, "sites[1]", "`int`", "`str`"),
        ({"ronds": 3}, "ronds", "unknown key 'ronds'", "one of aggregate, arguments"),
        ({"early_stop": {"better": "up"}}, "early_stop.better", "Invalid enum value 'up'", ""),
    ],
)
def test_a_body_that_does_not_fit_names_its_field(
    change: dict[str, object], field: str, found: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        strict.convert(GOOD | change, Experiment, "request body")
    wrong = wrong_in(caught.value)
    assert wrong is not None
    assert wrong.field == field
    assert wrong.found.startswith(found)
    assert wrong.expected.startswith(expected)
    assert str(caught.value).startswith("request body: ")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        strict.convert({"study": "heart", "plan": "x"}, Experiment, "request body")
    assert wrong_in(caught.value) == Wrong(
        "rounds", "nothing", "a value",
        "request body: Object missing required field `rounds`",
    )  # fmt: skip
    assert EarlyStop() == strict.convert({}, EarlyStop, "request body")


@pytest.mark.parametrize("kind", [ConfigError, TooMany])
def test_the_parts_come_through_to_whoever_asked(kind: type[ConsiliaError]) -> None:
    raised = kind(Wrong("rows", "7", "1 to 5"))
    assert str(raised) == "rows: found 7, needed 1 to 5"
    told = view(400, "wrong", str(raised), kind, wrong_in(raised))
    assert told == ProblemView(
        "wrong", 400, str(raised), kind.__name__, field="rows", found="7", expected="1 to 5"
    )
    answer = httpx.Response(400, content=msgspec.json.encode(told))
    again = problem_of(answer)
    assert type(again) is kind
    assert (str(again), wrong_in(again)) == (
        str(raised), Wrong("rows", "7", "1 to 5", str(raised)),
    )  # fmt: skip


def test_an_error_about_no_field_says_none() -> None:
    raised = ConfigError("the request is empty")
    assert wrong_in(raised) is None
    told = view(400, "wrong", str(raised), ConfigError, None)
    assert (told.field, told.found, told.expected) == (None, None, None)
