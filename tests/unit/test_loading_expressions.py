"""The expression language: typed before a record is read, total, and no way out of its row."""

import math

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilia.data.loading.expression import FUNCTIONS, MAX_DEPTH, parse
from consilia.errors import ConfigError

TYPES = {
    "a": "float64",
    "n": "int64",
    "t": "str",
    "ok": "bool",
    "day": "date",
    "odd name": "str",
}
ROW = (
    "SELECT 3.0::DOUBLE AS a, 4::BIGINT AS n, 'it''s' AS t, true AS ok, "
    "DATE '2020-03-01' AS day, 'x' AS \"odd name\""
)


def value(text: str) -> object:
    sql = parse(text, TYPES).sql
    with duckdb.connect() as connection:
        ((found,),) = connection.execute(f"SELECT {sql} FROM ({ROW})").fetchall()  # noqa: S608
    return found


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("1 + 2 * 3 - 4 / 2", 5),
        ("-(a - n) * 2", 2),
        ("a / (n - 4)", None),
        ("log(a - 3)", None),
        ("log(0 - 1)", None),
        ("sqrt(-1)", None),
        ("exp(1000)", None),
        ("1e308 * 10", None),
        ("is_missing(a / 0)", True),
        ("if(a / 0 > 1, 1, 2)", 2),  # what is missing is not true
        ("a > 2 and not (n = 5 or not ok)", True),
        ("t = 'it''s' and t != 'x'", True),
        ("n in (1, 2, 4) and t in ('a', 'it''s')", True),
        ("min(a, n, a / 0)", 3),
        ("max(a, n)", 4),
        ("coalesce(a / 0, 7)", 7),
        ("round(2.567, 1)", 2.6),
        ("days(day, date('2020-02-01'))", 29),
        ("round(years(day, date('1980-03-01')), 2)", 40.0),
        ("year(day)", 2020),
        ("number('12.5') + number('abc')", None),
        ("lower('ABC') = 'abc' and contains(t, 's')", True),
        ('`odd name` = "odd name"', True),
        ("7 % 4", 3),
    ],
)
def test_values(text: str, result: object) -> None:
    found = value(text)
    assert found == (pytest.approx(result) if isinstance(result, float) else result)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "needed a value"),
        ("a +", "character 4: found 'the end'"),
        ("a b", "'b' is left over"),
        ("aa > 1", "no column 'aa'"),
        ("foo(a)", "no function 'foo'"),
        ("ok + 1", r"'\+' needs a number, found a truth; write if"),
        ("t < 'a'", "orders numbers and dates"),
        ("t = 1", "needs a text, found a number"),
        ("a < n < 3", "do not chain"),
        ("if(a, 1, 2)", "needed if\\(truth"),
        ("if(ok, 1, 'x')", "needed if\\(truth"),
        ("date('2020-02-31')", "no day of the calendar"),
        ("days(a, n)", "needed days"),
        ("'open", "no part of the language"),
        ("a; DROP TABLE x", "';"),
        ("(SELECT 1)", "no column 'SELECT'"),
        ("a -- 1", "needs"),
        ("read_csv('/etc/passwd')", "no function 'read_csv'"),
        ("t = '\0previous\0'", "NUL character"),
        ("1" + "0" * 400, "too large"),
        ("(" * 60 + "1" + ")" * 60, f"deeper than {MAX_DEPTH}"),
        ("-" * 60 + "1", f"deeper than {MAX_DEPTH}"),
        ("not " * 60 + "ok", f"deeper than {MAX_DEPTH}"),
        ("+".join(["a"] * 2000), "characters; at most"),
        ("if(" * 30 + "ok", "deeper|found"),
    ],
)
def test_errors_say_where_and_what_is_valid(text: str, said: str) -> None:
    if text == "a -- 1":  # two minus signs, not an SQL comment
        assert value(text) == 4
        return
    with pytest.raises(ConfigError, match=said):
        parse(text, TYPES)


def test_what_doubles_its_part_is_bounded() -> None:
    text = "a + 1"
    for _ in range(12):
        text = f"log({text} / 2)"
    with pytest.raises(ConfigError, match="too large"):
        parse(text, TYPES)


ATOMS = st.sampled_from(["a", "n", "0", "1.5", "1e300", "(0 - 2)", "a / 0"])


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pair = st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "%"]), inner)
    one = st.tuples(st.sampled_from(["abs", "exp", "sqrt", "log", "round"]), inner)
    two = st.tuples(st.sampled_from(["min", "max", "coalesce"]), inner, inner)
    which = st.tuples(inner, st.sampled_from(["<", "=", ">="]), inner, inner)
    return (
        pair.map(lambda p: f"({' '.join(p)})")
        | one.map(lambda p: f"{p[0]}({p[1]})")
        | two.map(lambda p: f"{p[0]}({p[1]}, {p[2]})")
        | which.map(lambda p: f"if({p[0]} {p[1]} {p[2]}, {p[3]}, 0)")
    )


@settings(max_examples=60, deadline=None)
@given(st.recursive(ATOMS, _grown, max_leaves=8))
def test_every_number_is_finite_or_missing(text: str) -> None:
    try:
        found = value(text)
    except ConfigError as e:
        assert "too large" in str(e)  # the only reason these can be refused
        return
    assert found is None or (isinstance(found, float) and math.isfinite(found))


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="a1n.'\"`()+-*/<>=, \n;\\", max_size=40))
def test_any_text_is_refused_in_words_or_runs(text: str) -> None:
    try:
        term = parse(text, TYPES)
    except ConfigError:
        return
    sql = f"SELECT {term.sql} FROM ({ROW})"  # noqa: S608
    with duckdb.connect() as connection:
        assert len(connection.execute(sql).fetchall()) == 1


def test_every_function_says_how_it_is_written() -> None:
    assert all(f.form.startswith(name + "(") for name, f in FUNCTIONS.items())
