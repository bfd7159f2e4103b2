"""What one operation costs on a 3D AIMC chip: time in whole picoseconds, energy in nJ.

Four tables, told apart by `model`: `rates` (a fixed part and a rate per element: the presets of the catalogue),
`affine` (whole nanoseconds, which the reference cases use), `paper_table` (the paper's cost table as published by Gao
and Yang, arXiv 2602.10254) and `placeholder` (the constants that the reference simulator ships with).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from pimserve.device_models.aimc.network import Activation, Attention

PS_PER_NS = 1000
NonNegative = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]  # generous; beyond it sums leave 64 bit
Positive = Annotated[float, Field(ge=1e-6, le=1e12, allow_inf_nan=False)]
AtLeastOnePs = Annotated[float, Field(ge=1 / PS_PER_NS, le=1e12, allow_inf_nan=False)]
_FS_PER_PS, _PJ_PER_NJ = 1000, 1000
_SAMPLER_OPS = 512  # what the reference simulator charges a sampled token, whatever the vocabulary


class OpCost(NamedTuple):
    """Time and energy of one operation."""

    ps: int
    nj: float


class AttentionCost(NamedTuple):
    """One attention operation: reading the cache, and computing; whether they overlap is for the caller to say."""

    dram_ps: int
    compute_ps: int
    dram_nj: float
    compute_nj: float


class Dram(BaseModel):
    """The memory of one chip that holds the KV cache."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "dram"
    gb: Positive = Field(description="capacity of one chip's memory, GB")
    gb_per_s: Positive = Field(description="nominal bandwidth of one chip's memory, GB/s")
    efficiency: Annotated[float, Field(gt=0, le=1)] = 1.0
    first_access_ns: NonNegative = 0.0
    pj_per_bit: NonNegative = Field(0.0, description="cell to unit, with PHY and controller")
    active_w: NonNegative = Field(0.0, description="drawn while reading, beside pj_per_bit")
    idle_w: NonNegative = 0.0

    @property
    def bytes_per_ps(self) -> float:
        """Reachable bandwidth."""
        return self.gb_per_s * self.efficiency * 1e-3

    def move(self, size: float) -> OpCost:
        """Read or write `size` bytes, without the first access."""
        ps = size / self.bytes_per_ps
        return OpCost(round(ps), size * 8 * self.pj_per_bit * 1e-3 + self.active_w * ps / PS_PER_NS)


