"""The PromQL that panels share.

Counters grow with simulated time, at any multiple of the wall clock: rates are divided by the rate of the virtual
clock, which leaves figures per simulated second, and nothing where the clock stands still. No expression is NaN or
infinite: what has no samples has no value.
"""

from __future__ import annotations

from collections.abc import Sequence

OF_RUN = 'run_id=~"$run_id"'
OF_ENGINE = 'run_id=~"$run_id",engine=~"$engine",role=~"$role"'


def growth(metric: str, *, of: str = OF_RUN, by: Sequence[str] = ("run_id",)) -> str:
    """A counter's growth per second of the clock that is scraped: only for ratios of two of them."""
    return f"sum by ({', '.join(by)}) (rate({metric}{{{of}}}[$__rate_interval]))"


def clock() -> str:
    """Simulated seconds per second, where the clock goes."""
    return f"({growth('pimserve_virtual_time_seconds_total')} > 0)"


def per_second(metric: str, *, of: str = OF_RUN, by: Sequence[str] = ("run_id",)) -> str:
    """A counter's growth per simulated second."""
    return f"{growth(metric, of=of, by=by)} / on (run_id) group_left () {clock()}"


def share(part: str, whole: str) -> str:
    """One rate over another; both are of the same clock."""
    return f"({part}) / ({whole} > 0)"


def total(metric: str, *, of: str = OF_RUN, by: Sequence[str] = ("run_id",)) -> str:
    """A gauge, or a counter since the beginning of the run."""
    return f"sum by ({', '.join(by)}) ({metric}{{{of}}})"


def quantile(percent: float, metric: str, *, of: str = OF_RUN) -> str:
    """A percentile of each run's samples of late; rates of buckets need no clock, since only their shares count."""
    return _quantile(percent, f"rate({metric}_bucket{{{of}}}[$__rate_interval])")


def quantile_of_all(percent: float, metric: str, *, by: Sequence[str] = ("run_id",)) -> str:
    """A percentile of all samples of each run so far."""
    return _quantile(percent, f"{metric}_bucket{{{OF_RUN}}}", by=by)


def percentiles(metric: str) -> tuple[tuple[str, str], ...]:
    """p50, p90 and p99, each with its legend."""
    return tuple((quantile(percent, metric), f"p{percent} {{{{run_id}}}}") for percent in (50, 90, 99))


def _quantile(percent: float, buckets: str, *, by: Sequence[str] = ("run_id",)) -> str:
    # Without samples it is NaN, which is not >= 0.
    return f"histogram_quantile({percent / 100:g}, sum by (le, {', '.join(by)}) ({buckets})) >= 0"
