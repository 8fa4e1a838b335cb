"""What a privacy report says, in order, as blocks: one text for the HTML page and for the PDF.

The first page is in plain words for a data protection officer: the verdict, why, and what it
does not say. The figures come after. Nothing here is escaped: names of files, plans and
datasets came from elsewhere, and whoever renders them must see to it.

Figures are shapes in a unit square (x to the right, y up), so that both renderings draw the
same.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

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

INK, PALE, MEMBERS, OTHERS = "#222222", "#dddddd", "#b3261e", "#2457a6"
TITLES: dict[Word, str] = {
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
COLOURS: dict[Word, str] = {
    "leaky": "#b3261e",
    "bounded": "#1b6e3c",
    "no-leak-found": "#7a5a00",
}
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Heading:
    """The title of a section; `figures` where a paragraph and figures follow it."""

    text: str
    figures: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict, set apart: its title and colour, what it means, and why."""

    title: str
    colour: str
    meaning: str
    because: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of sentences."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cells:
    """A table; `heads` is empty where the first column names the rows."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Line:
    """Straight lines from point to point."""

    points: tuple[Point, ...]
    colour: str
    width: float = 1.0  # points


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle, half transparent."""

    low: Point
    high: Point
    colour: str


@dataclass(frozen=True, slots=True)
class Label:
    """A text that begins at a point."""

    at: Point
    text: str
    colour: str = INK


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot: shapes in the unit square, the names of its axes ("" for none), what it shows."""

    shapes: tuple[Line | Box | Label, ...]
    x: str
    y: str
    caption: str


@dataclass(frozen=True, slots=True)
class PageEnd:
    """What follows begins a new page where there are pages."""


Block = Heading | Text | Judgement | Bullets | Cells | Figure | PageEnd


def title(found: Findings) -> str:
    """Return the report's title."""
    return f"Privacy report: {found.subject.model}"


def blocks(found: Findings, verdict: Verdict) -> Iterator[Block]:
    """Yield the report, block by block; its title is not among them."""
    yield from _summary(found, verdict)
    yield from _limits(found)
    yield PageEnd()
    yield from _subject(found)
    for attack in found.attacks:
        yield from _attack(attack, found)
    yield from _planted(found)
    yield from _inversions(found.inversions)
    if found.notes:
        yield Heading("Not tried")
        yield Bullets(tuple(map(_sentence, found.notes)))


# ---- in plain words --------------------------------------------------------------------------


