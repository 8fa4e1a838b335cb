"""The expressions of `filter` and `derive`: parsed here, typed, and turned into SQL.

    bmi:    weight / (height / 100) * (weight > 0)         an error: a truth value is no number
    bmi:    if(weight > 0, weight / ((height / 100) * (height / 100)), 0)
    adult:  age >= 18 and not is_missing(sex) and sex in ('F', 'M')
    stay:   days(discharged, admitted)

The language has no loops, no assignment and no way to name anything but a column of the same
row. Every expression has a type (number, text, truth, date) that is known before a record is
read, and a value for every record: what has none (a division by zero, the logarithm of a
negative number, an overflow, a part that is missing) is missing, never an error. `min`, `max`
and `coalesce` pass over missing parts. `and` and `or` are those of SQL's three values.

Names with other characters than letters, digits and _ are written in backticks or double
quotes; texts stand in single quotes, a quote in them doubled.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from types import MappingProxyType
from typing import Literal

from consilia.data.contract import column_type
from consilia.data.reader import quoted
from consilia.errors import ConfigError
from consilia.wire.strict import nearest

Kind = Literal["number", "text", "truth", "date"]

MAX_TEXT = 2000  # characters of an expression
MAX_DEPTH = 32  # of nesting
MAX_SQL = 20_000  # characters of what it becomes: a part may be written more than once

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<text>'(?:[^']|'')*')
    | (?P<quoted>`[^`]+`|"[^"]+")
    | (?P<word>[^\W\d]\w*)
    | (?P<sign><=|>=|!=|==|<>|[-+*/%()=<>,])
    | (?P<end>\Z)
    )""",
    re.VERBOSE,
)
_WORDS = frozenset({"and", "or", "not", "in", "true", "false"})
_COMPARE: Mapping[str, str] = MappingProxyType(
    {"=": "=", "==": "=", "!=": "<>", "<>": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
)
_ORDERED = frozenset({"<", "<=", ">", ">="})


@dataclass(frozen=True, slots=True)
class Term:
    """A typed part: its SQL, the columns it reads; `raw` when it may be no finite number."""

    kind: Kind
    sql: str
    reads: frozenset[str] = frozenset()
    raw: bool = False

    def finite(self) -> "Term":
        """Return this with what is no finite number missing."""
        if not self.raw:
            return self
        return Term(
            self.kind, f"CASE WHEN isfinite({self.sql}) THEN {self.sql} END", self.reads
        )


def kind_of(type_: str, column: str) -> Kind:
    """Return the kind of value that a column type of data.contract holds."""
    if type_ == "bool":
        return "truth"
    if type_ in ("date", "timestamp"):
        return "date"
    return "number" if column_type(type_, column).numeric else "text"


def parse(text: str, types: Mapping[str, str]) -> Term:
    """Return the expression `text` over columns of `types`, finite.

    Raises ConfigError naming the place, what was found and what is valid.
    """
    if len(text) > MAX_TEXT:
        raise ConfigError(f"the expression has {len(text)} characters; at most {MAX_TEXT}")
    if "\0" in text:  # stages.PREVIOUS begins with one: no text may be taken for it
        raise ConfigError(f"expression {text[:80]!r}: a NUL character; leave it out")
    return _Parser(text, types).whole()


class _Parser:
    """Recursive descent over one expression; each method returns a checked Term."""

    def __init__(self, text: str, types: Mapping[str, str]) -> None:
        self._text = text
        self._types = types
        self._depth = 0
        self._next(0)

    def whole(self) -> Term:
        term = self._or()
        if self._kind != "end":
            raise self._error(f"{self._token!r} is left over; needed an operator or the end")
        return term.finite()

    # ---- tokens ----------------------------------------------------------------------------

    def _next(self, at: int) -> None:
        found = _TOKEN.match(self._text, at)
        if found is None:
            rest = self._text[at:].strip()
            self._at, self._token, self._kind = at, rest[:1], "bad"
            hint = "; a text stands in single quotes, both of them" if rest[:1] == "'" else ""
            raise self._error(f"{rest[:20]!r} is no part of the language{hint}")
        self._kind = str(found.lastgroup)
        self._token = found[self._kind]
        self._at = found.start(self._kind)
        self._after = found.end()

    def _take(self) -> str:
        token = self._token
        self._next(self._after)
        return token

    def _is(self, *tokens: str) -> bool:
        return self._kind in ("sign", "word") and self._token in tokens

    def _need(self, sign: str) -> None:
        if not self._is(sign):
            raise self._error(f"found {self._token or 'the end'!r}; needed {sign!r}")
        self._take()

    def _error(self, said: str) -> ConfigError:
        return ConfigError(f"expression {self._text[:80]!r}, character {self._at + 1}: {said}")

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH}; split it into two blocks")

    def _made(self, kind: Kind, sql: str, *parts: Term, raw: bool = False) -> Term:
        if len(sql) > MAX_SQL:
            raise self._error("the expression is too large; split it into several blocks")
        reads = frozenset[str]().union(*(p.reads for p in parts))
        return Term(kind, sql, reads, raw)

    def _expect(self, term: Term, kind: Kind, what: str) -> Term:
        if term.kind != kind:
            hint = "; write if(x, 1, 0) for a number" if term.kind == "truth" else ""
            raise self._error(f"{what} needs a {kind}, found a {term.kind}{hint}")
        return term

    # ---- grammar, loosest first --------------------------------------------------------------

    def _or(self) -> Term:
        return self._chain("or", self._and)

    def _and(self) -> Term:
        return self._chain("and", self._not)

    def _chain(self, word: str, part: Callable[[], Term]) -> Term:
        self._deeper()
        left = part()
        while self._is(word):
            self._expect(left, "truth", f"{word!r}")
            self._take()
            right = self._expect(part(), "truth", f"{word!r}")
            left = self._made("truth", f"({left.sql} {word.upper()} {right.sql})", left, right)
        self._depth -= 1
        return left

    def _not(self) -> Term:
        if not self._is("not"):
            return self._comparison()
        self._deeper()
        self._take()
        term = self._expect(self._not(), "truth", "'not'")
        self._depth -= 1
        return self._made("truth", f"(NOT {term.sql})", term)

    def _comparison(self) -> Term:
        left = self._sum()
        if self._is("in"):
            return self._membership(left.finite())
        if not self._is(*_COMPARE):
            return left
        sign = self._take()
        left, right = left.finite(), self._sum().finite()
        self._expect(right, left.kind, f"{sign!r} with a {left.kind} on its left")
        if sign in _ORDERED and left.kind in ("text", "truth"):
            raise self._error(f"{sign!r} orders numbers and dates, found a {left.kind}")
        if self._is(*_COMPARE):
            raise self._error("comparisons do not chain; join two with 'and'")
        return self._made("truth", f"({left.sql} {_COMPARE[sign]} {right.sql})", left, right)

    def _membership(self, left: Term) -> Term:
        self._take()
        self._need("(")
        values = [self._expect(self._sum().finite(), left.kind, "'in'")]
        while self._is(","):
            self._take()
            values.append(self._expect(self._sum().finite(), left.kind, "'in'"))
        self._need(")")
        listed = ", ".join(v.sql for v in values)
        return self._made("truth", f"({left.sql} IN ({listed}))", left, *values)

    def _sum(self) -> Term:
        return self._arithmetic(("+", "-"), self._product)

    def _product(self) -> Term:
        return self._arithmetic(("*", "/", "%"), self._unary)

    def _arithmetic(self, signs: tuple[str, ...], part: Callable[[], Term]) -> Term:
        left = part()
        while self._is(*signs):
            self._expect(left, "number", f"{self._token!r}")
            sign = self._take()
            right = self._expect(part(), "number", f"{sign!r}")
            sql = f"({left.sql} {sign} {right.sql})"
            left = self._made("number", sql, left, right, raw=True)
        return left

    def _unary(self) -> Term:
        if not self._is("-"):
            return self._atom()
        self._deeper()
        self._take()
        term = self._expect(self._unary(), "number", "'-'")
        self._depth -= 1
        return self._made("number", f"(- {term.sql})", term, raw=term.raw)

    def _atom(self) -> Term:
        kind, word = self._kind, self._token
        if kind == "sign" and word == "(":
            self._take()
            term = self._or()
            self._need(")")
            return term
        if kind == "number":
            return self._number(self._take())
        if kind == "text":
            self._take()
            return Term("text", word)
        if kind == "quoted":
            return self._column(self._take()[1:-1])
        if kind == "word" and word in ("true", "false"):
            return Term("truth", self._take().upper())
        if kind == "word" and word not in _WORDS:
            self._take()
            return self._call(word) if self._is("(") else self._column(word)
        raise self._error(f"found {word or 'the end'!r}; needed a value, a column or '('")

    def _number(self, token: str) -> Term:
        value = float(token)
        if not math.isfinite(value):
            raise self._error(f"{token!r} is too large for a number")
        return Term("number", f"{value!r}::DOUBLE")

    def _column(self, name: str) -> Term:
        if name not in self._types:
            raise self._error(f"there is no column {name!r}{nearest(name, self._types)}")
        kind = kind_of(self._types[name], name)
        sql = f"CAST({quoted(name)} AS DOUBLE)" if kind == "number" else quoted(name)
        return Term(kind, sql, frozenset({name}))

    def _call(self, name: str) -> Term:
        if name not in FUNCTIONS:
            raise self._error(f"there is no function {name!r}{nearest(name, FUNCTIONS)}")
        self._take()
        arguments: list[Term] = []
        while not self._is(")"):
            if arguments:
                self._need(",")
            arguments.append(self._or().finite())
        self._take()
        try:
            made = FUNCTIONS[name].make(tuple(arguments))
        except _Unfit as e:
            raise self._error(f"{name}: {e}; needed {FUNCTIONS[name].form}") from None
        return self._made(made.kind, made.sql, *arguments, raw=made.raw)


