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
    cases = [list(group) for _, group in groupby(findings, key=lambda finding: finding.id)]
    if len(cases) == len(findings):
        parts: list[RenderableType] = [_table([(finding.id, finding) for finding in findings], header=True)]
    else:
        rows = [[(f"  {finding.quantity}", finding) for finding in case] for case in cases]
        widths = _widths([row for case in rows for row in case])
        parts = [_table([], header=True, widths=widths)]
        for case in rows:
            parts += [Text(case[0][1].id, style="bold"), _table(case, header=False, widths=widths)]
    refused = [finding for finding in findings if finding.ours is None]
    missed = [finding for finding in findings if finding.passed is False and finding.ours is not None]
    for finding in refused:
        parts += ["", Text(f"not run: {finding.id}", style="bold"), Padding(Text(finding.note), (0, 0, 0, 2))]
    for finding in missed:
        parts += [
            "",
            Text(f"missed: {finding.id}", style="bold"),
            Padding(Text(f"{finding.quantity} ({finding.case}; {finding.method})"), (0, 0, 0, 2)),
            Padding(Text(finding.note or "no reason is known"), (0, 0, 0, 2)),
        ]
    held = [finding for finding in findings if finding.passed is not None and finding.ours is not None]
    methods = ", ".join(f"{number} by {method}" for method, number in Counter(f.method for f in held).items())
    verdict = f"{len(held) - len(missed)} of {len(held)} figures met ({methods or 'none was computed'})"
    if len(cases) < len(findings):
        met = sum(all(finding.passed is not False for finding in case) for case in cases)
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
    for name, finding in rows:
        *cells, judgement = _cells(finding)
        table.add_row(Text(name), *cells, Text(judgement, style="bold" if finding.passed is False else ""))
    return table


def _widths(rows: Sequence[tuple[str, Finding]]) -> list[int]:
    every = [_COLUMNS, *((name, *_cells(finding)) for name, finding in rows)]
    return [max(map(len, column)) for column in zip(*every, strict=True)]


def _cells(finding: Finding) -> tuple[str, ...]:
    refused = "not run" if finding.ours is None else "missed"
    judgement = "ok" if finding.passed else refused if finding.passed is False else finding.note
    return _published(finding), _value(finding.ours), _exactly(finding), _tolerance(finding), judgement


def _published(finding: Finding) -> str:
    if isinstance(finding.published, Sequence):
        return f"{figure(finding.published[0])}..{figure(finding.published[1])}"
    return ABSENT if finding.published is None else _value(finding.published)


def _value(value: float | None) -> str:
    return count(value) if isinstance(value, int) else figure(value)


def _exactly(finding: Finding) -> str:
    """The ratio, with as many digits as the tolerance needs."""
    if finding.ratio is None or finding.tolerance_kind != "rel" or finding.tolerance >= 0.01:
        return figure(finding.ratio)
    return f"{finding.ratio:.4f}"


def _tolerance(finding: Finding) -> str:
    if finding.tolerance_kind == "rel" and finding.tolerance < 1e-6:
        return "exact"
    return f"+-{finding.tolerance:g}" if finding.tolerance_kind == "abs" else f"+-{100 * finding.tolerance:g} %"
