"""Shapes of a transformer language model, and what follows from them.

Everything that a device needs to know about a model (weights, KV cache, FLOPs) is derived here from the shapes
that its authors publish; nothing is fitted. Counts are per model unless the name says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Dtype = Literal["fp16", "bf16", "fp8", "fp8_block", "mxfp4", "nvfp4"]

BYTES_PER_ELEMENT: dict[str, float] = {
    "fp16": 2.0,
    "bf16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0 + 4 / 128**2,  # 8 bit, and one 32-bit scale for 128 x 128 weights (arXiv 2412.19437, section 3.3)
    "mxfp4": 0.5 + 1 / 32,  # 4 bit, and one 8-bit scale for 32 elements (OCP MX v1.0)
    "nvfp4": 0.5 + 1 / 16,  # 4 bit, and one 8-bit scale for 16 elements; its 32-bit scale per tensor is left out
}

# Formats of one width differ in their scales, and run on the same multipliers.
_SAME_MULTIPLIERS: dict[str, tuple[str, ...]] = {
    "fp8_block": ("fp8_block", "fp8"),
    "mxfp4": ("mxfp4", "nvfp4"),
    "nvfp4": ("nvfp4", "mxfp4"),
}

# A hundred times the largest that was published, rounded up, of which the name stands beside: more is a slip of the
# pen, and what a document makes work with stays within seconds.
_MOST_LAYERS, _MOST_WIDE, _MOST_POSITIONS = 13_000, 8_000_000, 1_000_000_000
Layers = Annotated[int, Field(gt=0, le=_MOST_LAYERS)]  # Llama 3.1 405B: 126
Vectors = Annotated[int, Field(ge=0, le=1_000)]  # of norms: 4 in a layer of GPT-2
Hidden = Annotated[int, Field(gt=0, le=2_000_000)]  # PaLM 540B: 18,432
Vocabulary = Annotated[int, Field(gt=0, le=30_000_000)]  # Gemma: 256,000 and more
Heads = Annotated[int, Field(gt=0, le=13_000)]  # DeepSeek-V3: 128
HeadWidth = Annotated[int, Field(gt=0, le=60_000)]  # DeepSeek-V3.2: 576, of latent and rotary key
Rank = Annotated[int, Field(gt=0, le=200_000)]  # DeepSeek-V3: 1,536
FfnWidth = Annotated[int, Field(gt=0, le=_MOST_WIDE)]  # PaLM 540B: 73,728
Experts = Annotated[int, Field(gt=0, le=205_000)]  # Switch-C: 2,048
TopK = Annotated[int, Field(gt=0, le=2_000)]  # 8 in DeepSeek-V3; 22 of 512 in the widest
Positions = Annotated[int, Field(gt=0, le=_MOST_POSITIONS)]  # Llama 4 Scout: 10 million tokens
Parameters = Annotated[float, Field(gt=0, le=1e15)]  # Switch-C: 1.6e12
MOST_PICKS = 2_000_000  # experts x top_k: the law by which tokens pick them is a table of that size
MOST_EXPERTS = 20_000_000  # of all layers; DeepSeek-V3: 58 x 256


def compute_dtypes(dtype: str) -> tuple[str, ...]:
    """Data types at whose peak operands of `dtype` are multiplied, the preferred one first.

    Hardware with a peak for none of them widens the operands to 16 bit.
    """
    return _SAME_MULTIPLIERS.get(dtype, (dtype,))


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GroupedQueryAttention(_Spec):
    """Multi-head, grouped-query or multi-query attention (`kv_heads` = heads, fewer, or 1)."""

    kind: Literal["gqa"]
    heads: Heads
    kv_heads: Heads
    head_dim: HeadWidth
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = Field(False, description="one norm of width head_dim for all queries, and one for all keys")
    sinks: bool = Field(False, description="one learned softmax sink per query head")
    window_tokens: Positions | None = Field(None, description="sliding window of the windowed layers, tokens")
    window_every: Layers = Field(1, description="one layer in this many is windowed (when window_tokens is set)")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.window_every > 1 and self.window_tokens is None:
            raise ValueError(f"window_every ({self.window_every}) has no effect without window_tokens; give both")
        return self

    @property
    def qk_dim(self) -> int:
        """Width of one head's query and key."""
        return self.head_dim

    @property
    def v_dim(self) -> int:
        """Width of one head's value."""
        return self.head_dim

    @property
    def kv_elements(self) -> int:
        """Elements that one token leaves in the KV cache of one layer."""
        return 2 * self.kv_heads * self.head_dim

    def parameters(self, hidden: int) -> int:
        """Weights of one layer's attention: query, key, value and output projections, biases, query and key norms."""
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        out = self.heads * self.head_dim
        biases = (qkv if self.qkv_bias else 0) + (hidden if self.output_bias else 0)
        small = (2 * self.head_dim if self.qk_norm else 0) + (self.heads if self.sinks else 0)
        return hidden * (qkv + out) + biases + small


