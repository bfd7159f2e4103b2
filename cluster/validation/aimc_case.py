"""Cases of the reference simulator for 3D AIMC: a file of them, each as a network mapped on a chip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pimserve.cluster.validation.aimc_form import CaseForm
from pimserve.cluster.validation.targets import identified, read_list
from pimserve.device_models.aimc.chip import Chip
from pimserve.device_models.aimc.event.graph_builder import Routing
from pimserve.device_models.aimc.mapping import Mapping, map_network
from pimserve.device_models.aimc.network import Network, gpt2_like
from pimserve.device_models.aimc.operation_costs import AffineCosts, Dram, PlaceholderCosts
from pimserve.errors import InputError, validation_error

_UNIT_W = 1.0  # what each digital and attention unit draws at all times
_PREFIX = "decoder_stack."  # of the names of all matrices but the head's
_OF_HARDWARE = ("model", "mvm_ns", "mvm_nj")  # fields of the unit costs that are not among the case's parameters
# Of mapping's errors.
_KEYS = {"mapping.split_ffn": "mapping_strategy.split_ffn", "expert_density": "model.expert_density"}
_MOST_MATRICES, _MOST_PRODUCTS = 10**6, 10**7
_UNLIMITED_GB = 1e9  # the reference simulator's memory is never full


@dataclass(frozen=True, slots=True)
class Case:
    """One case, ready to run. `where` names it in errors.

    `routing`: experts of each token, of every sequence; None without experts. `mapping`: the case's own where it cannot
    be repeated (`mapping_given`), else ours.
    """

    id: str
    where: str
    form: CaseForm
    network: Network
    chip: Chip
    mapping: Mapping
    mapping_given: bool
    routing: Routing | None

    def describe(self) -> str:
        """The settings in one line."""
        network, chip, workload = self.network, self.chip, self.form.workload
        experts = max(
            (f"{len(block.experts)} experts, top {block.top_k}" for block in network.blocks if block.experts),
            default="dense",
        )
        return (
            f"{len(network.blocks)} layers of {network.hidden}, {experts}; {chip.tiles} tiles of {chip.tiers} tiers, "
            f"{self.form.mapping_strategy.strategy}; {workload.sequences} sequences, {workload.start_len} to "
            f"{workload.target_len} tokens"
        )


@dataclass(frozen=True, slots=True)
class Refused:
    """A case of a file that cannot be run. `id` is the case's own, or its place in the file; `reason` names both."""

    id: str
    reason: str


def read_cases(path: Path) -> Iterator[Case | Refused]:
    """Read a file of cases, in its order, and map each network on its chip.

    A case that is incomplete, contradicts itself or does not fit its chip is refused, and the others are read.

    Raises:
        InputError: the file cannot be read, is not JSON, or holds no list of cases.
    """
    seen: set[str] = set()
    for number, row in enumerate(read_list(path, "case"), 1):
        name = f"case {number}"
        try:
            where, name, document = identified(path, "case", number, row, seen)
            yield _case(where, name, document)
        except InputError as error:
            yield Refused(name, str(error))


def short_name(matrix: str) -> str:
    """A matrix of the case as the network names it."""
    return matrix.removeprefix(_PREFIX)


def _case(where: str, name: str, row: dict[str, Any]) -> Case:
    try:
        document = CaseForm.model_validate(row)
    except ValidationError as error:
        raise validation_error(where, error, CaseForm) from None
    try:
        return _built(where, name, document)
    except InputError as error:
        raise InputError("", "\n".join(f"{where}.{line}" for line in str(error).splitlines())) from None


def _built(where: str, name: str, document: CaseForm) -> Case:
    network, chip = _network(document), _chip(document)
    routing = _routing(document, network)
    spec = document.mapping_strategy
    density = spec.density or document.model.expert_density
    given = spec.strategy == "greedy_random" or (spec.strategy == "greedy_top2" and routing is not None and not density)
    if given:
        mapping = _given_mapping(document, network, chip, routing)
    else:
        try:
            mapping = map_network(network, chip, spec, expert_density=density)
        except InputError as error:
            raise InputError(_KEYS.get(error.where, "hardware.tiles"), error.message) from None
    _check_lengths(document)
    return Case(name, where, document, network, chip, mapping, given, routing)


