"""What one step of a model computes, split over the devices of a replica, before any device's physics.

`operators_of` turns a model and a way to split it into a list of operators. Each operator says what ONE device
does, in FLOPs and bytes per row, per context token or per pair of tokens; a device turns that into time and energy.

Splits (arXiv 2409.01141, section V): everything but the routed experts is tensor-parallel over `tensor` devices and
data-parallel over the groups that this leaves; routed experts are spread whole over all devices (`ep`), or over the
nodes and sliced over the devices of a node (`tp`). With more devices than experts, `ep` slices each expert over
devices / experts devices.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal, get_args

from pimserve.device_models.model import BYTES_PER_ELEMENT, ModelSpec
from pimserve.errors import InputError

Category = Literal["fc", "attention_prefill", "attention_decode", "moe", "communication", "step"]
CATEGORIES: tuple[Category, ...] = ("fc", "attention_prefill", "attention_decode", "moe", "communication", "step")
EnergyCategory = Category | Literal["expert_rebalancing"]  # which takes energy beside operators, but no time of steps
EXPERT_REBALANCING: EnergyCategory = "expert_rebalancing"
RowKind = Literal["tokens", "outputs", "decodes", "prompts", "requests", "all_tokens", "all_decodes"]
LinkScope = Literal["intra_node", "inter_node", "between_groups"]

# Of a model. "attention" has what belongs to no other part with it: embeddings, norms, gates and the KV cache.
Part = Literal["attention", "dense_ffn", "shared_experts", "routed_experts", "lm_head"]
ALL_PARTS: frozenset[Part] = frozenset(get_args(Part))
# Where in a step's pass an operator runs: in all layers, in the dense or in the MoE ones, before the first layer, or
# after the last.
Runs = Literal["layers", "dense_layers", "moe_layers", "first", "last"]
Stage = Literal["attention", "dispatch", "experts", "combine"]  # on two groups of devices, and the links between them

ACTIVATION_BYTES = 2  # activations travel in 16 bit whatever the weights are stored in


@dataclass(frozen=True, slots=True)
class Parallelism:
    """How one replica's devices share a model.

    `redundant_experts`: copies of routed experts in each layer, beside the first ones.

    Raises InputError where the model does not divide.
    """

    nodes: int = 1
    devices_per_node: int = 1
    tensor: int = 1
    experts: Literal["ep", "tp"] = "ep"
    redundant_experts: int = 0

    def __post_init__(self) -> None:
        if self.devices % self.tensor:
            raise InputError("cluster.tensor_parallel", f"{self.tensor} does not divide the {self.devices} devices")

    @property
    def devices(self) -> int:
        """Devices of the replica."""
        return self.nodes * self.devices_per_node

    @property
    def data(self) -> int:
        """Data-parallel groups for everything but the routed experts."""
        return self.devices // self.tensor

    def expert_groups(self, experts: int) -> int:
        """Groups of devices that hold routed experts, as many physical ones each, of a layer with so many logical ones.

        Physical ones are these and their copies.
        """
        physical = experts + self.redundant_experts
        groups = self.nodes if self.experts == "tp" else min(self.devices, physical)
        if physical % groups or self.devices % groups:
            copies = f" with {self.redundant_experts} copies" if self.redundant_experts else ""
            raise InputError(
                "cluster.expert_placement.redundant_experts" if copies else "cluster.experts",
                f"{experts} experts{copies} do not spread evenly over {self.devices} devices with experts: "
                f"{self.experts}; use a number of devices that divides {'both together' if copies else 'the experts'}, "
                "or is a multiple of them",
            )
        return groups


@dataclass(frozen=True, slots=True)
class Gemm:
    """Rows x k times k x n, in `layers` layers. `rows` counts the step's tokens, or its sampled outputs."""

    name: str
    category: Category
    layers: int
    k: int
    n: int
    weight_bytes_per_element: float
    dtype: str
    rows: Literal["tokens", "outputs"] = "tokens"
    runs: Runs = "layers"


