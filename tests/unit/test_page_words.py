"""What the node says in sentences of its own, pages say in every language they speak."""

import json
from collections.abc import Mapping
from pathlib import Path
from string import Formatter

import pytest

from consilia.data import harmonise
from consilia.data.harmonise import compare
from consilia.node import healthwords
from consilia.node.healthwords import finding
from consilia.wire.v1 import MockColumn, MockTwin

TEXT = Path(__file__).parents[2] / "web" / "src" / "console" / "text"
FAMILIES = {
    "health.check": healthwords.CHECKS,
    "health.found": healthwords.FOUND,
    "health.advice": healthwords.ADVICE,
    "harmony.said": harmonise.SAID,
}


def catalogue(language: str) -> dict[str, str]:
    found: dict[str, str] = json.loads((TEXT / f"{language}.json").read_text("utf-8"))
    return found


def holes(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


@pytest.mark.parametrize(("family", "sentences"), FAMILIES.items())
def test_every_sentence_has_its_words_in_every_language(
    family: str, sentences: Mapping[str, str]
) -> None:
    english, german = catalogue("en"), catalogue("de")
    kept = {key: text for key, text in english.items() if key.startswith(f"{family}.")}
    assert kept == {f"{family}.{key}": text for key, text in sentences.items()}
    for key, text in kept.items():
        assert holes(german[key]) == holes(text), key
        same = text == german[key] and len(text.split()) > 3 and "{" not in text
        assert not same, f"{key} is not translated"


def test_a_sentence_without_a_key_cannot_be_said() -> None:
    with pytest.raises(KeyError):
        finding("disk", True, "roomy", place="/srv")
    with pytest.raises(KeyError):
        finding("disk", True, "free", place="/srv")  # a value is missing
    found = finding("disk", False, "free", "room", place="/srv", free=0.5, need=2)
    assert found.found == "0.5 GiB free in /srv"
    assert found.keys == ("disk", "free", "room")


def test_nobody_says_a_sentence_past_the_tables() -> None:
    """Only the two functions that look a sentence up make such a record."""
    root = Path(harmonise.__file__).parents[1]
    for name, made in (("Finding", "node/healthwords.py"), ("Difference", "data/harmonise.py")):
        told = [
            str(path.relative_to(root))
            for path in (root / "node/doctor.py", root / "node/layers.py", root / made)
            for line in path.read_text().splitlines()
            if f" {name}(" in line and "class" not in line
        ]
        assert told == [made], f"{name} is made elsewhere too"


def test_a_difference_is_told_with_its_key_and_values() -> None:
    """The page fills its own sentence with the values; the English one is as before."""
    here = MockTwin((
        MockColumn("sex", "category", levels={"female": 50, "male": 50}),
        MockColumn("creatinine", "float64", unit="umol/L", start=60, width=10, counts=(9, 9)),
    ))  # fmt: skip
    there = MockTwin((
        MockColumn("sex", "category", levels={"f": 50, "m": 50}),
        MockColumn("creatinine", "float64", unit="mg/dL", start=0.6, width=0.1, counts=(9, 9)),
    ))  # fmt: skip
    report = compare({"a": here, "b": there}, "plan", "b")
    told = {d.key: d for d in report.of("a")}
    assert set(told) == {"categories", "unit_of"}
    assert told["unit_of"].values["substance"] == "creatinine"
    for difference in report.differences:
        filled = harmonise.SAID[difference.key].format(**difference.values)
        assert difference.said == filled
        assert "{" not in catalogue("de")[f"harmony.said.{difference.key}"].format(
            **difference.values
        )
