"""What the study of mixed replicas compares: models, systems, traffic, limits and assumptions that are varied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Cluster = Mapping[str, Any]

MODELS = {
    "mixtral-8x7b": "Mixtral-8x7B",
    "grok-1": "Grok-1",
    "deepseek-v3": "DeepSeek-V3",
    "qwen3-235b-a22b": "Qwen3-235B",
}
SYSTEMS = {
    "gpu": "GPU only",
    "gpu-measured": "GPU only, as measured",
    "duplex": "Duplex only",
    "aimc": "AIMC only",
    "gpu+aimc": "GPU + AIMC",
    "duplex+aimc": "Duplex + AIMC",
    "gpu+duplex": "GPU + Duplex",
}
MIXED = tuple(name for name in SYSTEMS if "+" in name)

# Azure LLM inference trace 2023, code. Published p50, p90, p99, max and mean are 1469, 5188, 7436, 7437, 2048 tokens of
# input and 13, 55, 251, 1899, 27.9 of output; the other knots follow the shape of its first 30 minutes, shifted until
# the mean is the published one. Data: Azure/AzurePublicDataset (CC-BY-4.0, Microsoft); only statistics of it are here.
# fmt: off
_CODE_INPUT = (
    (0, 3), (0.01, 17), (0.05, 76), (0.1, 147), (0.25, 575), (0.5, 1469), (0.6, 1880), (0.75, 2660),
    (0.8, 3060), (0.85, 3980), (0.9, 5188), (0.94, 6600), (0.95, 7315), (0.99, 7436), (1, 7437),
)
_CODE_OUTPUT = (
    (0, 6), (0.05, 6), (0.1, 7), (0.25, 9), (0.5, 13), (0.6, 16), (0.75, 23), (0.8, 28),
    (0.9, 55), (0.95, 86), (0.98, 145), (0.99, 251), (0.995, 329), (0.999, 600), (1, 1899),
)
# fmt: on
CONVERSATION, CODE = "conversation", "code"
LENGTHS: Mapping[str, Mapping[str, Any]] = {
    CONVERSATION: {},  # the embedded workload's
    CODE: {
        "lengths": {
            "input": {"kind": "quantiles", "knots": _CODE_INPUT},
            "output": {"kind": "quantiles", "knots": _CODE_OUTPUT},
        }
    },
}


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits that `ATTAINMENT` of the requests must meet."""

    ttft_s: float
    tpot_s: float


ATTAINMENT = 0.9  # as DistServe (arXiv 2401.09670)
RELAXED, STRICT = "relaxed", "strict"
SLOS = {
    RELAXED: Slo(2.0, 0.05),  # TTFT of MLPerf's server scenarios; TPOT of Step-3 (arXiv 2507.19427)
    STRICT: Slo(1.5, 0.015),  # MLPerf, DeepSeek-R1 interactive
}

AIMC = {"preset": "aimc-realistic"}
AIMC_EXPERTS = {**AIMC, "spread": "experts"}  # all chips work on a layer at once


def whole(device: Any, devices: int, tensor: int | None = None, nodes: int = 1) -> dict[str, Any]:  # noqa: ANN401
    """A replica on devices of one kind; `devices` of each node."""
    cluster: dict[str, Any] = {"device": device, "nodes": nodes, "devices_per_node": devices}
    return cluster if tensor is None else {**cluster, "tensor_parallel": tensor}


def mixed(
    attention: Mapping[str, Any],
    experts: Any,  # noqa: ANN401
    devices: int,
    nodes: int = 1,
) -> dict[str, Any]:
    """A replica with attention on `attention`, and routed experts on so many devices of another kind."""
    group = {"device": experts, "nodes": nodes, "devices_per_node": devices}
    return {**attention, "placement": {"experts": group}}


@dataclass(frozen=True, slots=True)
class Shape:
    """A replica, and the tokens that a step of it has at most."""

    cluster: Cluster
    budget: int = 2048

    @property
    def keys(self) -> dict[str, Any]:
        """Of the scenario."""
        return {
            "cluster": self.cluster,
            "scheduler.max_num_batched_tokens": self.budget,
            "scheduler.max_num_seqs": min(MOST_SEQS, self.budget),
        }


MOST_SEQS = 1024  # that run at once on a replica
_SMALL, _USUAL, _LARGE = 512, 2048, 8192  # tokens of a step
_Split = tuple[int, int | None, int]  # devices of a node, tensor parallel (None: all of a node), nodes