class _Unfit(Exception):
    """The arguments of a function do not fit it."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the language: how it is written, and what it becomes."""

    form: str
    make: Callable[[tuple[Term, ...]], Term]


def _simple(
    result: Kind, kinds: tuple[Kind, ...], sql: str, *, raw: bool = False
) -> Callable[[tuple[Term, ...]], Term]:
    """Return the maker of a function whose SQL has a place {0}, {1} for each argument."""

    def make(terms: tuple[Term, ...]) -> Term:
        if tuple(t.kind for t in terms) != kinds:
            found = ", ".join(t.kind for t in terms) or "nothing"
            raise _Unfit(f"found ({found})")
        return Term(result, sql.format(*(t.sql for t in terms)), raw=raw)

    return make


def _several(sql: str, only: Kind | None = None) -> Callable[[tuple[Term, ...]], Term]:
    """Return the maker of a function of two or more arguments of one kind."""

    def make(terms: tuple[Term, ...]) -> Term:
        kinds = {t.kind for t in terms}
        if len(terms) < 2 or len(kinds) != 1 or (only and kinds != {only}):
            raise _Unfit(f"found ({', '.join(t.kind for t in terms)})")
        return Term(terms[0].kind, f"{sql}({', '.join(t.sql for t in terms)})")

    return make


