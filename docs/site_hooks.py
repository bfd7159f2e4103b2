"""Hooks of the site: pages from the documents at the repository's root, and tables that a phone can show."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {"ARCHITECTURE.md": "architecture.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
REFERENCE = {"scenario.md", "summary.md", "cli.md", "grpc.md", "metrics.md"}


def on_files(files: Files, config: Any) -> Files:  # noqa: ANN401
    """Add the pages."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=re.sub(r"\]\(docs/", "](", text)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Lead links out of docs/, or from one document at the root to another, to the pages made of them.

    A search for a key finds the reference before the pages that use it.
    """
    if page.file.src_uri in REFERENCE:
        page.meta["search"] = {"boost": 4}
    for name, made in PAGES.items():
        markdown = re.sub(rf"\]\((\.\./)?{re.escape(name)}", f"]({made}", markdown)
    return markdown


def on_page_content(html: str, page: Page, **_: object) -> str:
    """Keep per cents in one piece, and tell the cells of reference tables their columns.

    On a phone, where rows of these are cards, the cells say them (site.css).
    """
    html = re.sub(r"<td>[^<]*</td>", lambda cell: cell[0].replace(" %", "&nbsp;%"), html)
    if page.file.src_uri not in REFERENCE:
        return html
    return f'<div class="reference">{re.sub(r"<table>.*?</table>", _labelled, html, flags=re.DOTALL)}</div>'


def _labelled(table: re.Match[str]) -> str:
    columns = re.findall(r"<th>(.*?)</th>", table[0])
    cell = count()
    labelled = re.sub("<td>", lambda _: f'<td data-label="{columns[next(cell) % len(columns)]}">', table[0])
    return re.sub(r"(<td [^>]*)>-</td>", r"\1 data-none>-</td>", labelled)
