"""Limits at percentiles, of runs and of classes of their requests."""

from __future__ import annotations

from panels import Panel, Row
from promql import OF_RUN


def limit_panels(part: str = "", legend: str = "{{run_id}}") -> tuple[Panel, ...]:
    """What limits came to, by which margin, and which are kept: of runs, or of a `part` of their requests, class."""
    family = f"pimserve_{part and f'{part}_'}slo_percentile"
    by = ", ".join(["run_id", *(["slo_class"] if part else []), "slo"])
    of_part = f" of each {part}" if part else ""
    measured, limit, margin, met = (
        f"max by ({by}) ({family}_{what}{{{OF_RUN}}})" for what in ("seconds", "limit_seconds", "margin_seconds", "met")
    )
    red_below_0, red_below_1 = (((None, "red"), (least, "green")) for least in (0, 1))
    return (
        Panel(
            f"Percentiles over their limits{of_part}",
            "percentunit",
            "So far. Above 100 % a limit is failed. Missing where the percentile is of requests that were never served;"
            " empty without limits at percentiles.",
            ((f"{measured} / {limit} < +Inf", f"{{{{slo}}}} {legend}"),),  # nor is NaN below it
            "bars",
            8,
        ),
        Panel(
            f"Margins to limits at percentiles{of_part}",
            "s",
            "The limit less the percentile so far, below 0 where it is failed; missing as to the left.",
            ((f"{margin} > -Inf", f"{{{{slo}}}} {legend}"),),
            "stat",
            8,
            steps=red_below_0,
        ),
        Panel(
            f"Limits at percentiles that are kept{of_part}",
            "short",
            "1 while the percentile is at most its limit, 0 while it is above.",
            ((f"{met} >= 0", f"{{{{slo}}}} {legend}"),),
            "stat",
            8,
            steps=red_below_1,
        ),
    )


PERCENTILE_LIMITS = Row("Limits at percentiles", limit_panels())
