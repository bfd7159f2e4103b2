"""Labels of a trace's rows: what kind of request each is, in the trace's own words."""

from dataclasses import dataclass, replace

from pimserve.arrays import IntArray

MOST_LABELS = 1000
"""Different labels of a trace; a column with more of them has names."""


@dataclass(frozen=True)
class TraceLabels:
    """`names`: the labels that there are. `codes`: (n,) place of each row's label in `names`."""

    names: tuple[str, ...]
    codes: IntArray

    def take(self, rows: IntArray) -> "TraceLabels":
        """Those rows, in that order."""
        return replace(self, codes=self.codes[rows])
