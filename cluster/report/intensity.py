"""FLOPs and bytes of a run's operators, and the rates that they reach, for the roofline.

A run's steps differ, so two stand for them: the mean step that only decodes, and the mean step with prompts in it
(means over steps, rounded to whole requests and tokens; prompts of one length, nothing of them computed before). Of
each, FLOPs and bytes are what one device of a replica does, from the same operators that its cost plan was compiled
from (`device_models/operators.py`), and the time is the plan's. Weights are read once a step, activations once in and
once out; experts read the weights of those that any token chose, in the mean. (`cluster/validation/op_per_byte.py` does
the same for the paper's stages.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.cluster.run.history import History
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.cluster.scenario.placement_spec import GROUPS, Group
from pimserve.device_models.device import Roof
from pimserve.device_models.evaluate import counts_of, evaluate, parts_of, shape_of, way_of
from pimserve.device_models.expert_picks import expert_share
from pimserve.device_models.experts import FEATURES
from pimserve.device_models.mixed_plan import EXPERTS
from pimserve.device_models.model import BYTES_PER_ELEMENT
from pimserve.device_models.operators import (
    ACTIVATION_BYTES,
    Category,
    DecodeAttention,
    Experts,
    Gemm,
    Operator,
    Parallelism,
    PrefillAttention,
    operators_of,
)
from pimserve.device_models.plan import FS_PER_S, Chunk, CostPlan, DecodeAttentionTerm, PrefillAttentionTerm
from pimserve.device_models.routing import POOL_SIZE
from pimserve.device_models.split_experts import SplitExperts
from pimserve.device_models.step import StepShape, seen_tokens
from pimserve.device_models.verifying import verifying

_DECODE_LAUNCH, _PREFILL_LAUNCH = "decode attention, launch", "prefill attention, launch"
_EXPERT_LAUNCH = "experts, launch and sorting"


@dataclass(frozen=True)
class Shape:
    """A mean step: requests that decode, tokens of all their contexts, prompts, tokens of each, outputs."""

    decodes: int
    context: int
    prompts: int
    prompt_tokens: int
    outputs: int

    @property
    def tokens(self) -> int:
        """Computed in the step."""
        return self.decodes + self.prompts * self.prompt_tokens

    @property
    def chunks(self) -> list[Chunk]:
        """Its prompts."""
        return [Chunk(self.prompt_tokens, 0)] * self.prompts


@dataclass(frozen=True)
class Work:
    """What an operator does in a step on one device.

    Args:
        name: of the operator.
        category: of it.
        flops: FLOPs.
        moved: bytes from and to memory.
        seconds: that it takes.
        units: that run it; several do so side by side.
    """

    name: str
    category: Category
    flops: float
    moved: float
    seconds: float
    units: tuple[str, ...]

    def and_then(self, other: Work) -> Work:
        """Both, one after the other, of one operator."""
        flops, moved, seconds = self.flops + other.flops, self.moved + other.moved, self.seconds + other.seconds
        return replace(self, flops=flops, moved=moved, seconds=seconds)

    @property
    def intensity(self) -> float | None:
        """FLOPs per byte; None where nothing is moved."""
        return self.flops / self.moved if self.moved else None

    @property
    def flop_per_s(self) -> float | None:
        """Reached; None where it takes no time."""
        return self.flops / self.seconds if self.seconds else None


def share_of_roof(work: Work, highest: Sequence[Roof]) -> float | None:
    """Reached of what its units could; None where nothing is moved, no time passes, or no roof is known.

    Several units side by side move what both can and compute what both can. Of a unit with several peaks, one per data
    type, the highest counts.
    """
    intensity, reached = work.intensity, work.flop_per_s
    mine = [roof for roof in highest if roof.unit in work.units]
    if intensity is None or reached is None or not mine:
        return None
    bandwidths = {roof.unit: roof.bytes_per_s for roof in mine}
    peaks: dict[str, float] = {}
    for roof in mine:
        peaks[roof.unit] = max(
            peaks.get(roof.unit, 0.0), math.inf if roof.peak_flop_per_s is None else roof.peak_flop_per_s
        )
    return reached / min(sum(bandwidths.values()) * intensity, sum(peaks.values()))


def shapes(history: History, pool: PlacedPool) -> tuple[Shape | None, Shape | None]:
    """The mean steps of a pool's replicas: decoding only, and with prompts; None for what there was not."""
    spans = np.concatenate([history.spans[replica] for replica in pool.numbers])
    mixed = spans["chunks"] > 0
    return _mean(spans[~mixed]), _mean(spans[mixed])


