"""The policy: allows what was decided, nothing else; every rule exactly at its limit."""

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.node.arguments import Interval, OneOf, admits, allowed_values, describe
from consilia.node.hours import parse
from consilia.node.policy import (
    RULES,
    ConsortiumReview,
    DatasetFacts,
    Decision,
    PlanGrant,
    Policy,
    Request,
    StudyGrant,
    Terms,
    decide,
)
from consilia.wire.v1 import MAX_ARGUMENTS, Privacy, Scalar

TODAY = date(2026, 11, 21)
STUDY, PLAN = "sha256:" + "5" * 64, "sha256:" + "7" * 64
TAGS = frozenset({"hearts", "cohort"})

POLICY = Policy(
    {STUDY: StudyGrant("hearts", TAGS, TODAY, 150)},
    {
        PLAN: PlanGrant(
            "line",
            frozenset(),
            TODAY,
            {"lr": 0.05, "loss": "mse", "fixed": 3},
            {"lr": Interval(0.01, 0.5), "loss": OneOf(("mse", "mae")), "fixed": None},
        )
    },
    (DatasetFacts("cohort", TAGS | {"extra"}, 150),),
    100,
    {"lr": Interval(0.0, 0.1), "proximal_mu": Interval(0.0, 1.0)},
    5,
)
REQUEST = Request("train", STUDY, "hearts", PLAN, TAGS, {}, "b3:" + "1" * 64, 60.0, 0)


def ask(**changes: object) -> Decision:
    return decide(replace(REQUEST, **changes), POLICY, TODAY)  # type: ignore[arg-type]


def test_what_was_decided_is_allowed() -> None:
    assert ask() == Decision((), "cohort")
    assert ask(kind="init", model=None) == Decision((), None)


def test_defaults_allow_nothing() -> None:
    found = decide(REQUEST, Policy(), TODAY)
    assert not found.allowed and found.dataset is None
    empty = replace(POLICY, studies={STUDY: StudyGrant("hearts", TAGS)})
    assert not decide(REQUEST, empty, TODAY).allowed  # a grant without a last day has ended
    empty = replace(POLICY, plans={PLAN: PlanGrant("line")})
    assert not decide(REQUEST, empty, TODAY).allowed


DAY = timedelta(days=1)
AT_THE_LIMIT: dict[str, tuple[Callable[[], Decision], Callable[[], Decision]]] = {
    "study's last day": (
        lambda: decide(REQUEST, POLICY, TODAY),
        lambda: decide(REQUEST, with_study(until=TODAY - DAY), TODAY),
    ),
    "approval's last day": (
        lambda: decide(REQUEST, with_plan(until=TODAY), TODAY),
        lambda: decide(REQUEST, with_plan(until=TODAY - DAY), TODAY),
    ),
    "study's minimum": (
        lambda: decide(REQUEST, with_dataset(records=150), TODAY),
        lambda: decide(REQUEST, with_dataset(records=149), TODAY),
    ),
    "site's minimum": (
        lambda: decide(REQUEST, replace(POLICY, min_records=150), TODAY),
        lambda: decide(REQUEST, replace(POLICY, min_records=151), TODAY),
    ),
    "failures": (lambda: ask(failures_today=4), lambda: ask(failures_today=5)),
    "upper bound of the site": (
        lambda: ask(arguments={"lr": 0.1}),
        lambda: ask(arguments={"lr": math.nextafter(0.1, 1)}),
    ),
    "lower bound of the approval": (
        lambda: ask(arguments={"lr": 0.01}),
        lambda: ask(arguments={"lr": math.nextafter(0.01, 0)}),
    ),
    "choice": (lambda: ask(arguments={"loss": "mae"}), lambda: ask(arguments={"loss": "MAE"})),
    "default only": (lambda: ask(arguments={"fixed": 3}), lambda: ask(arguments={"fixed": 4})),
    "strategy's own argument": (
        lambda: ask(arguments={"proximal_mu": 1.0}),
        lambda: ask(arguments={"proximal_mu": 1.1}),
    ),
    "text": (
        lambda: ask(arguments={"loss": "mse"}),
        lambda: ask(arguments={"loss": "m" * 201}),
    ),
    "time": (lambda: ask(timeout=5e-324), lambda: ask(timeout=0.0)),
    "enabled": (
        lambda: decide(REQUEST, with_dataset(enabled=True), TODAY),
        lambda: decide(REQUEST, with_dataset(enabled=False), TODAY),
    ),
    "dataset of the study": (
        lambda: decide(REQUEST, with_study(datasets=frozenset({"cohort"})), TODAY),
        lambda: decide(REQUEST, with_study(datasets=frozenset({"other"})), TODAY),
    ),
    "approval for this study": (
        lambda: decide(REQUEST, with_plan(studies=frozenset({"hearts"})), TODAY),
        lambda: decide(REQUEST, with_plan(studies=frozenset({"lungs"})), TODAY),
    ),
    "tags": (lambda: ask(tags=TAGS), lambda: ask(tags=TAGS - {"cohort"})),
    "dataset's tags": (
        lambda: decide(REQUEST, with_dataset(tags=TAGS), TODAY),
        lambda: decide(REQUEST, with_dataset(tags=TAGS - {"cohort"}), TODAY),
    ),
    "model": (lambda: ask(model="b3:x"), lambda: ask(model=None)),
    "kind": (lambda: ask(kind="train"), lambda: ask(kind="evaluate")),
    "study's name": (lambda: ask(study_name="hearts"), lambda: ask(study_name="lungs")),
    "study": (lambda: ask(study=STUDY), lambda: ask(study="sha256:" + "6" * 64)),
    "plan": (lambda: ask(plan=PLAN), lambda: ask(plan="sha256:" + "6" * 64)),
}


