"""What the rest of pimserve knows of a device, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field

from pimserve.device_models.expert_layout import Slots
from pimserve.device_models.expert_programming import ExpertProgramming
from pimserve.device_models.experts import ExpertTerm
from pimserve.device_models.kernels import Collectives, Kernels, load_kernels
from pimserve.device_models.kv_groups import NO_WINDOWS, KvGroups
from pimserve.device_models.model import BYTES_PER_ELEMENT, ModelSpec
from pimserve.device_models.operators import (
    ALL_PARTS,
    Operator,
    Parallelism,
    Part,
    Traffic,
    kv_bytes_per_token_per_device,
    operators_of,
    weight_bytes_per_device,
)
from pimserve.device_models.plan import CostPlan
from pimserve.device_models.verifying import verifying
from pimserve.errors import InputError
from pimserve.quantity import GigabytesPerSecond, Microseconds

ExpertDecision = Literal["exact", "paper_table"]
_Figure = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]


class DeviceSpec(BaseModel):
    """What every description of a device says; a kind adds `kind`, a literal of its name, and its own figures.

    A whole description that leaves open a figure of `taken_over` (dotted paths, of figures or of sections) has that of
    the kind's `default_preset`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    default_preset: ClassVar[str | None] = None
    taken_over: ClassVar[tuple[str, ...]] = ()

    name: str = "custom"
    title: str = ""
    link_gb_per_s: GigabytesPerSecond = Field(description="device-to-device bandwidth inside a node, one way")
    link_latency_us: Microseconds = Field(description="one ring hop inside a node")
    one_shot_latency_us: Microseconds | None = Field(
        None,
        description="one all-reduce inside a node in which every device sends its vectors to all others, beside the "
        "time of their bytes; left out: rings only",
    )
    kernels: str | None = Field(
        None, description="GPU whose measured kernels its processor runs, or its host; with setting: measured only"
    )
    tdp_w: _Figure | None = Field(None, description="power at which the device is sold, W; a yardstick, not modelled")
    sources: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = Field((), description="sentences that belong with every result")
    caveats: tuple[str, ...] = Field((), description="likewise, of which every run warns")

    def following(self, base: DeviceSpec, given: Mapping[str, Any]) -> tuple[Self, tuple[str, ...]]:
        """The description with figures of `base` that hang on changed ones following these, and sentences that say so.

        Args:
            base: the preset that it started from.
            given: what was written down of it: that stays.
        """
        del base, given
        return self, ()


@dataclass(frozen=True, slots=True)
class Demand:
    """What a replica is to be fitted for.

    Args:
        model: the model.
        split: how many devices there are, and how they share the model.
        lm_head: whether the product with the vocabulary costs time.
        memory_utilization: share of the device memory that weights and KV cache may use.
        reserve_gb: of that, GB of each device which hold neither; None: what the backend keeps, nothing for ideal ones.
        max_num_seqs: requests that may run at once.
        max_step_tokens: tokens of the largest step.
        expert_weights: popularity of each routed expert, a row for all MoE layers or for each; empty for all alike.
        expert_picks: of a token's picks those that fall on each expert, in the mean over layers, where the model has
            others elsewhere; empty: as the weights make expect.
        rebalance_every: steps of the drift of popularities between two layouts of the experts; 0: they stay.
        expert_slots: expert in each slot of the groups of devices, a row for all MoE layers or for each; empty: experts
            in order.
        backend: serving engine whose measured costs count; None for an ideal device.
        kernels: changes to the measured kernels of the catalogue.
        expert_decision: whether a device with two units divides work among them by times ("exact"), or as a paper's
            table has it ("paper_table").
        passive_power: whether what devices draw without working counts. Whoever places a replica leaves it out of the
            plan, so that a device heeds this in what it says only.
        parts: of the model that are to be on these devices; the KV cache is with "attention".
        verify_tokens: of each decoding request in a step, drafts with them.
    """

    model: ModelSpec
    split: Parallelism
    lm_head: bool = True
    memory_utilization: float = 0.9
    reserve_gb: float | None = None
    max_num_seqs: int = 0
    max_step_tokens: int = 0
    expert_weights: tuple[tuple[float, ...], ...] = ()
    expert_picks: tuple[float, ...] = ()
    expert_slots: tuple[Slots, ...] = ()
    rebalance_every: int = 0
    backend: str | None = None
    kernels: Mapping[str, Any] | None = None
    expert_decision: ExpertDecision = "exact"
    passive_power: bool = True
    parts: frozenset[Part] = ALL_PARTS
    verify_tokens: int = 1


