"""Settings of the serving engine, in vLLM's vocabulary."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pimserve.quantity import Quantity, ReservedGigabytes

Count = Annotated[int, Field(gt=0, le=2**31 - 1)]


class SchedulerSpec(BaseModel):
    """How each replica batches requests, and how requests are spread over replicas.

    `batching`: "chunked" cuts prompts so that a step has at most `max_num_batched_tokens` tokens (vLLM's default);
    "stage" computes whole prompts together with all decodes (Orca; what arXiv 2409.01141 simulates).
    `kv_admission`: "prompt" admits a request when its known tokens fit the free KV blocks and preempts by recomputation
    when decoding runs out of them; "oracle" reserves the true output length too, which a real server cannot know.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batching: Literal["chunked", "stage"] = Field(
        "chunked", description="chunked: prompts are cut to the token budget; stage: whole prompts beside all decodes"
    )
    max_num_seqs: Count = Field(
        256,
        description="requests that run at once on a replica",
    )
    max_num_batched_tokens: Count = Field(2048, description="tokens of one step, chunked batching only")
    block_size: Annotated[int, Field(gt=0, le=1024)] = Field(16, description="tokens of one KV block")
    kv_admission: Literal["prompt", "oracle"] = Field(
        "prompt",
        description="prompt: known tokens must fit; oracle: the true output length too, so nothing is preempted",
    )
    max_model_len: Count | None = Field(
        None, description="prompt and output tokens of a request; default: what the model and the KV cache allow"
    )
    memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="share of device memory for weights, KV cache and `reserve_gb`"
    )
    reserve_gb: ReservedGigabytes | None = Field(
        None,
        description="of that, GB of each device for activations, captured graphs and libraries; default: with "
        "setting: measured what the backend keeps, given max_num_batched_tokens and max_num_seqs; ideal: 0",
    )
    kv_blocks: Count | None = Field(
        None,
        description="KV blocks of each data-parallel group (vLLM: num_gpu_blocks_override); default: what memory holds",
    )
    router: str = Field("round_robin", description="round_robin, least_outstanding, or a registered one")
    report_interval_s: Annotated[float, Quantity("s", most=3600)] = Field(
        0.0,
        description="how often a router that looks at replicas hears of them; in between it knows what it has sent. "
        "0: it always sees their exact state",
    )

    @property
    def chunk_tokens(self) -> int | None:
        """Tokens of a prompt that one step computes at most; None: all."""
        return self.max_num_batched_tokens if self.batching == "chunked" else None

    def max_step_tokens(self, max_model_len: int) -> int:
        """Tokens of the largest step: the budget, or a whole prompt of a model that takes `max_model_len` tokens."""
        return self.max_num_batched_tokens if self.batching == "chunked" else self.max_model_len or max_model_len

    @model_validator(mode="after")
    def _budget_holds_decodes(self) -> Self:
        if self.batching == "chunked" and self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): "
                "every running request decodes one token in each step"
            )
        return self
