"""`consilia statistics`: sums over the records of all sites, of which no site's own is seen."""

import csv
import sys
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from consilia.cli.options import Json, example, pairs
from consilia.cli.output import json_text, note, say, table
from consilia.errors import ConfigError

if TYPE_CHECKING:
    from consilia.sdk.statistics import Described
    from consilia.wire.statistics import Noise, What

DELTA = 1e-5


def add_to(main: typer.Typer) -> None:
    """Register the command."""
    main.command(
        epilog=example(
            "consilia statistics heart --column age --column chol --by sex --levels sex=F,M"
        )
    )(statistics)


def statistics(
    study: Annotated[str, typer.Argument(help="The study's name.")],
    column: Annotated[
        list[str] | None, typer.Option(help="A column to describe; again for more.")
    ] = None,
    by: Annotated[
        str, typer.Option(help="Tell everything for each group of this column.")
    ] = "",
    what: Annotated[
        str, typer.Option(help="Of count,missing,mean,sd,histogram,quantiles.")
    ] = "count,missing,mean,sd",
    where: Annotated[
        str, typer.Option(help='Only records of which this holds: "age >= 18".')
    ] = "",
    levels: Annotated[
        list[str] | None, typer.Option(help="COLUMN=LEVEL,LEVEL of a column that is counted.")
    ] = None,
    edges: Annotated[
        list[str] | None,
        typer.Option(help="COLUMN=NUMBER,NUMBER: bins, or cut points of --by."),
    ] = None,
    crosstab: Annotated[
        list[str] | None, typer.Option("--table", help="COLUMN,COLUMN: count them together.")
    ] = None,
    bounds: Annotated[
        list[str] | None,
        typer.Option(help="COLUMN=NUMBER,NUMBER: its least and largest value."),
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(help="Differential privacy: what it may cost, once, at every site."),
    ] = None,
    delta: Annotated[
        float, typer.Option(help="At which epsilon holds; less than 1 / patients.")
    ] = DELTA,
    level: Annotated[
        str, typer.Option(help="Whose presence is hidden: record, or patient (needs ids).")
    ] = "record",
    records: Annotated[
        int, typer.Option(help="Records of one patient that count, with --epsilon.")
    ] = 1,
    plain: Annotated[
        bool, typer.Option("--plain", help="Unmasked, where each site's policy lets it.")
    ] = False,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print one line a number.")] = False,
) -> None:
    """Describe the patients of a study: counts, means, histograms, tables over all sites.

    Each site decides what it tells; a dash stands for what may not be told. From three sites
    up the hub learns their sum only. With --epsilon the sum has noise, which every site's
    privacy ledger is charged for: means need --bounds, levels and bins have to be named.
    """
    from consilia.sdk.client import Client

    noise = _noise(epsilon, delta, level, records)
    with Client() as client:
        found = client.statistics(
            study,
            column or (),
            by=by,
            what=_what(what),
            where=where,
            levels={k: v.split(",") for k, v in pairs(levels or (), "--levels").items()},
            edges={k: _numbers(k, v) for k, v in pairs(edges or (), "--edges").items()},
            tables=[_pair(text) for text in crosstab or ()],
            aggregation="plain" if plain else None,
            bounds={
                k: _numbers(k, v, "--bounds")
                for k, v in pairs(bounds or (), "--bounds").items()
            },
            dp=noise,
        )
    if as_json:
        say(json_text(found.view))
    elif as_csv:
        _csv(found)
    else:
        _show(found)


def _show(found: "Described") -> None:
    from consilia.sdk.statistics import caption

    first = found.table1()
    table(first.head, first.rows)
    beside = ("histogram", "quantile", "cell")
    noisy = found.view.dp is not None  # then every number has an interval
    more = [f for f in found.figures if noisy or f.statistic in beside]
    if more:
        say("")
        table(
            ("statistic", "of", "group", "value", "between", "sites"),
            [
                [
                    f.statistic,
                    " ".join(p for p in (f.column, f.level, f.across, f.across_level) if p),
                    f.group,
                    _value(f.value),
                    _between(f.low, f.high),
                    str(f.sites),
                ]
                for f in more
            ],
        )
    note(caption(found.view))


def _csv(found: "Described") -> None:
    from consilia.wire.statistics import Figure

    writer = csv.writer(sys.stdout, lineterminator="\n")
    names = Figure.__struct_fields__
    writer.writerow(names)
    writer.writerows([getattr(f, name) for name in names] for f in found.figures)


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _between(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    if low is not None:
        return f"from {low:g}"
    return "" if high is None else f"below {high:g}"


def _what(text: str) -> "tuple[What, ...]":
    from consilia.wire.statistics import What

    valid: tuple[Any, ...] = get_args(What)
    wanted = [word.strip() for word in text.split(",") if word.strip()]
    if odd := [word for word in wanted if word not in valid]:
        raise ConfigError(f"--what: found {odd[0][:40]!r}; needed of {', '.join(valid)}")
    return tuple(word for word in valid if word in wanted)


def _numbers(name: str, text: str, option: str = "--edges") -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"{option} {name}: found {text[:80]!r}; needed numbers, as 40,50,60"
        ) from None


def _noise(epsilon: float | None, delta: float, level: str, records: int) -> "Noise | None":
    if epsilon is None:
        if (delta, level, records) != (DELTA, "record", 1):
            raise ConfigError(
                "--epsilon: found none; --delta, --level and --records go with it"
            )
        return None
    from consilia.wire.statistics import Noise

    if level not in ("record", "patient"):
        raise ConfigError(f"--level: found {level[:40]!r}; needed record or patient")
    return Noise(epsilon, delta, "patient" if level == "patient" else "record", records)


def _pair(text: str) -> tuple[str, str]:
    parts = text.split(",")
    if len(parts) != 2:
        raise ConfigError(f"--table: found {text[:80]!r}; needed two columns, as sex,smoker")
    return parts[0], parts[1]
