"""What a decoded token costs (Step-3, arXiv 2507.19427): bytes and FLOPs from a model's shapes, prices from rooflines.

Attention costs the dearer of its KV cache's bytes and its FLOPs; its projections and the FFN cost their FLOPs. Each is
at the price of an hour over what the hardware does in it at the narrowest data type that it has. Embeddings, output
head and router are left out, as in the paper; the cache has 8 bit.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pimserve.cluster.validation.disaggregation_formula import Count, Formula, Inputs, Positive
from pimserve.device_models.model import ModelSpec

_S_PER_HOUR = 3600
_PER_MILLION = 1e6
_STAGES = 3  # of the pipeline: attention, network, FFN
_BYTES_PER_ELEMENT_MOVED = 3  # 8 bit to the FFN, 16 bit back
_FLOP_PER_WEIGHT = 2


class DecodedModel(Inputs):
    """A model's shapes. `query_rank`: width of the low-rank query of multi-matrix factorisation attention, if any."""

    shapes: ModelSpec
    query_rank: Annotated[int, Field(ge=1, le=200_000)] | None = None

    def context_elements(self, context_tokens: int) -> int:
        """Elements of the KV cache of one request."""
        spec = self.shapes
        seen = spec.layers * context_tokens
        if spec.attention.kind == "gqa" and spec.attention.window_tokens is not None:
            seen -= spec.windowed_layers * max(0, context_tokens - spec.attention.window_tokens)
        return seen * spec.attention.kv_elements

    @property
    def attention_intensity(self) -> float:
        """FLOPs of attention per element of the cache.

        Latent attention multiplies query and scores with the whole of an element's row, as the paper counts; the
        product of the scores needs its rotary part for nothing, and without it there are 5.6 % less in DeepSeek-V3.
        """
        attention = self.shapes.attention
        if attention.kind == "mla":
            return 2.0 * _FLOP_PER_WEIGHT * attention.heads
        return _FLOP_PER_WEIGHT * attention.heads / attention.kv_heads

    @property
    def linear_flop(self) -> float:
        """FLOPs of the projections of attention, for one token."""
        spec = self.shapes
        weights = spec.attention.parameters(spec.hidden)
        if self.query_rank is not None:
            query = spec.attention.heads * spec.attention.qk_dim
            weights += self.query_rank * (spec.hidden + query) - spec.hidden * query
        return float(_FLOP_PER_WEIGHT * spec.layers * weights)

    @property
    def ffn_flop(self) -> float:
        """FLOPs of dense layers, routed and shared experts, for one token."""
        spec = self.shapes
        weights = spec.dense_layers * spec.ffn.matrices * spec.ffn.intermediate if spec.ffn is not None else 0
        if spec.moe is not None:
            width = spec.moe.top_k * spec.moe.intermediate + spec.moe.shared_intermediate
            weights += spec.moe_layers * spec.moe.matrices * width
        return float(_FLOP_PER_WEIGHT * weights * spec.hidden)


class Accelerator(Inputs):
    """Price and rooflines. `fp8_tflop_per_s`: None where it computes in 16 bit."""

    usd_per_hour: Positive
    bf16_tflop_per_s: Positive
    fp8_tflop_per_s: Positive | None = None
    gb_per_s: Positive

    @property
    def flop_per_s(self) -> float:
        """At the narrowest data type."""
        return (self.fp8_tflop_per_s or self.bf16_tflop_per_s) * 1e12

    @property
    def usd_per_flop(self) -> float:
        """Price of a FLOP at the peak."""
        return self.usd_per_hour / _S_PER_HOUR / self.flop_per_s

    @property
    def usd_per_byte(self) -> float:
        """Price of a byte from memory at its peak."""
        return self.usd_per_hour / _S_PER_HOUR / (self.gb_per_s * 1e9)


class _OfModel(Formula):
    model: DecodedModel


class _OfContext(_OfModel):
    context_tokens: Count


