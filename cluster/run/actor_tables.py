"""Tables of device actors: what passed between devices, and what each of them did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from pimserve.cluster.base.documents import number
from pimserve.cluster.base.figures import count, figure, named, scaled
from pimserve.cluster.base.tables import Table, table_of

_UNITS = {
    "dispatch": "picks",
    "combine": "picks",
    "all_reduce": "vectors",
    "all_gather": "outputs",
    "activations": "vectors",
    "kv": "requests",
}
_FIGURES = ("count", "bytes", "inside_count", "inside_bytes", "messages")
_MOST_DEVICES = 64
_BYTES_PER_MB = 10**6


def wire_table(spread: Mapping[str, Any] | None) -> Table | None:
    """What passed between devices, by kind; None where there were no device actors, or it is not known."""
    rows = []
    for entry in (spread or {}).get("wire") or ():
        if not isinstance(entry, Mapping):
            continue
        kind, known = str(entry.get("kind")), {key: int(number(entry, key) or 0) for key in _FIGURES}
        rows.append(
            (
                f"{named(kind)}, {_UNITS.get(kind, '')}".removesuffix(", "),
                count(known["count"] - known["inside_count"]),
                figure((known["bytes"] - known["inside_bytes"]) / _BYTES_PER_MB),
                count(known["messages"]),
                count(known["inside_count"]),
                figure(known["inside_bytes"] / _BYTES_PER_MB),
            )
        )
    if not rows:
        return None
    columns = ("exchange between devices", "between\nactors", "\nMB", "\nmessages", "inside\nactors", "\nMB")
    note = "a message over gRPC carries what devices of one actor send to those of another, of one kind or several"
    return table_of("Exchange between devices", columns, rows, note)


def _words(group: str) -> str:
    return group.replace("_", " ")


def device_actor_table(devices: NDArray[Any]) -> Table:
    """What each device did by its own account; `devices`: devices.npy of a results folder."""
    groups = devices["group"] if "group" in (devices.dtype.names or ()) else [""] * len(devices)
    rows = [
        (
            f"replica {row['replica']}, device {row['device']}" + (f", {_words(group)}" if group else ""),
            str(row["actor"]),
            count(int(row["steps"])),
            scaled(float(row["busy_s"]), "s"),
            scaled(float(row["experts_busy_s"]), "s"),
            scaled(float(row["dram_joules"] + row["compute_joules"]), "J"),
            count(int(row["computed_tokens"])),
            count(int(row["output_tokens"])),
            count(int(row["peak_kv_blocks"])),
            *(
                figure(sum(int(row[name]) for name in devices.dtype.names or () if name.endswith(end)) / _BYTES_PER_MB)
                for end in ("_sent_bytes", "_received_bytes")
            ),
        )
        for row, group in zip(devices[:_MOST_DEVICES], groups, strict=False)
    ]
    times, counts = ("busy", "experts", "energy"), ("tokens", "outputs", "peak KV blocks")
    columns = ("device", "actor", "steps", *times, *counts, "MB sent", "received")
    left_out = len(devices) - len(rows)
    note = f"{left_out:,} more devices are in devices.npy" if left_out > 0 else ""
    return table_of("Device actors", columns, rows, note)
