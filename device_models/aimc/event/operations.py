"""What tasks are and cost: the distinct operations, and sums over tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Kind = Literal["mvm", "hop", "link", "add", "activation", "norm", "sampler", "attention", "kv_write"]
KINDS: tuple[Kind, ...] = ("mvm", "hop", "link", "add", "activation", "norm", "sampler", "attention", "kv_write")
_CACHE_READ = "attention_dram"


class Operation(NamedTuple):
    """What tasks that are all alike do and cost.

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


class OperationTable:
    """Distinct operations, each under its number."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._numbers: dict[Operation, int] = {}

    def number(self, operation: Operation) -> int:
        """Number of an operation, new or known."""
        if operation not in self._numbers:
            self._numbers[operation] = len(self.operations)
            self.operations.append(operation)
        return self._numbers[operation]

    def totals(self, operation_of: NDArray[np.int32]) -> Totals:
        """Sums over tasks with these operations. Energies are counts times unit costs, never added up task by task."""
        tasks = np.bincount(operation_of, minlength=len(self.operations)).tolist()
        counts: dict[str, int] = dict.fromkeys(KINDS, 0)
        latency: dict[str, int] = dict.fromkeys((*KINDS, _CACHE_READ), 0)
        energy: dict[str, float] = dict.fromkeys((*KINDS, _CACHE_READ), 0.0)
        flops = 0.0
        for number, operation in zip(tasks, self.operations, strict=True):
            counts[operation.kind] += number * operation.ops
            latency[operation.kind] += number * operation.ps
            energy[operation.kind] += number * operation.nj
            read = operation.kind if operation.kind == "kv_write" else _CACHE_READ
            latency[read] += number * operation.dram_ps
            energy[read] += number * operation.dram_nj
            flops += number * operation.flops
        return Totals(counts, latency, energy, flops)
