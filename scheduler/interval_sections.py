"""The sections of summary.json for confidence intervals: half their widths, at the places that their figures have."""

from __future__ import annotations

from pydantic import Field

from pimserve.scheduler.sections import AskedPercentiles, Section, figure, text


class HalfWidths(Section):
    """Half the widths of the intervals of a distribution."""

    mean: float | None = figure("s", "of the mean")
    p50: float | None = figure("s", "of the median")
    p90: float | None = figure("s", "of the 90th percentile")
    p99: float | None = figure("s", "of the 99th percentile")
    percentiles: AskedPercentiles | None = Field(None, description="of others, as output.percentiles asks, by name")

    def percentile(self, name: str) -> float | None:
        """Of one of them by name; None: not known."""
        value: float | None = (self.percentiles or {}).get(name, getattr(self, name, None))
        return value


class ThroughputIntervals(Section):
    """Of rates inside the measured window."""

    output_tokens_per_s: float | None = figure("tokens/s", "of output tokens")
    output_tokens_per_s_per_device: float | None = figure("tokens/s", "the same over the number of devices")
    requests_per_s: float | None = figure("requests/s", "of requests that finished")


class LatencyIntervals(Section):
    """Of latencies of requests that arrived in the measured window."""

    ttft: HalfWidths = text("of time to first token")
    tpot: HalfWidths = text("of time per output token after the first")
    e2e: HalfWidths = text("of the time from arrival to the last token")
    itl: HalfWidths = text("of inter-token latency")
    queue: HalfWidths = text("of the time until first scheduled")
    itl_max: HalfWidths | None = Field(None, description="of the longest gap between two tokens")


class SloIntervals(Section):
    """Of service-level objectives."""

    goodput_requests_per_s: float | None = figure("requests/s", "of requests that met all limits")


class EnergyIntervals(Section):
    """Of energy."""

    joules_per_output_token: float | None = figure("J/token", "of active and passive energy per output token")


class Ci95(Section):
    """Half the widths of 95 % confidence intervals by batch means, of the run's own noise; null: too few samples."""

    throughput: ThroughputIntervals = text("rates")
    latency_s: LatencyIntervals = text("latencies")
    slo: SloIntervals = text("objectives")
    energy: EnergyIntervals = text("energy")
