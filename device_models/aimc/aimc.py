"""3D AIMC chips as a device that serves models (`kind: aimc`)."""

from __future__ import annotations

from collections import abc
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from pimserve.device_models.aimc.aimc_spec import AimcSpec
from pimserve.device_models.aimc.crossbar_experts import CrossbarExperts
from pimserve.device_models.aimc.expert_tiers import expert_programming, programming_pj
from pimserve.device_models.aimc.ffn_serving import plan_without_attention
from pimserve.device_models.aimc.mapped_model import map_model
from pimserve.device_models.aimc.mapping import Density
from pimserve.device_models.aimc.network import Network
from pimserve.device_models.aimc.placed import PlacedNetwork
from pimserve.device_models.aimc.point_to_point import point_to_point
from pimserve.device_models.aimc.serving import UNITS, plan_of
from pimserve.device_models.aimc.walk import walk
from pimserve.device_models.device import Demand, Fitted, PointToPoint, Precision, measured_kernels
from pimserve.device_models.expert_layout import layer_loads
from pimserve.device_models.expert_picks import expert_share, mean_share
from pimserve.device_models.kv_groups import KvGroups
from pimserve.device_models.model import BYTES_PER_ELEMENT, ModelSpec
from pimserve.device_models.operators import Traffic
from pimserve.device_models.plan import CostPlan
from pimserve.errors import DoesNotFitError, InputError

_LAYOUT = "cluster.expert_placement"
_MOST_TILES = 2**22
_MOST_TILES_OF_LAYERS = 2**27  # each layer has what it leaves on each tile: 1 GB

# Bounds within which the event-driven model lies of a plan's step times, held by a test over a grid with the unit costs
# of the `rates` model (docs/aimc_validation.md).
EVENT_OVER_PLAN = (0.79, 1.24)


class _KvCache(NamedTuple):
    """Tokens that it holds, and would hold if memory had nothing else; how many times as many any number of chips can,
    each with one layer's at most."""

    tokens: int
    memory_tokens: int
    growth: float | None = None


