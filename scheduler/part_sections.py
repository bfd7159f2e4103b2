"""Sections of the summary that tell of parts of the requests: stages of the load, and classes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pimserve.scheduler.latency_sections import AtPercentile, OfRequests
from pimserve.scheduler.sections import Section, Share, figure, text


class StageThroughput(Section):
    """Rates while a stage lasted."""

    requests_per_s: float | None = figure("requests/s", "requests that finished")
    output_tokens_per_s: float | None = figure("tokens/s", "output tokens of these requests")


class StageLatencies(Section):
    """Latencies of requests that arrived in a stage."""

    ttft: OfRequests = text("time to first token, from arrival; requests that had it")
    tpot: OfRequests = text("time per output token after the first; finished requests with two or more")
    e2e: OfRequests = text("from arrival to the last token; finished requests")
    queue: OfRequests = text("from arrival until first scheduled")


class StageSlo(Section):
    """Limits of requests that arrived in a stage."""

    attainment: Share = figure("1", "of those of which it is known, the share that met all limits")
    censored: int = figure("requests", "those of which it is not")


class StageFigures(Section):
    """Of a rate series, from one step to the next; all of its stretches together where the series repeats.

    Only of the measured window, while requests arrive.
    """

    from_s: float = figure("s", "its begin in the series")
    to_s: float = figure("s", "its end in the series")
    rate_per_s: float = figure("requests/s", "mean rate of the series in it")
    time_s: float = figure("s", "how long it lasted in the window")
    requests: int = figure("requests", "that arrived in it")
    offered_requests_per_s: float | None = figure("requests/s", "requests over time_s")
    throughput: StageThroughput = text("rates")
    latency_s: StageLatencies = text("latencies")
    slo: StageSlo = text("service-level objectives")


class ClassRequests(Section):
    """Requests of a class; of the whole run, but those that are measured."""

    total: int = figure("requests", "that arrived")
    finished: int = figure("requests", "that have all their tokens")
    rejected: int = figure("requests", "that no replica can serve, or was free enough to serve")
    unfinished: int = figure("requests", "that the end of the run left waiting or running")
    preempted: int = figure("requests", "that were preempted, once or more often")
    measured: int = figure("requests", "that arrived in the measured window")


class ClassTokens(Section):
    """Tokens of a class, whole run."""

    prompt: int = figure("tokens", "of prompts of requests that were not rejected")
    output: int = figure("tokens", "emitted")


class ClassThroughput(Section):
    """Rates of a class inside the measured window."""

    requests_per_s: float | None = figure("requests/s", "requests that finished")
    output_tokens_per_s: float | None = figure("tokens/s", "output tokens of these requests")


class ClassLatencies(Section):
    """Latencies of requests of a class that arrived in the measured window."""

    ttft: OfRequests = text("time to first token, from arrival; requests that had it")
    tpot: OfRequests = text("time per output token after the first; finished requests with two or more")
    e2e: OfRequests = text("from arrival to the last token; finished requests")
    queue: OfRequests = text("from arrival until first scheduled")


class ClassSlo(Section):
    """Objectives of a class: its own, or else those of the scenario."""

    limits: dict[str, Annotated[float, figure("s", "upper limit")]] = text("limits by name, as in slo.limits")
    attainment: Share = figure("1", "of its measured requests of which it is known, the share that met all limits")
    censored: int = figure("requests", "those of which it is not")
    goodput_requests_per_s: float | None = figure(
        "requests/s", "its measured requests that finished and met all limits; null without limits or measured ones"
    )
    at_percentiles: dict[str, AtPercentile] | None = Field(
        None, description="its limits at a percentile, by name; gaps between tokens are not kept by class"
    )


class ClassFigures(Section):
    """A class of requests."""

    name: str = text("of the class")
    tenant: str = text("who sends its requests")
    priority: int = text("lower is served earlier, by scheduler.policy: priority")
    requests: ClassRequests = text("counts")
    tokens: ClassTokens = text("counts")
    throughput: ClassThroughput = text("rates")
    latency_s: ClassLatencies = text("latencies")
    slo: ClassSlo = text("service-level objectives")


_Requests = Annotated[int, figure("requests", "sent")]


class RoutedTo(Section):
    """What went to one replica."""

    replica: int = text("its number")
    requests: int = figure("requests", "sent there")
    by_reason: dict[str, _Requests] = text("these by reason")


class RouterFigures(Section):
    """Decisions of the router, of the whole run; who comes again, as a replica failed or left, is sent again."""

    name: str = text("the router, when the run began")
    requests: int = figure("requests", "sent")
    by_reason: dict[str, _Requests] = text(
        "these by why they went where they did: turn, random, load, session, prefix, spread, overload, explore "
        "(docs/routers.md); other of routers that do not say"
    )
    replicas: list[RoutedTo] = text("these by replica")
