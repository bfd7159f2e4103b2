"""Settings of how data-parallel groups wait for each other with prompts."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class AttentionDpBalanceSpec(BaseModel):
    """Data-parallel groups compute prompts together (TensorRT-LLM: attention_dp_config, enable_balance).

    Without prefix caching; a pool for decode, whose requests bring their KV cache, goes without.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    timeout_iters: Annotated[int, Field(ge=1, le=2**31 - 1)] = Field(
        50, description="steps after which prompts are computed though some groups have none"
    )
    batching_wait_iters: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        10, description="steps for which all groups wait for more prompts once each has one"
    )