def _mean(spans: NDArray[Any]) -> Shape | None:
    n = spans["steps"]
    if not len(spans):
        return None
    steps = float(n.sum())
    context = float((n * spans["context"] + spans["decodes"] * (n * (n - 1) // 2)).sum(dtype=float))
    decoded = float((n * spans["decodes"]).sum(dtype=float))
    chunks = float((n * spans["chunks"]).sum(dtype=float))
    prompt_tokens = float((n * spans["prefill_tokens"]).sum(dtype=float))
    prompts = max(1, round(chunks / steps)) if chunks else 0
    decodes = round(decoded / steps) if prompts else max(1, round(decoded / steps))
    return Shape(
        decodes=decodes,
        context=round(decodes * context / decoded) if decoded else 0,
        prompts=prompts,
        prompt_tokens=max(1, round(prompt_tokens / chunks)) if chunks else 0,
        outputs=max(1, round(float((n * spans["outputs"]).sum(dtype=float)) / steps)),
    )


def work_of(history: History, pool: PlacedPool, shape: Shape, group: Group | None = None) -> list[Work]:
    """Every operator of a step that moves bytes to or from memory, on one device of a replica of the pool.

    Links move no bytes to or from memory here. Where data-parallel groups share a replica, FLOPs, bytes and time are
    of a device of the busiest group, but those of routed experts: FLOPs and bytes of the mean device, and the time of
    the busiest.

    Args:
        history: of the run.
        pool: of its replicas.
        shape: of the step.
        group: whose devices, where experts have devices of their own. Operators are those of all micro-batches
            together, of which each reads the weights again.
    """
    plan = _plan_of(pool, group)
    whole = shape_of(pool.plan, shape.decodes, shape.context, shape.chunks, shape.outputs)
    steps = parts_of(pool.plan, whole)
    if isinstance(plan.experts, SplitExperts) and group == "experts":
        return []  # devices of two kinds have no roof in common
    if plan.weight_stationary:
        return _stationary(history, pool, plan, steps)
    operators, found = _operators(history, pool, group), dict[int, Work]()
    for step in steps:
        if group == "experts":
            step = step._replace(busiest_tokens=plan.tokens_of(step))  # noqa: PLW2901 all pass there
        chunks = replace(shape, prompts=shape.prompts if step.prefill_fs else 0)
        share = step.prefill_fs / whole.prefill_fs if whole.prefill_fs else 0.0
        for place, work in _moving(history, pool, plan, operators, step, chunks, share):
            found[place] = found[place].and_then(work) if place in found else work
    return list(found.values())


def _plan_of(pool: PlacedPool, group: Group | None) -> CostPlan:
    """What devices of the pool, or of one of its groups alone, do."""
    plan = pool.plan
    if group is None:
        return plan
    rows = tuple(replace(row, stage="attention") for row in plan.rows if row.stage == group)
    devices = dict(zip(GROUPS, pool.groups, strict=True))[group].devices_per_replica
    plan = replace(plan, devices=devices, rows=rows, micro_batches=None)
    if group == "attention":
        return replace(plan, experts=None)
    return replace(plan, data_parallel=1, decode=(), prefill=(), other_decode=None, pipeline=None)


def _operators(history: History, pool: PlacedPool, group: Group | None) -> list[Operator]:
    """Of one of these devices."""
    scenario, model = history.prepared.scenario, history.prepared.model
    cluster, lm_head = scenario.of_pool(pool.name).cluster, scenario.costs.lm_head
    if group is None:
        return verifying(operators_of(model, cluster.split, lm_head=lm_head), pool.plan.verify_tokens)
    assert cluster.two_groups is not None
    parts = cluster.two_groups.parts_of(group)
    operators = operators_of(model, cluster.of_group(group).split, lm_head=lm_head, parts=parts)
    return verifying(operators, pool.plan.verify_tokens)


def _moving(
    history: History,
    pool: PlacedPool,
    plan: CostPlan,
    operators: Sequence[Operator],
    step: StepShape[int],
    prompts: Shape,
    share: float,
) -> Iterator[tuple[int, Work]]:
    """(place among the operators, work) of a micro-batch, which has that share of the prompts' attention."""
    _, counts = counts_of(plan, step)  # of the busiest group
    units = {term.name: _own(term.unit) for term in plan.rows}
    times: dict[str, list[int]] = {}  # of operators of one name, in their order
    for operator in evaluate(plan, step).operators:
        times.setdefault(operator.name, []).append(operator.time_fs)

    def time_fs(name: str) -> int:
        return times[name].pop(0) if times.get(name) else 0

    # Of those with one window, the model's own come before those that draft.
    decode = {term.window_tokens: term for term in reversed(way_of(plan, step).terms)}
    prefill = {term.window_tokens: term for term in reversed(plan.prefill)}
    for place, op in enumerate(operators):
        if isinstance(op, Gemm) and op.name in units:
            rows = counts[op.rows]
            moved = op.weight_bytes_per_element * op.k * op.n * (rows > 0) + ACTIVATION_BYTES * rows * (op.k + op.n)
            flops, time = op.layers * 2.0 * rows * op.k * op.n, time_fs(op.name)
            yield place, Work(op.name, op.category, flops, op.layers * moved, time / FS_PER_S, (units[op.name],))
        elif isinstance(op, DecodeAttention) and step.decodes and op.window_tokens in decode:
            yield place, _decode(op, plan, decode[op.window_tokens], step, time_fs(_DECODE_LAUNCH))
        elif isinstance(op, PrefillAttention) and prompts.prompts and op.window_tokens in prefill:
            work = _prefill(op, plan, prefill[op.window_tokens], prompts, time_fs(_PREFILL_LAUNCH), step.prefill_fs)
            yield place, replace(work, flops=share * work.flops, moved=share * work.moved)
        elif isinstance(op, Experts) and plan.experts is not None and plan.tokens_of(step):
            yield place, _routed(history, pool, op, plan.tokens_of(step), time_fs(_EXPERT_LAUNCH))


def _own(unit: str) -> str:
    """What a unit is called on its own device."""
    return unit.removeprefix(f"{EXPERTS}_")


def _decode(
    op: DecodeAttention, plan: CostPlan, term: DecodeAttentionTerm, step: StepShape[int], launch_fs: int
) -> Work:
    tokens = op.layers * seen_tokens(op.window_tokens, step.decodes, step.context) / plan.data_parallel
    alone = replace(plan, rows=(), decode=(term,), prefill=(), other_decode=None, verify_tokens=1)
    time = evaluate(alone, shape_of(alone, step.decodes, step.context)).duration_fs + launch_fs
    name = _windowed("attention, decode", op.window_tokens)
    return Work(name, "attention_decode", tokens * op.flops, tokens * op.kv_bytes, time / FS_PER_S, (term.unit,))


def _routed(history: History, pool: PlacedPool, op: Experts, tokens: int, launch_fs: int) -> Work:
    scenario, term, outcomes = history.prepared.scenario, pool.plan.experts, history.costs[pool.first].pools
    assert outcomes is not None
    assert term is not None
    features = outcomes.features(np.full(POOL_SIZE, tokens), np.arange(POOL_SIZE))
    time = round(float(features[:, FEATURES.index("time_fs")].mean())) + launch_fs
    weights = scenario.routing.for_model(history.prepared.model).expert_weights(op.experts, scenario.run.seed)
    costs = [_experts(op, expert_share(tuple(row), op.top_k), tokens) for row in weights]
    flops, moved = (float(np.mean(column)) for column in zip(*costs, strict=True))
    return Work("routed experts", "moe", flops, moved, time / FS_PER_S, tuple(_own(unit.unit) for unit in term.units))


def _prefill(
    op: PrefillAttention, plan: CostPlan, term: PrefillAttentionTerm, shape: Shape, launch_fs: int, all_fs: int
) -> Work:
    chunk = Chunk(shape.prompt_tokens, 0)
    q, kv, pairs = term.extent(chunk)
    alike = -(-shape.prompts // plan.data_parallel)  # chunks of the busiest group
    width = op.qk_dim + op.v_dim
    moved = width * (ACTIVATION_BYTES * op.heads * q + op.kv_bytes_per_element * op.kv_heads * kv)
    if not term.causal:  # the score matrix goes to memory and back
        moved += 2 * ACTIVATION_BYTES * op.heads * pairs
    of_chunk_fs = sum(other.cost(chunk)[0] for other in plan.prefill)
    time = all_fs * term.cost(chunk)[0] / max(1, of_chunk_fs) + launch_fs
    return Work(
        _windowed("attention, prefill", op.window_tokens),
        "attention_prefill",
        alike * op.layers * 2.0 * op.heads * width * pairs,
        alike * op.layers * moved,
        time / FS_PER_S,
        (term.unit,),
    )


def _experts(op: Experts, share: Sequence[float], tokens: int) -> tuple[float, float]:
    """(FLOPs, bytes) of the mean device; `share` (experts,) of tokens choose each expert."""
    inner = op.intermediate / op.slices
    active = float(np.sum(1 - (1 - np.minimum(share, 1.0)) ** tokens)) / op.groups
    rows = tokens * op.top_k / op.groups
    weights = active * op.matrices * op.hidden * inner * op.weight_bytes_per_element
    # Inputs and outputs of the products, and of the activation function between them.
    moved = weights + rows * ACTIVATION_BYTES * op.matrices * (op.hidden + 2 * inner)
    return op.layers * rows * op.matrices * 2.0 * op.hidden * inner, op.layers * moved


def _stationary(history: History, pool: PlacedPool, plan: CostPlan, steps: Sequence[StepShape[int]]) -> list[Work]:
    """Decode attention alone: weights stay where they are, and keys and values of a prompt's own tokens are at hand.

    The time is that of the unit which attention keeps busy longest, the memory or the attention units.
    """
    model, decodes = history.prepared.model, sum(step.decodes for step in steps)
    if not decodes or not plan.prefill:
        return []
    context = sum(step.context for step in steps)
    attention = [op for op in operators_of(model, Parallelism()) if isinstance(op, DecodeAttention)]
    seen = [seen_tokens(op.window_tokens, decodes, context) for op in attention]
    flops = sum(op.layers * op.flops * tokens for op, tokens in zip(attention, seen, strict=True)) / plan.devices
    scale = pool.replica.precision.kv_bits / (8 * BYTES_PER_ELEMENT[model.kv_dtype])
    moved = sum(op.layers * op.kv_bytes * scale * tokens for op, tokens in zip(attention, seen, strict=True))
    busy = dict.fromkeys(plan.units, 0)
    for step in steps:
        for (category, unit), coefficient, times in evaluate(plan, step).busy:
            if category == "attention_decode" and unit in busy:
                busy[unit] += coefficient * times
    busiest = max(busy[plan.decode[0].unit], busy[plan.prefill[0].unit]) / FS_PER_S
    return [Work("attention, decode", "attention_decode", flops, moved / plan.devices, busiest, (plan.decode[0].unit,))]


def _windowed(name: str, window: int | None) -> str:
    return name if window is None else f"{name}, window of {window:,}"
