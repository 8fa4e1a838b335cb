"""What a mock twin gives away: nothing that fewer than k patients have, and no difference."""

import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from consilia.data import mock
from consilia.data.profile import Profile, profile
from consilia.data.registry import inspect_table, schema_of, table_of
from consilia.data.schema import Schema, edited
from consilia.errors import DataError
from consilia.node import twin as twins
from consilia.node.twin import Published
from consilia.privacy.disclosure import Rules
from consilia.wire.v1 import MockColumn, MockTwin, encode

RULES = Rules(k=5)
HEADER = "patient,age,weight,ward,sex,born,note"
Row = tuple[str, int, float, str, str, str, str]


def cohort(count: int = 300, seed: int = 1) -> list[Row]:
    draw = random.Random(seed)  # noqa: S311 - test data
    return [
        (
            f"p{i:04d}",
            draw.randint(20, 80),
            round(draw.gauss(75, 12), 1),
            draw.choice("ABC"),
            draw.choice("FM"),
            f"19{draw.randint(40, 99)}-0{draw.randint(1, 9)}-1{draw.randint(0, 9)}",
            f"note of {i}",
        )
        for i in range(count)
    ]


def looked(
    folder: Path, rows: Sequence[Row], before: Published | None = None
) -> tuple[Profile, Schema]:
    path = folder / "t.csv"
    path.write_text("\n".join([HEADER, *(",".join(map(str, r)) for r in rows)]) + "\n")
    found = inspect_table(path, "t", ("t",), now=0, patient="patient")
    return (
        profile(table_of(found), schema_of(found), "patient", twins.grids(before)),
        schema_of(found),
    )


def published(folder: Path, rows: Sequence[Row], before: Published | None = None) -> Published:
    return twins.republish(before, *looked(folder, rows, before), RULES)


def column(twin: MockTwin, name: str) -> MockColumn:
    return next(c for c in twin.columns if c.name == name)


def written(twin: MockTwin, folder: Path, rows: int = 5000) -> str:
    mock.write_csv(twin, folder / "mock.csv", rows, np.random.default_rng(3))
    return (folder / "mock.csv").read_text()


def test_what_fewer_than_k_patients_have_appears_nowhere(tmp_path: Path) -> None:
    rows = cohort()
    rare = ("x1", 119, 411.7, "Isolation", "intersex", "1901-01-11", "Dr. Who was here")
    rows += [(f"r{i}", *rare[1:]) for i in range(4)]  # one fewer than k
    rows += [("r0", *rare[1:])] * 10  # records of one of them: not patients
    twin = published(tmp_path, rows).twin
    cells = set(re.split(r"[,\n]", written(twin, tmp_path)))
    assert cells.isdisjoint({*map(str, rare), "r0", "p0001", "411.7"})
    told = encode(twin).decode("latin1")
    for value in ("Isolation", "intersex", "411", "119", "1901", "Who", "p0001", "note of"):
        assert value not in told, f"{value!r} of fewer than k patients was told"
    enough = published(tmp_path, [*rows, ("r9", *rare[1:])]).twin
    assert "Isolation" in column(enough, "ward").levels, "a level of k patients is told"


def test_the_extremes_stay_at_the_site(tmp_path: Path) -> None:
    rows = cohort()
    twin = published(tmp_path, [*rows, ("max", 120, 399.9, "A", "F", "1899-01-01", "")]).twin
    ages, weights = column(twin, "age"), column(twin, "weight")
    assert ages.start + ages.width * len(ages.counts) <= 90
    assert weights.start + weights.width * len(weights.counts) <= 130
    made = mock.table(twin, 20_000, np.random.default_rng(0))
    assert max(made["age"].tolist()) < 90 and max(made["weight"].tolist()) < 130
    assert str(min(made["born"])) > "1920-01-01"


def test_every_edge_is_a_multiple_of_a_round_width_and_every_count_of_five(
    tmp_path: Path,
) -> None:
    for c in published(tmp_path, cohort()).twin.columns:
        told = [*c.levels.values(), *c.counts, c.absent]
        assert all(n % 5 == 0 for n in told), c
        assert c.role != "patient" or not (c.levels or c.counts)
        if c.width:
            assert f"{c.width:e}"[0] in "125" and set(f"{c.width:e}"[1:8]) <= {".", "0"}
            assert round(c.start / c.width, 6) == round(c.start / c.width)


def test_values_within_a_bin_do_not_matter(tmp_path: Path) -> None:
    """The twin is a function of counts in public bins: no value of a record decides an edge."""
    rows = cohort()
    one = published(tmp_path, rows).twin
    moved = [(p, a, w - w % 1 + 0.05, d, s, b, n) for p, a, w, d, s, b, n in rows]
    assert (
        column(published(tmp_path, moved).twin, "weight").counts == column(one, "weight").counts
    )


