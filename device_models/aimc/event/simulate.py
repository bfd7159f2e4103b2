"""The event-driven model: latency, energy and use of 3D AIMC chips running some sequences together from time zero.

With the COMPAT rules it gives the numbers of the reference simulator (3D-SiM: Buechel et al., Nature Computational
Science 5, 13-26, 2025), with the PHYSICAL rules those of a machine that could be built; see graph.Rules.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.aimc.chip import Chip
from pimserve.device_models.aimc.event.choices import ExpertChoices
from pimserve.device_models.aimc.event.graph import PHYSICAL, Rules, Sequence, TaskGraph
from pimserve.device_models.aimc.event.graph_builder import GraphBuilder, Routing
from pimserve.device_models.aimc.event.schedule import Schedule, schedule
from pimserve.device_models.aimc.event.scratchpad import peak_bytes
from pimserve.device_models.aimc.mapping import Mapping
from pimserve.device_models.aimc.network import Network
from pimserve.device_models.aimc.operation_costs import PS_PER_NS
from pimserve.errors import InputError


@dataclass(frozen=True, slots=True)
class Busy:
    """Busy time over makespan: of one tile, of the mean of all units of all chips, or of the chips' memories."""

    busiest_tile: float
    mean_tile: float
    digital: float
    attention: float
    dram: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulation gives. Kinds are those of operations.KINDS.

    `op_latency_ps` and `energy_nj` have reading the cache apart, as "attention_dram"; `energy_nj` also has "passive".
    `token_finish_ps[sequence]`: a time for each generated token. `peak_memory_bytes`: only where the rules ask for the
    reference simulator's accounting. `start_ps`, `finish_ps`: of each task of `graph`.
    """

    makespan_ps: int
    token_finish_ps: tuple[tuple[int, ...], ...]
    op_counts: dict[str, int]
    op_latency_ps: dict[str, int]
    energy_nj: dict[str, float]
    flops: float
    peak_memory_bytes: int | None
    mvms_per_tile: tuple[int, ...]
    busy: Busy
    graph: TaskGraph
    start_ps: NDArray[np.int64]
    finish_ps: NDArray[np.int64]

    @property
    def total_energy_nj(self) -> float:
        """Active and passive energy."""
        return sum(self.energy_nj.values())


def simulate(
    network: Network,
    chip: Chip,
    mapping: Mapping,
    sequences: Several[Sequence],
    *,
    rules: Rules = PHYSICAL,
    kv_caching: bool = True,
    routing: Routing | None = None,
    popularity: Several[float] | None = None,
    seed: int = 0,
    communication: bool = True,
) -> Outcome:
    """Runs `sequences` together from time zero.

    Args:
        network: model to run.
        chip: what it runs on.
        mapping: tile of each chunk of each matrix that is used.
        sequences: one or more; the first has the highest priority.
        rules: physical, or the reference simulator's.
        kv_caching: without, each step computes all tokens so far again.
        routing: [step][layer, as text][token]: experts, for all sequences; drawn if not given.
        popularity: weight of each expert where they are drawn; equal if not given.
        seed: of what is drawn.
        communication: without, no transfer takes time or energy.

    Raises InputError if there are no sequences, a position is beyond the position table, the popularity does not suit
    the network, or several chips lack a link.
    """
    if not sequences:
        raise InputError("sequences", "must have at least one entry")
    builder = GraphBuilder(
        network,
        chip,
        mapping,
        rules,
        routing=routing,
        choices=None if routing is not None else _choices(network, popularity, seed),
        seed=seed,
        communication=communication,
    )
    graph = builder.sequences(sequences, kv_caching=kv_caching)
    timing = schedule(graph, chip, dram_contention=rules.dram_contention)
    return _outcome(graph, timing, network, chip, reference_accounting=rules.reference_accounting)


def _outcome(
    graph: TaskGraph, timing: Schedule, network: Network, chip: Chip, *, reference_accounting: bool
) -> Outcome:
    makespan = int(timing.finish.max())
    totals = graph.table.totals(np.frombuffer(graph.operation, np.int32))
    peak = peak_bytes(graph, timing, network, chip) if reference_accounting else None
    mvms = _mvms_per_tile(graph)
    passive = chip.passive_w * chip.chips * makespan / PS_PER_NS
    return Outcome(
        makespan_ps=makespan,
        token_finish_ps=tuple(tuple(timing.finish[tasks].tolist()) for tasks in graph.samplers),
        op_counts=totals.op_counts,
        op_latency_ps=totals.op_latency_ps,
        energy_nj={**totals.energy_nj, "passive": passive},
        flops=totals.flops,
        peak_memory_bytes=peak,
        mvms_per_tile=tuple(mvms.tolist()),
        busy=_busy(graph, timing, chip, makespan, mvms),
        graph=graph,
        start_ps=timing.start,
        finish_ps=timing.finish,
    )


def _choices(network: Network, popularity: Several[float] | None, seed: int) -> ExpertChoices | None:
    moe = [block for block in network.blocks if block.experts]
    if not moe:
        return None
    experts, top_k = len(moe[0].experts), moe[0].top_k
    weights = None if popularity is None else np.asarray(popularity, float)
    if weights is not None and (len(weights) != experts or (weights < 0).any() or (weights > 0).sum() < top_k):
        raise InputError("popularity", f"must hold {experts} weights, none negative and at least {top_k} above 0")
    return ExpertChoices(experts, top_k, len(moe), weights, seed)


def _mvms_per_tile(graph: TaskGraph) -> NDArray[np.int64]:
    ops = np.array([operation.ops if operation.kind == "mvm" else 0 for operation in graph.table.operations])
    resource = np.frombuffer(graph.resource, np.int32)
    on_tile = (resource >= 0) & (resource < graph.resources.tiles)
    counts = np.bincount(
        resource[on_tile], ops[np.frombuffer(graph.operation, np.int32)[on_tile]], minlength=graph.resources.tiles
    )
    return counts.astype(np.int64)


def _busy(graph: TaskGraph, timing: Schedule, chip: Chip, makespan: int, mvms: NDArray[np.int64]) -> Busy:
    span = max(makespan, 1)
    resource, operation = np.frombuffer(graph.resource, np.int32), np.frombuffer(graph.operation, np.int32)
    held = timing.finish - timing.start

    def share(first: int, units: int) -> float:
        mine = (resource >= first) & (resource < first + chip.chips)
        return float(held[mine].sum()) / (span * units * chip.chips)

    reading = np.array([op.dram_ps for op in graph.table.operations])[operation].sum()
    mvm_ps = chip.mvm.ps
    return Busy(
        busiest_tile=int(mvms.max()) * mvm_ps / span,
        mean_tile=float(mvms.mean()) * mvm_ps / span,
        digital=share(graph.resources.digital, chip.digital_units),
        attention=share(graph.resources.attention, 1 if chip.attention_split == "heads" else chip.attention_units),
        dram=float(reading) / (span * chip.chips),
    )