class _Costs(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RateCosts(_Costs):
    """A fixed part and a rate per element or byte for each operation; energy per elementary operation."""

    model: Literal["rates"] = "rates"
    mvm_ns: AtLeastOnePs
    mvm_nj: NonNegative
    hop_ns: NonNegative
    hop_ns_per_byte: NonNegative
    hop_nj: NonNegative
    hop_pj_per_byte: NonNegative
    digital_ns: NonNegative = Field(description="fixed part of a digital operation")
    add_elements_per_ns: Positive
    norm_elements_per_ns: Positive
    activation_elements_per_ns: Positive
    digital_pj_per_op: NonNegative
    norm_ops: Positive = Field(10, description="elementary operations per element")
    activation_ops: Positive = Field(8, description="elementary operations per element")
    attention_tflop_per_s: Positive = Field(description="of one attention unit")
    attention_pj_per_flop: NonNegative

    def hop(self, size: int) -> OpCost:
        """A transfer of `size` bytes between tiles."""
        ns = self.hop_ns + self.hop_ns_per_byte * size
        return OpCost(round(ns * PS_PER_NS), self.hop_nj + self.hop_pj_per_byte * size * 1e-3)

    def norm(self, size: int) -> OpCost:
        """A layer norm over `size` elements."""
        return self._digital(size, self.norm_elements_per_ns, self.norm_ops)

    def activation(self, kind: Activation, size: int) -> OpCost:
        """An activation function; ReLU is one operation per element."""
        if kind == "relu":
            return self._digital(size, self.add_elements_per_ns, 1)
        return self._digital(size, self.activation_elements_per_ns, self.activation_ops)

    def add(self, size: int) -> OpCost:
        """An elementwise sum or product."""
        return self._digital(size, self.add_elements_per_ns, 1)

    def sampler(self, vocab: int) -> OpCost:
        """Picking a token: one pass over the logits."""
        return self._digital(vocab, self.add_elements_per_ns, 1)

    def attention(self, shape: Attention, new: int, context: int, *, cached: bool, dram: Dram) -> AttentionCost:
        """Attention of `new` tokens over `context` tokens, themselves among them."""
        flops = attention_flops(shape, new, context)
        read = dram.move(seen(shape, new, context) * shape.kv_bytes) if cached else OpCost(0, 0.0)
        access = round(dram.first_access_ns * PS_PER_NS) if cached else 0
        return AttentionCost(
            access + read.ps,
            round(flops / self.attention_tflop_per_s),
            read.nj,
            flops * self.attention_pj_per_flop * 1e-3,
        )

    def _digital(self, size: int, per_ns: float, ops: float) -> OpCost:
        ns = self.digital_ns + size / per_ns
        return OpCost(round(ns * PS_PER_NS), size * ops * self.digital_pj_per_op * 1e-3)


class AffineCosts(_Costs):
    """Whole nanoseconds, as the reference cases have them; field names are theirs."""

    model: Literal["affine"] = "affine"
    mvm_ns: AtLeastOnePs
    mvm_nj: NonNegative
    mha_base_ns: NonNegative
    mha_flop_per_ns: Positive
    mha_nj_per_flop: NonNegative
    com_base_ns: NonNegative
    com_elem_per_ns: Positive
    com_nj_per_bit: NonNegative
    ln_base_ns: NonNegative
    ln_elem_per_ns: Positive
    ln_nj_per_elem: NonNegative
    act_base_ns: NonNegative
    act_elem_per_ns: Positive
    act_nj_per_elem: NonNegative
    add_base_ns: NonNegative
    add_elem_per_ns: Positive
    add_nj_per_elem: NonNegative
    smp_base_ns: NonNegative
    smp_elem_per_ns: Positive
    smp_nj_per_elem: NonNegative

    def hop(self, size: int) -> OpCost:
        """A transfer of `size` bytes between tiles."""
        return _of_ns(self.com_base_ns + math.ceil(size / self.com_elem_per_ns), 8 * size * self.com_nj_per_bit)

    def norm(self, size: int) -> OpCost:
        """A layer norm over `size` elements."""
        return _of_ns(self.ln_base_ns + math.ceil(size / self.ln_elem_per_ns), size * self.ln_nj_per_elem)

    def activation(self, kind: Activation, size: int) -> OpCost:
        """An activation function; all but ReLU take twice as long."""
        passes = 1 if kind == "relu" else 2
        ns = self.act_base_ns + passes * math.ceil(size / self.act_elem_per_ns)
        return _of_ns(ns, passes * size * self.act_nj_per_elem)

    def add(self, size: int) -> OpCost:
        """An elementwise sum or product."""
        return _of_ns(self.add_base_ns + math.ceil(size / self.add_elem_per_ns), size * self.add_nj_per_elem)

    def sampler(self, vocab: int) -> OpCost:
        """Picking a token."""
        ns = self.smp_base_ns + math.ceil(vocab / self.smp_elem_per_ns)
        return _of_ns(ns, _SAMPLER_OPS * self.smp_nj_per_elem)

    def attention(self, shape: Attention, new: int, context: int, *, cached: bool, dram: Dram) -> AttentionCost:
        """Attention of `new` tokens over `context` tokens."""
        flops = attention_flops(shape, new, context)
        read = math.ceil(shape.kv_bytes * seen(shape, new, context) / dram.gb_per_s) if cached else 0
        return AttentionCost(
            read * PS_PER_NS,
            round((self.mha_base_ns + math.ceil(flops / self.mha_flop_per_ns)) * PS_PER_NS),
            read * dram.active_w,
            flops * self.mha_nj_per_flop,
        )


class PlaceholderCosts(_Costs):
    """The constants of the reference simulator, which its authors tell users to replace."""

    model: Literal["placeholder"] = "placeholder"
    mvm_ns: AtLeastOnePs = 100
    mvm_nj: NonNegative = 10

    def hop(self, size: int) -> OpCost:
        """A transfer of `size` bytes between tiles."""
        return _of_ns(10, 8e-5 * size)

    def norm(self, size: int) -> OpCost:
        """A layer norm."""
        return _of_ns(50, 10)

    def activation(self, kind: Activation, size: int) -> OpCost:
        """An activation function."""
        return _of_ns(1 if kind == "relu" else 10, 10)

    def add(self, size: int) -> OpCost:
        """An elementwise sum or product."""
        return _of_ns(10, 10)

    def sampler(self, vocab: int) -> OpCost:
        """Picking a token."""
        return _of_ns(10, 0)

    def attention(self, shape: Attention, new: int, context: int, *, cached: bool, dram: Dram) -> AttentionCost:
        """Attention: stubs."""
        return AttentionCost(PS_PER_NS, PS_PER_NS, 1, 1)


class PaperTableCosts(_Costs):
    """The paper's table, second-hand (arXiv 2602.10254): the functions that its values at four widths follow.

    Attention over 64 tokens takes 0.0635 d^2 + 135 ns and 91.3 d pJ, and grows with the square of the tokens; one
    cached token takes the share of its context.
    """

    model: Literal["paper_table"] = "paper_table"
    mvm_ns: AtLeastOnePs = 100
    mvm_nj: NonNegative = 10
    attention_energy_factor: Positive = Field(1.0, description="on the attention energies of the table")

    def hop(self, size: int) -> OpCost:
        """A transfer of `size` bytes between tiles."""
        return _of_ns(24 * math.ceil(size / 512), size * 0.05052e-3)

    def norm(self, size: int) -> OpCost:
        """A layer norm over `size` elements."""
        blocks = math.ceil(size / 512)
        return _of_ns(50 * blocks, 20.96e-3 * blocks)

    def activation(self, kind: Activation, size: int) -> OpCost:
        """An activation function over `size` elements."""
        if kind == "relu":
            return _of_ns(1, 5.9e-8 * size)
        return _of_ns(16 * size / 256 + 6, 3.76e-5 * size)

    def add(self, size: int) -> OpCost:
        """An elementwise sum or product over `size` elements."""
        return _of_ns(8 * size / 256 + 4, 3.684e-5 * size)

    def sampler(self, vocab: int) -> OpCost:
        """Picking a token; not in the table, as in the reference simulator."""
        return _of_ns(10, 0)

    def attention(self, shape: Attention, new: int, context: int, *, cached: bool, dram: Dram) -> AttentionCost:
        """Attention of `new` tokens over `context` tokens: the table's value for the width, by (query, key) pairs.

        Reading the cache takes the memory's time on top.
        """
        width = shape.prefill_flops / 4
        # A token of a prompt sees half of the prompt on average, and the table holds whole prompts.
        pairs = pairs_seen(shape, new, context) * (2 if new > 1 else 1)
        read = dram.move(seen(shape, new, context) * shape.kv_bytes) if cached else OpCost(0, 0.0)
        ns = (0.0635 * width**2 + 135) * pairs / 64**2
        nj = 91.3e-3 * width * pairs / 64**2 * self.attention_energy_factor
        return AttentionCost(read.ps, round(ns * PS_PER_NS), read.nj, nj)


UnitCosts = Annotated[RateCosts | AffineCosts | PlaceholderCosts | PaperTableCosts, Field(discriminator="model")]


def seen(shape: Attention, new: int, context: int) -> int:
    """Tokens whose cache entries are read by `new` tokens, the last of `context`."""
    return context if shape.window_tokens is None else min(context, shape.window_tokens + new - 1)


def pairs_seen(shape: Attention, new: int, context: int) -> int:
    """(query, key) pairs of `new` tokens, the last of `context`, each seeing the tokens up to itself."""
    before = context - new
    window = shape.window_tokens if shape.window_tokens is not None else context
    growing = min(new, max(0, window - before))
    return growing * before + growing * (growing + 1) // 2 + (new - growing) * window


def attention_flops(shape: Attention, new: int, context: int) -> int:
    """FLOPs of attention of `new` tokens, the last of `context`."""
    return (shape.decode_flops if new == 1 else shape.prefill_flops) * pairs_seen(shape, new, context)


def fs_of(ps: float) -> int:
    """A time as plans have it."""
    return round(ps * _FS_PER_PS)


def pj_of(nj: float) -> int:
    """An energy as plans have it."""
    return round(nj * _PJ_PER_NJ)


def _of_ns(ns: float, nj: float) -> OpCost:
    return OpCost(round(ns * PS_PER_NS), nj)