def _if(terms: tuple[Term, ...]) -> Term:
    if len(terms) != 3 or terms[0].kind != "truth" or terms[1].kind != terms[2].kind:
        raise _Unfit(f"found ({', '.join(t.kind for t in terms)})")
    which, then, other = terms
    return Term(then.kind, f"CASE WHEN {which.sql} THEN {then.sql} ELSE {other.sql} END")


def _is_missing(terms: tuple[Term, ...]) -> Term:
    if len(terms) != 1:
        raise _Unfit(f"found {len(terms)} arguments")
    return Term("truth", f"({terms[0].sql} IS NULL)")


def _round(terms: tuple[Term, ...]) -> Term:
    kinds = tuple(t.kind for t in terms)
    if kinds == ("number",):
        return Term("number", f"round({terms[0].sql})", raw=True)
    digits = re.fullmatch(r"(\d\.0)::DOUBLE", terms[1].sql) if len(terms) == 2 else None
    if kinds != ("number", "number") or digits is None:
        raise _Unfit(f"found ({', '.join(kinds)})")
    return Term("number", f"round({terms[0].sql}, {int(float(digits[1]))})", raw=True)


def _date(terms: tuple[Term, ...]) -> Term:
    if len(terms) != 1 or not re.fullmatch(r"'\d{4}-\d\d-\d\d'", terms[0].sql):
        raise _Unfit("found no day in quotes")
    try:
        day = date.fromisoformat(terms[0].sql.strip("'"))
    except ValueError:
        raise _Unfit(f"{terms[0].sql} is no day of the calendar") from None
    return Term("date", f"DATE '{day.isoformat()}'")


_SECONDS = "(epoch({0}) - epoch({1}))"

FUNCTIONS: Mapping[str, Function] = MappingProxyType(
    {
        "if": Function("if(truth, value, value of the same kind)", _if),
        "is_missing": Function("is_missing(value)", _is_missing),
        "coalesce": Function("coalesce(value, value, ...) of one kind", _several("coalesce")),
        "abs": Function("abs(number)", _simple("number", ("number",), "abs({0})")),
        "log": Function(
            "log(number), the natural logarithm",
            _simple("number", ("number",), "CASE WHEN {0} > 0 THEN ln({0}) END"),
        ),
        "exp": Function("exp(number)", _simple("number", ("number",), "exp({0})", raw=True)),
        "sqrt": Function(
            "sqrt(number)",
            _simple("number", ("number",), "CASE WHEN {0} >= 0 THEN sqrt({0}) END"),
        ),
        "round": Function("round(number), or round(number, digits from 0 to 9)", _round),
        "min": Function("min(number, number, ...)", _several("least", "number")),
        "max": Function("max(number, number, ...)", _several("greatest", "number")),
        "date": Function("date('2024-05-31')", _date),
        "days": Function(
            "days(later date, earlier date)",
            _simple("number", ("date", "date"), f"({_SECONDS} / 86400.0::DOUBLE)"),
        ),
        "years": Function(
            "years(later date, earlier date), of 365.25 days",
            _simple("number", ("date", "date"), f"({_SECONDS} / 31557600.0::DOUBLE)"),
        ),
        "year": Function(
            "year(date)", _simple("number", ("date",), "CAST(year({0}) AS DOUBLE)")
        ),
        "number": Function(
            "number(text), missing where the text is none",
            _simple("number", ("text",), "TRY_CAST({0} AS DOUBLE)", raw=True),
        ),
        "lower": Function("lower(text)", _simple("text", ("text",), "lower({0})")),
        "contains": Function(
            "contains(text, text)", _simple("truth", ("text", "text"), "contains({0}, {1})")
        ),
    }
)