@dataclass(frozen=True, slots=True)
class Precision:
    """In what a device holds a model: data types, or `N-bit` where it knows none.

    `routed_weights`: None for a model without routed experts.
    """

    weights: str
    routed_weights: str | None
    kv_cache: str

    @classmethod
    def of(cls, model: ModelSpec) -> Self:
        """The model's own."""
        return cls(model.dense_dtype, model.routed_dtype if model.moe else None, model.kv_dtype)

    @property
    def kv_bits(self) -> float:
        """Bits of an element of the KV cache, its share of scales with it."""
        size = BYTES_PER_ELEMENT.get(self.kv_cache)
        return float(self.kv_cache.removesuffix("-bit")) if size is None else 8 * size


@dataclass(frozen=True, slots=True)
class Roof:
    """min(bandwidth x intensity, peak) of a unit of one device, nominal.

    `peak_flop_per_s`: None where it is not known. `dtype`: of its operands, where the unit has several peaks.
    """

    unit: str
    bytes_per_s: float
    peak_flop_per_s: float | None
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class PointToPoint:
    """What devices of a replica send each other outside of collectives, by (sender, receiver).

    Args:
        tokens: (vectors, bytes) for each token of a step.
        outputs: likewise for each sampled output.
        dispatch: bytes for each token, in the mean, to the devices of its routed experts.
        combine: likewise on their way back.
        picks: of a token's picks, in the mean, those that lead from a device to experts of another, or of its own.
        picks_per_token: experts that a token picks in all layers.
    """

    tokens: Mapping[tuple[int, int], tuple[int, Fraction]]
    outputs: Mapping[tuple[int, int], tuple[int, Fraction]]
    dispatch: Mapping[tuple[int, int], float]
    combine: Mapping[tuple[int, int], float]
    picks: Mapping[tuple[int, int], float]
    picks_per_token: int


@dataclass(frozen=True, slots=True)
class Fitted:
    """One copy of a model on the devices of a replica.

    `plan` lacks the collectives, which the links cost. `kv_capacity_tokens` are what layers that see the whole context
    can keep, if windows take nothing, `kv_memory_tokens` if there were nothing but weights beside them either (None:
    not said); `kv_groups` says how windowed ones share the memory. `reserved_bytes_per_device`
    hold neither weights nor KV cache. `facts` goes into the summary as it is; `warnings` are sentences that belong with
    every result. `parallelism` says how the devices share the model, where that is not the demand's split; None: it is.
    `precision` is what they really hold; None: the model's data types. `costs` says which setting the plan is of, and
    `collective_kernels` what the links between its devices reach, where that was measured. `traffic` is what passes
    between devices beside the collectives, and `point_to_point` works out from which to which; None: collectives are
    all that passes. `roofs` are those of its units; empty: one, of the memory and the 16-bit peak of the key figures.
    `expert_decision` is the demand's where that makes a difference to the plan, else "exact"; None: not said.
    `expert_programming` works out what writing routed experts anew takes, where that happens during a run (None: not
    known). `kv_growth` is how many times as many tokens any number of such devices can keep, at most; None: not said.
    """

    plan: CostPlan
    collectives: Sequence[Operator]
    kv_capacity_tokens: int
    weight_bytes_per_device: float
    reserved_bytes_per_device: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    parallelism: Mapping[str, Any] | None = None
    costs: Mapping[str, Any] = field(default_factory=lambda: {"setting": "ideal"})
    collective_kernels: Collectives | None = None
    traffic: tuple[Traffic, ...] = ()
    point_to_point: Callable[[], PointToPoint] | None = field(default=None, compare=False)
    precision: Precision | None = None
    roofs: tuple[Roof, ...] = ()
    kv_groups: KvGroups = NO_WINDOWS
    kv_memory_tokens: int | None = None
    expert_decision: ExpertDecision | None = None
    expert_programming: Callable[[], ExpertProgramming | None] | None = field(default=None, compare=False)
    kv_growth: float | None = None


class Device(Protocol):
    """One device: fits a model on itself and its like.

    Its class is registered by its kind, has its description's schema as `Spec` (a `DeviceSpec`), and is made from that.
    """

    @property
    def spec(self) -> DeviceSpec:
        """The device's description."""

    @property
    def units(self) -> tuple[str, ...]:
        """Names of its processing units."""

    @property
    def area_mm2(self) -> float | None:
        """Silicon that computes, memory stacks not counted; None where it is not known."""

    @property
    def key_figures(self) -> Mapping[str, Any]:
        """What the catalogue's listing tells: `memory_gb` of one device, `memory_gb_per_s`, `tflop_per_s_16_bit` and
        `passive_w` where they apply or are known, and what else follows from the description.
        """

    def fit(self, demand: Demand) -> Fitted:
        """Put one copy of a model on devices of this kind.

        Raises:
            InputError: it does not divide over the devices, or does not fit them.
        """


