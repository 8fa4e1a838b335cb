"""From findings to one word, and to a page that anybody may open."""

import dataclasses
import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest

from consilia.privacy import report, verdict
from consilia.privacy.evidence import Area, Canaries, Tail
from consilia.privacy.verdict import (
    Attack,
    Claim,
    Findings,
    Inversion,
    Planted,
    Subject,
    judge,
)

NOTHING = Attack(
    "loss attack", 300, 300, Area(0.51, 0.45), 0.56, 0.01, Tail(0.0, 0.5, 0.5, 0.0, "members"),
    ((0.0, 0.0), (1.0, 1.0)), ((0.0, 0.5, 0.5), (1.0, 0.5, 0.5)),
)  # fmt: skip
QUIET = Planted(Canaries(300, 300, 150, 0.0, 3.8), 1e-5, None)
SUBJECT = Subject(
    "charite", "m.npz", "b3:0", "p", "sha256:0", "hf", 300, "hf-2026", False, 10, 8, "",
    1.8e9, "0.1",
)  # fmt: skip
FINE = Findings(
    SUBJECT, None, (NOTHING,), QUIET, (Inversion(1, 1.0, 0.0, 0.0, 0.7, 0.01, 2049),)
)
CLAIM = Claim(2.0, 1e-5, "record", "ledger")


def area(low: float) -> Attack:
    return dataclasses.replace(NOTHING, area=Area(low + 0.05, low))


def planted(proved: float, accounted: float | None = None) -> Planted:
    return Planted(Canaries(300, 30, 29, proved, 3.8), 1e-5, accounted)


def word(**changes: object) -> str:
    return judge(dataclasses.replace(FINE, **changes)).word  # type: ignore[arg-type]


def test_nothing_found_is_said_with_its_power() -> None:
    found = judge(FINE)
    assert found.word == "no-leak-found"
    assert "would have found an AUC from about 0.56" in found.because[0]
    assert "up to 3.8, and proved 0.00" in found.because[1]
    weak = dataclasses.replace(NOTHING, least=0.61)
    assert "a weak test" in judge(dataclasses.replace(FINE, attacks=(weak,))).because[0]


def test_each_kind_of_success_is_a_leak_from_its_limit_on() -> None:
    edge = 0.5 + verdict.MARGIN
    assert word(attacks=(area(edge),)) == "no-leak-found"
    assert word(attacks=(area(math.nextafter(edge, 1)),)) == "leaky"
    for proved, expected in ((verdict.TOLERATED, "no-leak-found"), (0.11, "leaky")):
        assert word(planted=planted(proved)) == expected
        tail = dataclasses.replace(NOTHING, tail=Tail(1.0, 0.1, 0.0, proved, "members"))
        assert word(attacks=(tail,)) == expected
    assert word(planted=None) == "no-leak-found"


def test_a_promise_bounds_what_attacks_within_it_find() -> None:
    assert word(claim=CLAIM) == "bounded"
    assert word(claim=CLAIM, planted=planted(1.9, 2.0)) == "bounded"
    found = judge(dataclasses.replace(FINE, claim=CLAIM, attacks=(area(0.6),)))
    assert found.word == "bounded" and "within the bound" in found.because[1]
    at = dataclasses.replace(CLAIM, epsilon=verdict.MEANINGFUL)
    above = dataclasses.replace(CLAIM, epsilon=verdict.MEANINGFUL + 0.01)
    assert (word(claim=at), word(claim=above)) == ("bounded", "no-leak-found")
    assert word(claim=above, attacks=(area(0.6),)) == "leaky"


def test_a_broken_promise_is_a_leak_whatever_it_promised() -> None:
    assert word(claim=CLAIM, planted=planted(2.1, 2.0)) == "leaky"
    most = 1 / (1 + math.exp(-2.0)) + 1e-5
    assert word(claim=CLAIM, attacks=(area(most),)) == "bounded"
    assert word(claim=CLAIM, attacks=(area(most + 1e-6),)) == "leaky"
    high = dataclasses.replace(CLAIM, epsilon=50.0)
    assert word(claim=high, planted=planted(60.0, 50.0)) == "leaky"


