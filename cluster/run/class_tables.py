"""Tables of classes of requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pimserve.cluster.base.figures import count, figure, known, scaled, share
from pimserve.cluster.base.tables import Row, Table
from pimserve.cluster.run.latency_tables import percentile_limit_table
from pimserve.cluster.run.run_figures import value_at
from pimserve.scheduler.part_sections import ClassFigures
from pimserve.scheduler.sections import Section


def limits_of_all(summary: Section) -> Mapping[str, float]:
    """Limits that hold for requests of all classes, s, by name; none where some classes have others."""
    limits: Mapping[str, float] = known(value_at(summary, "slo.limits"))
    classes: Sequence[ClassFigures] = value_at(summary, "classes") or ()
    return limits if all(each.slo.limits == limits for each in classes) else {}


def class_tables(classes: Sequence[ClassFigures]) -> list[Table]:
    """The classes side by side, if there are any; and of each that has limits at percentiles, these."""
    tables = [_side_by_side(classes)] if classes else []
    for each in classes:
        if each.slo.at_percentiles:
            limits = percentile_limit_table(each.slo.at_percentiles)
            caption, name = f"{limits.caption}, class {each.name}", f"{each.name}, limits"
            tables.append(replace(limits, caption=caption, name=name))
    return tables


def _side_by_side(classes: Sequence[ClassFigures]) -> Table:
    columns = ("requests", "finished\n/s", "tokens\n/s", "TTFT\np50", "TTFT\np99", "TPOT\np99", "SLO", "goodput\n/s")
    rows = []
    for each in classes:
        ttft, tpot = each.latency_s.ttft, each.latency_s.tpot
        cells = (
            count(each.requests.total),
            figure(each.throughput.requests_per_s),
            figure(each.throughput.output_tokens_per_s),
            *(scaled(seconds, "s") for seconds in (ttft.p50, ttft.p99, tpot.p99)),
            share(each.slo.attainment),
            figure(each.slo.goodput_requests_per_s),
        )
        rows.append(Row(each.name, cells))
    return Table("Classes", columns, rows, name="class")
