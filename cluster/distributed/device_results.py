"""What is kept of device actors in a run's results: a table of the devices, and what passed between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.cluster.distributed.actor_ledgers import DeviceActorState
from pimserve.cluster.distributed.devices.conservation import Exchanged
from pimserve.cluster.distributed.devices.flows import KINDS, kind_name
from pimserve.device_models.plan import FS_PER_S, PJ_PER_J

_FIGURES: Sequence[tuple[str, Any]] = (
    ("replica", np.int32),
    ("device", np.int32),
    ("steps", np.int64),
    ("busy_s", np.float64),
    ("experts_busy_s", np.float64),
    ("dram_joules", np.float64),
    ("compute_joules", np.float64),
    ("computed_tokens", np.int64),
    ("output_tokens", np.int64),
    ("kv_blocks", np.int64),
    ("peak_kv_blocks", np.int64),
    ("kv_blocks_sent", np.int64),
    ("kv_blocks_received", np.int64),
    ("weight_bytes", np.int64),
    ("audited_spans", np.int64),
)


def device_table(states: Sequence[DeviceActorState]) -> NDArray[Any]:
    """A row for each device, by replica and number: the columns of docs/distributed.md."""
    kinds = [kind_name(kind) for kind in KINDS]
    traffic = [
        (f"{kind}_{end}{unit}", np.int64) for kind in kinds for end in ("sent", "received") for unit in ("", "_bytes")
    ]
    names = [
        ("group", _width([state.group.name for state in states])),
        ("kind", _width([state.group.placed.label for state in states])),
        ("actor", _width([state.host for state in states])),
    ]
    table = np.zeros(len(states), np.dtype([*_FIGURES, *names, ("restarts", np.int64), *traffic]))
    for row, state in zip(table, states, strict=True):
        ledger = state.ledger
        for name in ("replica", "device", "steps", "kv_blocks", "peak_kv_blocks"):
            row[name] = getattr(ledger, name)
        for name in ("kv_blocks_sent", "kv_blocks_received", "weight_bytes"):
            row[name] = getattr(ledger, name)
        row["computed_tokens"], row["output_tokens"] = ledger.tokens, ledger.outputs
        row["audited_spans"] = ledger.audited_rows
        row["busy_s"], row["experts_busy_s"] = ledger.busy_fs / FS_PER_S, ledger.experts_fs / FS_PER_S
        for part in ("dram", "compute"):
            energy = sum(value for (_, other), value in ledger.energy_pj.items() if other == part)
            row[f"{part}_joules"] = energy / PJ_PER_J
        row["group"], row["kind"] = state.group.name, state.group.placed.label
        row["actor"], row["restarts"] = state.host, state.host_restarts
        for kind, passed in state.traffic.items():
            row[f"{kind}_sent"], row[f"{kind}_sent_bytes"] = passed.sent, passed.sent_bytes
            row[f"{kind}_received"], row[f"{kind}_received_bytes"] = passed.received, passed.received_bytes
    return table


def _width(texts: Sequence[str]) -> str:
    """The type of a column that holds these."""
    return f"U{max(map(len, texts), default=0) or 1}"


def wire(exchanged: Exchanged, home: Mapping[tuple[int, int], str]) -> list[dict[str, Any]]:
    """What passed between devices, by kind, in its own unit and in simulated bytes, and which part of it inside actors;
    and messages over gRPC that carried it.

    Args:
        exchanged: since the beginning of the run.
        home: the actor of each device (replica, number).
    """
    rows: dict[int, dict[str, int]] = {
        kind: dict.fromkeys(("count", "bytes", "inside_count", "inside_bytes"), 0) for kind in KINDS
    }
    for (from_replica, sender, to_replica, receiver, kind), (count, size) in exchanged.totals().items():
        row = rows[kind]
        row["count"] += count
        row["bytes"] += size
        if home[from_replica, sender] == home[to_replica, receiver]:
            row["inside_count"] += count
            row["inside_bytes"] += size
    return [
        {"kind": kind_name(kind), **row, "messages": exchanged.messages.get(kind, 0)}
        for kind, row in rows.items()
        if any(row.values())
    ]