def _shapes(
    on: Sequence[tuple[_Split, int]],
    chips: Sequence[tuple[Mapping[str, Any], int, int]],
    attention: Sequence[tuple[_Split, int]],
    experts: tuple[Mapping[str, Any], int],
    duplex: Sequence[tuple[_Split, tuple[int, int], int]],
) -> dict[str, list[Shape]]:
    """Replicas that are tried for each system, each with a budget of tokens.

    Args:
        on: for systems of one kind.
        chips: (device, chips, budget) for AIMC alone.
        attention: devices of attention where experts are on AIMC chips.
        experts: (device, chips) with experts alone.
        duplex: GPUs with attention, and (devices of a node, nodes) of Duplex with experts.
    """
    chip, number = experts
    return {
        **{
            system: [Shape(whole(device, *split), budget) for split, budget in on]
            for system, device in (("gpu", "h100"), ("gpu-measured", "h100"), ("duplex", "duplex"))
        },
        "aimc": [Shape(whole(device, count), budget) for device, count, budget in chips],
        **{
            f"{name}+aimc": [Shape(mixed(whole(device, *split), chip, number), budget) for split, budget in attention]
            for name, device in (("gpu", "h100"), ("duplex", "duplex"))
        },
        "gpu+duplex": [Shape(mixed(whole("h100", *gpus), "duplex", *pims), budget) for gpus, pims, budget in duplex],
    }


# The fewest devices that hold a model, and more where that could help. KV heads (8, 8, one latent, 4) bound the tensor
# parallelism; where it is below the devices of a node, attention is data-parallel over the groups.
SHAPES: Mapping[str, Mapping[str, Sequence[Shape]]] = {
    "mixtral-8x7b": _shapes(
        on=(((2, None, 1), _USUAL), ((4, 2, 1), _USUAL), ((8, 2, 1), _USUAL), ((8, 2, 1), _LARGE)),
        chips=((AIMC, 6, _USUAL), (AIMC_EXPERTS, 8, _USUAL), (AIMC_EXPERTS, 8, _SMALL)),
        attention=(((4, None, 1), _USUAL), ((4, None, 1), _LARGE), ((8, 2, 1), _USUAL), ((8, 2, 1), _LARGE)),
        experts=(AIMC_EXPERTS, 8),
        duplex=(((4, 2, 1), (4, 1), _USUAL), ((4, 2, 1), (4, 1), _LARGE)),
    ),
    "grok-1": _shapes(
        on=(((8, None, 2), _USUAL), ((8, None, 2), _LARGE), ((8, None, 4), _USUAL)),
        chips=((AIMC, 48, _USUAL), (AIMC_EXPERTS, 40, _USUAL), (AIMC_EXPERTS, 40, _SMALL)),
        attention=(((8, None, 1), _USUAL), ((8, 2, 2), _USUAL), ((8, 2, 2), _LARGE), ((8, 2, 4), _LARGE)),
        experts=(AIMC_EXPERTS, 40),  # each expert is cut over five
        duplex=(((8, None, 1), (8, 2), _USUAL), ((8, None, 1), (8, 2), _LARGE)),
    ),
    "deepseek-v3": _shapes(
        on=(((8, None, 2), _USUAL), ((8, None, 2), _LARGE), ((8, 4, 2), _LARGE)),
        chips=((AIMC_EXPERTS, 86, _USUAL), (AIMC_EXPERTS, 86, _SMALL)),
        attention=(((8, None, 1), _USUAL), ((8, 2, 2), _USUAL), ((8, 2, 4), _LARGE)),
        experts=(AIMC_EXPERTS, 86),
        duplex=(((8, None, 1), (8, 2), _USUAL),),
    ),
    "qwen3-235b-a22b": _shapes(
        on=(((8, 4, 1), _USUAL), ((8, 4, 1), _LARGE), ((8, 4, 2), _LARGE)),
        chips=((AIMC_EXPERTS, 32, _USUAL), (AIMC_EXPERTS, 32, _SMALL)),
        attention=(((8, 2, 1), _USUAL), ((8, 2, 2), _USUAL), ((8, 2, 2), _LARGE), ((8, 2, 4), _LARGE)),
        experts=(AIMC_EXPERTS, 32),
        duplex=(((4, None, 1), (8, 1), _USUAL),),
    ),
}


@dataclass(frozen=True, slots=True)
class Knob:
    """An assumption at a low and a high value: keys of the scenario each (None: the base is that end)."""

    name: str
    low: Mapping[str, Any] | None
    high: Mapping[str, Any] | None
    low_label: str
    high_label: str
    source: str
    demonstrated: bool = True  # whether the base value was built or measured anywhere
    power_only: bool = False  # it changes no time, so that the goodput is the base's


