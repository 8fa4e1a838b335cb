"""A privacy report as one HTML page without any outside part, and as plain data for programs.

What it says is privacy.reporttext. Plots are SVG in the page. Every text that came from
elsewhere (names of files, plans, datasets) is escaped.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from itertools import groupby

from consilia.privacy import reporttext as says
from consilia.privacy.verdict import CONFIDENCE, Findings, Verdict

_WIDTH, _HEIGHT, _EDGE = 360, 260, 40
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#222;max-width:52rem;margin:2rem auto;
padding:0 1rem}h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2rem}
table{border-collapse:collapse;width:100%;margin:.5rem 0;font-variant-numeric:tabular-nums}
td,th{text-align:left;padding:.25rem .6rem .25rem 0;border-bottom:1px solid #ddd;
vertical-align:top;overflow-wrap:anywhere}th{font-size:.85rem}
td:first-child{min-width:10rem;overflow-wrap:normal}
.verdict{border-left:.5rem solid;padding:.5rem 1rem;background:#f6f6f6}
.verdict h2{margin:.2rem 0}.figures{display:flex;flex-wrap:wrap;gap:1rem}
figure{margin:.5rem 0}svg{max-width:100%;height:auto}
figcaption{font-size:.85rem;max-width:22rem}
@media print{body{margin:0;max-width:none;font-size:11pt}h2{break-after:avoid}
figure,table,.verdict{break-inside:avoid}.page-end{break-after:page}}
"""


def data(found: Findings, verdict: Verdict) -> dict[str, object]:
    """Return the report as nested dicts, lists, texts and numbers; infinity becomes None."""
    plain = {"verdict": asdict(verdict), **asdict(found), "confidence": CONFIDENCE}
    return {name: _finite(value) for name, value in plain.items()}


def page(found: Findings, verdict: Verdict) -> str:
    """Return the report as one HTML page."""
    title = escape(says.title(found))
    body = [f"<h1>{title}</h1>"]
    for figures, run in groupby(says.blocks(found, verdict), _is_figure):
        parts = [_html(block) for block in run]
        body += ['<div class="figures">', *parts, "</div>"] if figures else parts
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        # nothing is fetched, nothing runs, whatever a name in the page tries
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE}</style></head><body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def _is_figure(block: says.Block) -> bool:
    return isinstance(block, says.Figure)


def _html(block: says.Block) -> str:
    match block:
        case says.Heading(text, _):
            made = f"<h2>{escape(text)}</h2>"
        case says.Text(text):
            made = f"<p>{escape(text)}</p>"
        case says.Judgement():
            made = _judgement(block)
        case says.Bullets(items):
            made = _list(items)
        case says.Cells():
            made = _table(block)
        case says.Figure():
            made = _figure(block)
        case says.PageEnd():
            made = '<div class="page-end"></div>'
    return made


def _judgement(block: says.Judgement) -> str:
    return (
        f'<section class="verdict" style="border-color:{block.colour}">'
        f'<h2 style="color:{block.colour}">{escape(block.title)}</h2>'
        f"<p>{escape(block.meaning)}</p><p>Why:</p>{_list(block.because)}</section>"
    )


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _table(table: says.Cells) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in table.heads)
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{lines}</table>"


def _figure(figure: says.Figure) -> str:
    frame = (
        f'<path d="M{_x(0)} {_y(1)}V{_y(0)}H{_x(1)}" fill="none" stroke="{says.INK}"/>'
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 10}" text-anchor="middle">'
        f"{escape(figure.x)}</text>"
        f'<text x="12" y="{_HEIGHT / 2}" text-anchor="middle" '
        f'transform="rotate(-90 12 {_HEIGHT / 2})">{escape(figure.y)}</text>'
    )
    caption = escape(figure.caption)
    inner = "".join(map(_shape, figure.shapes))
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'role="img" aria-label="{caption}" font-size="13" fill="{says.INK}">'
        f"{inner}{frame if figure.x else ''}</svg><figcaption>{caption}</figcaption></figure>"
    )


def _shape(shape: says.Line | says.Box | says.Label) -> str:
    match shape:
        case says.Line(points, colour, width):
            path = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in points)
            return (
                f'<polyline points="{path}" fill="none" stroke="{colour}" '
                f'stroke-width="{width:g}"/>'
            )
        case says.Box((left, low), (right, high), colour):
            return (
                f'<rect x="{_x(left):.1f}" y="{_y(high):.1f}" '
                f'width="{_x(right) - _x(left):.1f}" height="{_y(low) - _y(high):.1f}" '
                f'fill="{colour}" fill-opacity="0.5"/>'
            )
        case says.Label((x, y), text, colour):
            return (
                f'<text x="{_x(x):.1f}" y="{_y(y):.1f}" fill="{colour}">{escape(text)}</text>'
            )


def _x(share: float) -> float:
    return _EDGE + share * (_WIDTH - 2 * _EDGE)


def _y(share: float) -> float:
    return _HEIGHT - _EDGE - share * (_HEIGHT - 2 * _EDGE)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
