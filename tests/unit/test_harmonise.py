"""Harmonisation: differences found in what sites tell, and plans that make them agree."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from consilia.data import schema as schemas
from consilia.data.harmonise import (
    Report,
    compare,
    matched,
    mean_and_deviation,
    same_values,
)
from consilia.data.loading.blocks import (
    Cast,
    ConvertUnit,
    LoadingPlan,
    MapValues,
    Rename,
    from_yaml,
    to_yaml,
)
from consilia.data.loading.preview import opened
from consilia.data.profile import profile
from consilia.data.registry import Dataset, inspect_table
from consilia.errors import ConfigError
from consilia.node.loading import compiled
from consilia.node.twin import make
from consilia.privacy.disclosure import Rules
from consilia.wire.v1 import MockColumn, MockTwin

HEART = Path(__file__).parents[3] / "shared" / "data" / "heart_disease"
NAMES = [
    "age",
    "sex",
    "cp",
    "trestbps",
    "chol",
    "fbs",
    "restecg",
    "thalach",
    "exang",
    "oldpeak",
    "slope",
    "ca",
    "thal",
    "num",
]
RULES = Rules(5, rounded=True)


def twin(dataset: Dataset, plan: LoadingPlan | None = None) -> MockTwin:
    """What a site tells of a dataset, as it is or as a plan loads it."""
    file, units = opened(dataset, plan), {c.name: c.unit for c in dataset.schema}
    if plan is not None:
        units = dict(compiled(dataset, plan).units)
    schema = schemas.inferred(file.columns, dataset.patient)
    schema = tuple(replace(c, unit=units.get(c.name, "")) for c in schema)
    return make(profile(file, schema, dataset.patient), schema, RULES)


def written(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Dataset:
    lines = [
        ",".join(header),
        *(",".join("" if v is None else str(v) for v in r) for r in rows),
    ]
    path.write_text("\n".join(lines) + "\n")
    return inspect_table(path, "d", ("t",), now=0.0, missing=("", "?"))


def accepted(report: Report, sites: Mapping[str, Dataset]) -> dict[str, MockTwin]:
    """What the sites tell once each has accepted its plan, which travelled as YAML."""
    plans = {site: from_yaml(to_yaml(plan), "mail") for site, plan in report.plans.items()}
    return {site: twin(dataset, plans.get(site)) for site, dataset in sites.items()}


def test_sites_that_name_measure_and_code_differently_come_to_agree(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)

    def rows(unit: float, codes: tuple[str, str], tall: float) -> list[list[object]]:
        return [
            [
                int(rng.integers(30, 80)),
                codes[i % 2],
                round(rng.normal(220, 40) * unit, 3),
                round(rng.normal(170, 10) * tall, 3),
                None if i % 3 == 0 and tall < 1 else round(rng.normal(80, 9), 1),
            ]
            for i in range(300)
        ]

    sites = {
        "north": written(
            tmp_path / "n.csv",
            ("age", "sex", "cholesterol", "height", "weight"),
            rows(1, ("female", "male"), 1),
        ),
        "south": written(
            tmp_path / "s.csv",
            ("age", "sex", "cholesterol", "height", "weight"),
            rows(1, ("female", "male"), 1),
        ),
        "west": written(
            tmp_path / "w.csv",
            ("Age", "SEX", "chol", "height_m", "weight"),
            rows(1 / 38.666, ("F", "M"), 0.01),
        ),
    }
    report = compare({s: twin(d) for s, d in sites.items()}, "agreed")
    assert report.reference == "north"
    assert report.of("south") == ()
    assert report.plans["west"].blocks == (
        Rename({"Age": "age", "SEX": "sex", "chol": "cholesterol", "height_m": "height"}),
        ConvertUnit("cholesterol", "mg/dL", "mmol/L", "cholesterol"),
        ConvertUnit("height", "cm", "m"),
        MapValues("sex", {"F": "female", "M": "male"}, "keep"),
    )
    assert {(d.column, d.about) for d in report.of("west") if d.block is None} == {
        ("weight", "missing")
    }
    again = compare(accepted(report, sites), "agreed", "north")
    assert {(d.site, d.about) for d in again.differences} == {("west", "missing")}


def number(name: str, mean: float, sd: float, unit: str = "") -> MockColumn:
    counts = tuple(5 * round(40 * np.exp(-((i - 4.5) ** 2) / 4.5)) for i in range(10))
    width = sd / 1.5
    return MockColumn(name, "float64", unit, start=mean - 5 * width, width=width, counts=counts)


def levels(name: str, *texts: str, type: str = "category") -> MockColumn:
    return MockColumn(name, type, levels=dict.fromkeys(texts, 50))


def one(mine: MockColumn, theirs: MockColumn) -> Report:
    common = number("age", 50, 10)
    return compare({"a": MockTwin((common, theirs)), "b": MockTwin((common, mine))}, "p", "a")


def test_the_counts_tell_mean_and_deviation() -> None:
    assert mean_and_deviation(number("x", 100.0, 15.0)) == pytest.approx((100.0, 15.0), rel=0.1)
    assert mean_and_deviation(levels("x", "0", "1", type="int64")) == (0.5, 0.5)
    assert mean_and_deviation(levels("x", "a")) is None
    assert mean_and_deviation(MockColumn("x", "float64")) is None


def test_declared_units_are_converted_and_what_cannot_be_is_said() -> None:
    glucose = one(number("glucose", 90, 9, "mg/dL"), number("glucose", 5, 0.5, "mmol/L"))
    assert glucose.plans["b"].blocks == (ConvertUnit("glucose", "mmol/L", "mg/dL", "glucose"),)
    odd = one(number("marker", 90, 9, "mg/dL"), number("marker", 5, 0.5, "mmol/L"))
    assert odd.plans == {}
    assert "name the substance" in odd.differences[0].said
    litres = one(number("v", 1, 0.1, "mL/dL"), number("v", 10, 1, "mL/L"))
    assert litres.plans["b"].blocks == (ConvertUnit("v", "mL/L", "mL/dL"),)
    assert one(number("v", 1, 0.1, "mg/mL"), number("v", 1, 0.1, "g/L")).differences == ()


def test_no_conversion_is_made_up() -> None:
    assert one(number("x", 50, 10), number("x", 55, 12)).differences == ()  # as they are
    assert one(number("x", 50, 10), number("x", 5e7, 3)).plans == {}
    codes = one(levels("sex", "0", "1", type="int64"), levels("sex", "female", "male"))
    assert codes.plans == {}
    assert "has to be said" in codes.differences[0].said


def test_types_and_values() -> None:
    cast = one(MockColumn("lab", "str"), number("lab", 5, 1))
    assert cast.plans["b"].blocks == (Cast({"lab": "float64"}, "missing"),)
    flags = one(
        levels("ill", "true", "false", type="bool"), levels("ill", "0", "1", type="int64")
    )
    assert flags.plans["b"].blocks == (Cast({"ill": "int64"}),)
    assert same_values(("M", "W"), ("Male", "Female")) == {"M": "Male"}
    assert same_values(("yes", "YES"), ("Yes",)) == {}  # two would become one
    assert same_values(("m",), ("male", "married")) == {}  # it could be either


def test_columns_are_paired_by_name_and_values() -> None:
    mine = {c.name: c for c in (levels("Geschlecht", "F", "M"), number("hr", 70, 9))}
    theirs = {c.name: c for c in (levels("gender", "f", "m"), number("heart_rate", 70, 9))}
    assert matched(mine, theirs).get("hr") is None  # nobody could know
    assert matched({"age_y": number("age_y", 5, 1)}, {"age": number("age", 5, 1)}) == {
        "age_y": "age"
    }
    with pytest.raises(ConfigError, match="needed two"):
        compare({"a": MockTwin(())}, "p")
    with pytest.raises(ConfigError, match="did you mean 'north'"):
        compare({"north": MockTwin(()), "south": MockTwin(())}, "p", "nort")


@pytest.mark.skipif(not HEART.is_dir(), reason=f"the heart disease cohort is not in {HEART}")
def test_four_hospitals_of_a_real_cohort(tmp_path: Path) -> None:
    """One of them is given other names, units and codes; accepting its plan undoes them."""
    sites, ages = {}, {}
    for site in ("cleveland", "hungarian", "switzerland", "va"):
        rows = [r.split(",") for r in (HEART / f"processed.{site}.data").read_text().split()]
        ages[site] = [float(r[0]) for r in rows]
        header = list(NAMES)
        if site == "hungarian":
            header[3:5], header[7] = ["TRESTBPS_kPa", "Chol"], "thal-ach"
            for r in rows:
                r[3] = r[3] if r[3] == "?" else f"{float(r[3]) * 0.133322:.4f}"
                r[4] = r[4] if r[4] == "?" else f"{float(r[4]) / 38.666:.4f}"
        sites[site] = written(tmp_path / f"{site}.csv", header, rows)
    report = compare({s: twin(d) for s, d in sites.items()}, "heart", "cleveland")
    plan = report.plans["hungarian"]
    assert plan.blocks[0] == Rename(
        {"Chol": "chol", "TRESTBPS_kPa": "trestbps", "thal-ach": "thalach"}
    )
    assert ConvertUnit("chol", "mg/dL", "mmol/L", "cholesterol") in plan.blocks
    assert ConvertUnit("trestbps", "mm[Hg]", "kPa") in plan.blocks
    again = compare(accepted(report, sites), "heart", "cleveland")
    assert not [d for d in again.of("hungarian") if d.about not in ("missing",)]
    loaded = opened(sites["hungarian"], plan).read({"chol": "float64", "age": "float64"})
    raw = np.asarray(opened(sites["hungarian"], None).read({"Chol": "float64"})["Chol"][0])
    np.testing.assert_allclose(
        loaded["chol"][0].tolist(), 38.666 * raw.astype(float), rtol=1e-4
    )
    assert loaded["age"][0].tolist() == ages["hungarian"]
