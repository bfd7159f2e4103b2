"""Published figures against ours, for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pimserve.cluster.base.figures import ABSENT, count, figure

if TYPE_CHECKING:
    from pimserve.cluster.validation.targets import Finding

_COLUMNS = ("figure", "theirs", "ours", "ratio", "tolerance", "")


def findings_report(findings: Sequence[Finding]) -> RenderableType:
    """Published figures against ours, the misses with their reasons, and the count.

    Findings of the same id are one case: its id above, their quantities below it.
    """
    cases = [list(group) for _, group in groupby(findings, key=lambda found: found.id)]
    if len(cases) == len(findings):
        parts: list[RenderableType] = [_table([(found.id, found) for found in findings], header=True)]
    else:
        rows = [[(f"  {found.quantity}", found) for found in case] for case in cases]
        widths = _widths([row for case in rows for row in case])
        parts = [_table([], header=True, widths=widths)]
        for case in rows:
            parts += [Text(case[0][1].id, style="bold"), _table(case, header=False, widths=widths)]
    refused = [found for found in findings if found.ours is None]
    missed = [found for found in findings if found.passed is False and found.ours is not None]
    for found in refused:
        parts += ["", Text(f"not run: {found.id}", style="bold"), Padding(Text(found.note), (0, 0, 0, 2))]
    for found in missed:
        parts += [
            "",
            Text(f"missed: {found.id}", style="bold"),
            Padding(Text(f"{found.quantity} ({found.case}; {found.method})"), (0, 0, 0, 2)),
            Padding(Text(found.note or "no reason is known"), (0, 0, 0, 2)),
        ]
    held = [found for found in findings if found.passed is not None and found.ours is not None]
    methods = ", ".join(f"{number} by {method}" for method, number in Counter(f.method for f in held).items())
    verdict = f"{len(held) - len(missed)} of {len(held)} figures met ({methods or 'none was computed'})"
    if len(cases) < len(findings):
        met = sum(all(found.passed is not False for found in case) for case in cases)
        verdict = f"{met} of {len(cases)} cases met; {verdict}"
    if refused:
        verdict += f"; {len(refused)} not run"
    return Group(*parts, "", Text(verdict, style="bold"))


def _table(rows: Sequence[tuple[str, Finding]], *, header: bool, widths: Sequence[int] | None = None) -> Table:
    """Findings under their names. `widths`: of the columns, so that tables below each other line up."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=header)
    table.padding = (0, 2 if widths is None else 1, 0, 0)
    for number, column in enumerate(_COLUMNS):
        table.add_column(
            column,
            justify="right" if 0 < number < len(_COLUMNS) - 1 else "left",
            no_wrap=number > 0,
            overflow="fold",
            min_width=None if widths is None else widths[number],
        )
    for name, found in rows:
        *cells, judgement = _cells(found)
        table.add_row(Text(name), *cells, Text(judgement, style="bold" if found.passed is False else ""))
    return table


def _widths(rows: Sequence[tuple[str, Finding]]) -> list[int]:
    every = [_COLUMNS, *((name, *_cells(found)) for name, found in rows)]
    return [max(map(len, column)) for column in zip(*every, strict=True)]


def _cells(found: Finding) -> tuple[str, ...]:
    refused = "not run" if found.ours is None else "missed"
    judgement = "ok" if found.passed else refused if found.passed is False else found.note
    return _published(found), _value(found.ours), _exactly(found), _tolerance(found), judgement


def _published(found: Finding) -> str:
    if isinstance(found.published, Sequence):
        return f"{figure(found.published[0])}..{figure(found.published[1])}"
    return ABSENT if found.published is None else _value(found.published)


def _value(value: float | None) -> str:
    return count(value) if isinstance(value, int) else figure(value)


def _exactly(found: Finding) -> str:
    """The ratio, with as many digits as the tolerance needs."""
    if found.ratio is None or found.tolerance_kind != "rel" or found.tolerance >= 0.01:
        return figure(found.ratio)
    return f"{found.ratio:.4f}"


def _tolerance(found: Finding) -> str:
    if found.tolerance_kind == "rel" and found.tolerance < 1e-6:
        return "exact"
    return f"+-{found.tolerance:g}" if found.tolerance_kind == "abs" else f"+-{100 * found.tolerance:g} %"
