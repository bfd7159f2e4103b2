"""Metric families of devices: what they do, what they hold, and what passes between them."""

from __future__ import annotations

from pimserve.cluster.metrics.family import DEVICE, GROUP, Family

DEVICE_FAMILIES = (
    Family(
        "pimserve_device_busy_seconds_total",
        "counter",
        "Busy time of a unit, in the mean over the devices of the replica.",
        (*DEVICE, "unit"),
    ),
    Family(
        "pimserve_busiest_device_busy_seconds_total",
        "counter",
        "Busy time of a unit on the device of the replica where it has most to do.",
        (*DEVICE, "unit"),
    ),
    Family(
        "pimserve_operator_time_seconds_total", "counter", "Time of a step that operators take.", (*DEVICE, "operator")
    ),
    Family(
        "pimserve_device_energy_joules_total",
        "counter",
        "Energy of all devices of the replica: active energy by operator and part (dram, compute), with operator"
        " expert_rebalancing what brought experts to where new layouts have them, and passive energy (operator and part"
        " passive), what they draw whether they work or not, where it is known and not left out.",
        (*DEVICE, "operator", "part"),
    ),
    Family(
        "pimserve_link_bytes_total",
        "counter",
        "Bytes that all devices of the replica have sent over their links, by operator and link (intra_node,"
        " inter_node, between_groups, inter_pool); of all-reduces those of a ring, whichever way their time is of;"
        " operator handover is"
        " what the KV caches of its finished requests brought from the"
        " prefill pool.",
        (*DEVICE, "operator", "link"),
    ),
    Family(
        "pimserve_link_tokens_total",
        "counter",
        "Tokens whose vectors went over the link between groups of devices, by operator (dispatch, combine), one for"
        " each layer and each device that they went to, as popularities of experts make expect.",
        (*DEVICE, "operator", "link"),
    ),
    # Groups of devices, where routed experts have devices of their own; device_model is then the group's.
    Family(
        "pimserve_group_busy_seconds_total",
        "counter",
        "Time in which a group of devices of the replica worked, with the links among them; groups are attention and"
        " experts.",
        GROUP,
    ),
    Family(
        "pimserve_group_idle_seconds_total",
        "counter",
        "Time in which a group of devices did not work, by what it waited for: the other group (other_group), what was"
        " on its way between both (link), or a step (work). Idle and busy time add up to the time that has passed.",
        (*GROUP, "cause"),
    ),
    Family(
        "pimserve_group_devices",
        "gauge",
        "Devices of a group of the replica; those of hot experts, where these have their own, are group hot_experts.",
        GROUP,
    ),
    Family("pimserve_group_weight_bytes", "gauge", "Weights in memory of each device of a group.", GROUP),
    Family("pimserve_devices", "gauge", "Devices of the replica.", DEVICE),
    Family(
        "pimserve_device_weight_bytes",
        "gauge",
        "Weights in each device; where experts have devices of their own, in each of the others.",
        DEVICE,
    ),
    Family(
        "pimserve_device_kv_bytes",
        "gauge",
        "KV cache in use in all devices of the replica, in the model's data type.",
        DEVICE,
    ),
    Family(
        "pimserve_device_kv_capacity_bytes",
        "gauge",
        "KV cache of all devices of the replica, in the model's data type.",
        DEVICE,
    ),
    Family("pimserve_device_tiers", "gauge", "Crossbar tiers of each chip, by use.", (*DEVICE, "state")),
)