_EXPERTS = "cluster.placement.experts"
_CHIP = f"{_EXPERTS}.device"
_LINK = "cluster.placement.link"
_SHEET = "ranges as in docs/aimc.md"


def _stack(tiers: int) -> dict[str, Any]:
    """Chips of so many tiers, as many as it takes."""
    layers = {f"{_CHIP}.spread": None, f"{_CHIP}.mapping": {"strategy": "greedy_util"}} if tiers < 64 else {}
    return {f"{_CHIP}.tiers": tiers, f"{_EXPERTS}.devices_per_node": "auto", **layers}


def knobs(model: str) -> list[Knob]:
    """What is varied for a model on Duplex with AIMC, and how far."""
    weights = "bf16" if model == "mixtral-8x7b" else "fp8"
    other = "fp8" if weights == "bf16" else "bf16"
    return [
        Knob(
            "tiers per tile",
            _stack(8),
            _stack(256),
            "8",
            "256",
            "8 built (layers over chips then), 256 as 3D NAND; 64 assumed",
            False,
        ),
        Knob(
            "passive power per tile",
            {f"{_CHIP}.power.tile_mw": 1},
            {f"{_CHIP}.power.tile_mw": 30},
            "1 mW",
            "30 mW",
            f"7 mW assumed, 5 % of active; {_SHEET}",
            False,
            True,
        ),
        Knob(
            "passive power, rest of a chip",
            {f"{_CHIP}.power.other_w": 2},
            {f"{_CHIP}.power.other_w": 30},
            "2 W",
            "30 W",
            f"10 W assumed; {_SHEET}",
            False,
            True,
        ),
        Knob(
            "link bandwidth",
            {f"{_LINK}.gb_per_s": 25},
            {f"{_LINK}.gb_per_s": 450},
            "25 GB/s",
            "450 GB/s",
            "200 Gb/s NIC; NVLink of an H100 one way. 50: 400 Gb/s NIC",
        ),
        Knob(
            "link latency",
            {f"{_LINK}.latency_us": 1},
            {f"{_LINK}.latency_us": 20},
            "1 us",
            "20 us",
            "5 assumed; a hop in a node is 3, a dispatch between nodes 15 (docs/duplex.md)",
            False,
        ),
        Knob(
            "time of an MVM (converters)",
            {f"{_CHIP}.costs.mvm_ns": 100},
            {f"{_CHIP}.costs.mvm_ns": 521},
            "100 ns",
            "521 ns",
            "the paper's projection; four-phase HERMES. 133 measured at 256 x 256, 150 derived for 512 x 512",
            False,
        ),
        Knob(
            "energy of an MVM",
            {f"{_CHIP}.costs.mvm_nj": 10},
            {f"{_CHIP}.costs.mvm_nj": 118},
            "10 nJ",
            "118 nJ",
            "the paper's projection; four-phase HERMES. 20 projected from 29.4",
            False,
            True,
        ),
        Knob(
            "rows and columns of a tier",
            None,
            {f"{_CHIP}.tier_rows": 1024, f"{_CHIP}.tier_cols": 1024, f"{_EXPERTS}.devices_per_node": "auto"},
            "512",
            "1024",
            "256 built; 512 assumed, and what follows from 1024 as in docs/aimc.md",
            False,
        ),
        Knob(
            "KV cache",
            {"model.kv_dtype": "fp8"},
            None,
            "8 bit",
            "16 bit",
            "vLLM offers both",
        ),
        Knob(
            "weights of attention",
            {"model.dense_dtype": "fp8"} if weights == "bf16" else None,
            None if weights == "bf16" else {"model.dense_dtype": other},
            "8 bit",
            "16 bit",
            "as released: " + ("16 bit" if weights == "bf16" else "8 bit"),
        ),
        Knob(
            "Logic-PIM bandwidth",
            {"cluster.device.pim.bandwidth_multiple": 1},
            {"cluster.device.pim.bandwidth_multiple": 8},
            "1 x HBM",
            "8 x HBM",
            "4 proposed (arXiv 2409.01141); none is built; 1: no gain over HBM",
            False,
        ),
        Knob(
            "micro-batches",
            {"cluster.placement.micro_batches": 1},
            {"cluster.placement.micro_batches": 4},
            "1",
            "4",
            "a choice; auto",
        ),
    ]


LOAD_SHARES = (0.1,)  # of the goodput, for energy at lower loads
