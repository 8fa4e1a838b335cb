"""A privacy report as one HTML page without any outside part, and as plain data for programs.

The page begins with one screen in plain words for a data protection officer: the verdict, why,
and what it does not say. The figures come after. Plots are SVG in the page. Every text that
came from elsewhere (names of files, plans, datasets) is escaped.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape

from consilia.privacy.verdict import (
    CONFIDENCE,
    LOW_FPR,
    NEAR,
    Attack,
    Findings,
    Inversion,
    Verdict,
    Word,
    most_of,
)

_TITLES: dict[Word, str] = {
    "leaky": "Leaky: records can be recognised",
    "bounded": "Bounded by differential privacy",
    "no-leak-found": "No leak found at this power",
}
_MEANING: dict[Word, str] = {
    "leaky": (
        "Somebody who has this model, or one trained like it, can tell better than by guessing "
        "whether the record of a certain patient was among those it was trained on. Treat the "
        "model as personal data until that has changed: train with differential privacy, on "
        "more records, or for fewer rounds, and examine it again."
    ),
    "bounded": (
        "A mathematical promise limits what anybody can learn about one person from this "
        "model, whatever attack they use and whatever they know already. The attacks below "
        "were tried all the same, and none did better than the promise allows."
    ),
    "no-leak-found": (
        "The attacks tried could not tell records that were trained on from others. That is "
        "evidence, not a promise: a better attack, or an attacker who knows more, may succeed. "
        "Only differential privacy gives a bound that holds against all of them."
    ),
}
_COLOURS: dict[Word, str] = {
    "leaky": "#b3261e",
    "bounded": "#1b6e3c",
    "no-leak-found": "#7a5a00",
}
_INK, _PALE, _MEMBERS, _OTHERS = "#222", "#ddd", "#b3261e", "#2457a6"
_WIDTH, _HEIGHT, _EDGE = 360, 260, 40
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#222;max-width:52rem;margin:2rem auto;
padding:0 1rem}h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:.25rem .6rem .25rem 0;border-bottom:1px solid #ddd;
vertical-align:top}
.verdict{border-left:.5rem solid;padding:.5rem 1rem;background:#f6f6f6}
.verdict h2{margin:.2rem 0}figure{display:inline-block;margin:.5rem 1rem .5rem 0}
figcaption{font-size:.85rem;max-width:22rem}.small{font-size:.85rem;color:#444}
@media print{body{margin:0;max-width:none}h2{break-after:avoid}figure,table{break-inside:avoid}}
"""


def data(found: Findings, verdict: Verdict) -> dict[str, object]:
    """Return the report as nested dicts, lists, texts and numbers; infinity becomes None."""
    plain = {"verdict": asdict(verdict), **asdict(found), "confidence": CONFIDENCE}
    return {name: _finite(value) for name, value in plain.items()}


def page(found: Findings, verdict: Verdict) -> str:
    """Return the report as one HTML page."""
    title = f"Privacy report: {found.subject.model}"
    body = [
        f"<h1>{escape(title)}</h1>",
        _summary(found, verdict),
        _limits(found),
        _subject(found),
        *(_attack(a, found) for a in found.attacks),
        _planted(found),
        _inversions(found.inversions),
        _notes(found.notes),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        # nothing is fetched, nothing runs, whatever a name in the page tries
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        + "\n".join(part for part in body if part)
        + "</body></html>\n"
    )


# ---- in plain words --------------------------------------------------------------------------


