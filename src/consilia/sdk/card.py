"""A model card as Markdown, for a README, a repository or a printer."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from consilia.wire.people import ModelCard, ModelView, Protection

_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>#|"})


def markdown(card: ModelCard) -> str:
    """Return the card as Markdown; what people have written is escaped, it is no markup."""
    model, study = card.model, card.study
    parts = [
        f"# Model {_text(model.id)}",
        _text(card.description or study.purpose),
        _fields(
            ("Stage", model.stage or "not proposed"),
            ("Made", _day(model.created)),
            ("Weights", f"{model.digest}, {model.bytes} bytes"),
            ("Software", f"Consilia {card.software}"),
        ),
        "## Where it comes from",
        _fields(
            ("Study", f"{study.name}: {study.purpose}"),
            ("Controller", study.controller),
            ("Legal basis", study.legal_basis),
            ("Ethics reference", study.ethics),
            ("Sites of its last round", ", ".join(model.sites)),
            ("Records", str(model.records)),
            ("Training plan", f"{card.plan} ({model.plan})"),
            ("Entry point", card.entry),
            ("Requirements", ", ".join(card.requirements)),
            ("Strategy", model.strategy.name),
            ("Arguments", ", ".join(f"{k}={v}" for k, v in sorted(model.arguments.items()))),
            ("Trained from", " < ".join(card.lineage[:5])),
        ),
        "## Privacy",
        _fields(
            ("Aggregation", _aggregation(card)),
            (
                "Differential privacy",
                f"{card.protection[0].level} level, epsilon {card.epsilon:.3g} at delta "
                f"{card.delta:g}, by this job alone"
                if card.epsilon is not None and card.delta is not None and card.protection
                else "none",
            ),
            *(("Trained from", _ancestor(job)) for job in card.protection[1:]),
        ),
        "## How good it is",
        _rounds(card),
        "## Beware",
        "\n".join(f"- {_text(line)}" for line in card.caveats) or "- Nothing on record.",
        "## Decisions",
        "\n".join(
            f"- {_day(s.at)}: {s.stage} by {_text(s.actor)}: {_text(s.reason)}"
            for s in card.stages
        )
        or "- None yet.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def comparison(models: Sequence[ModelView]) -> list[dict[str, object]]:
    """Return one row a version, the same keys in all: what differs, and every metric.

    Keys: model, stage, study, plan, strategy, sites, records, then `argument <name>` for those
    that differ, then the metrics by name. None where a version has none.
    """
    arguments = _union(m.arguments for m in models)
    differing = [n for n in arguments if len({repr(m.arguments.get(n)) for m in models}) > 1]
    metrics = _union(m.metrics for m in models)
    return [
        {
            "model": m.id,
            "stage": m.stage,
            "study": m.study,
            "plan": m.plan,
            "strategy": m.strategy.name,
            "sites": len(m.sites),
            "records": m.records,
            **{f"argument {name}": m.arguments.get(name) for name in differing},
            **{name: m.metrics.get(name) for name in metrics},
        }
        for m in models
    ]


def _aggregation(card: ModelCard) -> str:
    if not card.protection:
        return "unknown"
    own = card.protection[0]
    found = f"{own.aggregation}, {own.bits} bits" if own.bits else own.aggregation
    return f"{found}, each site a share of the noise" if own.distributed else found


def _ancestor(job: Protection) -> str:
    spent = "no differential privacy"
    if job.epsilon is not None:
        spent = f"{job.level} level, epsilon {job.epsilon:.3g} at delta {job.delta:g}"
    return f"{job.job} up to round {job.round}: {job.aggregation}, {spent}"


def _union(names: Iterable[Iterable[str]]) -> list[str]:
    return sorted({name for some in names for name in some})


def _rounds(card: ModelCard) -> str:
    closed = [r for r in card.rounds if r.round > 0 and r.metrics]
    if not closed:
        return "No metric was reported."
    metrics = _union(r.metrics for r in closed)
    shown = closed if len(closed) <= 12 else [*closed[:3], *closed[-9:]]
    lines = ["| round | sites | " + " | ".join(map(_text, metrics)) + " |"]
    lines += ["|" + "---|" * (len(metrics) + 2)]
    for r in shown:
        values = (f"{r.metrics[m]:.4g}" if m in r.metrics else "" for m in metrics)
        lines.append(f"| {r.round} | {len(r.sites)} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _fields(*pairs: tuple[str, str]) -> str:
    return "\n".join(f"- **{name}**: {_text(value)}" for name, value in pairs if value)


def _text(value: str) -> str:
    return " ".join(value.split()).translate(_SPECIAL)


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