def test_an_attack_is_summed_up() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.normal(size=500) + 2, rng.normal(size=700)
    found = verdict.attack("loss attack", members, others, 1e-5, rng)
    assert (found.members, found.others) == (500, 700)
    assert found.area.low < found.area.value and found.tail.epsilon > 1
    assert found.curve[0] == (0.0, 0.0) and found.curve[-1] == (1.0, 1.0)
    assert len(found.curve) <= 200
    assert sum(m for _, m, _ in found.bins) == pytest.approx(1)
    assert sum(o for _, _, o in found.bins) == pytest.approx(1)


def test_an_inversion_counts_what_is_near() -> None:
    plain = np.array([0.0, verdict.NEAR, verdict.NEAR * 1.01, 5.0])
    found = verdict.inversion(plain, plain + 1, -0.01, 99)
    assert (found.records, found.plain, found.masked) == (4, 0.5, 0.0)
    assert (found.nearest_plain, found.nearest_masked) == (0.0, 1.0)


# ---- the page --------------------------------------------------------------------------------


class Strict(HTMLParser):
    """Collects text and attributes, and checks that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(found: Findings) -> Strict:
    parser = Strict()
    parser.feed(report.page(found, judge(found)))
    parser.close()
    assert parser.open == []
    return parser


def test_the_page_says_the_verdict_first_and_loads_nothing() -> None:
    page = read(dataclasses.replace(FINE, notes=("an update was not turned back: <why>",)))
    assert page.text.index("No leak found at this power") < page.text.index("What was examined")
    assert "<why>" in page.text
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe", "object")
        assert not {"src", "href", "onload"} & attributes.keys()
    policy = [a for t, a in page.tags if t == "meta" and "http-equiv" in a]
    assert "default-src 'none'" in str(policy[0]["content"])
    assert {t for t, _ in page.tags} >= {"svg", "polyline", "rect", "table"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"attacks": (area(0.6),)}, "Leaky: records can be recognised"),
        ({"claim": CLAIM}, "this site's own privacy ledger"),
        (
            {"claim": dataclasses.replace(CLAIM, source="experiment")},
            "the site's ledger was not asked",
        ),
        ({"subject": dataclasses.replace(SUBJECT, stand_in=True)}, "was a stand-in"),
        ({"planted": planted(1.0, 2.0)}, "promised, at most: 2.00"),
        ({"planted": None, "inversions": (), "attacks": ()}, "What was examined"),
    ],
)
def test_the_page_tells_what_was_promised_and_attacked(
    change: dict[str, object], says: str
) -> None:
    assert says in read(dataclasses.replace(FINE, **change)).text  # type: ignore[arg-type]


def test_names_from_elsewhere_stay_text() -> None:
    evil = "<script>alert(1)</script>&\"'"
    subject = dataclasses.replace(SUBJECT, model=evil, plan=evil, dataset=evil, holdout=evil)
    claim = dataclasses.replace(CLAIM, level=evil)
    page = read(dataclasses.replace(FINE, subject=subject, claim=claim, notes=(evil,)))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(evil) >= 5


def test_the_data_are_plain_json() -> None:
    tail = Tail(math.inf, 0.0, 0.0, 0.0, "members")
    found = dataclasses.replace(FINE, attacks=(dataclasses.replace(NOTHING, tail=tail),))
    text = json.dumps(report.data(found, judge(found)), allow_nan=False)
    back = json.loads(text)
    assert back["verdict"]["word"] == "no-leak-found"
    assert back["attacks"][0]["area"] == {"value": 0.51, "low": 0.45}
    assert back["attacks"][0]["tail"]["threshold"] is None
    assert back["confidence"] == 0.95
