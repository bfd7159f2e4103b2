"""Service-level objectives, and the limits that MLPerf Inference sets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

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
    "mlperf/qwen3-vl-235b-a22b/server",
]
# Limits in s of 99th percentiles, each on its own; MLPerf Inference rules of 2026-07-23. (The interactive limits of
# gpt-oss-120b differ between the rules and the checker, so they are left out.) MLPerf's percentile is
# sorted[floor(0.99 n)], one sample above the nearest rank of summaries where 0.99 n is whole.
_MLPERF: dict[SloPreset, dict[str, float]] = {
    "mlperf/llama2-70b/server": {"ttft_p99_s": 2, "tpot_p99_s": 0.2},
    "mlperf/llama2-70b/interactive": {"ttft_p99_s": 0.45, "tpot_p99_s": 0.04},
    "mlperf/mixtral-8x7b/server": {"ttft_p99_s": 2, "tpot_p99_s": 0.2},
    "mlperf/llama3.1-8b/server": {"ttft_p99_s": 2, "tpot_p99_s": 0.1},
    "mlperf/llama3.1-8b/interactive": {"ttft_p99_s": 0.5, "tpot_p99_s": 0.03},
    "mlperf/llama3.1-405b/server": {"ttft_p99_s": 6, "tpot_p99_s": 0.175},
    "mlperf/llama3.1-405b/interactive": {"ttft_p99_s": 4.5, "tpot_p99_s": 0.08},
    "mlperf/deepseek-r1/server": {"ttft_p99_s": 2, "tpot_p99_s": 0.08},
    "mlperf/deepseek-r1/interactive": {"ttft_p99_s": 1.5, "tpot_p99_s": 0.015},
    "mlperf/gpt-oss-120b/server": {"ttft_p99_s": 3, "tpot_p99_s": 0.08},
    "mlperf/qwen3-vl-235b-a22b/server": {"e2e_p99_s": 12},
}


REQUEST_LIMITS = ("ttft_s", "tpot_s", "e2e_s", "itl_max_s")
PERCENTILE_OF = ("ttft", "tpot", "itl", "e2e", "queue")
_KEY = re.compile(rf"({'|'.join(PERCENTILE_OF)})_p(\d+(?:\.\d+)?)_s")
_MEANT = re.compile(r"\w+_p[\d.]*(_s)?")  # what is meant as such a key


@dataclass(frozen=True, slots=True)
class LimitAtPercentile:
    """A limit that a percentile of a latency must not exceed.

    Args:
        key: in the scenario, such as ttft_p99_s.
        latency: one of `PERCENTILE_OF`.
        percent: above 0, at most 100.
        limit_s: the limit.
    """

    key: str
    latency: str
    percent: float
    limit_s: float


def _pattern(schema: dict[str, Any]) -> None:
    """Keys with a percentile have a pattern; any other is unknown."""
    schema["patternProperties"] = {f"^{_KEY.pattern}$": schema["additionalProperties"]}
    schema["additionalProperties"] = False


class SloSpec(BaseModel):
    """Limits that every good request meets, and limits at a percentile; without a limit everything passes.

    `tpot_s` and `itl_max_s` hold for requests of two tokens or more. A key such as `ttft_p99_s`, `tpot_p50_s`,
    `itl_p99.9_s`, `e2e_p95_s` or `queue_p90_s` is the limit of that percentile: the run passes or fails it, by a
    margin, whatever becomes of single requests. A preset has limits of that kind.
    """

    model_config = ConfigDict(extra="allow", frozen=True, json_schema_extra=_pattern)
    __pydantic_extra__: dict[str, Limit] = Field(init=False)

    preset: SloPreset | None = Field(
        None, description="ttft_p99_s and tpot_p99_s (or e2e_p99_s) of MLPerf Inference, where these are not given"
    )
    ttft_s: Limit | None = Field(None, description="time to first token")
    tpot_s: Limit | None = Field(None, description="mean time per output token after the first")
    e2e_s: Limit | None = Field(None, description="arrival to last token")
    itl_max_s: Limit | None = Field(None, description="longest gap between two tokens")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("preset") in get_args(SloPreset):
            return _MLPERF[values["preset"]] | {key: value for key, value in values.items() if value is not None}
        return values

    @model_validator(mode="before")
    @classmethod
    def _know_percentiles(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        others = {key: value for key, value in values.items() if key not in cls.model_fields}
        wrong = [
            InitErrorDetails(type=kind, loc=(str(key),), input=value)
            for key, value in others.items()
            if (kind := _wrong(key))
        ]
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return {key: value for key, value in values.items() if value is not None or key not in others}

    def limits(self) -> dict[str, float]:
        """The limits in force of each request, s."""
        return {name: limit for name in REQUEST_LIMITS if (limit := getattr(self, name)) is not None}

    def at_percentiles(self) -> tuple[LimitAtPercentile, ...]:
        """The limits at percentiles, in the order in which they were given."""
        found = ((key, _KEY.fullmatch(key), limit) for key, limit in self.__pydantic_extra__.items())
        return tuple(LimitAtPercentile(key, match[1], float(match[2]), limit) for key, match, limit in found if match)


def _wrong(key: object) -> str | PydanticCustomError:
    """What is wrong with a key that is no field, as a kind of error; nothing with a limit at a percentile."""
    if not isinstance(key, str) or not _MEANT.fullmatch(key):
        return "extra_forbidden"
    match = _KEY.fullmatch(key)
    if match is not None and 0 < float(match[2]) <= 100:
        return ""
    return PydanticCustomError(
        "percentile_key",
        "a limit at a percentile is {latencies}, then _p, a percentile above 0 and at most 100, and _s: ttft_p99.9_s",
        {"latencies": f"{', '.join(PERCENTILE_OF[:-1])} or {PERCENTILE_OF[-1]}"},
    )
