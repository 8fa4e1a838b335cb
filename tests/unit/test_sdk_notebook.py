"""How records look in a notebook."""

import subprocess
import sys

import pytest

from consilia.sdk.notebook import model_html, show_records, study_html, table
from consilia.wire.people import ModelView, Strategy, StudyView
from consilia.wire.v1 import Study

EVIL = "<script>alert(1)</script>"


def _study(purpose: str = "why") -> StudyView:
    study = Study("heart", purpose, ("north",), ("tag",), controller=EVIL)
    return StudyView(study, "sha256:0", "submitted", "ada", {"north": "accepted"})


def _model() -> ModelView:
    return ModelView(
        id="job-1.3", job="job-1", round=3, digest="blake3:0", bytes=4, created=0.0,
        study="heart", plan="sha256:1", arguments={}, strategy=Strategy(), sites=("north",),
        records=120, metrics={"auc": 0.91234, EVIL: 1.0}, parent="job-1.2", stage="released",
    )  # fmt: skip


def test_a_study_shows_its_terms_and_decisions() -> None:
    html = study_html(_study())
    assert "heart: submitted" in html and "<td>north</td><td>accepted</td>" in html
    assert "retention" not in html, "what says nothing is not there"


def test_a_model_shows_its_lineage() -> None:
    html = model_html(_model())
    assert "job-1.3: released" in html and "<td>auc</td><td>0.9123</td>" in html


@pytest.mark.parametrize(
    "html", [study_html(_study(EVIL)), model_html(_model()), table([EVIL], [])]
)
def test_names_of_others_are_text(html: str) -> None:
    assert "<script" not in html and "&lt;script&gt;" in html


def test_ipython_is_told_only_where_it_is() -> None:
    assert not show_records(), "no notebook here"
    pytest.importorskip("IPython", reason="IPython is not installed (extra: dev)")
    program = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
from consilia.sdk.notebook import show_records
from consilia.wire.people import StudyView
from consilia.wire.v1 import Study
assert show_records()
view = StudyView(Study("heart", "why", ("north",), ()), None, "draft", "ada", {})
data, _ = shell.display_formatter.format(view)
print(data["text/html"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "<b>heart: draft</b>" in done.stdout