class MultiHeadLatentAttention(_Spec):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): the cache holds one latent for all heads."""

    kind: Literal["mla"]
    heads: Heads
    q_lora_rank: Rank
    kv_lora_rank: Rank
    qk_nope_head_dim: HeadWidth
    qk_rope_head_dim: HeadWidth
    v_head_dim: HeadWidth

    @property
    def qk_dim(self) -> int:
        """Width of one head's query and key in prefill (not absorbed)."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def v_dim(self) -> int:
        """Width of one head's value in prefill (not absorbed)."""
        return self.v_head_dim

    @property
    def kv_elements(self) -> int:
        """Elements that one token leaves in the KV cache of one layer: latent and shared rotary key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    def parameters(self, hidden: int) -> int:
        """Weights of one layer's attention, with the two latent norms."""
        query = hidden * self.q_lora_rank + self.q_lora_rank * self.heads * self.qk_dim
        key_value = hidden * self.kv_elements + self.kv_lora_rank * self.heads * (self.qk_nope_head_dim + self.v_dim)
        output = self.heads * self.v_dim * hidden
        return query + key_value + output + self.q_lora_rank + self.kv_lora_rank


class DenseFfn(_Spec):
    """Feed-forward network of a dense layer: 3 matrices when gated (SwiGLU), else 2."""

    intermediate: FfnWidth
    matrices: Literal[2, 3] = 3
    bias: bool = False

    def parameters(self, hidden: int) -> int:
        """Weights of one layer's FFN."""
        biases = (self.matrices - 1) * self.intermediate + hidden if self.bias else 0
        return self.matrices * hidden * self.intermediate + biases


class MixtureOfExperts(_Spec):
    """Mixture of experts: `experts` FFNs of which a router picks `top_k` for each token, and shared ones for all."""

    experts: Experts
    top_k: TopK
    intermediate: FfnWidth = Field(description="width of one routed expert")
    matrices: Literal[2, 3] = 3
    bias: bool = False
    router_bias: bool = False
    shared_intermediate: int = Field(
        0, ge=0, le=_MOST_WIDE, description="width of the always-on shared experts together; 0 for none"
    )
    first_layer: int = Field(0, ge=0, le=_MOST_LAYERS, description="layers before this one are dense")
    every: Layers = Field(1, description="one layer in this many is MoE, counted from first_layer; the rest are dense")

    @model_validator(mode="after")
    def _top_k_fits(self) -> Self:
        if self.top_k > self.experts:
            raise ValueError(f"top_k ({self.top_k}) must not exceed experts ({self.experts})")
        if self.top_k * self.experts > MOST_PICKS:
            raise ValueError(f"experts x top_k must be at most {MOST_PICKS:,} (got {self.experts} x {self.top_k})")
        return self

    def expert_parameters(self, hidden: int) -> int:
        """Weights of one routed expert."""
        return DenseFfn(intermediate=self.intermediate, matrices=self.matrices, bias=self.bias).parameters(hidden)

    def always_on_parameters(self, hidden: int) -> int:
        """Weights of one layer that every token uses: router and shared experts."""
        router = hidden * self.experts + (self.experts if self.router_bias else 0)
        return router + self.matrices * hidden * self.shared_intermediate