def test_one_patient_more_changes_not_a_byte_of_what_is_told(tmp_path: Path) -> None:
    rows = cohort()
    first = published(tmp_path, rows)
    for changed in (
        [*rows, ("new", 33, 70.0, "B", "F", "1970-01-11", "")],
        [*rows, *[("new", 33, 70.0, "B", "F", "1970-01-11", "")] * 40],  # of many records
        rows[1:],
        [("p0000", 119, 411.7, "Z", "X", "1901-01-11", ""), *rows[1:]],
    ):
        again = published(tmp_path, changed, first)
        assert encode(again.twin) == encode(first.twin)
    # one by one: nothing until k have come, and then it is k who came
    told, news = first, list(rows)
    for i in (1, RULES.k - 1, RULES.k):
        while len(news) < len(rows) + i:
            news.append((f"n{len(news)}", 33, 70.0, "B", "F", "1970-01-11", ""))
        told = published(tmp_path, news, told)
        assert (encode(told.twin) == encode(first.twin)) == (i < RULES.k)


def test_two_fresh_twins_of_neighbours_differ_by_rounding_only(tmp_path: Path) -> None:
    """Even without the memory of what was told: a count moves by one step of 5, or not."""
    rows = cohort()
    one = published(tmp_path, rows).twin
    for left_out in range(0, 300, 75):
        other = published(tmp_path, rows[:left_out] + rows[left_out + 1 :]).twin
        for a, b in zip(one.columns, other.columns, strict=True):
            assert (a.name, a.width) == (b.name, b.width)
            cells = [dict(a.levels), dict(b.levels)]
            for told, c in zip(cells, (a, b), strict=True):
                told |= {str(c.start + i * c.width): n for i, n in enumerate(c.counts)}
            for at in {*cells[0], *cells[1]}:
                assert abs(cells[0].get(at, 0) - cells[1].get(at, 0)) <= 5


def test_a_higher_k_tells_less_at_once(tmp_path: Path) -> None:
    first = published(tmp_path, cohort())
    found, schema = looked(tmp_path, cohort(), first)
    stricter = twins.republish(first, found, schema, Rules(k=80))
    assert stricter.k == 80 and not column(stricter.twin, "born").counts
    assert "B" in column(first.twin, "ward").levels


def test_a_role_withdraws_what_was_told(tmp_path: Path) -> None:
    first = published(tmp_path, cohort())
    found, schema = looked(tmp_path, cohort(), first)
    schema = edited(edited(schema, "ward", {"role": "text"}), "sex", {"role": "ignore"})
    told = twins.republish(first, found, schema, RULES).twin
    assert not column(told, "ward").levels
    assert "sex" not in [c.name for c in told.columns]


@pytest.mark.parametrize(
    "values",
    [
        [0.0],
        [-1e300, *range(40), 1e300],
        [*[0.0] * 95, 1.5, 2.5, 3.5, -7.25, 1e-9, *range(10, 20)],
        [1e-7 * i for i in range(50)],
        [*[7.0] * 4, *[8.0] * 5, 9.0],
        [-0.0, 0.0, *(2.0**-i for i in range(30))],
    ],
)
def test_no_bin_below_k_is_told_whatever_the_values(
    tmp_path: Path, values: list[float]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("v\n" + "".join(f"{float(v)!r}\n" for v in values))
    found = inspect_table(path, "t", ("t",), now=0)
    schema = schema_of(found)
    told = twins.make(profile(table_of(found), schema), schema, RULES).columns[0]
    for i, count in enumerate(told.counts):
        low, high = told.start + i * told.width, told.start + (i + 1) * told.width
        slack = told.width * 1e-6
        assert not count or sum(low - slack <= v <= high + slack for v in values) >= RULES.k
    for level in told.levels:
        assert sum(v == float(level) for v in values) >= RULES.k
    assert len(told.counts) < 1000


def test_a_hostile_twin_is_an_error_not_a_crash() -> None:
    bad = MockColumn("x", "float64", levels={"a": 1})
    for twin in (
        MockTwin((bad,)),
        MockTwin((MockColumn("x", "float64", width=1.0, counts=(-1, 0)),)),
        MockTwin((MockColumn("x", "float64", width=float("nan"), counts=(5,)),)),
        MockTwin((MockColumn("x", "blob"),)),
        MockTwin((MockColumn("x", "int64", start=1e300, width=1.0, counts=(5,)),)),
        MockTwin((MockColumn("x", "date", start=1e300, width=1.0, counts=(5,)),)),
    ):
        with pytest.raises(DataError, match="mock"):
            mock.table(twin, 10, np.random.default_rng(0))