def _summary(found: Findings, verdict: Verdict) -> Iterator[Block]:
    s, word = found.subject, verdict.word
    day = datetime.fromtimestamp(s.at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    yield Text(f"Site {s.site}, dataset {s.dataset} ({s.records} records), {day}.")
    why = tuple(map(_sentence, verdict.because))
    yield Judgement(TITLES[word], COLOURS[word], _MEANING[word], why)


def _limits(found: Findings) -> Iterator[Block]:
    s = found.subject
    yield Heading("What this does and does not say")
    yield Text(
        "No records were named that the model has never seen, so the delivered model itself "
        "could not be attacked. Attacked was a stand-in, trained here by the same plan on a "
        "part of the dataset. It shows what the plan gives away when this hospital trains "
        "alone; a model of several hospitals usually gives away less of each."
        if s.stand_in
        else "The delivered model was attacked with records it was trained on and with "
        f"records of {s.holdout}, which it never saw. Where those two are of different "
        "kinds (another year, another ward), an attack can seem to succeed by telling the "
        "kinds apart."
    )
    yield Text(_promise(found))
    yield Text(
        f"All bounds hold together with a confidence of {CONFIDENCE:.0%}. Every attack is a "
        "simple one, so what leaks is at least what is found here. A report is itself about "
        "patients: keep it in the house, as you keep the dataset."
    )


def _promise(found: Findings) -> str:
    claim = found.claim
    if claim is None:
        return "No promise of differential privacy was named for this model."
    by = (
        "what this site's own privacy ledger charged the job. That the model is of this "
        "job is the word of whoever asked for the report."
        if claim.source == "ledger"
        else "the experiment's own figures. That the model was made by this experiment is "
        "the word of whoever asked for the report; the site's ledger was not asked."
    )
    return (
        f"Differential privacy at {claim.level} level is promised with epsilon "
        f"{claim.epsilon:.3g} at delta {claim.delta:.0e}, by {by}"
    )


def _subject(found: Findings) -> Iterator[Block]:
    s = found.subject
    yield Heading("What was examined")
    yield Cells(
        (),
        (
            ("model", f"{s.model} ({s.model_digest})"),
            ("training plan", f"{s.plan} ({s.plan_digest})"),
            ("dataset", f"{s.dataset}, {s.records} records"),
            ("never seen by the model", s.holdout or "held out from the stand-in"),
            ("models trained here", f"{s.references} references; rounds each: {s.rounds}"),
            ("differential privacy of that training", s.private or "none"),
            ("made by", f"Consilia {s.version}"),
        ),
    )


# ---- figures ---------------------------------------------------------------------------------


def _attack(a: Attack, found: Findings) -> Iterator[Block]:
    yield Heading(a.name.capitalize(), figures=True)
    if a.name == "loss attack":
        yield Text("Records that were trained on tend to have a smaller loss.")
    elif a.name == "reference attack":
        yield Text("The model is compared with models that never saw the record.")
    yield _curve(a)
    yield _histogram(a)
    rows = [
        ("records trained on, others", f"{a.members}, {a.others}"),
        ("AUC (0.5 is guessing, 1 is certainty)", f"{a.area.value:.3f}"),
        ("at least", f"{a.area.low:.3f}"),
        ("a leak would have been found from about", f"{a.least:.3f}"),
        (f"found at {LOW_FPR:.0%} false alarms", f"{a.tpr:.1%}"),
        ("epsilon proved by one threshold, at least", f"{a.tail.epsilon:.2f}"),
    ]
    most = most_of(found.claim)
    if most is not None:
        rows.append(("the most that the promise admits (AUC)", f"{most:.3f}"))
    yield Cells((), tuple(rows))


def _planted(found: Findings) -> Iterator[Block]:
    p = found.planted
    if p is None:
        return
    yield Heading("Canaries", figures=True)
    yield Text(
        "Records that never were are added to the training, each by the "
        "toss of a coin. Afterwards the model is asked which ones were added. What it gets "
        "right beyond one half is memory of a single record."
    )
    bars = [("proved, at least", p.found.epsilon), ("provable at most", p.found.most)]
    if p.accounted is not None and math.isfinite(p.accounted):
        bars.append(("promised, at most", p.accounted))
    yield _bars(bars)
    accounted = "none" if p.accounted is None else f"{p.accounted:.3g}"
    yield Cells(
        (),
        (
            ("records planted or not, by a coin each", str(p.found.planted)),
            ("guesses, right ones", f"{p.found.guesses}, {p.found.correct}"),
            (f"epsilon proved, at delta {p.delta:.0e}, at least", f"{p.found.epsilon:.2f}"),
            ("had every guess been right", f"{p.found.most:.2f}"),
            ("epsilon that this training promises", accounted),
        ),
    )


def _inversions(found: Sequence[Inversion]) -> Iterator[Block]:
    if not found:
        return
    how = "by a formula" if found[0].how == "formula" else "by a search for records that fit it"
    yield Heading("What a hub sees of one update")
    yield Text(
        "One round is run on a few records, and its "
        f"update is turned back into records {how}: as the hub sees it without secure "
        f"aggregation, and masked. Rebuilt means within {NEAR:g} standard deviations of every "
        "feature, on average. A masked update is uniform noise: it correlates with the true "
        "one by chance only."
    )
    heads = (
        "records in the update", "rebuilt, plain", "nearest", "rebuilt, masked", "nearest",
        "masked with true update, correlation",
    )  # fmt: skip
    yield Cells(
        heads,
        tuple(
            (
                str(i.records),
                f"{i.plain:.0%}",
                f"{i.nearest_plain:.2g}",
                f"{i.masked:.0%}",
                f"{i.nearest_masked:.2g}",
                f"{i.correlation:+.4f} (chance: {1 / math.sqrt(max(i.numbers, 1)):.4f})",
            )
            for i in found
        ),
    )


def _curve(a: Attack) -> Figure:
    return Figure(
        (Line(((0.0, 0.0), (1.0, 1.0)), PALE), Line(a.curve, MEMBERS, 2.0)),
        "false alarms",
        "found",
        "Share of trained-on records found against share of others falsely accused. On the "
        "diagonal the attack guesses.",
    )


def _histogram(a: Attack) -> Figure:
    top = max((max(m, o) for _, m, o in a.bins), default=1.0) or 1.0
    width = 1 / max(1, len(a.bins))
    boxes = tuple(
        Box((i * width, 0.0), ((i + 1) * width, share / top), colour)
        for i, (_, m, o) in enumerate(a.bins)
        for share, colour in ((m, MEMBERS), (o, OTHERS))
        if share
    )
    return Figure(
        boxes,
        "score: surer to the right",
        "share",
        "Scores of records trained on (red) and of others (blue). The more they lie apart, the "
        "more the model tells.",
    )


def _bars(values: Sequence[tuple[str, float]]) -> Figure:
    top = max((v for _, v in values), default=1.0) or 1.0
    shapes: list[Line | Box | Label] = []
    for i, (name, value) in enumerate(values):
        y = 0.95 - 0.32 * i
        colour = (MEMBERS, OTHERS, INK)[i % 3]
        shapes.append(Label((0.0, y), f"{name}: {value:.2f}"))
        shapes.append(Box((0.0, y - 0.15), (max(value / top, 0.003), y - 0.04), colour))
    return Figure(tuple(shapes), "", "", "Epsilon: what was proved, and what bounds it.")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
