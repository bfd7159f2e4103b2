"""Figures of matplotlib as SVG inside an HTML page: text stays text, colours are the page's CSS variables.

Each colour of a figure is a stand-in that no figure has by chance, which is then replaced by the variable's name. So
one picture serves the light and the dark theme, and print. Nothing in it depends on when or where it was drawn.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = 8  # colours of series
WIDTH_IN, HEIGHT_IN = 4.4, 3.0
FONT_PT = 9.5
TEXT, QUIET, GRID, PAPER = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
COLOURS = tuple(f"#0a0c{index:02x}" for index in range(SERIES))
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS = "osD^vPX*"
_VARIABLES = {
    TEXT: "--text",
    QUIET: "--quiet",
    GRID: "--grid",
    PAPER: "--paper",
    **{colour: f"--series-{index}" for index, colour in enumerate(COLOURS)},
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pimserve",
    "text.parse_math": False,
    "text.usetex": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": FONT_PT,
    "axes.facecolor": PAPER,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": TEXT,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.xmargin": 0.0,
    "axes.unicode_minus": False,
    "figure.facecolor": PAPER,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "patch.edgecolor": PAPER,
    "patch.linewidth": 0.8,
    "text.color": TEXT,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "legend.frameon": False,
    "legend.fontsize": FONT_PT,
    "legend.handlelength": 1.8,
    "path.simplify": False,
}


@dataclass(frozen=True)
class Picture:
    """A picture on the page.

    Args:
        key: its id, unique on the page.
        title: heading.
        alt: what it shows, with figures, for who does not see it.
        caption: what a reader should know to read it.
        svg: an svg element, which is safe to put on the page.
    """

    key: str
    title: str
    alt: str
    caption: str
    svg: str


def picture(
    key: str,
    title: str,
    alt: str,
    caption: str,
    draw: Callable[[Figure], None],
    *,
    height_in: float = HEIGHT_IN,
    width_in: float = WIDTH_IN,
) -> Picture:
    """Draw a figure.

    Args:
        key: id of the picture; lower-case letters, digits and hyphens.
        title: heading.
        alt: what it shows.
        caption: how to read it.
        draw: puts it on an empty figure.
        height_in: height at the width of a column, inches.
        width_in: width, inches.
    """
    import matplotlib as mpl  # noqa: PLC0415 slow
    from matplotlib.figure import Figure  # noqa: PLC0415

    style: Any = _STYLE  # the stubs list every key
    # A glyph that the font has not is the browser's matter: it has other fonts.
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return Picture(key, title, alt, caption, _embedded(buffer.getvalue(), key, title, alt))


def _embedded(text: str, key: str, title: str, alt: str) -> str:
    """The svg element of a file, for a page with other such elements."""
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style .*?</style>", "", svg, flags=re.DOTALL)
    used = {*re.findall(r'href="#([^"]+)"', svg), *re.findall(r"url\(#([^)]+)\)", svg)}
    svg = re.sub(r' id="([^"]*)"', lambda match: f' id="{key}-{match[1]}"' if match[1] in used else "", svg)
    svg = re.sub(r'xlink:href="#|href="#', f'href="#{key}-', svg).replace("url(#", f"url(#{key}-")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)  # the page's
    svg = re.sub(r' (d|x|y|transform)="[^"]*"', _shorter, svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    name, described = f"{key}-title", f"{key}-alt"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box[0]} role="img" aria-labelledby="{name} {described}">'
        f'<title id="{name}">{escape(title)}</title><desc id="{described}">{escape(alt)}</desc>'
    )
    body = re.sub(r"\n\s*", "\n", svg[svg.index(">") + 1 :])
    return head + re.sub(r"<defs>\s*</defs>\n?", "", body).strip()


def _shorter(attribute: re.Match[str]) -> str:
    """An attribute with coordinates to a hundredth of a point, in one line."""
    text = re.sub(r"-?\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", attribute[0])
    return re.sub(r"\s+", " ", text).replace(' "', '"')
