"""Units, operators, links, energy and memory of devices."""

from __future__ import annotations

from panels import Board, Panel, Row
from promql import OF_ENGINE, OF_RUN, growth, per_second, share

_BUSY = "pimserve_device_busy_seconds_total"
_BUSIEST = "pimserve_busiest_device_busy_seconds_total"
_JOULES = "pimserve_device_energy_joules_total"
_IDLE = "pimserve_group_idle_seconds_total"
_TOKENS = growth("pimserve_generation_tokens_total")


def _mean(metric: str, *labels: str, of: str = OF_ENGINE) -> str:
    """Growth per simulated second of each value of the labels, mean of the replicas of a role."""
    return f"avg by (run_id, role, {', '.join(labels)}) ({_of_engines(metric, *labels, of=of)})"


def _most(metric: str, label: str) -> str:
    """The same, the largest of the replicas of a role."""
    return f"max by (run_id, role, {label}) ({_of_engines(metric, label)})"


def _of_engines(metric: str, *labels: str, of: str = OF_ENGINE) -> str:
    return per_second(metric, of=of, by=("run_id", "engine", "role", *labels))


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

_GROUPS = Row(
    "Groups of devices",
    (
        *(
            Panel(
                f"What {whose} devices wait for",
                "percentunit",
                "Where attention and experts have devices of their own: share of simulated time in which these wait for"
                " the others (other_group), for what is on its way between both (link), or for a step (work); mean of"
                " the replicas chosen, by role. What is left of 100 % is work done.",
                ((_mean(_IDLE, "cause", of=f'{OF_ENGINE},group="{group}"'), "{{cause}} {{role}} {{run_id}}"),),
                stacked=True,
            )
            for group, whose in (("attention", "attention's"), ("experts", "the experts'"))
        ),
        Panel(
            "Working",
            "percentunit",
            "Share of simulated time in which a group of devices works, mean of the replicas chosen, by role.",
            ((_mean("pimserve_group_busy_seconds_total", "group"), "{{group}} {{role}} {{run_id}}"),),
            most=1,
        ),
        Panel(
            "Tokens between the groups",
            "short",
            "Vectors of tokens per simulated second, one for each layer and each device that they go to.",
            (
                (
                    per_second("pimserve_link_tokens_total", of=OF_ENGINE, by=("run_id", "role", "operator")),
                    "{{operator}} {{role}} {{run_id}}",
                ),
            ),
        ),
        Panel(
            "Busy share of the link between the groups",
            "percentunit",
            "Of each direction, mean of the replicas chosen, by role.",
            ((_mean(_BUSY, "unit", of=f'{OF_ENGINE},unit=~"dispatch|combine"'), "{{unit}} {{role}} {{run_id}}"),),
            most=1,
        ),
        Panel(
            "Devices of each group",
            "short",
            "Of all replicas of a run.",
            (
                (
                    f"sum by (run_id, role, group, device_model) (pimserve_group_devices{{{OF_ENGINE}}})",
                    "{{group}}: {{device_model}} {{role}} {{run_id}}",
                ),
            ),
            "stat",
        ),
        Panel(
            "Weights in each device of a group",
            "bytes",
            "In its memory; nothing where crossbars hold them.",
            (
                (
                    f"max by (run_id, role, group, device_model) (pimserve_group_weight_bytes{{{OF_ENGINE}}})",
                    "{{group}}: {{device_model}} {{role}} {{run_id}}",
                ),
            ),
            "bars",
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
    (_UNITS, _LINKS, _GROUPS, _ENERGY, _MEMORY),
    with_engines=True,
)
