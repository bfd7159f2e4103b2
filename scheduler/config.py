"""Settings of the serving engine, in vLLM's vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pimserve.quantity import PositiveSeconds, Quantity, ReservedGigabytes
from pimserve.scheduler.attention_dp_spec import AttentionDpBalanceSpec
from pimserve.scheduler.kv_tier_spec import KvTierSpec, check_tiers
from pimserve.scheduler.prefix_retention import check_retention
from pimserve.scheduler.router import ROUND_ROBIN, RouterSetting, goes_by_prefixes, router_name, router_setting
from pimserve.scheduler.speculative_spec import SpeculativeSpec

FCFS = "fcfs"  # needs to know nothing of requests
VTC = "vtc"  # goes by what tenants had, which changes in every step
Count = Annotated[int, Field(gt=0, le=2**31 - 1)]


class SchedulerSpec(BaseModel):
    """How each replica batches requests, and how requests are spread over replicas.

    `batching`: "chunked" cuts prompts to what requests that decode leave of a step's `max_num_batched_tokens` (vLLM's
    default); "stage" computes whole prompts together with all decodes (Orca; what arXiv
    2409.01141 simulates). With "prefill_first", steps have prompts alone while there are any, and those that decode
    wait (vLLM V0 without chunked prefill); with "decode_first" nobody joins until all that decode have their last
    token, and then whole prompts are computed in one step (FasterTransformer). arXiv 2403.02310, 3, compares them.
    `kv_admission`: "prompt" admits a request when its known tokens fit the free KV blocks and preempts one when
    decoding runs out of them (`preemption`); "no_evict" reserves as many output tokens as the client declares at most
    too, and all that a request may have where it declares nothing, so that nothing is preempted (TensorRT-LLM:
    GUARANTEED_NO_EVICT); "oracle" reserves the true output length, which a real server cannot know.
    `policy`: which of the requests that wait on a replica is admitted next; the first that does not fit holds up all
    behind it. "fcfs" preempts the request that was admitted last, which then waits before all others; any other policy
    the one that comes last in its order, in which it waits again (both as vLLM does). "sjf" is shortest job first by
    predicted output tokens, "edf" earliest deadline first, by arrival and limit of TTFT, those without one last. "vtc"
    is fair share by tenant (virtual token counter: Sheng et al., OSDI 2024): next is who had the least service.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batching: Literal["chunked", "stage", "prefill_first", "decode_first"] = Field(
        "chunked",
        description="chunked: prompts are cut to what decodes leave of the token budget; stage: whole prompts beside "
        "all decodes; prefill_first: prompts in steps of their own, cut to the token budget, which decodes wait for; "
        "decode_first: whole prompts, when nobody decodes any more. The last two without several data-parallel groups, "
        "pools, drafts, kv_tiers and swap",
    )
    max_num_seqs: Count = Field(
        256,
        description="requests that run at once on a replica; of each data-parallel group, where it has several",
    )
    max_num_batched_tokens: Count = Field(
        2048,
        description="tokens of one step, of each data-parallel group; batching chunked or prefill_first only",
    )
    long_prefill_token_threshold: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        0,
        description="tokens of one prompt that a step computes at most, batching chunked or prefill_first only, so "
        "that prompts behind a long one have their part of the step; 0: as many as max_num_batched_tokens leaves",
    )
    block_size: Annotated[int, Field(gt=0, le=1024)] = Field(16, description="tokens of one KV block")
    enable_prefix_caching: bool = Field(
        False, description="keep KV blocks of requests that have left, for prompts that begin alike"
    )
    prefix_cache_retention_interval: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        None,
        description="which blocks of attention windows the prefix cache and tiers keep. 0: of each prompt those that "
        "it needs to be found again, and where prompts part; N: those also at every N tokens, a multiple of "
        "block_size; default: all. Models without windows have none (vLLM's argument of that name, whose default is 0)",
    )
    kv_tiers: tuple[KvTierSpec, ...] = Field(
        (),
        description="memory below the prefix cache that keeps blocks too, of each replica, but for a last one that is "
        "shared, from the fastest down; in pools, of those for prefill",
    )
    kv_admission: Literal["prompt", "no_evict", "oracle"] = Field(
        "prompt",
        description="prompt: known tokens must fit; no_evict: workload.max_tokens of output too, so nothing is "
        "preempted; oracle: likewise the true output length",
    )
    preemption: Literal["recompute", "swap"] = Field(
        "recompute",
        description="what becomes of a request that is preempted. recompute: it computes again what it had; swap: its "
        "KV blocks go to host memory, and come back (vLLM V0); without prefix caching, pools, drafts, several "
        "data-parallel groups, kv_admission: no_evict or oracle, and not on AIMC",
    )
    swap_gb_per_s: Annotated[float, Quantity("GB/s", above=0, most=1e6)] | None = Field(
        None, description="preemption swap: bandwidth of each device's link to host memory, either way"
    )
    swap_space_gb: Annotated[float, Quantity("GB", above=0, most=1e6)] | None = Field(
        None, description="preemption swap: host memory for KV blocks of each device (vLLM: --swap-space, GiB there)"
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
    speculative: SpeculativeSpec | None = Field(
        None,
        description="drafts of tokens that may follow, which a step verifies together; default: none",
    )
    attention_dp_balance: AttentionDpBalanceSpec | None = Field(
        None, description="data-parallel groups of a replica compute prompts together; default: each when it has one"
    )
    policy: str = Field(
        FCFS,
        description="fcfs: first come, first served; priority: that of classes, lower first; sjf: fewest predicted "
        "output tokens; edf: whose first token is due first; vtc: whose tenant had the least service; or a "
        "registered one",
    )
    ageing_s: PositiveSeconds | None = Field(
        None,
        description="policy priority: waiting for this time is as good as one level of priority (default: no time is)",
    )
    input_token_weight: Count = Field(1, description="policy vtc: service that a token of a prompt is")
    output_token_weight: Count = Field(2, description="policy vtc: service that a token of an output is")
    prediction_error: Annotated[float, Field(ge=0, le=5)] | None = Field(
        None,
        description="policies are told the output length times a lognormal factor of median 1; this is the standard "
        "deviation of its logarithm, 0 an oracle; default: nothing is predicted",
    )
    max_queued_requests: Count | None = Field(
        None,
        description="requests that wait on a replica at most: one that comes when there are as many is rejected "
        "(SGLang's setting of that name); default: any number",
    )
    early_rejection: bool = Field(
        False,
        description="reject a request at its arrival if its predicted TTFT is above its limit (Mooncake): prompt "
        "tokens ahead of it on the replica and its own, over prefill_tokens_per_s",
    )
    early_rejection_ttft_s: PositiveSeconds | None = Field(
        None, description="that limit (default: each request's own, slo.ttft_s or that of its class; without, none)"
    )
    prefill_tokens_per_s: Annotated[float, Field(ge=1, le=1e9)] | None = Field(
        None,
        description="prompt tokens that a replica computes in a second, as early_rejection takes it (default: as "
        "it was seen so far in steps with prompts, with what a prefix cache spared)",
    )
    router: RouterSetting = Field(
        ROUND_ROBIN,
        description="round_robin, random, least_outstanding, least_tokens, least_kv, power_of_two, session_affinity, "
        "the name of one with parameters, or a mapping of these with its name, or a registered one",
    )
    report_interval_s: Annotated[float, Quantity("s", most=3600)] = Field(
        0.0,
        description="how often a router that looks at replicas hears of them; in between it knows what it has sent. "
        "0: it always sees their exact state",
    )

    @classmethod
    def restored(cls, document: Mapping[str, Any]) -> SchedulerSpec:
        """What `model_dump(mode="json")` made a document of, which is not checked again."""
        tiers = tuple(KvTierSpec.model_construct(**tier) for tier in document["kv_tiers"])
        changes: dict[str, Any] = {"router": router_setting(document["router"]), "kv_tiers": tiers}
        if document["speculative"] is not None:
            changes["speculative"] = SpeculativeSpec.model_validate(document["speculative"])
        if document["attention_dp_balance"] is not None:
            changes["attention_dp_balance"] = AttentionDpBalanceSpec.model_validate(document["attention_dp_balance"])
        return cls.model_construct(**{**document, **changes})

    @property
    def router_name(self) -> str:
        """What the router is called."""
        return router_name(self.router)

    @property
    def sheds(self) -> bool:
        """Whether requests that could be served may be rejected as they arrive."""
        return self.early_rejection or self.max_queued_requests is not None

    @property
    def shares_tier(self) -> bool:
        """Whether replicas share the last tier below their prefix caches."""
        return bool(self.kv_tiers) and self.kv_tiers[-1].shared

    @property
    def reserves(self) -> str | None:
        """Column of the request table with the output tokens for which KV blocks are reserved; None: for none."""
        return {"no_evict": "max_tokens", "oracle": "output_tokens"}.get(self.kv_admission)

    @property
    def verify_tokens(self) -> int:
        """Tokens of a decoding request that a step computes: its last one, and drafts."""
        return 1 if self.speculative is None else self.speculative.verify_tokens

    @property
    def lookahead_tokens(self) -> int:
        """KV slots of a request beyond its tokens, for drafts."""
        return 0 if self.speculative is None else self.speculative.lookahead_tokens

    @property
    def cuts_prompts(self) -> bool:
        """Whether prompts are cut to the token budget."""
        return self.batching in {"chunked", "prefill_first"}

    @property
    def mixes(self) -> bool:
        """Whether a step may have prompts beside those that decode."""
        return self.batching in {"chunked", "stage"}

    @property
    def chunk_tokens(self) -> int | None:
        """Tokens of a prompt that one step computes at most; None: all."""
        return self.max_num_batched_tokens if self.cuts_prompts else None

    def max_step_tokens(self, max_model_len: int) -> int:
        """Tokens of the largest step: the budget, or a whole prompt of a model that takes `max_model_len` tokens.

        Where prompts go first, the budget is of them alone, and may be less than a token of each that decodes.
        """
        if self.cuts_prompts:
            return max(self.max_num_batched_tokens, self.max_num_seqs)
        return self.max_model_len or max_model_len

    @model_validator(mode="after")
    def _swap_fits(self) -> Self:
        given = [self.swap_gb_per_s is not None, self.swap_space_gb is not None]
        if self.preemption == "swap" and not all(given):
            raise ValueError("preemption: swap needs swap_gb_per_s and swap_space_gb")
        if self.preemption != "swap" and any(given):
            raise ValueError("swap_gb_per_s and swap_space_gb have no effect without preemption: swap")
        return self

    @model_validator(mode="after")
    def _early_rejection_fits(self) -> Self:
        for key in ("early_rejection_ttft_s", "prefill_tokens_per_s"):
            if getattr(self, key) is not None and not self.early_rejection:
                raise ValueError(f"{key} has no effect without early_rejection: true")
        return self

    @model_validator(mode="after")
    def _limits_of_steps_fit(self) -> Self:
        width = self.verify_tokens
        if self.batching == "chunked" and self.max_num_batched_tokens < self.max_num_seqs * width:
            times = f" x {width}" if width > 1 else ""
            what = f"has one token and {width - 1} drafts" if width > 1 else "decodes one token"
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}){times}: "
                f"every running request {what} in each step"
            )
        if goes_by_prefixes(self.router) and not self.enable_prefix_caching:
            raise ValueError(
                f"router {self.router_name} goes by what replicas keep of prompts: set enable_prefix_caching"
            )
        if self.attention_dp_balance is not None and self.enable_prefix_caching:
            raise ValueError("attention_dp_balance is not modelled together with enable_prefix_caching")
        if not self.cuts_prompts and self.long_prefill_token_threshold:
            cutting = "needs batching: chunked or prefill_first"
            raise ValueError(f"long_prefill_token_threshold {cutting}; {self.batching} computes whole prompts")
        check_retention(self.prefix_cache_retention_interval, self.block_size, cached=self.enable_prefix_caching)
        check_tiers(self.kv_tiers, cached=self.enable_prefix_caching)
        return self
