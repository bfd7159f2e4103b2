"""Sections of the summary that tell of latencies, and of limits at their percentiles."""

from __future__ import annotations

from pydantic import Field

from pimserve.scheduler.sections import AskedPercentiles, Section, figure, text


class Distribution(Section):
    """Nearest-rank percentiles of exact samples; of ITL, of a histogram with bins of 2^-12 of their value."""

    mean: float | None = figure("s", "mean; null without samples")
    p50: float | None = figure("s", "median")
    p90: float | None = figure("s", "90th percentile")
    p99: float | None = figure("s", "99th percentile")
    n: int = figure("samples", "how many")
    percentiles: AskedPercentiles | None = Field(
        None, description="where output.percentiles asks for others: these, by name, such as p99.9"
    )
    few_samples: list[str] | None = Field(
        None, description="of these percentiles, those beyond which fewer than ten samples lie"
    )

    def percentile(self, name: str) -> float | None:
        """One of them by name; None: not known."""
        value: float | None = (self.percentiles or {}).get(name, getattr(self, name, None))
        return value


class OfRequests(Distribution):
    """A distribution over requests, of which the end of the run may have hidden some."""

    censored: int = figure("requests", "that are left out, for the run ended before it was known")


class Latencies(Section):
    """Latencies of requests that arrived in the measured window."""

    ttft: OfRequests = text("time to first token, from arrival; requests that had it")
    tpot: OfRequests = text("time per output token after the first; finished requests with two or more")
    itl: Distribution = text("inter-token latency, one sample per gap that ends in the window")
    e2e: OfRequests = text("from arrival to the last token; finished requests")
    queue: OfRequests = text("from arrival until first scheduled")
    itl_max: OfRequests | None = Field(
        None, description="with slo.itl_max_s: longest gap between two tokens; finished requests with two or more"
    )


class AtPercentile(Section):
    """A limit at a percentile. Rejected requests, and those cut off when it had passed, count as above it."""

    limit: float = figure("s", "upper limit")
    measured: float | None = figure(
        "s", "the percentile; null without samples, or where it is of requests never served"
    )
    passed: bool | None = text("whether the percentile is at most the limit; null without samples")
    margin: float | None = figure("s", "limit less measured")
    relative_margin: float | None = figure("1", "margin over the limit")
    n: int = figure("samples", "how many")
    enough_samples: bool = text("whether ten samples or more lie beyond the percentile")