class PublishedFigures(_Spec):
    """What the authors publish about the model's size; the shapes must agree with it."""

    parameters: Parameters
    relative_tolerance: float = Field(0.01, gt=0, le=0.05, description="the rounding of `parameters`")
    active_parameters: Parameters | None = Field(None, description="per token, as the authors count it")
    active_relative_tolerance: float = Field(0.01, gt=0, le=0.05, description="the rounding of `active_parameters`")
    active_counts_lookup: bool = Field(True, description="whether `active_parameters` holds the input embedding")
    note: str = ""


def _as_published(name: str, published: float, derived: int, tolerance: float) -> None:
    if abs(derived - published) > tolerance * published:
        raise ValueError(
            f"published.{name} is {published:,.0f}, but the shapes have {derived:,}, which is "
            f"{100 * (derived / published - 1):+.2f} %; {100 * tolerance:g} % is allowed (its relative tolerance)"
        )


class ModelSpec(_Spec):
    """One language model: shapes, data types and where they were published."""

    name: str
    title: str = ""
    layers: Layers
    hidden: Hidden
    vocab: Vocabulary
    tied_embeddings: bool = False
    learned_positions: int = Field(0, ge=0, le=_MOST_POSITIONS, description="rows of a learned position table")
    norm_parameters: Vectors = Field(2, description="vectors of width `hidden` per layer in norms (weights and biases)")
    final_norm_parameters: Vectors = Field(1, description="vectors of width `hidden` in the norm after the last layer")
    attention: Annotated[GroupedQueryAttention | MultiHeadLatentAttention, Field(discriminator="kind")]
    ffn: DenseFfn | None = Field(None, description="FFN of the dense layers")
    moe: MixtureOfExperts | None = None
    max_model_len_tokens: Positions
    dense_dtype: Dtype = "fp16"
    expert_dtype: Dtype | None = Field(None, description="data type of routed experts; default: dense_dtype")
    kv_dtype: Dtype = "fp16"
    published: PublishedFigures | None = None
    sources: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _layers_have_ffn(self) -> Self:
        if self.dense_layers and self.ffn is None:
            raise ValueError(f"{self.dense_layers} layers are dense, so `ffn` is needed")
        if self.ffn is not None and not self.dense_layers:
            raise ValueError("`ffn` describes dense layers, but every layer is MoE")
        if self.moe is not None and self.moe.first_layer >= self.layers:
            raise ValueError(f"moe.first_layer ({self.moe.first_layer}) must be below layers ({self.layers})")
        if self.moe is not None and self.moe_layers * self.moe.experts > MOST_EXPERTS:
            counts = f"{self.moe_layers} MoE layers x {self.moe.experts} experts"
            raise ValueError(f"experts of all layers must be at most {MOST_EXPERTS:,} (got {counts})")
        return self

    @model_validator(mode="after")
    def _sizes_as_published(self) -> Self:
        published = self.published
        if published is None:
            return self
        _as_published("parameters", published.parameters, self.parameters, published.relative_tolerance)
        if published.active_parameters is not None:
            active = self.active_parameters - (0 if published.active_counts_lookup else self.lookup_parameters)
            tolerance = published.active_relative_tolerance
            _as_published("active_parameters", published.active_parameters, active, tolerance)
        return self

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        attention = self.attention
        if attention.kind == "gqa" and attention.window_tokens is not None and attention.window_every > self.layers:
            raise ValueError(f"window_every ({attention.window_every}) must not exceed layers ({self.layers})")
        return self

    @property
    def moe_layers(self) -> int:
        """Layers whose FFN is a mixture of experts."""
        if self.moe is None:
            return 0
        return len(range(self.moe.first_layer, self.layers, self.moe.every))

    @property
    def dense_layers(self) -> int:
        """Layers whose FFN is dense."""
        return self.layers - self.moe_layers

    @property
    def windowed_layers(self) -> int:
        """Layers whose attention sees a sliding window only."""
        attention = self.attention
        if attention.kind != "gqa" or attention.window_tokens is None:
            return 0
        return self.layers // attention.window_every

    @property
    def embedding_parameters(self) -> int:
        """Input embedding and, when it is not tied, the language-model head."""
        return self.vocab * self.hidden * (1 if self.tied_embeddings else 2) + self.learned_positions * self.hidden

    @property
    def lookup_parameters(self) -> int:
        """Weights that a token looks up and does not multiply with: untied input embedding, learned positions."""
        return (0 if self.tied_embeddings else self.vocab * self.hidden) + self.learned_positions * self.hidden

    @property
    def routed_parameters(self) -> int:
        """Weights of all routed experts."""
        return self.moe_layers * self.moe.experts * self.moe.expert_parameters(self.hidden) if self.moe else 0

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.embedding_parameters + self._layer_parameters + self.routed_parameters

    @property
    def active_parameters(self) -> int:
        """Weights that one token's forward pass uses (embedding and head counted whole)."""
        if self.moe is None:
            return self.parameters
        return self.parameters - self.routed_parameters * (self.moe.experts - self.moe.top_k) // self.moe.experts

    @property
    def _layer_parameters(self) -> int:
        """Weights of all layers without routed experts, and the final norm."""
        total = self.layers * (self.attention.parameters(self.hidden) + self.norm_parameters * self.hidden)
        total += self.final_norm_parameters * self.hidden
        if self.ffn is not None:
            total += self.dense_layers * self.ffn.parameters(self.hidden)
        if self.moe is not None:
            total += self.moe_layers * self.moe.always_on_parameters(self.hidden)
        return total

    @property
    def routed_dtype(self) -> Dtype:
        """Data type of the routed experts' weights."""
        return self.expert_dtype or self.dense_dtype

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights."""
        dense = self.parameters - self.routed_parameters
        return (
            dense * BYTES_PER_ELEMENT[self.dense_dtype] + self.routed_parameters * BYTES_PER_ELEMENT[self.routed_dtype]
        )

    @property
    def kv_bytes_per_token_layer(self) -> float:
        """Bytes that one token leaves in the KV cache of one layer."""
        return self.attention.kv_elements * BYTES_PER_ELEMENT[self.kv_dtype]

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes that one token leaves in the KV cache for as long as its request lives.

        Windowed layers drop what leaves their window; they count in `kv_window_bytes_per_request`.
        """
        return self.kv_bytes_per_token_layer * (self.layers - self.windowed_layers)

    @property
    def kv_window_bytes_per_request(self) -> float:
        """Bytes that the windowed layers hold for one request whose context is longer than the window."""
        if self.attention.kind != "gqa" or self.attention.window_tokens is None:
            return 0.0
        return self.kv_bytes_per_token_layer * self.windowed_layers * self.attention.window_tokens

    def flops_per_token(self, context_tokens: int) -> float:
        """FLOPs of one token's forward pass in decoding, attending to `context_tokens` tokens.

        Two per active weight in matrix products (the embedding look-up is none), plus the attention products
        Q x K and P x V; multi-head latent attention in its absorbed form (arXiv 2405.04434, section 2.1.2).
        """
        matrix = self.active_parameters - self.lookup_parameters
        attention = self.attention
        if attention.kind == "gqa":
            per_context = 4 * attention.heads * attention.head_dim
            window = attention.window_tokens or context_tokens
            full = self.layers - self.windowed_layers
            seen = full * context_tokens + self.windowed_layers * min(window, context_tokens)
        else:
            per_context = 2 * attention.heads * (2 * attention.kv_lora_rank + attention.qk_rope_head_dim)
            seen = self.layers * context_tokens
        return 2.0 * matrix + float(per_context * seen)
