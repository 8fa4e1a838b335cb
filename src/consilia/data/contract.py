"""What a table column may be: its type, and how missing values and numbers are told apart.

A site declares these types when it registers a dataset (data.registry infers them), the
worker enforces them (data.table). They are deliberately few:

    float32, float64   numbers; missing is NaN
    int64              whole numbers
    bool               true/false, t/f, yes/no, y/n or 1/0
    str                text
    category           text from a small set of values
    date               calendar day, ISO 8601
    timestamp          date and time of day without a zone, ISO 8601
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from consilia.errors import DataError


@dataclass(frozen=True, slots=True)
class ColumnType:
    """One column type: its SQL type, whether it is a number, and an example for messages."""

    name: str
    sql: str  # DuckDB's name
    numeric: bool
    needed: str  # in words, for error messages
    pattern: str = ""  # what a text must match besides; DuckDB would round "3.7" to BIGINT 4


TYPES: Mapping[str, ColumnType] = MappingProxyType(
    {
        t.name: t
        for t in (
            ColumnType("float32", "FLOAT", True, "a number such as 3.5"),
            ColumnType("float64", "DOUBLE", True, "a number such as 3.5"),
            ColumnType(
                "int64", "BIGINT", True, "a whole number such as 42", r"\s*[+-]?[0-9]+\s*"
            ),
            ColumnType("bool", "BOOLEAN", True, "true or false"),
            ColumnType("str", "VARCHAR", False, "text"),
            ColumnType("category", "VARCHAR", False, "text"),
            ColumnType(
                "date", "DATE", False, "a day such as 2024-05-31", r"\s*\d{4}-\d\d?-\d\d?\s*"
            ),
            ColumnType("timestamp", "TIMESTAMP", False, "a time such as 2024-05-31 08:30:00"),
        )
    }
)

FORMATS = ("csv", "tsv", "parquet")
MAX_COLUMNS = 20_000
MAX_COLUMN_NAME = 256  # characters


def column_type(name: str, column: str) -> ColumnType:
    """Return the type called `name`; raise DataError naming `column` for one that is not."""
    try:
        return TYPES[name]
    except KeyError:
        raise DataError(
            f"column {column!r} is declared as {name!r}; needed one of {', '.join(TYPES)}"
        ) from None


@dataclass(frozen=True, slots=True)
class Selection:
    """The columns a training plan asks for, and how they become numbers."""

    features: tuple[str, ...] | None  # None: every numeric column but the target, by name
    target: str | tuple[str, ...] | None = None
    target_type: str = "float32"  # float32, int64
    classes: tuple[str, ...] = ()  # texts of a text target; their index is the number
    fill: float | None = None  # what a missing feature becomes; None: it is an error

    @property
    def targets(self) -> tuple[str, ...]:
        """The target columns, none, one or several."""
        if self.target is None:
            return ()
        return (self.target,) if isinstance(self.target, str) else self.target
