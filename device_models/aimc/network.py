"""A model as matrices on crossbars, and the order in which a token passes through them.

`gpt2_like` builds the blocks of the reference simulator; `network_of` those of any model of the catalogue: grouped
queries, latent attention, gated FFNs, shared experts. Both give the same structure, so that mapping, task graph and
cost plan know one.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

from pimserve.device_models.model import ModelSpec
from pimserve.device_models.operators import ALL_PARTS, Part

Role = Literal["token_embedding", "position_embedding", "projection", "router", "expert", "head"]
Activation = Literal["relu", "gelu", "silu"]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight matrix of `rows` inputs and `cols` outputs (y = x W); `expert` is its routed expert's number.

    Where every head has an input of its own, `head_cols` are the columns that share one.
    """

    name: str
    layer: int
    role: Role
    rows: int
    cols: int
    expert: int | None = None
    head_cols: int | None = None

    def grid(self, tier_rows: int, tier_cols: int) -> tuple[int, int]:
        """(row blocks, column blocks) on crossbars of that size, one tier each."""
        return -(-self.rows // tier_rows), -(-self.cols // tier_cols)

    def reads(self, tier_cols: int) -> int:
        """MVMs of one chunk for one token: one, or one for each head whose columns it holds."""
        return 1 if self.head_cols is None else -(-min(tier_cols, self.cols) // self.head_cols)


@dataclass(frozen=True, slots=True)
class Ffn:
    """A feed-forward network: indices of its matrices. `up` holds one, or the gate and the up projection."""

    up: tuple[int, ...]
    down: int
    width: int

    @property
    def matrices(self) -> tuple[int, ...]:
        """All of them."""
        return (*self.up, self.down)


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention of one layer, for all heads.

    `kv_bytes` is what one token leaves in the cache; `decode_flops` are per context token, `prefill_flops` per
    (query, key) pair. `kv_heads` is into how many independent parts it can be cut.
    """

    heads: int
    kv_heads: int
    kv_bytes: int
    decode_flops: int
    prefill_flops: int
    window_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """One layer. A stage is a set of matrices that run side by side on the same vector; stages follow each other.

    `before` leads to attention, `after` from attention to the residual. Then comes one dense FFN, or a router and the
    experts that it chooses from, and shared experts (an FFN of all tokens) beside these. What lies on other devices is
    empty. An expert is an FFN, or as many as it is cut into, each with its share of the width, whose results add up to
    the expert's. `results`: of experts of a token, wherever they are, which are summed after the router.
    """

    before: tuple[tuple[int, ...], ...]
    attention: Attention
    after: tuple[tuple[int, ...], ...]
    dense: Ffn | None = None
    router: int | None = None
    experts: tuple[tuple[Ffn, ...], ...] = ()
    top_k: int = 0
    shared: Ffn | None = None
    results: int = 0


@dataclass(frozen=True, slots=True)
class Network:
    """Matrices in the order in which they are mapped, and the blocks that use them.

    Without attention, or without the output head, these are on other devices; embeddings are with attention.
    """

    hidden: int
    vocab: int
    activation: Activation
    matrices: tuple[Matrix, ...]
    blocks: tuple[Block, ...]
    token_embedding: int | None
    position_embedding: int | None
    head: int | None
    norm_first: bool
    parameters: int = field(init=False)

    @property
    def slices(self) -> int:
        """FFNs that each routed expert is cut into."""
        return next((len(block.experts[0]) for block in self.blocks if block.experts), 1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", sum(m.rows * m.cols for m in self.matrices))

    def tiers(self, tier_rows: int, tier_cols: int) -> int:
        """Crossbars that hold all matrices."""
        return sum(nv * nh for nv, nh in (m.grid(tier_rows, tier_cols) for m in self.matrices))


class _Builder:
    """Collects matrices and hands out their indices."""

    def __init__(self) -> None:
        self.matrices: list[Matrix] = []

    def add(
        self,
        name: str,
        layer: int,
        role: Role,
        rows: int,
        cols: int,
        expert: int | None = None,
        head_cols: int | None = None,
    ) -> int:
        self.matrices.append(Matrix(name, layer, role, rows, cols, expert, head_cols))
        return len(self.matrices) - 1

    def ffn(
        self, name: str, layer: int, role: Role, hidden: int, width: int, up: tuple[str, ...], expert: int | None = None
    ) -> Ffn:
        first = tuple(self.add(f"{name}.{part}", layer, role, hidden, width, expert) for part in up)
        return Ffn(first, self.add(f"{name}.ffn2", layer, role, width, hidden, expert), width)

    def gated(self, name: str, layer: int, hidden: int, width: int, matrices: int, expert: int | None = None) -> Ffn:
        """One of three matrices, or of two: then it has no gate."""
        up = ("gate", "ffn1") if matrices == 3 else ("ffn1",)
        return self.ffn(name, layer, "projection" if expert is None else "expert", hidden, width, up, expert)


def gpt2_like(
    *,
    hidden: int,
    heads: int,
    ffn_width: int,
    layers: int,
    vocab: int,
    positions: int,
    activation: Activation = "relu",
    norm_first: bool = False,
    experts: int = 0,
    top_k: int = 0,
    moe_every: int = 1,
) -> Network:
    """The decoder that the reference simulator builds, matrices named and ordered as there.

    Layer l holds the projections that make the queries, keys and values of layer l + 1 (`*_proj_out`). A layer is MoE
    if its number divides by `moe_every` and there are experts. `positions` is the length of the position table.
    """
    build = _Builder()
    attention = Attention(heads, heads, 2 * hidden, 4 * hidden, 4 * hidden)

    def qkv(layer: int, direction: str) -> tuple[int, ...]:
        return tuple(
            build.add(f"layers.{layer}.{part}_proj_{direction}", layer, "projection", hidden, hidden) for part in "qkv"
        )

    blocks: list[Block] = []
    token = build.add("layers.0.token_embedding", 0, "token_embedding", vocab, hidden)
    position = build.add("layers.0.pos_embedding", 0, "position_embedding", positions, hidden)
    before = qkv(0, "in")
    for layer in range(layers):
        following = qkv(layer, "out") if layer < layers - 1 else ()
        out = build.add(f"layers.{layer}.out_proj", layer, "projection", hidden, hidden)
        name = f"layers.{layer}"
        if experts and layer % moe_every == 0:
            router = build.add(f"{name}.moe_layer.router", layer, "router", hidden, experts)
            ffns = tuple(
                (build.ffn(f"{name}.moe_layer.experts.{e}", layer, "expert", hidden, ffn_width, ("ffn1",), e),)
                for e in range(experts)
            )
            blocks.append(Block((before,), attention, ((out,),), None, router, ffns, top_k, results=top_k))
        else:
            dense = build.ffn(name, layer, "projection", hidden, ffn_width, ("ffn1",))
            blocks.append(Block((before,), attention, ((out,),), dense))
        before = following
    head = build.add("lm_head", layers - 1, "head", hidden, vocab)
    return Network(hidden, vocab, activation, tuple(build.matrices), tuple(blocks), token, position, head, norm_first)


def network_of(
    model: ModelSpec, kv_bits: int = 8, parts: Set[Part] = ALL_PARTS, expert_widths: Sequence[int] = ()
) -> Network:
    """A model of the catalogue, or parts of it, on crossbars, its KV cache in elements of `kv_bits`.

    `expert_widths`: of the FFNs that each routed expert is cut into; empty: it is whole.

    Embedding and output head are separate matrices even where the model ties them: one is read by rows, the other
    multiplied by. Latent attention runs in its absorbed form (arXiv 2405.04434, section 2.1.2): the up-projection of
    keys follows that of queries, the one of values follows attention.
    """
    build = _Builder()
    hidden = model.hidden
    token = position = head = None
    if "attention" in parts:
        token = build.add("embedding", 0, "token_embedding", model.vocab, hidden)
        if model.learned_positions:
            position = build.add("positions", 0, "position_embedding", model.learned_positions, hidden)
    moe = model.moe
    matrices = moe.matrices if moe is not None else model.ffn.matrices if model.ffn is not None else 2
    blocks = []
    for layer in range(model.layers):
        attention = _attention(model, layer, kv_bits)
        before, after = _projections(build, model, layer) if "attention" in parts else ((), ())
        if moe is not None and layer >= moe.first_layer and (layer - moe.first_layer) % moe.every == 0:
            router, experts, shared = _mixture(build, model, layer, parts, expert_widths)
            results = moe.top_k + (moe.shared_intermediate > 0)
            blocks.append(Block(before, attention, after, None, router, experts, moe.top_k, shared, results))
        else:
            dense = None
            if "dense_ffn" in parts:
                assert model.ffn is not None
                dense = build.gated(f"layers.{layer}", layer, hidden, model.ffn.intermediate, model.ffn.matrices)
            blocks.append(Block(before, attention, after, dense))
    if "lm_head" in parts:
        head = build.add("lm_head", model.layers - 1, "head", hidden, model.vocab)
    activation: Activation = "silu" if matrices == 3 else "gelu"
    return Network(hidden, model.vocab, activation, tuple(build.matrices), tuple(blocks), token, position, head, True)


def _mixture(
    build: _Builder, model: ModelSpec, layer: int, parts: Set[Part], expert_widths: Sequence[int]
) -> tuple[int | None, tuple[tuple[Ffn, ...], ...], Ffn | None]:
    """Router, routed experts and shared experts of a layer."""
    moe, hidden, name = model.moe, model.hidden, f"layers.{layer}"
    assert moe is not None
    router = shared = None
    experts: tuple[tuple[Ffn, ...], ...] = ()
    if "attention" in parts:
        router = build.add(f"{name}.router", layer, "router", hidden, moe.experts)
    if "routed_experts" in parts:
        widths = expert_widths or (moe.intermediate,)
        experts = tuple(
            tuple(build.gated(f"{name}.experts.{e}", layer, hidden, width, moe.matrices, e) for width in widths)
            for e in range(moe.experts)
        )
    if "shared_experts" in parts and moe.shared_intermediate:
        shared = build.gated(f"{name}.shared", layer, hidden, moe.shared_intermediate, moe.matrices)
    return router, experts, shared


def _attention(model: ModelSpec, layer: int, kv_bits: int) -> Attention:
    shape, kv_bytes = model.attention, model.attention.kv_elements * kv_bits // 8
    if shape.kind == "gqa":
        flops = 4 * shape.heads * shape.head_dim
        windowed = shape.window_tokens is not None and (layer + 1) % shape.window_every == 0
        window = shape.window_tokens if windowed else None
        return Attention(shape.heads, shape.kv_heads, kv_bytes, flops, flops, window)
    flops = 2 * shape.heads * (shape.kv_elements + shape.kv_lora_rank)
    return Attention(shape.heads, shape.heads, kv_bytes, flops, flops)


def _projections(
    build: _Builder, model: ModelSpec, layer: int
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Stages before and after attention."""
    shape, hidden, name = model.attention, model.hidden, f"layers.{layer}"

    def add(part: str, rows: int, cols: int, head_cols: int | None = None) -> int:
        return build.add(f"{name}.{part}", layer, "projection", rows, cols, None, head_cols)

    if shape.kind == "gqa":
        width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        qkv = (add("q_proj", hidden, width), add("k_proj", hidden, kv_width), add("v_proj", hidden, kv_width))
        return (qkv,), ((add("out_proj", width, hidden),),)
    heads = shape.heads
    down = (add("q_down", hidden, shape.q_lora_rank), add("kv_down", hidden, shape.kv_elements))
    q_up = add("q_up", shape.q_lora_rank, heads * shape.qk_dim)
    # Read against its direction, from a head's columns to the rows.
    k_up = add("k_up", shape.kv_lora_rank, heads * shape.qk_nope_head_dim, shape.qk_nope_head_dim)
    v_up = add("v_up", shape.kv_lora_rank, heads * shape.v_dim, shape.v_dim)
    out = add("out_proj", heads * shape.v_dim, hidden)
    return (down, (q_up,), (k_up,)), ((v_up,), (out,))
