"""Service-level objectives, and the limits that MLPerf Inference sets."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pimserve.quantity import Quantity

Limit = Annotated[float, Quantity("s", above=0, most=1e9)]  # also one that all requests meet
SloPreset = Literal[
    "mlperf/llama2-70b/server",
    "mlperf/llama2-70b/interactive",
    "mlperf/mixtral-8x7b/server",
    "mlperf/llama3.1-8b/server",
    "mlperf/llama3.1-8b/interactive",
    "mlperf/llama3.1-405b/server",
    "mlperf/llama3.1-405b/interactive",
    "mlperf/deepseek-r1/server",
    "mlperf/deepseek-r1/interactive",
    "mlperf/gpt-oss-120b/server",
]
# TTFT and TPOT in s, both at p99; MLPerf Inference rules of 2026-07-23. (The interactive limits of gpt-oss-120b differ
# between the rules and the checker, so they are left out.)
_LIMITS: dict[SloPreset, tuple[float, float]] = {
    "mlperf/llama2-70b/server": (2, 0.2),
    "mlperf/llama2-70b/interactive": (0.45, 0.04),
    "mlperf/mixtral-8x7b/server": (2, 0.2),
    "mlperf/llama3.1-8b/server": (2, 0.1),
    "mlperf/llama3.1-8b/interactive": (0.5, 0.03),
    "mlperf/llama3.1-405b/server": (6, 0.175),
    "mlperf/llama3.1-405b/interactive": (4.5, 0.08),
    "mlperf/deepseek-r1/server": (2, 0.08),
    "mlperf/deepseek-r1/interactive": (1.5, 0.015),
    "mlperf/gpt-oss-120b/server": (3, 0.08),
}


class SloSpec(BaseModel):
    """Limits that every good request meets; without a limit everything passes.

    `tpot_s` holds for requests of two tokens or more. A preset fills in what is not given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: SloPreset | None = Field(None, description="limits of MLPerf Inference, where none are given")
    ttft_s: Limit | None = Field(None, description="time to first token")
    tpot_s: Limit | None = Field(None, description="mean time per output token after the first")
    e2e_s: Limit | None = Field(None, description="arrival to last token")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("preset") in get_args(SloPreset):
            ttft, tpot = _LIMITS[values["preset"]]
            given = {key: value for key, value in values.items() if value is not None}
            return {"ttft_s": ttft, "tpot_s": tpot, **given}
        return values

    def limits(self) -> dict[str, float]:
        """The limits in force, s."""
        return {name: limit for name in ("ttft_s", "tpot_s", "e2e_s") if (limit := getattr(self, name)) is not None}
