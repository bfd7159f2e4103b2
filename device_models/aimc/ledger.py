"""What tasks are and cost: a line for each distinct (kind, size), and sums over lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Kind = Literal["mvm", "hop", "link", "add", "activation", "norm", "sampler", "attention", "kv_write"]
KINDS: tuple[Kind, ...] = ("mvm", "hop", "link", "add", "activation", "norm", "sampler", "attention", "kv_write")
_CACHE_READ = "attention_dram"


class Line(NamedTuple):
    """Tasks that are all alike.

    `size`: columns of an MVM, bytes of a hop ("link": one to another chip) or write, elements else. `ops`: operations
    that one task counts for. `ps`, `nj` and `flops` are of one task, without reading the cache, which `dram_ps` and
    `dram_nj` are; of a write, all of its time is `dram_ps`.
    """

    kind: Kind
    size: int
    ops: int
    ps: int
    nj: float
    flops: float
    dram_ps: int = 0
    dram_nj: float = 0.0


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all tasks: by kind, with reading the cache as "attention_dram" where it has a time and an energy."""

    op_counts: dict[str, int]
    op_latency_ps: dict[str, int]
    energy_nj: dict[str, float]
    flops: float


class Ledger:
    """Lines, each under its number."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._numbers: dict[Line, int] = {}

    def number(self, line: Line) -> int:
        """Number of a line, new or known."""
        if line not in self._numbers:
            self._numbers[line] = len(self.lines)
            self.lines.append(line)
        return self._numbers[line]

    def totals(self, line: NDArray[np.int32]) -> Totals:
        """Sums over tasks with these lines. Energies are counts times unit costs, never added up task by task."""
        tasks = np.bincount(line, minlength=len(self.lines)).tolist()
        counts: dict[str, int] = dict.fromkeys(KINDS, 0)
        latency: dict[str, int] = dict.fromkeys((*KINDS, _CACHE_READ), 0)
        energy: dict[str, float] = dict.fromkeys((*KINDS, _CACHE_READ), 0.0)
        flops = 0.0
        for number, entry in zip(tasks, self.lines, strict=True):
            counts[entry.kind] += number * entry.ops
            latency[entry.kind] += number * entry.ps
            energy[entry.kind] += number * entry.nj
            read = entry.kind if entry.kind == "kv_write" else _CACHE_READ
            latency[read] += number * entry.dram_ps
            energy[read] += number * entry.dram_nj
            flops += number * entry.flops
        return Totals(counts, latency, energy, flops)