@dataclass(frozen=True, slots=True)
class DecodeAttention:
    """Attention of a decoding request's new tokens, one or more: every context token's cache entry is read once.

    `kv_bytes` and `flops` are per context token and layer on one device. Windowed layers see at most `window_tokens`.
    """

    layers: int
    kv_bytes: float
    flops: float
    window_tokens: int | None = None
    kv_dtype: str = "bf16"


@dataclass(frozen=True, slots=True)
class PrefillAttention:
    """Attention of a chunk of a prompt; per layer on one device. Windowed layers see at most `window_tokens`."""

    layers: int
    heads: float
    kv_heads: float
    qk_dim: int
    v_dim: int
    kv_bytes_per_element: float
    window_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Experts:
    """The routed experts of `layers` layers: `groups` device groups, each expert sliced over `slices` devices.

    `physical`: experts of a layer with their copies, as many in each group.
    """

    layers: int
    experts: int
    top_k: int
    hidden: int
    intermediate: int
    matrices: int
    weight_bytes_per_element: float
    dtype: str
    groups: int
    slices: int
    physical: int


@dataclass(frozen=True, slots=True)
class AllReduce:
    """Sum of a `bytes_per_token` vector per token over a tensor-parallel group, `times` per step."""

    times: int
    bytes_per_token: float
    group: int


@dataclass(frozen=True, slots=True)
class AllToAll:
    """Dispatch or combine of routed tokens between data-parallel groups, `times` per step, half of them each.

    Vectors of `vector_bytes` go to the devices that hold `top_k` of `experts` routed experts; how many copies, and over
    which links, is the transport's.
    """

    times: int
    vector_bytes: float
    experts: int
    top_k: int


@dataclass(frozen=True, slots=True)
class AllGather:
    """Parts of a sampled output's logits, `bytes_per_output` together, brought to all devices of a tensor group."""

    bytes_per_output: float
    group: int


@dataclass(frozen=True, slots=True)
class Rest:
    """What `layers` layers do beside their operators: norms, rotary embedding, cache write, activation functions.

    `elements`: 16-bit elements that one token moves to and from memory in all of them.
    """

    layers: int
    elements: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """What all devices of a replica send over their links for each row of a step; of tokens between groups, vectors."""

    operator: str
    rows: RowKind
    bytes_per_row: float
    link: LinkScope = "intra_node"
    vectors_per_row: float = 0.0


Operator = Gemm | DecodeAttention | PrefillAttention | Experts | AllReduce | AllToAll | AllGather | Rest