class Aimc:
    """3D AIMC chips: the model, or a part of it, lies on their crossbars, the KV cache in their memories."""

    Spec = AimcSpec
    units = UNITS

    def __init__(self, spec: AimcSpec) -> None:
        self.spec = spec

    @property
    def area_mm2(self) -> float:
        """Silicon of one chip without its memory."""
        return self.spec.area_mm2

    @property
    def key_figures(self) -> dict[str, Any]:
        """Of one chip: its memory, the weights that it holds, and its passive power."""
        spec = self.spec
        return {
            "memory_gb": spec.dram.gb,
            "memory_gb_per_s": spec.dram.gb_per_s,
            "weight_capacity": spec.tiles * spec.tiers * spec.tier_rows * spec.tier_cols,
            "passive_w": spec.passive_w,
        }

    def fit(self, demand: Demand) -> Fitted:
        """Map the parts of the model that are asked for on the chips, and derive the plan from the mapping."""
        spec, model, split, moe = self.spec, demand.model, demand.split, demand.model.moe
        self._refuse_splits(demand)
        if spec.tiles * split.devices > _MOST_TILES:
            raise InputError("cluster.device.tiles", f"all chips of a replica may have {_MOST_TILES:,} together")
        if model.layers * spec.tiles * split.devices > _MOST_TILES_OF_LAYERS:
            of = f"{spec.tiles:,} tiles of {split.devices:,} chips x {model.layers:,} layers"
            raise InputError("cluster.device.tiles", f"{of}: at most {_MOST_TILES_OF_LAYERS:,} can be mapped")
        if spec.spread == "experts" and moe is None:
            raise InputError("cluster.device.spread", f"{model.name} has no routed experts to spread: use layers")
        chip = spec.chips(split.devices)
        popularity = demand.expert_weights or (((1.0,) * moe.experts,) if moe else ())
        share = _share(demand, popularity)  # the same for all layers
        density = None
        if moe and spec.mapping.strategy == "greedy_top2":
            density = _density(share, moe.top_k)
        placed = map_model(spec, chip, _with_copies(demand), demand.parts, density)
        network, spread = placed.network, placed.mapping.spread
        passing = partial(point_to_point, placed, share, lm_head=demand.lm_head)
        kv_cache, programming = _KvCache(0, 0), None
        if "attention" in demand.parts:
            found = walk(placed, popularity, lm_head=demand.lm_head)
            parted = moe is not None and "routed_experts" not in demand.parts
            in_turns = spread == "layers"
            plan = plan_of(found, chip, spec.power.idle_gating, in_turns=in_turns, layer_by_layer=parted)
            homes = [attention.chip for attention in found.attention]
            kv_cache = self._kv_cache(network, homes, demand, settled=placed.mapping.settled)
            sent = found.link_bytes, found.sampled_link_bytes
        else:
            plan = self._without_attention(placed, demand, by_expert=spread == "experts")
            if demand.rebalance_every:
                programming = partial(expert_programming, placed, spec)
            sent = _passing_bytes(passing()), 0.0
        plan, costs, measured = self._with_host(plan, demand)
        return Fitted(
            plan=plan,
            collectives=(),
            kv_capacity_tokens=kv_cache.tokens,
            kv_memory_tokens=kv_cache.memory_tokens,
            kv_growth=kv_cache.growth,
            expert_decision="exact",
            kv_groups=KvGroups.of(model),
            weight_bytes_per_device=0.0,
            reserved_bytes_per_device=(demand.reserve_gb or 0.0) * 1e9,
            facts=self._facts(placed),
            warnings=(
                *spec.warnings(passive_power=demand.passive_power),
                *(_attention_warnings(spec, model) if "attention" in demand.parts else ()),
                *_slicing_warnings(spec, network),
                *measured,
            ),
            parallelism=_parallelism(placed),
            costs=costs,
            traffic=_traffic(*sent) if split.devices > 1 else (),
            point_to_point=passing,
            expert_programming=programming,
            precision=Precision(spec.weight_precision, spec.weight_precision if moe else None, f"{spec.kv_bits}-bit"),
        )

    def _with_host(self, plan: CostPlan, demand: Demand) -> tuple[CostPlan, dict[str, Any], tuple[str, ...]]:
        """The plan with the host of the serving engine, which is with attention, where measured costs are asked for;
        which costs it has, and sentences on them.
        """
        if demand.backend is None:
            return plan, {"setting": "ideal"}, ()
        spec = self.spec
        if "attention" not in demand.parts:
            return plan, {"setting": "ideal"}, (f"{spec.name} keeps its projected rates",)
        kernels = measured_kernels(spec, demand)
        step = kernels.step
        plan = replace(plan, rows=plan.rows + step.host_terms(), frontend_ps=step.frontend_ps)
        projected = f"{spec.name} keeps its projected rates; only the host of the serving engine is measured"
        unused = _unused(demand.kernels or {})
        ignored = (f"{spec.name} makes no use of {', '.join(unused)}",) if unused else ()
        return plan, {**kernels.label, "measured": "host", "projected": [projected]}, (projected, *ignored)

    def _refuse_splits(self, demand: Demand) -> None:
        """Matrices are not cut over chips, and all chips of a replica are linked alike."""
        split = demand.split
        spread = f"chips of {self.spec.name} hold whole layers or whole experts (cluster.device.spread)"
        if split.tensor != split.devices_per_node:
            raise InputError("cluster.tensor_parallel", f"{spread}: leave it out")
        if split.experts != "ep":
            raise InputError("cluster.experts", f"{spread}: leave it out, or at ep")
        if "attention" in demand.parts and "routed_experts" in demand.parts and _has_layout(demand):
            raise InputError(
                _LAYOUT,
                f"the plan of a whole model on {self.spec.name} has expected loads of experts: leave it out, or put "
                "experts on chips of their own (cluster.placement.experts)",
            )
        if split.nodes != 1:
            raise InputError("cluster.nodes", "a replica's chips share one node: use devices_per_node")

    def _without_attention(self, placed: PlacedNetwork, demand: Demand, *, by_expert: bool) -> CostPlan:
        """The plan of chips that hold other parts of the model, with experts in the slots that are asked for."""
        plan = plan_without_attention(
            placed,
            self.spec.power.idle_gating,
            by_expert=by_expert,
            lm_head=demand.lm_head,
            all_experts=not demand.expert_picks,
        )
        return self._laid_out(plan, demand, placed)

    def _laid_out(self, plan: CostPlan, demand: Demand, placed: PlacedNetwork) -> CostPlan:
        """The plan with experts in the slots that are asked for.

        Raises:
            InputError: chips do not have as many experts each.
        """
        experts, moe = plan.experts, demand.model.moe
        if not isinstance(experts, CrossbarExperts) or moe is None or not _has_layout(demand):
            return plan
        split, groups, slices = demand.split, experts.groups, placed.network.slices
        if groups * slices != split.devices or groups != split.expert_groups(moe.experts):
            raise InputError(
                _LAYOUT,
                f"says nothing where chips of {self.spec.name} do not have as many experts of each layer: use "
                "cluster.device.spread: experts and a number of chips that divides them, or leave it out",
            )
        slots, every = demand.expert_slots, demand.rebalance_every
        move_pj = programming_pj(placed, self.spec) if every else 0
        own = replace(experts, experts=moe.experts, slots=slots, rebalance_every=every, move_pj=move_pj)
        return replace(plan, experts=own)

    def _kv_cache(self, network: Network, homes: Sequence[int], demand: Demand, *, settled: bool) -> _KvCache:
        """What the fullest chip's memory holds, where each layer's cache is on the chip that is its home."""
        per_token: dict[int, float] = {}
        windows: dict[int, float] = {}
        groups, apart = KvGroups.of(demand.model), 0.0
        for home, block in zip(homes, network.blocks, strict=True):
            shape = block.attention
            held = windows if shape.window_tokens is not None else per_token
            held[home] = held.get(home, 0.0) + shape.kv_bytes
            alone = (shape.kv_bytes, 0.0) if held is per_token else (0.0, shape.kv_bytes)
            apart = max(apart, groups.bytes_per_token(*alone))
        usable = (self.spec.dram.gb * demand.memory_utilization - (demand.reserve_gb or 0.0)) * 1e9
        size = max(groups.bytes_per_token(per_token.get(home, 0.0), windows.get(home, 0.0)) for home in homes)
        tokens = int(usable / size)
        if tokens <= 0:
            where, message = "cluster.device.dram.gb", f"{usable / 1e9:.3g} GB of a chip hold no KV cache"
            raise DoesNotFitError(where, message, None) if settled or usable < apart else InputError(where, message)
        return _KvCache(tokens, int(self.spec.dram.gb * 1e9 / size), 1.0 if settled else size / apart)

    def _facts(self, placed: PlacedNetwork) -> dict[str, Any]:
        spec, network, mapping = self.spec, placed.network, placed.mapping
        noise = spec.noise.model_dump(mode="json") | {"affects": "neither time nor energy"} if spec.noise else None
        return {
            "preset": spec.name,
            "costs": spec.costs.model,
            "mapping": spec.mapping.strategy,
            "spread": mapping.spread,
            "kv_bits": spec.kv_bits,
            "tiers_per_tile": spec.tiers,
            "tiers_used": sum(mapping.fill),
            "tiers": placed.chip.all_tiles * spec.tiers,
            "weights": network.parameters,
            "passive_w": placed.chip.chips * spec.passive_w,
            "programming": spec.programming_facts(network.parameters, max(mapping.fill)),
            "noise": noise,
            "event_model_over_plan": list(EVENT_OVER_PLAN) if spec.costs.model == "rates" else None,
        }