def _network(document: CaseForm) -> Network:
    model, workload = document.model, document.workload
    if workload.target_len <= workload.start_len:
        raise InputError(
            "workload.target_len", f"must be above start_len, {workload.start_len} (got {workload.target_len})"
        )
    experts, top_k = model.num_experts or 0, model.top_k or 0
    if (top_k > 0) != (experts > 0) or top_k > experts:
        allowed = f"1 to num_experts, {experts}" if experts else "0, or left out, without experts"
        raise InputError("model.top_k", f"must be {allowed} (got {top_k})")
    for where, density in (
        ("model.expert_density", model.expert_density),
        ("mapping_strategy.density", document.mapping_strategy.density),
    ):
        if density is not None:
            _check_density(where, density, experts)
    _check_size(document)
    return gpt2_like(
        hidden=model.d_model,
        heads=model.heads,
        ffn_width=model.d_ff,
        layers=model.layers,
        vocab=model.vocab,
        positions=workload.target_len,
        activation=model.activation,
        norm_first=model.norm_first,
        experts=experts,
        top_k=top_k,
        moe_every=model.moe_frequency or 1,
    )


def _check_density(where: str, density: list[Any], experts: int) -> None:
    if not experts:
        raise InputError(where, "must be left out of a model without experts")
    rows = density if density and isinstance(density[0], list) else [density]
    alike = len(density) == experts and all(isinstance(row, list) and len(row) == experts for row in rows)
    if not alike or not all(isinstance(p, int | float) and 0 <= p <= 1 for row in rows for p in row):
        raise InputError(
            where,
            f"must hold probabilities of {experts} experts, or of {experts} x {experts} pairs of experts",
        )


