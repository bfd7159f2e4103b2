"""The form of a case of the reference simulator for 3D AIMC, `aimc-reference-cases/1`.

Inputs (hardware, unit costs, model, mapping, workload) have to be complete and known. What the simulator derived from
them (chunks, mapping, routing) and its results are what a case is held against, and it may hold any of them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pimserve.device_models.aimc.mapping import MappingSpec, Strategy
from pimserve.device_models.aimc.operation_costs import AtLeastOnePs, NonNegative, Positive

Count = Annotated[int, Field(gt=0, le=10**7)]
Index = Annotated[int, Field(ge=0, le=2**63 - 1)]
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Pair = Annotated[list[Count], Field(min_length=2, max_length=2)]
Place = Annotated[list[Index], Field(min_length=2, max_length=2)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Hardware(_Part):
    """One chip."""

    tiles: Count
    tiers: Count
    tier_shape: Pair
    num_digital_units: Count
    num_mha_units: Count
    mvm_latency_ns: AtLeastOnePs
    mvm_energy_nJ: NonNegative  # noqa: N815 names are the file's
    kv_caching: bool
    dram_bandwidth_GBps: Positive = 5.332  # noqa: N815
    dram_active_power_W: NonNegative = 0.2467  # noqa: N815
    dram_inactive_power_W: NonNegative = 0.1297  # noqa: N815
    one_tier_at_a_time: bool = True
    lock_mha_unit_to_layer: bool = False


class Cost(_Part):
    """Unit costs: the placeholders that the simulator ships with, or affine functions with these parameters."""

    model: Literal["shipped", "affine"]
    params: dict[str, Any] | None = None


class Model(_Part):
    """A decoder-only transformer. A layer is MoE if its number divides by `moe_frequency` and there are experts."""

    d_model: Count
    heads: Count
    d_ff: Count
    layers: Count
    vocab: Count
    activation: Literal["relu", "gelu"]
    norm_first: bool
    num_experts: Annotated[int, Field(ge=0, le=10**5)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    moe_frequency: Count | None = None
    expert_density: list[Any] | None = None


class MappingStrategy(MappingSpec):
    """As in a device document, but that it has to be given.

    `density`, for mapping by pairs: how likely each pair of experts is chosen together, where that is not what tokens
    are routed by (`model.expert_density`).
    """

    model_config = ConfigDict(strict=True)

    strategy: Strategy
    density: list[Any] | None = None


class Workload(_Part):
    """Sequences that start together with `start_len` tokens and run until they have `target_len`."""

    sequences: Count
    start_len: Count
    target_len: Count


class Split(_Part):
    """The two parts of a figure of attention."""

    dram: Finite = 0.0
    comp: Finite = 0.0


class Counts(_Part):
    """Operations by kind; one that is left out has none."""

    tier_linear: Index = 0
    communication: Index = 0
    mha: Index = 0
    layer_norm: Index = 0
    digital_relu: Index = 0
    digital_gelu: Index = 0
    digital_add: Index = 0
    multinomial: Index = 0


class Sums(_Part):
    """Sums over all operations of a kind."""

    tier_linear: Finite = 0.0
    communication: Finite = 0.0
    mha: Split = Split()
    layer_norm: Finite = 0.0
    digital_relu: Finite = 0.0
    digital_gelu: Finite = 0.0
    digital_add: Finite = 0.0
    multinomial: Finite = 0.0

    def active(self) -> dict[str, float]:
        """By kind, the two parts of attention apart; without passive energy."""
        energies = self.model_dump(exclude={"mha", "passive"})
        return {**energies, "mha.dram": self.mha.dram, "mha.comp": self.mha.comp}


class Energies(Sums):
    """Energy by kind, and of what is drawn whether it works or not."""

    passive: Finite = 0.0


class _Given(BaseModel):
    """What the simulator says. Keys that are not held against ours are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class Derived(_Given):
    """What follows from the inputs; matrices by name, chunks row-major."""

    parameters: Index | None = None
    chunk_grid: dict[str, Pair] | None = None
    mapping: dict[str, list[Place]] | None = None
    mvms_per_tile: list[Index] | None = None
    routing: list[dict[str, list[list[Index]]]] | None = None


class Result(_Given):
    """What the simulated run gave."""

    latency_ns: Finite | None = None
    energy_nJ: Finite | None = None  # noqa: N815
    energy_breakdown_nJ: Energies | None = None  # noqa: N815
    op_latency_sums_ns: Sums | None = None
    op_counts: Counts | None = None
    flops: Finite | None = None
    peak_memory_bytes: Finite | None = None
    token_finish_ns: dict[str, list[Finite]] | None = None


class CaseForm(_Given):
    """One case. No input is optional here, so that a misspelt one is noticed though other keys are left alone."""

    hardware: Hardware
    cost: Cost
    model: Model
    mapping_strategy: MappingStrategy
    workload: Workload
    communication: bool
    derived: Derived = Derived()
    result: Result
