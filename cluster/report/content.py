"""What a page is made of: sections with paragraphs, key figures, tables and pictures. All text is plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pimserve.cluster.base.tables import Table
from pimserve.cluster.report.svg import Picture


@dataclass(frozen=True)
class Tile:
    """A key figure: what it is, its value with unit, and a remark."""

    name: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class Folded:
    """Preformatted text that is shown when asked for."""

    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        key: its id, unique on the page.
        title: heading.
        text: paragraphs above all else.
        tiles: key figures.
        pictures: side by side where there is room.
        tables: side by side where there is room, if they are narrow.
        folded: below.
    """

    key: str
    title: str
    text: Sequence[str] = ()
    tiles: Sequence[Tile] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    folded: Sequence[Folded] = ()


@dataclass(frozen=True)
class Page:
    """A whole report.

    Args:
        title: of the document.
        subtitle: below it.
        badges: short facts beside it.
        warnings: sentences that belong with every figure.
        sections: in order.
    """

    title: str
    subtitle: str
    badges: Sequence[str]
    warnings: Sequence[str]
    sections: Sequence[Section]
