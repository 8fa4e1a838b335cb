"""How records of the hub look in a notebook: tables instead of one long line.

Records of `consilia.wire` know nothing of screens, so IPython is told here how to show them,
when a client is made in a notebook. Text is always escaped: names come from other people.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from consilia.wire.people import ModelView, StudyView


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table."""
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{_cells('th', head)}</tr></thead><tbody>{body}</tbody></table>"


def facts(title: str, pairs: Iterable[tuple[str, object]]) -> str:
    """Return a title over a table of names and values, without those that say nothing."""
    return f"<p><b>{escape(title)}</b></p>" + table(
        ("", ""), [(name, value) for name, value in pairs if value not in ("", None, ())]
    )


def study_html(view: StudyView) -> str:
    """Return a study: its terms, and where it stands at each site."""
    study = view.study
    terms = facts(
        f"{study.name}: {view.state}",
        (
            ("purpose", study.purpose),
            ("controller", study.controller),
            ("legal basis", study.legal_basis),
            ("ethics", study.ethics),
            ("until", study.until),
            ("residency", study.residency),
            ("retention", f"{study.retention_days} days" if study.retention_days else ""),
            ("datasets", ", ".join(study.tags)),
            ("digest", view.digest),
        ),
    )
    return terms + table(("site", "decision"), sorted(view.sites.items()))


def model_html(view: ModelView) -> str:
    """Return a model version: its lineage and its metrics."""
    lineage = facts(
        f"Model {view.id}{f': {view.stage}' if view.stage else ''}",
        (
            ("study", view.study),
            ("plan", view.plan),
            ("strategy", view.strategy.name),
            ("sites", ", ".join(view.sites)),
            ("left since", ", ".join(view.withdrawn)),
            ("records", view.records),
            ("parent", view.parent),
            ("digest", view.digest),
        ),
    )
    metrics = [(name, f"{value:.4g}") for name, value in sorted(view.metrics.items())]
    return lineage + (table(("metric", "value"), metrics) if metrics else "")


def show_records() -> bool:
    """Tell IPython, where we run in it, how to show records; return whether it was told."""
    if "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    if shell is None:
        return False
    shown: tuple[tuple[type, Callable[[Any], str]], ...] = (
        (StudyView, study_html),
        (ModelView, model_html),
    )
    formatter = shell.display_formatter.formatters["text/html"]
    for kind, html in shown:
        formatter.for_type(kind, html)
    return True


def _cells(kind: str, row: Sequence[object]) -> str:
    return "".join(f"<{kind}>{escape(str(cell))}</{kind}>" for cell in row)