def _check_size(document: CaseForm) -> None:
    """Refuse what would run for hours: too many matrices, or too many products of them."""
    model, workload, (rows, cols) = document.model, document.workload, document.hardware.tier_shape
    matrices = model.layers * (5 + 2 * (model.num_experts or 1))
    if matrices > _MOST_MATRICES:
        raise InputError("model.layers", f"make about {matrices:,} matrices; at most {_MOST_MATRICES:,} are run")

    def chunks(n: int, m: int) -> int:
        return -(-n // rows) * -(-m // cols)

    wide, narrow = chunks(model.d_model, model.d_ff), chunks(model.d_ff, model.d_model)
    per_token = model.layers * (4 * chunks(model.d_model, model.d_model) + (model.top_k or 1) * (wide + narrow))
    steps = workload.target_len - workload.start_len
    again = 1 if document.hardware.kv_caching else (workload.start_len + workload.target_len) // 2
    products = workload.sequences * (workload.start_len + steps * again) * per_token
    if products > _MOST_PRODUCTS:
        raise InputError("workload", f"asks for about {products:,} products; at most {_MOST_PRODUCTS:,} are run")


def _chip(document: CaseForm) -> Chip:
    hardware, cost = document.hardware, document.cost
    mvm = {"mvm_ns": hardware.mvm_latency_ns, "mvm_nj": hardware.mvm_energy_nJ}
    costs: PlaceholderCosts | AffineCosts
    if cost.model == "shipped":
        if cost.params:
            raise InputError("cost.params", "must be left out where cost.model is 'shipped'")
        costs = PlaceholderCosts(**mvm)
    else:
        known = [key for key in AffineCosts.model_fields if key not in _OF_HARDWARE]
        unknown = [key for key in cost.params or {} if key not in known]
        if unknown:
            raise InputError(f"cost.params.{unknown[0]}", f"unknown key (known: {', '.join(known)})")
        try:
            costs = AffineCosts.model_validate({**(cost.params or {}), **mvm}, strict=True)
        except ValidationError as error:
            raise validation_error("cost.params", error, AffineCosts) from None
    return Chip(
        tiles=hardware.tiles,
        tiers=hardware.tiers,
        tier_rows=hardware.tier_shape[0],
        tier_cols=hardware.tier_shape[1],
        digital_units=hardware.num_digital_units,
        attention_units=hardware.num_mha_units,
        costs=costs,
        dram=Dram(
            gb=_UNLIMITED_GB,
            gb_per_s=hardware.dram_bandwidth_GBps,
            active_w=hardware.dram_active_power_W,
        ),
        passive_w=(hardware.num_digital_units + hardware.num_mha_units) * _UNIT_W
        + (hardware.dram_inactive_power_W if hardware.kv_caching else 0.0),
        one_tier_at_a_time=hardware.one_tier_at_a_time,
        lock_attention_to_layer=hardware.lock_mha_unit_to_layer,
    )


def _routing(document: CaseForm, network: Network) -> Routing | None:
    """The experts that the simulator drew, checked against what the run will ask for."""
    moe = [layer for layer, block in enumerate(network.blocks) if block.experts]
    given = document.derived.routing
    if not moe:
        if given:
            raise InputError("derived.routing", "must be left out of a model without experts")
        return None
    workload = document.workload
    steps = workload.target_len - workload.start_len
    if given is None:
        raise InputError("derived.routing", "is missing; the experts of each token cannot be known without it")
    if len(given) != steps:
        raise InputError("derived.routing", f"must have {steps} steps, one for each generated token (got {len(given)})")
    for step, layers in enumerate(given):
        where = f"derived.routing.{step}"
        if sorted(layers) != sorted(map(str, moe)):
            raise InputError(where, f"must have the MoE layers {_listed(moe)} (got {_listed(layers)})")
        alone = document.hardware.kv_caching and step > 0
        tokens = 1 if alone else workload.start_len + step
        for layer, chosen in layers.items():
            block = network.blocks[int(layer)]
            if len(chosen) != tokens:
                raise InputError(f"{where}.{layer}", f"must have {tokens} tokens (got {len(chosen)})")
            for token, experts in enumerate(chosen):
                distinct = len(set(experts)) == len(experts) == block.top_k
                if not distinct or max(experts) >= len(block.experts):
                    raise InputError(
                        f"{where}.{layer}.{token}",
                        f"must be {block.top_k} different experts below {len(block.experts)} (got {experts})",
                    )
    return given


def _check_lengths(document: CaseForm) -> None:
    """Lists of results that have to be as long as the inputs say."""
    workload, tiles = document.workload, document.hardware.tiles
    generated = workload.target_len - workload.start_len
    for sequence, times in (document.result.token_finish_ns or {}).items():
        where = f"result.token_finish_ns.{sequence}"
        if sequence not in map(str, range(workload.sequences)):
            raise InputError(where, f"must be the number of a sequence, 0 to {workload.sequences - 1}")
        if len(times) != generated:
            raise InputError(where, f"must have {generated} times, one for each generated token (got {len(times)})")
    mvms = document.derived.mvms_per_tile
    if mvms is not None and len(mvms) != tiles:
        raise InputError("derived.mvms_per_tile", f"must have {tiles} tiles (got {len(mvms)})")


def _given_mapping(document: CaseForm, network: Network, chip: Chip, routing: Routing | None) -> Mapping:
    """The case's own mapping, where chance had a part in it that the case does not hold."""
    spec = document.mapping_strategy
    places = {short_name(name): chunks for name, chunks in (document.derived.mapping or {}).items()}
    chosen = {
        (int(layer), e) for step in routing or () for layer, tokens in step.items() for token in tokens for e in token
    }
    tiles: list[tuple[int, ...]] = []
    tiers: list[tuple[int, ...]] = []
    fill = [0] * chip.tiles
    seen: set[tuple[int, int]] = set()
    for matrix in network.matrices:
        where = f"derived.mapping.{matrix.name}"
        chunks = places.get(matrix.name)
        rows, cols = matrix.grid(chip.tier_rows, chip.tier_cols)
        if chunks is None:
            # Position embeddings and experts that no token is sent to are never read.
            expert_unused = matrix.expert is not None and (matrix.layer, matrix.expert) not in chosen
            if not expert_unused and matrix.role != "position_embedding":
                raise InputError(where, f"is missing; {spec.strategy} cannot be repeated, so the case's own is needed")
            chunks = []
        elif len(chunks) != rows * cols:
            raise InputError(where, f"must place {rows} x {cols} chunks (got {len(chunks)})")
        for tile, tier in chunks:
            if tile >= chip.tiles or tier >= chip.tiers:
                raise InputError(
                    where, f"must be on tiles below {chip.tiles} and tiers below {chip.tiers} (got {[tile, tier]})"
                )
            if (tile, tier) in seen:
                raise InputError(where, f"tile {tile}, tier {tier} holds another chunk already")
            seen.add((tile, tier))
            fill[tile] += 1
        tiles.append(tuple(tile for tile, _ in chunks))
        tiers.append(tuple(tier for _, tier in chunks))
    return Mapping(tuple(tiles), tuple(tiers), tuple(fill))


def _listed(keys: Iterable[object]) -> str:
    return ", ".join(map(str, keys)) or "none"
