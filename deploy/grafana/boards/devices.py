"""Units, operators, links, energy and memory of devices."""

from __future__ import annotations

from panels import Board, Panel, Row
from promql import OF_ENGINE, OF_RUN, growth, per_second, share

_BUSY = "pimserve_device_busy_seconds_total"
_BUSIEST = "pimserve_busiest_device_busy_seconds_total"
_JOULES = "pimserve_device_energy_joules_total"
_TOKENS = growth("pimserve_generation_tokens_total")


def _mean(metric: str, label: str) -> str:
    """Growth per simulated second of each value of the label, mean of the replicas of a role."""
    return f"avg by (run_id, role, {label}) ({_of_engines(metric, label)})"


def _most(metric: str, label: str) -> str:
    """The same, the largest of the replicas of a role."""
    return f"max by (run_id, role, {label}) ({_of_engines(metric, label)})"


def _of_engines(metric: str, label: str) -> str:
    return per_second(metric, of=OF_ENGINE, by=("run_id", "engine", "role", label))


_UNITS = Row(
    "Units",
    (
        Panel(
            "Busy share of each unit",
            "percentunit",
            "Mean of the devices of a replica, and of the replicas chosen, by role: xPU, Logic-PIM and links of Duplex;"
            " tiles, digital units and memories of crossbar chips. Units may work side by side.",
            ((_mean(_BUSY, "unit"), "{{unit}} {{role}} {{run_id}}"),),
            width=8,
            most=1,
        ),
        Panel(
            "Busy share on the busiest device",
            "percentunit",
            "Of each unit, on the device of a replica where it has most to do; the most of the replicas chosen, by"
            " role. What is far above the mean waits for one device.",
            ((_most(_BUSIEST, "unit"), "{{unit}} {{role}} {{run_id}}"),),
            width=8,
            most=1,
        ),
        Panel(
            "Where steps spend their time",
            "percentunit",
            "Share of simulated time by operator, mean of the replicas chosen, by role; the rest is idle.",
            ((_mean("pimserve_operator_time_seconds_total", "operator"), "{{operator}} {{role}} {{run_id}}"),),
            width=8,
            stacked=True,
        ),
    ),
)

_LINKS = Row(
    "Links",
    (
        Panel(
            "Link",
            "percentunit",
            "Busy share of the links between each replica's devices. Crossbar chips have theirs in the chain of tiles.",
            (
                (
                    per_second(_BUSY, of=f'{OF_ENGINE},unit="link"', by=("run_id", "engine", "role")),
                    "{{run_id}} {{role}} {{engine}}",
                ),
            ),
            most=1,
        ),
        Panel(
            "Bytes over links",
            "Bps",
            "Sent by all devices of the replicas chosen per simulated second, by what was sent for and by link;"
            " handover is of KV caches from the prefill pool. Empty where each replica is one device.",
            (
                (
                    per_second("pimserve_link_bytes_total", of=OF_ENGINE, by=("run_id", "role", "operator", "link")),
                    "{{operator}} {{link}} {{role}} {{run_id}}",
                ),
            ),
            stacked=True,
        ),
    ),
)

_ENERGY = Row(
    "Energy",
    (
        Panel(
            "Power",
            "watt",
            "Joules per simulated second of all devices by operator; passive is what they draw anyway.",
            ((per_second(_JOULES, of=OF_ENGINE, by=("run_id", "operator")), "{{operator}} {{run_id}}"),),
            stacked=True,
        ),
        Panel(
            "Memory or arithmetic",
            "watt",
            "Power by part: moving data (dram), multiplying (compute), passive.",
            ((per_second(_JOULES, of=OF_ENGINE, by=("run_id", "part")), "{{part}} {{run_id}}"),),
            stacked=True,
        ),
        Panel(
            "Energy per output token",
            "joule",
            "Of all devices of a run, over the tokens sampled meanwhile. Active: of work; passive: drawn anyway.",
            (
                (share(growth(_JOULES), _TOKENS), "{{run_id}}"),
                (share(growth(_JOULES, of=f'{OF_RUN},part!="passive"'), _TOKENS), "active {{run_id}}"),
                (share(growth(_JOULES, of=f'{OF_RUN},part="passive"'), _TOKENS), "passive {{run_id}}"),
            ),
            width=24,
        ),
    ),
)

_MEMORY = Row(
    "Memory",
    (
        Panel(
            "Weights in each device",
            "bytes",
            "Of a replica's devices.",
            (
                (
                    f"max by (run_id, role, device_model) (pimserve_device_weight_bytes{{{OF_ENGINE}}})",
                    "{{device_model}} {{role}} {{run_id}}",
                ),
            ),
            "bars",
        ),
        Panel(
            "KV cache in use",
            "bytes",
            "Of all devices of a run, and what there is.",
            (
                (f"sum by (run_id) (pimserve_device_kv_bytes{{{OF_ENGINE}}})", "in use {{run_id}}"),
                (f"sum by (run_id) (pimserve_device_kv_capacity_bytes{{{OF_ENGINE}}})", "there is {{run_id}}"),
            ),
        ),
        Panel(
            "Crossbar tiers in use",
            "percentunit",
            "Tiers of the chips that hold weights; crossbar chips only.",
            (
                (
                    f'max by (run_id, role) (pimserve_device_tiers{{{OF_ENGINE},state="used"}})'
                    f' / max by (run_id, role) (pimserve_device_tiers{{{OF_ENGINE},state="total"}})',
                    "{{role}} {{run_id}}",
                ),
            ),
            "bars",
            most=1,
        ),
        Panel(
            "Devices",
            "short",
            "Of all replicas of a run.",
            ((f"sum by (run_id, device_model) (pimserve_devices{{{OF_ENGINE}}})", "{{device_model}} {{run_id}}"),),
            "stat",
        ),
    ),
)

DEVICES = Board(
    "pimserve-devices",
    "pimserve: devices",
    "Units, operators, links, energy and memory of the devices: Duplex and GPUs, crossbar chips.",
    (_UNITS, _LINKS, _ENERGY, _MEMORY),
    with_engines=True,
)
