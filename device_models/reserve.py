"""What a serving engine keeps of a device's memory beside weights and KV cache.

vLLM finds its KV cache's size by running the largest step that it may be given, and takes what is left of the share
of memory that it may use (`gpu_worker.determine_available_memory`). TensorRT-LLM takes its share of what is free when
all else is in place (`free_gpu_memory_fraction`). The parts here are of that run: what the driver keeps, libraries,
captured graphs, and the activations of a step of `max_num_batched_tokens` tokens from which `max_num_seqs` requests are
sampled.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pimserve.device_models.model import ModelSpec
from pimserve.device_models.operators import ACTIVATION_BYTES, ALL_PARTS, Parallelism, Part, kv_heads_per_device
from pimserve.quantity import Gigabytes

_BYTES_PER_GB = 1e9


class Reserve(BaseModel):
    """Fixed parts, and what a sampled request costs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share_of: Literal["all", "free"] = Field(
        "all", description="what memory_utilization is a share of: all memory, or what weights and the rest leave free"
    )
    driver_gb: Gigabytes = Field(description="of the nominal memory, which no process can have")
    libraries_gb: Gigabytes = Field(description="of a process: handles and workspaces of the libraries")
    collectives_gb: Gigabytes = Field(description="more where several devices reduce together: their buffers")
    graphs_gb: Gigabytes = Field(description="captured graphs")
    step_gb: Gigabytes = Field(description="of any step: its inputs and workspaces")
    logit_bytes: Annotated[float, Field(ge=0, le=1e3)] = Field(
        description="per sampled request and entry of the vocabulary: logits, in 16 and 32 bit, and probabilities"
    )

    def bytes_beside(
        self,
        model: ModelSpec,
        split: Parallelism,
        *,
        utilization: float,
        step_tokens: int,
        step_requests: int,
        parts: Set[Part] = ALL_PARTS,
    ) -> float:
        """Bytes of one device that hold neither weights nor KV cache, of `utilization` of its memory.

        Args:
            model: the model.
            split: how devices share it.
            utilization: share that the engine may use; of all memory, it is of what the driver leaves.
            step_tokens: most tokens of one step.
            step_requests: most requests that run at once.
            parts: of the model that are on these devices.
        """
        driver = self.driver_gb * (utilization if self.share_of == "all" else 1.0)
        fixed = driver + self.libraries_gb + self.graphs_gb + self.step_gb
        if split.devices > 1:
            fixed += self.collectives_gb
        requests = -(-step_requests // split.data)
        return fixed * _BYTES_PER_GB + activation_bytes(
            model, split, tokens=step_tokens, requests=requests, logit_bytes=self.logit_bytes, parts=parts
        )


def activation_bytes(
    model: ModelSpec,
    split: Parallelism,
    *,
    tokens: int,
    requests: int,
    logit_bytes: float,
    parts: Set[Part] = ALL_PARTS,
) -> float:
    """Most bytes that vectors of one step take on one device that has these parts of the model.

    Vectors live while a layer runs: its input, the sum of all before it, and what its widest part makes of them; then
    the sampler's, over the whole vocabulary on every device, beside the last layer's output. Workspaces of routed
    experts (a copy of each token for each of its experts, into the inner width and back) are kept from step to step.
    """
    hidden = ACTIVATION_BYTES * model.hidden * tokens
    layer = 2 * hidden + ACTIVATION_BYTES * tokens * _widest(model, split.tensor, parts)
    sampler = hidden + logit_bytes * model.vocab * requests if "lm_head" in parts else 0.0
    workspace = _expert_workspace(model, split, tokens) if "routed_experts" in parts else 0.0
    return workspace + max(layer, sampler)


def _widest(model: ModelSpec, p: int, parts: Set[Part]) -> int:
    """Elements per token that the widest part of a layer makes on one of `p` tensor-parallel devices."""
    attention, width = model.attention, 0
    if "attention" in parts:
        kv_heads = kv_heads_per_device(model, p) if attention.kind == "gqa" else attention.heads // p
        width = (attention.heads // p + kv_heads) * (attention.qk_dim + attention.v_dim)
    if model.ffn is not None and "dense_ffn" in parts:
        width = max(width, model.ffn.matrices * -(-model.ffn.intermediate // p))
    if model.moe is not None and "shared_experts" in parts:
        width = max(width, model.moe.matrices * -(-model.moe.shared_intermediate // p))
    return width


def _expert_workspace(model: ModelSpec, split: Parallelism, tokens: int) -> float:
    """Bytes that copies of tokens for their routed experts take; their width is sliced where experts are."""
    if model.moe is None:
        return 0.0
    slices = split.devices // split.expert_groups(model.moe.experts)
    inner = -(-model.moe.intermediate // slices)
    copies = tokens * model.moe.top_k
    return float(ACTIVATION_BYTES * copies * (max((model.moe.matrices - 1) * inner, model.hidden) + inner))
