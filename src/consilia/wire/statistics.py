"""What people ask the hub for sums over the sites' records, and what they are told."""

from typing import Literal

from consilia.wire.people import Request, View
from consilia.wire.v1 import Dp, Statistics

What = Literal["count", "missing", "mean", "sd", "histogram", "quantiles"]


class Noise(Request, frozen=True):
    """Differential privacy of a question: what the answer costs each site's patients, once."""

    epsilon: float
    delta: float = 1e-5
    level: Literal["record", "patient"] = "record"  # patient: sites without patient ids refuse
    records: int = 1  # of one patient that count, where a dataset declares patient ids
    colluding: int = 1  # sites whose shares of the noise do not count


class AskStatistics(Request, frozen=True):
    """Ask every site of a study for sums over its own records.

    A column is one of numbers, or its levels are counted: those of `levels`, of the mock twins
    on offer, or true and false. `edges` are those of a histogram, in a group of `by` its cut
    points.
    """

    study: str  # name
    columns: tuple[str, ...] = ()
    what: tuple[What, ...] = ("count", "missing", "mean", "sd")  # of columns of numbers
    by: str = ""  # a column; everything in `columns` is told for each of its groups
    where: str = ""  # a condition, as in loading plans: age >= 18 and sex = 'F'
    levels: dict[str, tuple[str, ...]] = {}  # column -> its levels
    edges: dict[str, tuple[float, ...]] = {}  # column -> rising numbers
    tables: tuple[tuple[str, str], ...] = ()  # crosstabs of two columns
    aggregation: Literal["secure", "plain"] | None = None  # None: secure from three sites up
    deadline: float = 600.0  # seconds
    grace: float = 30.0  # seconds to wait for the rest once enough sites have told
    name: str = ""
    bounds: dict[str, tuple[float, float]] = {}  # column -> its least and largest value
    dp: Noise | None = None  # with noise, charged to each site's privacy ledger


class Figure(View, frozen=True):
    """One number over the sites that have told it; None where it may not be told."""

    statistic: str  # records, count, missing, mean, sd, histogram, quantile, level, cell
    column: str = ""
    group: str = ""  # of `by`; "": everybody asked about
    level: str = ""  # a level, a bin, or which quantile
    across: str = ""  # the other column of a crosstab
    across_level: str = ""
    value: float | None = None
    # the value is between these two, whatever the sites hold back; None: no end on that side.
    # With noise: what the same records give without it, with 95 %.
    low: float | None = None
    high: float | None = None
    sites: int = 0  # that it is of
    error: float | None = None  # standard error, the noise included; None: there is no noise


class StatisticsView(View, frozen=True):
    """The answer to a question: numbers over all sites that have told them."""

    job: str
    study: str
    asked: Statistics
    at: float
    masked: bool  # the hub has seen no site's own sums
    sites: tuple[str, ...]  # that have told something
    rounded: int  # how many of them round their counts to 5
    figures: tuple[Figure, ...]
    without: dict[str, str] = {}  # sites that were asked and have told nothing
    dp: Dp | None = None  # the mechanism; None: no noise
    # what it has cost each site at most, at `dp.delta`; failed attempts were paid for as well
    epsilon: float | None = None
    noise: float | None = None  # standard deviation of the noise on every count, in records
