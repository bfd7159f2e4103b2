"""Tables of runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pimserve.cluster.base.figures import ABSENT, SCALED, figure, ratio, scale, writer
from pimserve.cluster.base.tables import Row, Table, table_of
from pimserve.cluster.run.compare import Quantity, value_text

MIXED_WINDOWS = "requests, energy, batch, KV cache and busy shares are of whole runs, all else of the measured windows"


def run_letters(n: int) -> list[str]:
    """Short names of n runs: A, B, ... Z, #27, ..."""
    return [chr(ord("A") + index) if index < 26 else f"#{index + 1}" for index in range(n)]


def quantity_table(
    caption: str,
    quantities: Iterable[Quantity],
    names: Sequence[str],
    others: Sequence[int],
    number: Callable[[float | None], str] = figure,
) -> Table:
    """Figures of the first run and of others, each of these with its ratio to the first.

    Args:
        caption: what it shows.
        quantities: a row each, in a unit that fits the first run.
        names: of all runs.
        others: which runs stand beside the first, by their index.
        number: writes what has no unit.
    """
    rows = []
    for quantity in quantities:
        size, unit = 1.0, ""
        if quantity.unit in SCALED:
            size, unit = scale([value for value in quantity.values if value][:1], quantity.unit)
        write = number if quantity.unit in {"", "count"} else writer(quantity.unit)
        values = [
            ABSENT if value is None else write(value if size == 1.0 else value / size) for value in quantity.values
        ]
        pairs = (cell for index in others for cell in (values[index], ratio(quantity.ratios[index])))
        rows.append(Row(quantity.label, (values[0], *pairs), unit))
    headings = (heading for index in others for heading in (names[index], f"{names[index]}/{names[0]}"))
    return Table(caption, (names[0], *headings), rows)


def difference_table(differences: Mapping[str, Sequence[Any]], names: Sequence[str]) -> Table:
    """Settings that are not the same in all runs."""
    rows = [(path, *map(value_text, values)) for path, values in differences.items()]
    return table_of("Settings that are not the same in all runs", ("", *names), rows, text=True)
