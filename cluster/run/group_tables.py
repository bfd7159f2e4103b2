"""What replicas run on, and tables of both groups of devices where routed experts are on devices of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pimserve.cluster.base.figures import ABSENT, count, figure, named, scaled, share, text_of
from pimserve.cluster.base.tables import Row, Table
from pimserve.cluster.run.group_schema import (
    TIMES,
    DeviceFigures,
    GroupFigures,
    GroupLinkFigures,
    Groups,
    MicroBatchFigures,
)
from pimserve.cluster.run.summary_schema import PoolFigures, ServedSummary
from pimserve.device_models.micro_batches import BETWEEN
from pimserve.device_models.mixed_plan import EXPERTS

GROUPS = ("attention", "experts")
_BYTES_PER_GB = 10**9


def devices_text(summary: ServedSummary) -> str:
    """How many devices of which kinds a run has."""
    parts: list[PoolFigures | ServedSummary | DeviceFigures] = []
    for pool in summary.by_pool().values():
        both = () if pool.groups is None else (pool.groups.attention, pool.groups.experts)
        parts += [kind for group in both for kind in _kinds(group)] or [pool]
    return " + ".join(f"{count(part.devices)} {text_of(part.device)}" for part in parts)


def _kinds(group: GroupFigures) -> Sequence[DeviceFigures]:
    """Devices of one kind each, of hot experts first."""
    return group.kinds or (group,)


def sharing_text(pool: PoolFigures | ServedSummary) -> str:
    """How the devices of a replica share the model."""

    def split(parallelism: Mapping[str, Any]) -> str:
        return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in parallelism.items())

    if pool.groups is None:
        return f"{text_of(pool.devices_per_replica)} ({split(pool.parallelism)})"
    named_kinds = [("attention", pool.groups.attention), *_named_kinds(pool.groups.experts)]
    parts = (f"{name} {text_of(kind.devices_per_replica)}: {split(kind.parallelism)}" for name, kind in named_kinds)
    return f"{text_of(pool.devices_per_replica)} ({'; '.join(parts)})"


def _named_kinds(experts: GroupFigures) -> list[tuple[str, DeviceFigures]]:
    if experts.kinds is None:
        return [("experts", experts)]
    return [(text_of(kind.group).replace("_", " "), kind) for kind in experts.kinds]


def group_table(groups: Groups) -> Table:
    """Both groups side by side."""
    both = (groups.attention, groups.experts)

    def row(label: str, cell: Callable[[GroupFigures], str]) -> Row:
        return Row(label, tuple(map(cell, both)))

    def of_kinds(label: str, cell: Callable[[DeviceFigures], str]) -> Row:
        return row(label, lambda group: " + ".join(map(cell, _kinds(group))))

    rows = [
        of_kinds("devices", lambda kind: f"{count(kind.devices)} {text_of(kind.device)}"),
        row("has", lambda group: ", ".join(map(named_part, group.parts))),
        of_kinds("weights in memory of each, GB", lambda kind: figure(kind.weights_gb_per_device)),
        row("KV cache in each, GB", lambda group: figure(group.kv_gb_per_device)),
        of_kinds("silicon, mm2", lambda kind: figure(kind.silicon_mm2)),
        of_kinds("TDP, W", lambda kind: figure(kind.tdp_w)),
        of_kinds("passive energy", lambda kind: scaled(kind.passive_joules, "J")),
        *(
            row(label, lambda group, part=part: share(getattr(group.shares_of_time, part)))  # type: ignore[misc]
            for part, label in TIMES.items()
        ),
    ]
    return Table("Groups of devices", GROUPS, rows, note=_NOTE)


_NOTE = (
    "Times are shares of the run; steps would be shorter by what both groups wait for the link if links took no time"
)


def named_part(part: str) -> str:
    """What people call a part of a model."""
    return {"dense_ffn": "dense FFNs", "lm_head": "LM head"}.get(part, part.replace("_", " "))


def group_link_table(link: GroupLinkFigures) -> Table:
    """The link between both, a column for each direction."""
    both = (link.dispatch, link.combine)
    rows = [
        Row("sent, GB", tuple(figure(_gb(way.bytes)) for way in both)),
        Row("vectors of tokens", tuple(figure(way.tokens) for way in both)),
        Row("bits of an element", tuple(_plain(way.bits) for way in both)),
        Row("busy", tuple(share(way.busy_share) for way in both)),
    ]
    note = (
        f"copies of a token in a MoE layer: {_plain(link.copies_per_token)}, of these to the busiest device "
        f"{_plain(link.copies_of_busiest_device)}; {_plain(link.gb_per_s)} GB/s for each device of attention, "
        f"{_plain(link.experts_gb_per_s)} GB/s of the experts, {_plain(link.latency_us)} us each way"
    )
    return Table("Link between the groups", BETWEEN, rows, note=note)


def _plain(value: float | None) -> str:
    """A setting, or a mean that often is a whole number."""
    return ABSENT if value is None else f"{value:.4g}"


def _gb(sent: float | None) -> float | None:
    return None if sent is None else sent / _BYTES_PER_GB


def micro_batch_table(chosen: MicroBatchFigures) -> Table:
    """How many micro-batches steps have, and the times that this is from: a row for each batch that was tried."""
    tried = chosen.tried
    if tried is None:
        return Table("Micro-batches", ("of a step",), [Row("micro-batches", (figure(chosen.most),))])
    columns = tuple(dict.fromkeys(number for batch in tried.batches for number in batch.step_s))
    rows = [
        Row(
            f"{count(batch.requests)} request{'s' * (batch.requests != 1)}",
            tuple(scaled(batch.step_s.get(number), "s") for number in columns),
        )
        for batch in tried.batches
    ]
    note = f"tried: decode steps of so many requests with {count(tried.context_tokens)} tokens of context each"
    cuts = zip(chosen.from_tokens, chosen.numbers, strict=True)
    taken = ", ".join(f"{number} from {count(tokens)} on" for tokens, number in cuts)
    return Table("Micro-batches", columns, rows, note=f"by tokens of a step: {taken}; {note}")


def unit_rows(pool: PoolFigures | ServedSummary) -> Iterator[tuple[str, str, str]]:
    """(label, mean, on the busiest device) of each unit; where there are two groups, under the name of each."""
    most = pool.unit_busy_share_of_busiest_device  # empty in older runs
    grouped: dict[str, list[str]] = {}
    for unit in pool.unit_busy_share:
        of_experts = unit.startswith(f"{EXPERTS}_")
        grouped.setdefault("between" if unit in BETWEEN else "experts" if of_experts else "attention", []).append(unit)
    for group, units in grouped.items():
        if pool.groups is not None:
            yield f"of {group}" if group in GROUPS else "between both", "", ""
        for unit in units:
            name = named(unit.removeprefix(f"{EXPERTS}_"))
            label = named(unit) if pool.groups is None else f"  {name}"
            yield label, share(pool.unit_busy_share[unit]), share(most.get(unit))
