"""Figures of measured fleets, by the names that cases have for them (`QUANTITIES`): keys of a case, and how it is made.

All but the anchors are of runs of the serving engine, by inference-perf's definitions (`fleet_run.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from pimserve.cluster.validation.disaggregation_formula import Count, Inputs
from pimserve.cluster.validation.fleet_run import FleetRun, FleetRuns, StageOutcome
from pimserve.errors import InputError

Rate = Annotated[float, Field(gt=0, le=1e6)]
Router = str | dict[str, Any]
_SATURATED = 0.85  # of the plateau, which the knee reaches


class FleetFigure(Inputs, ABC):
    """A figure of a fleet. `router`: a name, or that and parameters; `set`: other keys of its scenario, dotted."""

    fleet: str
    router: Router | None = None
    set: dict[str, Any] = Field(default_factory=dict)

    @abstractmethod
    def value(self, runs: FleetRuns) -> float:
        """The figure.

        Raises:
            InputError: the fleet has no such stage, or cannot run.
        """

    def _run(self, runs: FleetRuns, router: Router | None = None) -> FleetRun:
        routed = router or self.router
        return runs.run(self.fleet, self.set if routed is None else {"scheduler.router": routed, **self.set})


class StageFigure(FleetFigure, ABC):
    """Of the stage with a rate, requests per second; without one, of the only stage."""

    rate: Rate | None = None

    def value(self, runs: FleetRuns) -> float:
        """Of that stage."""
        return self.of(_stage(self._run(runs), self.fleet, self.rate))

    @abstractmethod
    def of(self, stage: StageOutcome) -> float:
        """The figure of a stage."""


def _stage(run: FleetRun, fleet: str, rate: float | None) -> StageOutcome:
    found = run.stages[0] if rate is None and len(run.stages) == 1 else run.by_rate.get(rate or 0.0)
    if found is None:
        rates = ", ".join(f"{each:g}" for each in run.by_rate)
        raise InputError(f"fleet {fleet!r}", f"has no stage of {rate} requests per second (has: {rates})")
    return found


class OutputTokensPerSecond(StageFigure):
    """Output tokens of a stage's requests over the time from its first one until the last one's end."""

    def of(self, stage: StageOutcome) -> float:
        """In tokens per second."""
        return stage.output_tokens_per_s


class RequestsPerSecond(StageFigure):
    """Requests of a stage over the same time."""

    def of(self, stage: StageOutcome) -> float:
        """In requests per second."""
        return stage.requests_per_s


class StageLatency(StageFigure):
    """A latency of a stage's requests, s: TTFT or E2E, and the mean or a percentile (numpy's `linear`)."""

    latency: Literal["ttft", "e2e"]
    of_all: Literal["mean", "p50", "p90", "p95", "p99"] = "mean"

    def of(self, stage: StageOutcome) -> float:
        """In seconds."""
        taken = stage.ttft_s if self.latency == "ttft" else stage.e2e_s
        return float(taken.mean() if self.of_all == "mean" else np.percentile(taken, float(self.of_all[1:])))


class LatencyRatio(StageLatency):
    """That latency over the same of the fleet with other keys of its scenario (`over`, dotted, in place of `set`)."""

    over: dict[str, Any]

    def value(self, runs: FleetRuns) -> float:
        """As a ratio."""
        other = StageLatency(**{**self.model_dump(exclude={"over"}), "set": self.over})
        return super().value(runs) / other.value(runs)


class LadderFigure(FleetFigure, ABC):
    """Of the stages with these rates, ascending."""

    rates: list[Rate] = Field(min_length=1)

    def tokens_per_s(self, runs: FleetRuns, router: str | None = None) -> list[float]:
        """Output tokens per second of each of these stages."""
        run = self._run(runs, router)
        return [_stage(run, self.fleet, rate).output_tokens_per_s for rate in self.rates]


class Plateau(LadderFigure):
    """The mean output tokens per second of stages above the knee."""

    def value(self, runs: FleetRuns) -> float:
        """In tokens per second."""
        return float(np.mean(self.tokens_per_s(runs)))


class Knee(LadderFigure):
    """The first rate with at least 85 % of the most output tokens per second of any."""

    def value(self, runs: FleetRuns) -> float:
        """In requests per second."""
        return knee(self.rates, self.tokens_per_s(runs))


def knee(rates: list[float], tokens_per_s: list[float]) -> float:
    """The first of ascending rates with at least 85 % of the most of `tokens_per_s`."""
    return next(rate for rate, each in zip(rates, tokens_per_s, strict=True) if each >= _SATURATED * max(tokens_per_s))


class Gain(LadderFigure):
    """The most output tokens per second of any stage, or the mean of all, over that with another router."""

    over: str
    of: Literal["most", "mean"] = "most"

    def value(self, runs: FleetRuns) -> float:
        """As a ratio."""
        own, other = self.tokens_per_s(runs), self.tokens_per_s(runs, self.over)
        return max(own) / max(other) if self.of == "most" else float(np.mean(own) / np.mean(other))


class RankByTtft(FleetFigure):
    """The place of a router among others by mean TTFT, from 1, the slowest, up."""

    among: list[str] = Field(min_length=2)

    def value(self, runs: FleetRuns) -> float:
        """As a place."""
        mine = self._mean(runs, self.router)
        return 1 + sum(self._mean(runs, other) > mine for other in self.among)

    def _mean(self, runs: FleetRuns, router: Router | None) -> float:
        return float(np.concatenate([stage.ttft_s for stage in self._run(runs, router).stages]).mean())


class StaleTtft(FleetFigure):
    """TTFT p99 with reports of an age, over that with exact state; of the requests of so many seeds together."""

    report_interval_s: Annotated[float, Field(gt=0, le=3600)]
    seeds: Count = 1

    def value(self, runs: FleetRuns) -> float:
        """As a ratio."""
        return self._p99(runs, self.report_interval_s) / self._p99(runs, 0.0)

    def _p99(self, runs: FleetRuns, interval_s: float) -> float:
        routed = {} if self.router is None else {"scheduler.router": self.router}
        changes = {**routed, **self.set, "scheduler.report_interval_s": interval_s}
        every = [runs.run(self.fleet, {**changes, "run.seed": seed}).stages for seed in range(self.seeds)]
        return float(np.percentile(np.concatenate([stage.ttft_s for stages in every for stage in stages]), 99))


class SingleTtft(FleetFigure):
    """TTFT of a prompt on an idle replica, of which so many tokens are cached."""

    prompt_tokens: Count
    cached_tokens: Annotated[int, Field(ge=0)] = 0

    def value(self, runs: FleetRuns) -> float:
        """In seconds."""
        shared = self.cached_tokens or 1  # one token is no block
        workload = {
            "num_requests": 2,  # the first one fills the cache
            "arrival": {"process": "constant", "rate_per_s": 0.01},
            "prefix": {"shared_tokens": shared, "own_tokens": self.prompt_tokens - shared},
            "lengths": {"output": {"kind": "fixed", "tokens": 2}},
        }
        alone = {"cluster.replicas": 1, "workload": workload, "scheduler.router": "round_robin"}
        return float(runs.run(self.fleet, {**alone, **self.set}, []).stages[0].ttft_s[-1])


class PrefillTokensPerSecond(SingleTtft):
    """Tokens of a prompt over its TTFT on an idle replica."""

    def value(self, runs: FleetRuns) -> float:
        """In tokens per second."""
        return self.prompt_tokens / super().value(runs)


QUANTITIES: Mapping[str, type[FleetFigure]] = {
    "output_tokens_per_s": OutputTokensPerSecond,
    "requests_per_s": RequestsPerSecond,
    "latency_s": StageLatency,
    "latency_ratio": LatencyRatio,
    "plateau_tokens_per_s": Plateau,
    "knee_rate_per_s": Knee,
    "gain": Gain,
    "rank_by_ttft": RankByTtft,
    "stale_ttft_p99": StaleTtft,
    "single_ttft_s": SingleTtft,
    "prefill_tokens_per_s": PrefillTokensPerSecond,
}