class KvBytes(_OfContext):
    """Bytes of KV cache that a decoded token reads."""

    bytes_per_element: Positive = 1.0

    def value(self) -> float:
        """Layers x context x elements x bytes."""
        return self.model.context_elements(self.context_tokens) * self.bytes_per_element


class AttentionFlop(_OfContext):
    """FLOPs of a decoded token's attention over its context."""

    def value(self) -> float:
        """Elements of the cache x FLOPs per element."""
        return self.model.context_elements(self.context_tokens) * self.model.attention_intensity


class AttentionIntensity(_OfModel):
    """FLOPs of decode attention per byte of an 8-bit cache."""

    def value(self) -> float:
        """4 x heads with one latent; 2 x heads / KV heads otherwise."""
        return self.model.attention_intensity


class LinearFlop(_OfModel):
    """FLOPs of a decoded token's projections around attention."""

    def value(self) -> float:
        """2 x layers x weights."""
        return self.model.linear_flop


class FfnFlop(_OfModel):
    """FLOPs of a decoded token's FFNs."""

    def value(self) -> float:
        """2 x active weights."""
        return self.model.ffn_flop


class UsdPerFlop(Formula):
    """Price of a FLOP, $."""

    accelerator: Accelerator

    def value(self) -> float:
        """Price of a second / FLOP/s."""
        return self.accelerator.usd_per_flop


class UsdPerByte(Formula):
    """Price of a byte from memory, $."""

    accelerator: Accelerator

    def value(self) -> float:
        """Price of a second / bytes/s."""
        return self.accelerator.usd_per_byte


class AttentionPrice(_OfContext):
    """Price of attention with its projections, $ per million tokens."""

    accelerator: Accelerator

    def value(self) -> float:
        """max(FLOPs, bytes), each at its price, and the projections' FLOPs."""
        elements = self.model.context_elements(self.context_tokens)
        unit = self.accelerator
        dearer = max(elements * self.model.attention_intensity * unit.usd_per_flop, elements * unit.usd_per_byte)
        return _PER_MILLION * (dearer + self.model.linear_flop * unit.usd_per_flop)


class FfnPrice(_OfModel):
    """Price of the FFNs, $ per million tokens."""

    accelerator: Accelerator

    def value(self) -> float:
        """FLOPs at their price."""
        return _PER_MILLION * self.model.ffn_flop * self.accelerator.usd_per_flop


class TokenPrice(_OfContext):
    """Price of a token, $ per million, attention on one kind of accelerator and FFNs on another, or the same."""

    attention_accelerator: Accelerator
    ffn_accelerator: Accelerator

    def value(self) -> float:
        """The sum of both parts."""
        attention = AttentionPrice(
            model=self.model, context_tokens=self.context_tokens, accelerator=self.attention_accelerator
        )
        return attention.value() + FfnPrice(model=self.model, accelerator=self.ffn_accelerator).value()


class MinimumSparsity(Formula):
    """Least share of active experts with which the network keeps up with FFNs that are bound by computing.

    FFNs are at their peak from FLOPS / (2 BW) tokens for a dense layer, and from 1 / S as many where a share S of the
    experts is active. Their vectors, 3 bytes an element both ways, have a third of the TPOT for all layers:
    S >= H L FLOPS / (BW x network x 2/3 x TPOT/3).
    """

    accelerator: Accelerator
    hidden: Count
    layers: Count
    network_gbit_per_s: Positive
    tpot_ms: Positive = 50.0

    def value(self) -> float:
        """The share, which is above 1 where no model does."""
        tokens = self.accelerator.flop_per_s / (_FLOP_PER_WEIGHT * self.accelerator.gb_per_s * 1e9)
        moved = _BYTES_PER_ELEMENT_MOVED * self.hidden * self.layers * tokens
        return moved / (self.network_gbit_per_s / 8 * 1e9 * self.tpot_ms / 1e3 / _STAGES)