def operators_of(
    model: ModelSpec, split: Parallelism, *, lm_head: bool = True, parts: Set[Part] = ALL_PARTS
) -> list[Operator]:
    """Operators that one device of the replica, or of a group of its devices, runs in each step.

    Args:
        model: the model.
        split: how the devices share it.
        lm_head: whether the product with the vocabulary counts (the Duplex paper leaves it out).
        parts: of the model that are on these devices. What passes between parts on different devices is not among
            the operators.

    Raises:
        InputError: the model's heads or experts do not divide over the devices.
    """
    p = split.tensor
    operators: list[Operator] = []
    if "attention" in parts:
        if model.attention.heads % p:
            message = f"{p} does not divide the {model.attention.heads} attention heads"
            raise InputError("cluster.tensor_parallel", message)
        operators += _attention(model, p)
    if "dense_ffn" in parts:
        operators += _dense_ffn(model, p)
    if model.moe is not None:
        operators += _mixture(model, split, parts)
    if p > 1 and (times := _all_reduces(model, parts)):
        operators.append(AllReduce(times, model.hidden * ACTIVATION_BYTES, p))
    if lm_head and "lm_head" in parts:
        width = -(-model.vocab // p)
        operators.append(_gemm(model, "lm head", 1, model.hidden, width, rows="outputs", runs="last"))
        if p > 1:
            operators.append(AllGather(model.vocab * ACTIVATION_BYTES, p))
    if "attention" in parts:
        operators.append(_rest(model, p, parts))
    return operators


def _gemm(
    model: ModelSpec,
    name: str,
    layers: int,
    k: int,
    n: int,
    category: Category = "fc",
    *,
    rows: Literal["tokens", "outputs"] = "tokens",
    runs: Runs = "layers",
) -> Gemm:
    weight_bytes = BYTES_PER_ELEMENT[model.dense_dtype]
    return Gemm(name, category, layers, k, n, weight_bytes, model.dense_dtype, rows, runs)


def _dense_ffn(model: ModelSpec, p: int) -> list[Operator]:
    """FFNs of the dense layers."""
    if model.ffn is None or not model.dense_layers:
        return []
    width, layers, hidden = -(-model.ffn.intermediate // p), model.dense_layers, model.hidden
    return [
        _gemm(model, "ffn up", layers, hidden, (model.ffn.matrices - 1) * width, runs="dense_layers"),
        _gemm(model, "ffn down", layers, width, hidden, runs="dense_layers"),
    ]


def _mixture(model: ModelSpec, split: Parallelism, parts: Set[Part]) -> list[Operator]:
    """Gates, shared and routed experts of the MoE layers, and the way of tokens to routed ones on the same devices."""
    moe, hidden, layers = model.moe, model.hidden, model.moe_layers
    assert moe is not None
    operators: list[Operator] = []
    if "attention" in parts:
        operators.append(_gemm(model, "gate", layers, hidden, moe.experts, "moe", runs="moe_layers"))
    if "shared_experts" in parts and moe.shared_intermediate:
        width = -(-moe.shared_intermediate // split.tensor)
        up = (moe.matrices - 1) * width
        operators.append(_gemm(model, "shared up", layers, hidden, up, "moe", runs="moe_layers"))
        operators.append(_gemm(model, "shared down", layers, width, hidden, "moe", runs="moe_layers"))
    if "routed_experts" not in parts:
        return operators
    groups = split.expert_groups(moe.experts)
    operators.append(
        Experts(
            layers=layers,
            experts=moe.experts,
            top_k=moe.top_k,
            hidden=hidden,
            intermediate=moe.intermediate,
            matrices=moe.matrices,
            weight_bytes_per_element=BYTES_PER_ELEMENT[model.routed_dtype],
            dtype=model.routed_dtype,
            groups=groups,
            slices=split.devices // groups,
            physical=moe.experts + split.redundant_experts,
        )
    )
    if split.data > 1 and "attention" in parts:
        operators.append(AllToAll(2 * layers, hidden * ACTIVATION_BYTES, moe.experts, moe.top_k))
    return operators


def _all_reduces(model: ModelSpec, parts: Set[Part]) -> int:
    """Sums over a tensor-parallel group in a step: after attention, and after the FFN.

    Of a layer whose FFN is elsewhere too: there it brings what came back to all devices of the group. Devices without
    attention send back what each of them has, and sum nothing up among themselves.
    """
    return 2 * model.layers if "attention" in parts else 0


def _rest(model: ModelSpec, p: int, parts: Set[Part]) -> Rest:
    """Two norms with their residual sums on every device (read and write both); its heads' vectors in and out, and the
    activation function's inputs and output, of dense layers and shared experts.
    """
    attention = model.attention
    kv_width = (
        attention.kv_elements if attention.kind == "mla" else kv_heads_per_device(model, p) * 2 * attention.qk_dim
    )
    elements = model.layers * (8 * model.hidden + 2 * (attention.heads // p * attention.qk_dim + kv_width))
    if model.ffn is not None and "dense_ffn" in parts:
        elements += model.dense_layers * model.ffn.matrices * -(-model.ffn.intermediate // p)
    if model.moe is not None and model.moe.shared_intermediate and "shared_experts" in parts:
        elements += model.moe_layers * model.moe.matrices * -(-model.moe.shared_intermediate // p)
    return Rest(model.layers, elements)


def _attention(model: ModelSpec, p: int) -> list[Operator]:
    attention = model.attention
    kv_element = BYTES_PER_ELEMENT[model.kv_dtype]
    heads = attention.heads // p
    operators: list[Operator] = []
    windows: list[tuple[int, int | None]]

    def gemm(name: str, k: int, n: int) -> None:
        operators.append(_gemm(model, name, model.layers, k, n))

    if attention.kind == "gqa":
        kv_heads = kv_heads_per_device(model, p)
        gemm("qkv", model.hidden, (heads + 2 * kv_heads) * attention.head_dim)
        gemm("attention out", heads * attention.head_dim, model.hidden)
        kv_bytes = 2 * kv_heads * attention.head_dim * kv_element
        flops = 4 * heads * attention.head_dim
        windows = [(model.layers - model.windowed_layers, None), (model.windowed_layers, attention.window_tokens)]
    else:
        kv_heads = heads  # prefill expands the latent to full heads
        # The latent's down-projections are not split: each device needs the whole latent.
        gemm("q/kv down", model.hidden, attention.q_lora_rank + attention.kv_elements)
        gemm("q up", attention.q_lora_rank, heads * attention.qk_dim)
        gemm("kv up", attention.kv_lora_rank, heads * (attention.qk_nope_head_dim + attention.v_dim))
        gemm("attention out", heads * attention.v_dim, model.hidden)
        # Decoding attends to the latent itself (absorbed form): all heads share one cache entry per token.
        kv_bytes = attention.kv_elements * kv_element
        flops = 2 * heads * (attention.kv_elements + attention.kv_lora_rank)
        windows = [(model.layers, None)]
    for layers, window in windows:
        if layers:
            operators.append(DecodeAttention(layers, kv_bytes, flops, window, model.kv_dtype))
            operators.append(
                PrefillAttention(layers, heads, kv_heads, attention.qk_dim, attention.v_dim, kv_element, window)
            )
    return operators


def kv_heads_per_device(model: ModelSpec, p: int) -> int:
    """KV heads that each of `p` tensor-parallel devices holds: copies, when there are more devices than heads."""
    kv_heads = model.attention.kv_heads if model.attention.kind == "gqa" else 1
    if kv_heads % p and p % kv_heads:
        raise InputError("cluster.tensor_parallel", f"{p} neither divides nor is a multiple of the {kv_heads} KV heads")
    return max(1, kv_heads // p)


def weight_bytes_per_device(model: ModelSpec, split: Parallelism, parts: Set[Part] = ALL_PARTS) -> float:
    """Bytes of weights on one device: what its operators read, and its share of the rest (embedding, norms, biases),
    which goes with attention, but for what of it belongs to experts.

    Weights that several devices hold whole (gates, KV projections beyond the number of KV heads, the down-projections
    of a latent) count on each of them.
    """

    def products(among: Parallelism, of: Set[Part]) -> float:
        operators = operators_of(model, among, parts=of)
        return sum(op.layers * op.k * op.n * op.weight_bytes_per_element for op in operators if isinstance(op, Gemm))

    held = products(split, parts)
    if "attention" in parts:
        dense = (model.parameters - model.routed_parameters) * BYTES_PER_ELEMENT[model.dense_dtype]
        held += (dense - products(Parallelism(), ALL_PARTS)) / split.tensor
    if "routed_experts" in parts:
        copies = 1 if model.moe is None else 1 + split.redundant_experts / model.moe.experts
        held += model.routed_parameters * BYTES_PER_ELEMENT[model.routed_dtype] * copies / split.devices
    return held


def kv_bytes_per_token_per_device(model: ModelSpec, split: Parallelism) -> float:
    """Bytes that one context token occupies on each device of the tensor group that serves its request."""
    if model.attention.kind == "mla":
        return model.kv_bytes_per_token
    return model.kv_bytes_per_token * kv_heads_per_device(model, split.tensor) / model.attention.kv_heads