def _summary(found: Findings, verdict: Verdict) -> str:
    s, word = found.subject, verdict.word
    day = datetime.fromtimestamp(s.at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    reasons = "".join(f"<li>{_sentence(text)}</li>" for text in verdict.because)
    return (
        f"<p>Site {escape(s.site)}, dataset {escape(s.dataset)} ({s.records} records), "
        f"{day}.</p>"
        f'<section class="verdict" style="border-color:{_COLOURS[word]}">'
        f'<h2 style="color:{_COLOURS[word]}">{_TITLES[word]}</h2>'
        f"<p>{_MEANING[word]}</p><p>Why:</p><ul>{reasons}</ul></section>"
    )


def _limits(found: Findings) -> str:
    s = found.subject
    about = (
        "No records were named that the model has never seen, so the delivered model itself "
        "could not be attacked. Attacked was a stand-in, trained here by the same plan on a "
        "part of the dataset. It shows what the plan gives away when this hospital trains "
        "alone; a model of several hospitals usually gives away less of each."
        if s.stand_in
        else "The delivered model was attacked with records it was trained on and with "
        f"records of {escape(s.holdout)}, which it never saw. Where those two are of different "
        "kinds (another year, another ward), an attack can seem to succeed by telling the "
        "kinds apart."
    )
    claim = found.claim
    told = (
        "No promise of differential privacy was named for this model."
        if claim is None
        else f"Differential privacy at {escape(claim.level)} level is promised with epsilon "
        f"{claim.epsilon:.3g} at delta {claim.delta:.0e}, by "
        + (
            "what this site's own privacy ledger charged the job. That the model is of this "
            "job is the word of whoever asked for the report."
            if claim.source == "ledger"
            else "the experiment's own figures. That the model was made by this experiment is "
            "the word of whoever asked for the report; the site's ledger was not asked."
        )
    )
    return (
        "<h2>What this does and does not say</h2>"
        f"<p>{about}</p><p>{told}</p>"
        f"<p>All bounds hold together with a confidence of {CONFIDENCE:.0%}. Every attack is a "
        "simple one, so what leaks is at least what is found here. A report is itself about "
        "patients: keep it in the house, as you keep the dataset.</p>"
    )


def _subject(found: Findings) -> str:
    s = found.subject
    rows = {
        "model": f"{s.model} ({s.model_digest})",
        "training plan": f"{s.plan} ({s.plan_digest})",
        "dataset": f"{s.dataset}, {s.records} records",
        "never seen by the model": s.holdout or "held out from the stand-in",
        "models trained here": f"{s.references} reference models, {s.rounds} rounds each",
        "differential privacy of that training": s.private or "none",
        "made by": f"Consilia {s.version}",
    }
    return "<h2>What was examined</h2>" + _table((), rows.items())


# ---- figures ---------------------------------------------------------------------------------


def _attack(a: Attack, found: Findings) -> str:
    most = most_of(found.claim)
    rows = [
        ("records trained on, others", f"{a.members}, {a.others}"),
        ("AUC (0.5 is guessing, 1 is certainty)", f"{a.area.value:.3f}"),
        ("at least", f"{a.area.low:.3f}"),
        ("a leak would have been found from about", f"{a.least:.3f}"),
        (f"found at {LOW_FPR:.0%} false alarms", f"{a.tpr:.1%}"),
        ("epsilon proved by one threshold, at least", f"{a.tail.epsilon:.2f}"),
    ]
    if most is not None:
        rows.append(("the most that the promise admits (AUC)", f"{most:.3f}"))
    how = {
        "loss attack": "Records that were trained on tend to have a smaller loss.",
        "reference attack": "The model is compared with models that never saw the record.",
    }.get(a.name, "")
    return (
        f"<h2>{escape(a.name.capitalize())}</h2><p>{how}</p>"
        + _curve(a)
        + _histogram(a)
        + _table((), rows)
    )


def _planted(found: Findings) -> str:
    p = found.planted
    if p is None:
        return ""
    accounted = "none" if p.accounted is None else f"{p.accounted:.3g}"
    bars = [("proved, at least", p.found.epsilon), ("provable at most", p.found.most)]
    if p.accounted is not None and math.isfinite(p.accounted):
        bars.append(("promised, at most", p.accounted))
    rows = [
        ("records planted or not, by a coin each", str(p.found.planted)),
        ("guesses, right ones", f"{p.found.guesses}, {p.found.correct}"),
        (f"epsilon proved, at delta {p.delta:.0e}, at least", f"{p.found.epsilon:.2f}"),
        ("had every guess been right", f"{p.found.most:.2f}"),
        ("epsilon that this training promises", accounted),
    ]
    return (
        "<h2>Canaries</h2><p>Records that never were are added to the training, each by the "
        "toss of a coin. Afterwards the model is asked which ones were added. What it gets "
        "right beyond one half is memory of a single record.</p>"
        + _bars(bars)
        + _table((), rows)
    )


def _inversions(found: Sequence[Inversion]) -> str:
    if not found:
        return ""
    rows = [
        (
            str(i.records),
            f"{i.plain:.0%}",
            f"{i.nearest_plain:.2g}",
            f"{i.masked:.0%}",
            f"{i.nearest_masked:.2g}",
            f"{i.correlation:+.4f} (chance: {1 / math.sqrt(max(i.numbers, 1)):.4f})",
        )
        for i in found
    ]
    heads = (
        "records in the update", "rebuilt, plain", "nearest", "rebuilt, masked", "nearest",
        "masked with true update, correlation",
    )  # fmt: skip
    return (
        "<h2>What a hub sees of one update</h2><p>One round is run on a few records, and its "
        "update is turned back into records by a formula: as the hub sees it without secure "
        f"aggregation, and masked. Rebuilt means within {NEAR:g} standard deviations of every "
        "feature, on average. A masked update is uniform noise: it correlates with the true "
        "one by chance only.</p>" + _table(heads, rows)
    )


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    lines = "".join(f"<li>{_sentence(n)}</li>" for n in notes)
    return f"<h2>Not tried</h2><ul>{lines}</ul>"


# ---- plots and parts -------------------------------------------------------------------------


def _curve(a: Attack) -> str:
    points = " ".join(f"{_x(f):.1f},{_y(t):.1f}" for f, t in a.curve)
    inner = (
        f'<line x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}" stroke="{_PALE}"/>'
        f'<polyline points="{points}" fill="none" stroke="{_MEMBERS}" stroke-width="2"/>'
    )
    return _figure(
        inner, "false alarms", "found",
        "Share of trained-on records found against share of others falsely accused. On the "
        "diagonal the attack guesses.",
    )  # fmt: skip


def _histogram(a: Attack) -> str:
    top = max((max(m, o) for _, m, o in a.bins), default=1.0) or 1.0
    width = 1 / max(1, len(a.bins))
    inner = ""
    for i, (_, m, o) in enumerate(a.bins):
        for share, colour in ((m, _MEMBERS), (o, _OTHERS)):
            high = share / top
            inner += (
                f'<rect x="{_x(i * width):.1f}" y="{_y(high):.1f}" '
                f'width="{width * (_WIDTH - 2 * _EDGE):.1f}" height="{_y(0) - _y(high):.1f}" '
                f'fill="{colour}" fill-opacity="0.5"/>'
            )
    return _figure(
        inner, "score: surer to the right", "share",
        "Scores of records trained on (red) and of others (blue). The more they lie apart, the "
        "more the model tells.",
    )  # fmt: skip


def _bars(values: Sequence[tuple[str, float]]) -> str:
    top = max((v for _, v in values), default=1.0) or 1.0
    inner = ""
    for i, (name, value) in enumerate(values):
        y = _EDGE + i * 55
        length = value / top * (_WIDTH - 2 * _EDGE)
        inner += (
            f'<text x="{_EDGE}" y="{y + 12}">{escape(name)}: {value:.2f}</text>'
            f'<rect x="{_EDGE}" y="{y + 18}" width="{max(length, 1):.1f}" height="18" '
            f'fill="{(_MEMBERS, _OTHERS, _INK)[i % 3]}" fill-opacity="0.7"/>'
        )
    return _figure(inner, "", "", "Epsilon: what was proved, and what bounds it.", axes=False)


def _figure(inner: str, x: str, y: str, caption: str, *, axes: bool = True) -> str:
    frame = (
        f'<path d="M{_x(0)} {_y(1)}V{_y(0)}H{_x(1)}" fill="none" stroke="{_INK}"/>'
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 10}" text-anchor="middle">{escape(x)}</text>'
        f'<text x="12" y="{_HEIGHT / 2}" text-anchor="middle" '
        f'transform="rotate(-90 12 {_HEIGHT / 2})">{escape(y)}</text>'
    )
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'role="img" aria-label="{escape(caption)}" font-size="13" fill="{_INK}">'
        f"{inner}{frame if axes else ''}</svg>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _x(share: float) -> float:
    return _EDGE + share * (_WIDTH - 2 * _EDGE)


def _y(share: float) -> float:
    return _HEIGHT - _EDGE - share * (_HEIGHT - 2 * _EDGE)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table>{f'<tr>{head}</tr>' if heads else ''}{lines}</table>"


def _sentence(text: str) -> str:
    return escape(text[:1].upper() + text[1:]) + ("" if text.endswith(".") else ".")


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