def kv_pool_bytes_per_token(model: ModelSpec, split: Parallelism) -> float:
    """Bytes of a device's KV cache that a token takes in all groups of layers which see the whole context."""
    groups, full = KvGroups.of(model), kv_bytes_per_token_per_device(model, split)
    return groups.bytes_per_token(full, full * model.windowed_layers / (model.layers - model.windowed_layers))


def measured_kernels(spec: DeviceSpec, demand: Demand) -> Kernels:
    """Kernels of the GPU that a device names, with the backend and the changes that are asked for.

    Raises:
        InputError: it names none, or none were measured with that backend.
    """
    if spec.kernels is None:
        raise InputError(
            "costs.setting",
            f"{spec.name} names no measured kernels; use setting: ideal, or say `kernels: GPU` in its description",
        )
    assert demand.backend is not None
    return load_kernels(spec.kernels, demand.backend, demand.kernels)


class OperatorDevice:
    """A device that fetches weights from its memory and runs the model operator by operator: GPUs and their like.

    A kind states `spec`, `units`, `memory_bytes` (of one device) and `compile`.
    """

    spec: DeviceSpec
    memory_bytes: float
    area_mm2: float | None = None

    @property
    def key_figures(self) -> Mapping[str, Any]:
        """Memory of one device."""
        return {"memory_gb": self.memory_bytes / 1e9}

    def compile(self, operators: Sequence[Operator], split: Parallelism) -> CostPlan:
        """Cost plan of all operators but collectives, which belong to the links."""
        raise NotImplementedError

    def roofs(self, _model: ModelSpec) -> tuple[Roof, ...]:
        """Nominal roofs of its units, the processor first; empty: as its key figures say."""
        return ()

    def reserved_bytes(self, demand: Demand) -> float:
        """Bytes of one device that hold neither weights nor KV cache: what is asked for, else none."""
        return (demand.reserve_gb or 0.0) * 1e9

    def shares_what_is_free(self, _demand: Demand) -> bool:
        """Whether memory_utilization is a share of what weights and the rest leave free, not of all memory."""
        return False

    def fit(self, demand: Demand) -> Fitted:
        """Weights and KV cache share the memory; all devices are alike."""
        model, split = demand.model, demand.split
        operators = verifying(
            operators_of(model, split, lm_head=demand.lm_head, parts=demand.parts), demand.verify_tokens
        )
        plan = replace(self.compile(operators, split), verify_tokens=demand.verify_tokens)
        if isinstance(plan.experts, ExpertTerm):
            slots, every = demand.expert_slots, demand.rebalance_every
            plan = replace(plan, experts=replace(plan.experts, slots=slots, rebalance_every=every))
        weights = weight_bytes_per_device(model, split, demand.parts)
        reserved = self.reserved_bytes(demand)
        tokens, most = self._kv_tokens(demand, weights, reserved)
        facts = {"assumptions": list(self.spec.assumptions)} if self.spec.assumptions else {}
        roofs, caveats = self.roofs(model), self.spec.caveats
        return Fitted(
            plan,
            operators,
            tokens,
            weights,
            reserved,
            facts,
            caveats,
            roofs=roofs,
            kv_groups=KvGroups.of(model),
            kv_memory_tokens=most,
            expert_decision="exact",
        )

    def _kv_tokens(self, demand: Demand, weights: float, reserved: float) -> tuple[int, int]:
        """Tokens that the KV cache holds, and that it would hold with nothing but weights beside it; without attention
        on these devices, none.

        Raises:
            InputError: what has to be on a device does not fit.
        """
        split = demand.split
        if self.shares_what_is_free(demand):
            usable = self.memory_bytes
            left = (usable - weights - reserved) * demand.memory_utilization
        else:
            usable = self.memory_bytes * demand.memory_utilization
            left = usable - weights - reserved
        if "attention" in demand.parts:
            per_token = kv_pool_bytes_per_token(demand.model, split)
            tokens = int(left / per_token) * split.data if left > 0 else 0
            most = int((self.memory_bytes - weights) / per_token) * split.data
            fits = tokens > 0
        else:
            tokens, most, fits = 0, 0, left >= 0
        if not fits:
            held = f", activations and the like {reserved / 1e9:.1f} GB" if reserved else ""
            remedies, of = "more devices, more tensor parallelism", ""
            if "attention" not in demand.parts:
                remedies, of = "more devices", f" ({', '.join(sorted(demand.parts)).replace('_', ' ')})"
            raise InputError(
                "cluster",
                f"{demand.model.name}{of} does not fit: weights take {weights / 1e9:.1f} GB{held} of each device's "
                f"usable {usable / 1e9:.1f} GB ({split.devices} x {self.spec.name}); use {remedies} or a smaller model",
            )
        return tokens, most