def _has_layout(demand: Demand) -> bool:
    """Whether it is said which experts are on which chips."""
    return bool(demand.expert_slots or demand.rebalance_every or demand.split.redundant_experts)


def _with_copies(demand: Demand) -> ModelSpec:
    """The model as if copies of experts were experts."""
    model, moe = demand.model, demand.model.moe
    if moe is None or not demand.split.redundant_experts:
        return model
    physical = moe.model_copy(update={"experts": moe.experts + demand.split.redundant_experts})
    return model.model_copy(update={"moe": physical})


def _share(demand: Demand, popularity: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Picks of a token that fall on each slot, in the mean over layers."""
    moe = demand.model.moe
    if moe is None:
        return ()
    if not demand.expert_slots:
        return demand.expert_picks or mean_share(popularity, moe.top_k)
    loads = layer_loads(demand.expert_slots, [expert_share(row, moe.top_k) for row in popularity])
    return tuple(loads.mean(axis=0).tolist())


def _traffic(bytes_per_token: float, bytes_per_output: float) -> tuple[Traffic, ...]:
    return (
        Traffic("chip to chip", "tokens", bytes_per_token),
        Traffic("chip to chip", "outputs", bytes_per_output),
    )


def _passing_bytes(sent: PointToPoint) -> float:
    """Bytes of a token between chips."""
    vectors = sum(size for _, size in sent.tokens.values())
    return float(vectors) + sum(sent.dispatch.values()) + sum(sent.combine.values())


def _parallelism(placed: PlacedNetwork) -> dict[str, Any]:
    """How chips share the model; chips of an expert where these are several."""
    slices = placed.network.slices
    return {"spread": placed.mapping.spread, **({"chips_per_expert": slices} if slices > 1 else {})}


def _slicing_warnings(spec: AimcSpec, network: Network) -> list[str]:
    """What experts that are larger than a chip ask for."""
    if network.slices == 1:
        return []
    return [
        f"{spec.name}: each expert is cut over {network.slices} chips, which pass on partial sums of 16 bit: assumed"
    ]


def _unused(changes: abc.Mapping[str, Any]) -> list[str]:
    """Changes to measured kernels that are none of the host."""
    unused = [f"costs.kernels.{key}" for key in changes if key not in {"version", "step"}]
    step = changes.get("step")
    return [*unused, *(f"costs.kernels.step.{key}" for key in step or () if key in {"layer_us", "memory"})]


def _attention_warnings(spec: AimcSpec, model: ModelSpec) -> list[str]:
    """What the model's attention asks of the device beyond what others do."""
    warnings = []
    if spec.kv_bits != 8 * BYTES_PER_ELEMENT[model.kv_dtype]:
        warnings.append(
            f"{spec.name}: the KV cache has {spec.kv_bits} bits per element, where the model says {model.kv_dtype}"
        )
    if model.attention.kind == "mla":
        warnings.append(
            f"{spec.name}: latent attention reads crossbars head by head, and against their direction: assumed"
        )
    return warnings


def _density(share: Sequence[float], top_k: int) -> Density:
    """Joint density of picks as greedy_top2 wants it: of pairs for two, of single experts for one."""
    if top_k == 1:
        return share
    pairs = np.outer(share, share)
    np.fill_diagonal(pairs, 0.0)
    return tuple(map(tuple, (pairs / pairs.sum()).tolist()))