@pytest.mark.parametrize("limit", AT_THE_LIMIT)
def test_every_rule_at_its_limit(limit: str) -> None:
    within, beyond = AT_THE_LIMIT[limit]
    assert within().allowed, within().objections
    assert not beyond().allowed


def with_study(**changes: object) -> Policy:
    return replace(POLICY, studies={STUDY: replace(POLICY.studies[STUDY], **changes)})  # type: ignore[arg-type]


def with_plan(**changes: object) -> Policy:
    return replace(POLICY, plans={PLAN: replace(POLICY.plans[PLAN], **changes)})  # type: ignore[arg-type]


def with_dataset(**changes: object) -> Policy:
    return replace(POLICY, datasets=(replace(POLICY.datasets[0], **changes),))  # type: ignore[arg-type]


def test_two_datasets_that_fit_are_one_too_many_until_the_study_names_one() -> None:
    second = DatasetFacts("cohort-2", TAGS, 500)
    policy = replace(POLICY, datasets=(*POLICY.datasets, second))
    assert "cohort, cohort-2" in decide(REQUEST, policy, TODAY).objections[0]
    study = replace(policy.studies[STUDY], datasets=frozenset({"cohort-2"}))
    assert decide(REQUEST, replace(policy, studies={STUDY: study}), TODAY).dataset == "cohort-2"


def test_init_needs_no_data_but_study_and_plan() -> None:
    bare = replace(POLICY, datasets=())
    init = replace(REQUEST, kind="init", model=None)
    assert decide(init, bare, TODAY).allowed
    assert not decide(init, replace(bare, plans={}), TODAY).allowed
    assert not decide(init, replace(bare, studies={}), TODAY).allowed


def test_all_reasons_are_told_at_once() -> None:
    found = decide(
        replace(REQUEST, kind="x", tags=frozenset(), timeout=math.nan, failures_today=99),
        Policy(),
        TODAY,
    )
    assert len(found.objections) == 6, found  # kind, study, plan, dataset, time, failures


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["lr", "loss", "proximal_mu", "unknown"])
def test_what_is_no_number_is_refused(name: str, value: float) -> None:
    assert "not a finite number" in ask(arguments={name: value}).objections[0]
    assert not ask(timeout=value).allowed


def test_the_number_of_arguments_is_bounded() -> None:
    many = {f"a{i}": 1 for i in range(MAX_ARGUMENTS)}
    assert "not among those" in ask(arguments=many).objections[0]
    assert "at most" in ask(arguments={**many, "one": 1}).objections[0]


@pytest.mark.parametrize(
    ("value", "within"), [(1, True), (1.0, True), (True, False), ("1", False), (0.99, False)]
)
def test_a_range_holds_numbers_only(value: Scalar, within: bool) -> None:
    assert admits(Interval(1, 5), value) is within


