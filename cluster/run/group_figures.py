"""Figures of both groups of devices, of replicas whose routed experts are on devices of their own, and of the link."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any, get_args

from pimserve.cluster.run.group_schema import (
    GroupFigures,
    GroupLinkFigures,
    Groups,
    GroupTimeShares,
    KindFigures,
    LinkDirection,
    MicroBatchFigures,
    TriedBatch,
    TriedMicroBatches,
)
from pimserve.cluster.scenario.device_groups import parts_in
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.operators import ALL_PARTS, Part, kv_heads_per_device
from pimserve.device_models.plan import HOST, PJ_PER_J
from pimserve.device_models.routed_link import Direction, LinkKey
from pimserve.device_models.step import StageTime
from pimserve.scheduler.group_times import GroupTime, group_times
from pimserve.scheduler.steplog import StepLog, drawn_pj

_BYTES_PER_GB = 10**9


def groups_of(
    pool: PlacedPool, model: ModelSpec, logs: Sequence[StepLog], end_fs: int, facts: Mapping[str, Any]
) -> Groups | None:
    """Of a pool; None where its replicas have one group of devices.

    Args:
        pool: the replicas.
        model: that they have.
        logs: of each.
        end_fs: the end of the run.
        facts: what there is to say of the experts' devices beside what they say of themselves.
    """
    if not pool.groups:
        return None
    attention, experts = pool.groups
    placement = pool.replica.facts["placement"]
    on_experts = frozenset(placement["on_experts"])
    whole_fs = len(logs) * end_fs
    stages: dict[StageTime, int] = {name: sum(log.stage_fs[name] for log in logs) for name in get_args(StageTime)}
    host_fs = sum(log.unit_fs.get(HOST, 0) for log in logs)
    of_attention, of_experts = group_times(sum(log.busy_fs for log in logs), host_fs, stages, whole_fs)
    return Groups(
        attention=_group(attention, model, ALL_PARTS - on_experts, of_attention, logs, end_fs),
        experts=_group(experts, model, on_experts, of_experts, logs, end_fs, facts),
        link=_link(pool, logs, whole_fs),
        micro_batches=_micro_batches(placement),
    )


def _group(
    group: PlacedPool,
    model: ModelSpec,
    parts: Set[Part],
    time: GroupTime,
    logs: Sequence[StepLog],
    end_fs: int,
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> GroupFigures:
    whole_fs, replica = len(logs) * end_fs, group.replica
    kinds = [
        KindFigures(group=name, **_devices(kind, logs, end_fs))
        for name, kind in zip(("hot_experts", "experts"), group.groups, strict=False)
    ]
    more: dict[str, Any] = {"kinds": kinds} if kinds else {}
    return GroupFigures(
        **{**_devices(group, logs, end_fs), "device_facts": {**group.facts, **facts}, **more},
        parts=list(parts_in(model, parts)),
        reserved_gb_per_device=replica.reserved_bytes_per_device / _BYTES_PER_GB,
        kv_gb_per_device=_kv_bytes_per_device(group, model) / _BYTES_PER_GB if "attention" in parts else 0.0,
        shares_of_time=GroupTimeShares(
            **{name: part / whole_fs if whole_fs else None for name, part in time._asdict().items()}
        ),
    )


def _devices(group: PlacedPool, logs: Sequence[StepLog], end_fs: int) -> dict[str, Any]:
    """Fields of `DeviceFigures`."""
    passive_pj = drawn_pj(group.plan.passive, logs, end_fs)
    return {
        "device": group.label,
        "devices": group.devices,
        "devices_per_replica": group.devices_per_replica,
        "parallelism": dict(group.replica.parallelism),
        "weights_gb_per_device": group.replica.weight_bytes_per_device / _BYTES_PER_GB,
        "silicon_mm2": group.silicon_mm2,
        "tdp_w": group.tdp_w,
        "passive_joules": None if passive_pj is None else passive_pj / PJ_PER_J,
        "device_facts": group.facts,
    }


def _kv_bytes_per_device(group: PlacedPool, model: ModelSpec) -> float:
    """Tensor-parallel devices hold copies of KV heads of which there are fewer, and of a latent."""
    tensor = int(group.replica.parallelism.get("tensor", 1))
    heads = model.attention.kv_heads if model.attention.kind == "gqa" else 1
    copies = kv_heads_per_device(model, tensor) * tensor / heads
    layer = model.attention.kv_elements * group.replica.precision.kv_bits / 8
    windowed = layer * model.windowed_layers
    token = group.kv_groups.bytes_per_token(layer * model.layers - windowed, windowed) + group.draft_kv_bytes_per_token
    return group.kv_capacity_tokens * token * copies / group.devices_per_replica


def _micro_batches(placement: Mapping[str, Any]) -> MicroBatchFigures:
    tried = placement.get("micro_batches_auto")
    how = {}
    if tried is not None:
        batches = [TriedBatch(requests=int(requests), step_s=step_s) for requests, step_s in tried["step_s"].items()]
        how = {"tried": TriedMicroBatches(context_tokens=tried["context_tokens"], batches=batches)}
    from_tokens, numbers = map(list, zip(*placement["micro_batches_by_tokens"], strict=True))
    return MicroBatchFigures(most=placement["micro_batches"], from_tokens=from_tokens, numbers=numbers, **how)


def _link(pool: PlacedPool, logs: Sequence[StepLog], whole_fs: int) -> GroupLinkFigures:
    facts = pool.replica.facts["placement"]["link"]
    rows = {"tokens": sum(log.computed_tokens for log in logs), "outputs": sum(log.sampled_rows for log in logs)}

    def more(*key: *LinkKey) -> float:
        return sum(log.link_more.get(key, 0.0) for log in logs)

    def direction(name: Direction) -> LinkDirection:
        sent = [part for part in pool.replica.traffic if part.operator == name]
        busy_fs = sum(log.unit_fs[name] for log in logs)
        return LinkDirection(
            bytes=sum(part.bytes_per_row * rows[part.rows] for part in sent) + more(name, "bytes"),
            tokens=sum(part.vectors_per_row * rows[part.rows] for part in sent) + more(name, "tokens"),
            bits=facts[f"{name}_bits"],
            busy_share=busy_fs / whole_fs if whole_fs else None,
        )

    same = ("gb_per_s", "experts_gb_per_s", "latency_us", "copies_per_token", "copies_of_busiest_device")
    return GroupLinkFigures(
        **{name: facts[name] for name in same}, dispatch=direction("dispatch"), combine=direction("combine")
    )
