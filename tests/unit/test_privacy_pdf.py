"""A privacy report on paper: the same text as the page, whatever names are in it."""

import dataclasses
import re
import zlib
from html import unescape

import pytest

pytest.importorskip("fpdf", reason="fpdf2 is not installed (extra: report)")

from consilia.privacy import report, reportpdf, reporttext
from consilia.privacy.evidence import Area, Canaries, Tail
from consilia.privacy.verdict import (
    Attack,
    Claim,
    Findings,
    Inversion,
    Planted,
    Subject,
    judge,
)

DIGEST = "0123456789abcdef" * 4
ATTACK = Attack(
    "loss attack", 300, 300, Area(0.81, 0.75), 0.56, 0.01, Tail(0.0, 0.5, 0.5, 0.0, "members"),
    ((0.0, 0.0), (0.1, 0.6), (1.0, 1.0)), ((0.0, 0.5, 0.0), (1.0, 0.5, 1.0)),
)  # fmt: skip
FOUND = Findings(
    Subject(
        "charité", "m.npz", f"b3:{DIGEST}", "p", f"sha256:{DIGEST}", "hf", 300, "", True, 10, 8,
        "", 1.8e9, "0.1",
    ),
    Claim(2.0, 1e-5, "record", "ledger"),
    (ATTACK, dataclasses.replace(ATTACK, name="reference attack")),
    Planted(Canaries(300, 30, 29, 1.5, 3.8), 1e-5, 2.0),
    (Inversion(1, 1.0, 0.0, 0.0, 0.7, 0.01, 2049, "search"),),
    ("an update on 64 records was not turned back",),
)  # fmt: skip
_STREAM = re.compile(rb"stream\n(.*?)\nendstream", re.DOTALL)
_SHOWN = re.compile(r"\(((?:[^()\\]|\\.)*)\) ?Tj")


def on_paper(found: Findings) -> tuple[str, int]:
    """Return the words that the PDF shows, in its order, and how many pages it has."""
    made = reportpdf.pdf(found, judge(found))
    words = []
    for stream in _STREAM.findall(made):
        text = zlib.decompress(stream).decode("latin-1")
        words += [re.sub(r"\\([()\\])", r"\1", shown) for shown in _SHOWN.findall(text)]
    return " ".join(" ".join(words).split()), len(re.findall(rb"/Type /Page\n", made))


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


def texts(found: Findings) -> list[str]:
    """Return every text of the report's blocks."""
    said = [reporttext.title(found)]
    for block in reporttext.blocks(found, judge(found)):
        match block:
            case reporttext.Heading(text, _) | reporttext.Text(text):
                said.append(text)
            case reporttext.Judgement(title, _, meaning, because):
                said += [title, meaning, *because]
            case reporttext.Bullets(items):
                said += items
            case reporttext.Cells(heads, rows):
                said += [*heads, *(cell for row in rows for cell in row)]
            case reporttext.Figure(shapes, x, y, caption):
                labels = [s.text for s in shapes if isinstance(s, reporttext.Label)]
                said += [x, y, caption, *labels]
            case reporttext.PageEnd():
                pass
    return said


def test_page_and_paper_say_the_same() -> None:
    paper, pages = on_paper(FOUND)
    html = unescape(re.sub("<[^>]*>", "", report.page(FOUND, judge(FOUND))))
    said = texts(FOUND)
    assert len(said) > 60 and "Bounded by differential privacy" in said
    for text in said:
        assert squeezed(text) in squeezed(html)
        assert squeezed(text) in squeezed(paper)
    assert 2 <= pages <= 5


def test_the_first_page_is_the_one_in_plain_words() -> None:
    made = list(reporttext.blocks(FOUND, judge(FOUND)))
    first = made[: made.index(reporttext.PageEnd())]
    assert not any(isinstance(b, reporttext.Cells | reporttext.Figure) for b in first)
    assert any(isinstance(b, reporttext.Judgement) for b in first)


def test_names_are_not_markup_and_other_letters_are_numbers() -> None:
    subject = dataclasses.replace(FOUND.subject, model="<b>**x**</b>\x07 Łódź 中.npz")
    paper, _ = on_paper(dataclasses.replace(FOUND, subject=subject))
    assert r"<b>**x**</b>" in paper
    assert r"\u0141ód\u017a \u4e2d.npz" in paper


def test_a_verdict_of_many_reasons_and_a_name_without_spaces_fit() -> None:
    subject = dataclasses.replace(FOUND.subject, model="x" * 500, dataset="y" * 300)
    attacks = tuple(dataclasses.replace(ATTACK, name=f"attack {i}") for i in range(20))
    long = dataclasses.replace(FOUND, subject=subject, attacks=attacks, claim=None)
    paper, pages = on_paper(long)
    assert "x" * 400 in squeezed(paper) and "the attack 19 tells records" in paper.lower()
    assert pages > 10