def test_a_choice_tells_sorts_of_values_apart() -> None:
    choice = OneOf((1, True, "a"))
    assert admits(choice, 1.0) and admits(choice, True) and admits(choice, "a")
    assert not admits(OneOf((1,)), True) and not admits(OneOf((True,)), 1)


def test_two_numbers_in_a_list_are_a_range_and_all_else_a_choice() -> None:
    assert allowed_values([1, 5.5]) == Interval(1, 5.5)
    assert allowed_values([16, 32, 64]) == OneOf((16, 32, 64))
    assert allowed_values([True, False]) == OneOf((True, False))
    assert allowed_values(["a", "b"]) == OneOf(("a", "b"))
    assert describe(Interval(1, 5.5)) == "1 to 5.5" and describe(OneOf(("a",))) == "one of 'a'"


# ---- properties -----------------------------------------------------------------------------


digests = st.sampled_from([STUDY, PLAN, "sha256:" + "9" * 64, "", "../x"])
scalars = st.one_of(
    st.booleans(), st.integers(), st.floats(), st.sampled_from(["mse", "mae", "", "x" * 300])
)
requests = st.builds(
    Request,
    st.sampled_from(["init", "train", "evaluate", ""]),
    digests,
    st.sampled_from(["hearts", "lungs"]),
    digests,
    st.frozensets(st.sampled_from(["hearts", "cohort", "extra", "no"])),
    st.dictionaries(st.sampled_from(["lr", "loss", "fixed", "proximal_mu", "other"]), scalars),
    st.sampled_from([None, "b3:" + "1" * 64]),
    st.floats(),
    st.integers(0, 10),
)
days = st.sampled_from([TODAY - DAY, TODAY, TODAY + DAY])


@given(requests, days)
def test_a_decision_is_a_function_and_allows_only_without_objection(
    request: Request, today: date
) -> None:
    found = decide(request, POLICY, today)
    assert found == decide(request, POLICY, today)
    assert found.allowed == all(rule(request, POLICY, today) is None for rule in RULES)
    if found.allowed:
        assert today <= TODAY and request.study == STUDY and request.plan == PLAN
        assert request.tags == TAGS and request.kind in ("init", "train")
        assert (found.dataset is None) == (request.kind == "init")
        assert all(isinstance(v, str) or math.isfinite(v) for v in request.arguments.values())


@given(requests, days, st.sampled_from(["study", "plan", "dataset", "ranges", "minimum"]))
def test_taking_a_permission_away_never_allows_more(
    request: Request, today: date, taken: str
) -> None:
    """Monotone: what the poorer policy allows, the richer one allows too."""
    poorer = {
        "study": replace(POLICY, studies={}),
        "plan": replace(POLICY, plans={}),
        "dataset": replace(POLICY, datasets=()),
        "ranges": with_plan(arguments={}),
        "minimum": replace(POLICY, min_records=10**9),
    }[taken]
    if decide(request, poorer, today).allowed:
        assert decide(request, POLICY, today).allowed


