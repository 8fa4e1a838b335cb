"""A privacy report as a PDF, A4, with the text and the plots of the HTML page.

Needs fpdf2 (extra `report`), imported when a PDF is asked for. The fonts are those that every
reader of PDF has, so no font travels in the file; they know Western European letters only, and
any other stands as its number, like `\\u0119`. A text is never read as markup.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from consilia.errors import ConfigError
from consilia.privacy import reporttext as says
from consilia.privacy.verdict import Findings, Verdict

if TYPE_CHECKING:
    from fpdf import FPDF

_MARGIN = 20.0  # mm, as all lengths here
_WIDTH = 210.0 - 2 * _MARGIN
_LINE = 5.0
_PLOT_WIDTH, _PLOT_HEIGHT, _GAP = 78.0, 48.0, 12.0
_POINT = 25.4 / 72


def check() -> None:
    """Raise ConfigError when there is nothing to make a PDF with."""
    try:
        import fpdf  # noqa: F401, PLC0415  # slow to import, and an extra
    except ImportError:
        raise ConfigError(
            "a report as PDF needs fpdf2: pip install 'consilia[report]'; or print the HTML"
        ) from None


def pdf(found: Findings, verdict: Verdict) -> bytes:
    """Return the report as a PDF; ConfigError when fpdf2 is not installed."""
    check()
    from fpdf import FPDF  # noqa: PLC0415  # as above

    paper = FPDF("P", "mm", "A4")
    paper.set_margin(_MARGIN)
    paper.set_auto_page_break(True, _MARGIN)
    paper.set_title(_latin(says.title(found)))
    paper.set_creator(f"Consilia {found.subject.version}")
    paper.set_lang("en")
    paper.add_page()
    _write(paper, says.title(found), 16, "B", gap=3)
    figures: list[says.Figure] = []
    for block in says.blocks(found, verdict):
        if isinstance(block, says.Figure):
            figures.append(block)
            continue
        _figures(paper, figures)
        figures.clear()
        _block(paper, block)
    _figures(paper, figures)
    return bytes(paper.output())


def _block(paper: "FPDF", block: says.Block) -> None:
    match block:
        case says.Heading(text, figures):
            _need(paper, 100 if figures else 30)  # a heading stays with what follows
            paper.ln(3)
            _write(paper, text, 13, "B", gap=1)
        case says.Text(text):
            _write(paper, text, gap=2)
        case says.Judgement():
            _judgement(paper, block)
        case says.Bullets(items):
            _bullets(paper, items)
        case says.Cells():
            _cells(paper, block)
        case says.PageEnd():
            paper.add_page()
        case says.Figure():
            raise TypeError("figures are set side by side, see _figures")


def _write(  # noqa: PLR0913, PLR0917  how a paragraph looks
    paper: "FPDF",
    text: str,
    size: float = 10.5,
    style: str = "",
    colour: str = says.INK,
    gap: float = 0.0,
    indent: float = 0.0,
) -> None:
    """Write a paragraph from the left margin on."""
    paper.set_font("Helvetica", style, size)
    paper.set_text_color(*_rgb(colour))
    paper.set_x(_MARGIN + indent)
    height = size * _POINT * 1.35
    paper.multi_cell(
        _WIDTH - indent, height, _latin(text), align="L", new_x="LMARGIN", new_y="NEXT"
    )
    paper.ln(gap)


def _bullets(paper: "FPDF", items: Sequence[str], indent: float = 0.0) -> None:
    for item in items:
        _need(paper, 2 * _LINE)
        top = paper.get_y()
        _write(paper, "-", indent=indent)
        paper.set_y(top)
        _write(paper, item, gap=1, indent=indent + 4)


def _judgement(paper: "FPDF", block: says.Judgement) -> None:
    """Write the verdict with a bar in its colour at the left."""
    page, top = paper.page_no(), paper.get_y()
    paper.ln(1)
    _write(paper, block.title, 14, "B", block.colour, 1.5, 6)
    _write(paper, block.meaning, gap=2, indent=6)
    _write(paper, "Why:", gap=1, indent=6)
    _bullets(paper, block.because, 6)
    paper.set_fill_color(*_rgb(block.colour))
    # a verdict of many reasons may have run on to the next page; the bar is then on the last
    start = top if paper.page_no() == page else _MARGIN
    paper.rect(_MARGIN, start, 2, paper.get_y() - start, "F")
    paper.ln(3)


def _cells(paper: "FPDF", table: says.Cells) -> None:
    from fpdf.enums import TableBordersLayout  # noqa: PLC0415  # as above
    from fpdf.fonts import FontFace  # noqa: PLC0415

    columns = len(table.rows[0])
    widths = (45, 55) if columns == 2 else tuple(1 for _ in range(columns))
    paper.ln(1)
    paper.set_font("Helvetica", "", 9)
    paper.set_text_color(*_rgb(says.INK))
    paper.set_draw_color(*_rgb(says.PALE))
    paper.set_fill_color(255)  # a table fills its cells
    with paper.table(
        width=_WIDTH,
        col_widths=widths,
        text_align="LEFT",
        line_height=_LINE,
        borders_layout=TableBordersLayout.HORIZONTAL_LINES,
        first_row_as_headings=bool(table.heads),
        headings_style=FontFace(emphasis="BOLD"),
        wrapmode="CHAR" if columns == 2 else "WORD",  # digests have no spaces
    ) as drawn:
        for cells in (table.heads, *table.rows) if table.heads else table.rows:
            row = drawn.row()
            for cell in cells:
                row.cell(_latin(cell))
    paper.ln(3)


# ---- plots -----------------------------------------------------------------------------------


def _figures(paper: "FPDF", figures: list[says.Figure]) -> None:
    """Draw figures two in a row."""
    for start in range(0, len(figures), 2):
        _need(paper, _PLOT_HEIGHT + 26)
        top, lowest = paper.get_y() + 2, 0.0
        for column, figure in enumerate(figures[start : start + 2]):
            left = _MARGIN + column * (_PLOT_WIDTH + _GAP)
            lowest = max(lowest, _figure(paper, figure, left, top))
        paper.set_xy(_MARGIN, lowest + 2)


def _figure(paper: "FPDF", figure: says.Figure, left: float, top: float) -> float:
    """Draw one figure; return where it ends."""
    inset = 6.0 if figure.y else 0.0

    def at(point: says.Point) -> tuple[float, float]:
        x, y = point
        return left + inset + x * (_PLOT_WIDTH - inset), top + (1 - y) * _PLOT_HEIGHT

    paper.set_font("Helvetica", "", 8)
    for shape in figure.shapes:
        match shape:
            case says.Line(points, colour, width):
                paper.set_draw_color(*_rgb(colour))
                paper.set_line_width(width * _POINT)
                paper.polyline([at(point) for point in points])
            case says.Box(low, high, colour):
                (x, bottom), (right, y) = at(low), at(high)
                paper.set_fill_color(*_rgb(colour))
                with paper.local_context(fill_opacity=0.5):
                    paper.rect(x, y, right - x, bottom - y, "F")
            case says.Label(point, text, colour):
                paper.set_text_color(*_rgb(colour))
                paper.text(*at(point), _latin(text))
    paper.set_text_color(*_rgb(says.INK))
    bottom = top + _PLOT_HEIGHT
    if figure.x:
        paper.set_draw_color(*_rgb(says.INK))
        paper.set_line_width(0.2)
        paper.polyline([at((0, 1)), at((0, 0)), at((1, 0))])
        paper.set_xy(left + inset, bottom + 0.5)
        paper.cell(_PLOT_WIDTH - inset, 4, _latin(figure.x), align="C")
        middle = top + _PLOT_HEIGHT / 2
        with paper.rotation(90, left + 3, middle):
            paper.text(left + 3 - paper.get_string_width(figure.y) / 2, middle, figure.y)
        bottom += 5
    paper.set_xy(left, bottom + 0.5)
    paper.multi_cell(
        _PLOT_WIDTH, 3.6, _latin(figure.caption), align="L", new_x="LMARGIN", new_y="NEXT"
    )
    return float(paper.get_y())


def _need(paper: "FPDF", height: float) -> None:
    """Go on to the next page when less than `height` is left of this one."""
    if paper.get_y() + height > 297 - _MARGIN:
        paper.add_page()


def _latin(text: str) -> str:
    """Return a text in the letters that the fonts have; control characters are spaces."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    return shown.encode("latin-1", "backslashreplace").decode("latin-1")


def _rgb(colour: str) -> tuple[int, int, int]:
    number = int(colour[1:], 16)
    return number >> 16, number // 256 % 256, number % 256
