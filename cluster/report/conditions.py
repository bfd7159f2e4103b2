"""Tables of what goes with some runs only: pools, simulated faults, and what devices say of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pimserve.cluster.base.figures import ABSENT, count, figure, named, ratio, scaled, share
from pimserve.cluster.report.content import Table
from pimserve.cluster.report.facts import text, whole
from pimserve.cluster.report.inputs import number, numbers

_UNITS = {"s": "s", "w": "W", "days": "days", "years": "years", "mm2": "mm2"}  # ends of names of facts


def pool_table(pools: Mapping[str, Any]) -> Table:
    """The pools side by side."""
    names = ("prefill", "decode")
    parts = [pools.get(name) for name in names]
    units = dict.fromkeys(unit for part in parts for unit in numbers(part, "unit_busy_share"))
    shares = [("busy share", "busy_share"), *((f"{named(unit)} busy", f"unit_busy_share.{unit}") for unit in units)]
    rows = [
        ("device", *(text(part, "device") for part in parts)),
        ("replicas", *(whole(part, "replicas") for part in parts)),
        ("devices", *(whole(part, "devices") for part in parts)),
        *((label, *(share(number(part, path)) for part in parts)) for label, path in shares),
        ("steps", *(whole(part, "steps") for part in parts)),
        ("requests in a step, mean", *(figure(number(part, "mean_requests")) for part in parts)),
        ("KV cache in use, mean", *(share(number(part, "kv.mean_use")) for part in parts)),
        ("KV cache in use, peak", *(share(number(part, "kv.peak_use")) for part in parts)),
        ("energy", *(scaled(number(part, "joules"), "J") for part in parts)),
        ("of it passive", *(scaled(number(part, "passive_joules"), "J") for part in parts)),
    ]
    return Table("Pools", ("", *names), rows)


def handover_table(pools: Mapping[str, Any]) -> Table:
    """What goes from the prefill pool to the decode pool."""
    bytes_ = number(pools, "handover.bytes")
    rows = [
        ("requests handed over", whole(pools, "handover.n")),
        ("held back by a full pool", whole(pools, "handover.held")),
        ("KV caches moved, GB", figure(None if bytes_ is None else bytes_ / 1e9)),
    ]
    for key, name in (("waiting_s", "waiting"), ("transfer_s", "transfer")):
        rows += [(f"{name}, {each}", scaled(number(pools, f"handover.{key}.{each}"), "s")) for each in ("mean", "p99")]
    for pool in ("prefill", "decode"):
        rows.append((f"link of {pool} busy", share(number(pools, f"handover.link_busy_share.{pool}"))))
    return Table("Hand-over", ("", ""), rows)


def fault_tables(faults: Mapping[str, Any]) -> list[Table]:
    """What happened to the replicas, and what it cost."""
    kinds = {"fail": "fails", "slow": "slows down", "leave": "leaves"}
    events = faults.get("events")
    rows = []
    for event in events if isinstance(events, list) else []:
        lasts, factor = number(event, "for_s"), number(event, "factor")
        rows.append(
            (
                f"{figure(number(event, 'at_s'))} s",
                text(event, "replica"),
                text(event, "device"),
                kinds.get(text(event, "kind"), text(event, "kind")),
                ABSENT if lasts is None else f"{figure(lasts)} s",
                ABSENT if factor is None else ratio(factor),
            )
        )
    cost = [
        ("requests queued again", whole(faults, "requeued")),
        ("tokens computed again", whole(faults, "recomputed_tokens")),
        ("replicas down, together", scaled(number(faults, "down_replica_s"), "s")),
        ("availability", share(number(faults, "availability"))),
    ]
    columns = ("at", "replica", "device", "what", "for", "steps take")
    return [Table("Events", columns, rows, text=True), Table("Cost", ("", ""), cost)]


def device_table(facts: Mapping[str, Any], caption: str) -> Table:
    """What the devices say of themselves."""
    rows = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            rows += [(f"{_label(str(key))}: {_label(str(name))}", _said(each)) for name, each in value.items()]
        else:
            rows.append((_label(str(key)), _said(value)))
    return Table(caption, ("", ""), rows, text=True)


def _label(key: str) -> str:
    """The name of a fact, with the unit that it ends in."""
    stem, _, end = key.rpartition("_")
    return f"{named(stem)}, {_UNITS[end]}" if stem and end in _UNITS else named(key)


def _said(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ABSENT}[value]
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return count(int(value)) if value == int(value) else figure(value)
    return ", ".join(map(_said, value)) if isinstance(value, list) else str(value)