STRICTER: dict[str, Callable[[Policy], Policy]] = {
    "permitted": lambda p: replace(p, permitted=frozenset({"lungs"})),
    "controllers": lambda p: replace(p, terms=Terms(controllers=["uni"])),
    "legal bases": lambda p: replace(p, terms=Terms(legal_bases=["law"])),
    "ethics": lambda p: replace(p, terms=Terms(ethics_required=True)),
    "end": lambda p: replace(p, terms=Terms(end_required=True)),
    "hours": lambda p: replace(p, hours=(parse("mon-fri 19:00-07:00"),)),
    "regions": lambda p: replace(p, regions=()),
    "reviewers": lambda p: replace(p, reviewers_needed=p.reviewers_needed + 1),
    "consortium": lambda p: replace(p, consortium=None),
    "minimum": lambda p: replace(p, min_records=p.min_records + 1),
    "failures": lambda p: replace(p, failures_per_day=p.failures_per_day - 1),
    "dp": lambda p: replace(p, dp_required=True),
    "masked": lambda p: replace(p, plain_updates=False),
}
asking = st.builds(
    replace,
    st.just(REQUEST),
    kind=st.sampled_from(["init", "train"]),
    minute=st.integers(-2, 1441),
    failures_today=st.integers(0, 6),
    arguments=st.sampled_from([{}, {"lr": 0.05}, {"lr": 0.2}]),
)
granting = st.builds(
    lambda study, plan, consortium, reviewers, plain: replace(
        POLICY,
        studies={STUDY: replace(POLICY.studies[STUDY], **study)},
        plans={PLAN: replace(POLICY.plans[PLAN], **plan)},
        consortium=consortium,
        reviewers_needed=reviewers,
        plain_updates=plain,
        regions=("DE", "EU"),
    ),
    st.fixed_dictionaries({
        "controller": st.sampled_from(["uni", ""]),
        "legal_basis": st.sampled_from(["law", "consent"]),
        "ethics": st.sampled_from(["vote 1", " "]),
        "until": st.sampled_from([TODAY, date.max]),
        "residency": st.sampled_from(["", "EU", "eu"]),
    }),
    st.fixed_dictionaries({
        "signers": st.frozensets(st.sampled_from(["a@x", "b@x", "c@y"])),
        "via": st.sampled_from(["site", "shipped", "consortium"]),
    }),
    st.sampled_from([None, ConsortiumReview(1, 1), ConsortiumReview(2, 2)]),
    st.integers(0, 2),
    st.booleans(),
)  # fmt: skip


@given(asking, granting, st.lists(st.sampled_from(sorted(STRICTER)), min_size=1, max_size=4))
def test_a_stricter_policy_never_allows_more(
    request: Request, policy: Policy, changes: list[str]
) -> None:
    strict = policy
    for change in changes:
        strict = STRICTER[change](strict)
    if decide(request, strict, TODAY).allowed:
        assert decide(request, policy, TODAY).allowed, changes


@pytest.mark.parametrize("change", ["permitted", "controllers", "ethics", "end", "hours"])
def test_each_new_rule_refuses_alone(change: str) -> None:
    policy = with_study(until=date.max)
    assert decide(replace(REQUEST, minute=12 * 60), policy, TODAY).allowed
    found = decide(replace(REQUEST, minute=12 * 60), STRICTER[change](policy), TODAY)
    assert len(found.objections) == 1
    assert found.told == (found.objections if change == "hours" else ())


@pytest.mark.parametrize(
    ("residency", "regions", "allowed"),
    [
        ("", (), True),
        ("EU", ("DE", "EU"), True),
        ("eu", ("EU",), True),
        ("EU", ("CH",), False),
        ("EU", (), False),
        ("E", ("EU",), False),
    ],
)
def test_a_study_stays_in_its_region(
    residency: str, regions: tuple[str, ...], allowed: bool
) -> None:
    policy = replace(with_study(residency=residency), regions=regions)
    found = decide(REQUEST, policy, TODAY)
    assert found.allowed is allowed and found.told == ()
    assert allowed or "not among this site's regions" in found.objections[0]


def test_what_may_be_told_is_told_only_where_nothing_else_objects() -> None:
    outside = ask(arguments={"lr": 0.2})
    assert outside.told == outside.objections and "allowed here: 0 to 0.1" in outside.told[0]
    both = decide(replace(REQUEST, arguments={"lr": 0.2}), with_dataset(records=1), TODAY)
    assert len(both.objections) == 2 and both.told == ()


def test_a_clock_that_is_not_known_is_no_hour() -> None:
    always = replace(POLICY, hours=(parse("mon-sun 00:00-24:00"),))
    assert decide(replace(REQUEST, minute=0), always, TODAY).allowed
    assert not decide(REQUEST, always, TODAY).allowed


@given(st.floats(), st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_a_range_is_exactly_its_range(value: float, a: float, b: float) -> None:
    bound = Interval(min(a, b), max(a, b))
    assert admits(bound, value) == (bound.least <= value <= bound.greatest)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_site_that_keeps_no_memory_sends_no_update_of_eight_bits(bits: int) -> None:
    asked = Privacy(aggregation="secure", bits=8 if bits == 8 else 16)
    silent = replace(POLICY, compression=False)
    for policy, told in ((silent, bits == 8), (POLICY, False)):
        found = decide(replace(REQUEST, privacy=asked), policy, TODAY)
        assert any("updates of 8 bits" in o for o in found.objections) is told
