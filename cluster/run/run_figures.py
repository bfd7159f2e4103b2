"""The figures of a summary that are shown as numbers: one table of them, for terminal, page and comparison alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pimserve.cluster.base.figures import named
from pimserve.cluster.run.group_schema import TIMES
from pimserve.cluster.run.read_summary import section_in
from pimserve.cluster.run.summary_schema import Summary
from pimserve.scheduler.latency_sections import Latencies
from pimserve.scheduler.part_sections import ClassLatencies
from pimserve.scheduler.sections import Section

MOMENTS = ("mean", "p50", "p90", "p99")
REQUESTS = {  # counts of requests that are not called by their keys
    "truncated": "cut at max_model_len or max_tokens",
    "measured": "arrived in the measured window",
    "measured_finished": "of these finished",
    "measured_unfinished": "of these cut off by the end of the run",
}


@dataclass(frozen=True, slots=True)
class RunFigure:
    """A figure of a run.

    Args:
        group: what it is shown together with.
        label: what it is called.
        path: its place in the summary, with dots.
        beneath: its label where it stands below what it is a part of; empty: the same.
        compared: whether comparisons have it.
    """

    group: str
    label: str
    path: str
    beneath: str = ""
    compared: bool = True

    @property
    def unit(self) -> str:
        """How it is written, as `unit_of` says."""
        return unit_of(self.path)


FIGURES = (
    RunFigure("requests", "requests", "requests.total"),
    RunFigure("requests", "finished", "requests.finished"),
    RunFigure("requests", "preempted", "requests.preempted"),
    RunFigure("throughput", "offered requests/s", "offered_requests_per_s"),
    RunFigure("throughput", "requests/s", "throughput.requests_per_s"),
    RunFigure("throughput", "output tokens/s", "throughput.output_tokens_per_s"),
    RunFigure("throughput", "output tokens/s per device", "throughput.output_tokens_per_s_per_device", "  per device"),
    RunFigure(
        "throughput", "output tokens/s per mm2", "throughput.output_tokens_per_s_per_mm2", "  per mm2 of silicon"
    ),
    RunFigure("throughput", "silicon, mm2", "silicon_mm2"),
    RunFigure("throughput", "energy per output token", "energy.joules_per_output_token"),
    RunFigure("throughput", "  active", "energy.active_joules_per_output_token"),
    RunFigure("throughput", "  passive", "energy.passive_joules_per_output_token"),
    RunFigure("throughput", "  at the devices' TDP", "energy.tdp_joules_per_output_token"),
    *(
        RunFigure(f"latency.{key}", f"{named(key)} {moment}", f"latency_s.{key}.{moment}")
        for key in Latencies.model_fields
        for moment in MOMENTS
    ),
    RunFigure("slo", "SLO attainment", "slo.attainment"),
    RunFigure("slo", "goodput, requests/s", "slo.goodput_requests_per_s"),
    RunFigure("load", "batch, mean requests", "batch.mean_requests"),
    RunFigure("load", "data-parallel groups waiting", "batch.group_wait_share"),
    RunFigure("load", "KV cache in use, mean", "kv.mean_use"),
    RunFigure("load", "KV cache in use, peak", "kv.peak_use"),
    RunFigure("load", "KV cache, tokens", "kv.capacity_tokens"),
    RunFigure("load", "steps", "batch.steps", compared=False),
    RunFigure("load", "prompt tokens", "tokens.prompt", compared=False),
    RunFigure("load", "output tokens", "tokens.output", compared=False),
    RunFigure("load", "steps of decoding only", "batch.decode_only_share", compared=False),
    RunFigure("pools", "hand-over, mean", "pools.handover.transfer_s.mean"),
    RunFigure("pools", "  waiting before it, mean", "pools.handover.waiting_s.mean"),
    RunFigure("pools", "  held back", "pools.handover.held"),
    RunFigure("pools", "short prompts that stayed", "pools.conditional_disagg.short_prompt"),
    RunFigure("pools", "prompts that stayed for the queue", "pools.conditional_disagg.prefill_queue"),
    RunFigure("faults", "availability", "faults.availability"),
    RunFigure("faults", "queued again", "faults.requeued"),
    RunFigure("autoscaling", "replicas, mean", "autoscaling.mean_replicas"),
    RunFigure("autoscaling", "device-seconds", "autoscaling.device_s"),
    *(
        RunFigure("groups", f"{whose} devices, {what}", f"groups.{group}.shares_of_time.{part}")
        for group, whose in (("attention", "attention's"), ("experts", "experts'"))
        for part, what in TIMES.items()
    ),
    RunFigure("groups", "dispatch busy", "groups.link.dispatch.busy_share"),
    RunFigure("groups", "combine busy", "groups.link.combine.busy_share"),
    RunFigure("groups", "micro-batches, most", "groups.micro_batches.most"),
    RunFigure("busy", "busy share of time", "busy_share"),
    RunFigure("busy", "  of prefill", "pools.prefill.busy_share"),
    RunFigure("busy", "  of decode", "pools.decode.busy_share"),
)
ASKED = "percentiles"  # where distributions have what output.percentiles asks for


def asked_percentiles(summaries: Iterable[Section]) -> list[str]:
    """Names of percentiles that some of the runs were asked for, and that not all runs have."""
    asked = [value_at(summary, f"latency_s.ttft.{ASKED}") or {} for summary in summaries]
    return [name for name in dict.fromkeys(name for names in asked for name in names) if name not in MOMENTS]


def run_figures(summaries: Iterable[Section]) -> Iterator[RunFigure]:
    """The figures of some runs: those of all, and percentiles that they were asked for."""
    asked = asked_percentiles(summaries)
    for each in FIGURES:
        yield each
        place, _, moment = each.path.rpartition(".")
        if moment == MOMENTS[-1]:
            for name in asked:
                label = each.label.replace(moment, name)
                yield RunFigure(each.group, label, f"{place}.{ASKED}.{name}")


CLASS_FIGURES = (  # of each class of requests: labels, and places in its section
    ("requests", "requests.total"),
    ("finished", "requests.finished"),
    ("requests/s", "throughput.requests_per_s"),
    ("output tokens/s", "throughput.output_tokens_per_s"),
    *(
        (f"{named(key)} {moment}", f"latency_s.{key}.{moment}")
        for key in ClassLatencies.model_fields
        for moment in MOMENTS
    ),
    ("SLO attainment", "slo.attainment"),
    ("goodput, requests/s", "slo.goodput_requests_per_s"),
)


def class_figures(summaries: Iterable[Section]) -> Iterator[tuple[str, str]]:
    """The figures of a class of some runs, label and place: those of all, and percentiles that were asked for."""
    asked = asked_percentiles(summaries)
    for label, path in CLASS_FIGURES:
        yield label, path
        place, _, moment = path.rpartition(".")
        if moment == MOMENTS[-1]:
            yield from ((label.replace(moment, name), f"{place}.{ASKED}.{name}") for name in asked)


FIGURE_AT = {figure.path: figure for figure in FIGURES}


@cache
def unit_of(path: str, of: type[Section] = Summary) -> str:
    """How the figure at a path is written: "s", "J", "share" (of 1), "count", "state" (text), or "": rates and means.

    A label says what the last are of. `of` is the section that the path begins in.
    """
    place, asked, _ = path.partition(f".{ASKED}.")
    *way, name = f"{place}.{MOMENTS[0]}".split(".") if asked else path.split(".")  # all moments have one unit
    section = of
    for key in way:
        inner = section_in(section.model_fields[key].annotation)
        assert inner is not None, f"{path}: {key} is no section"
        section = inner
    field = section.model_fields[name]
    unit = field.json_schema_extra["unit"] if isinstance(field.json_schema_extra, dict) else None
    if unit is None:
        return "state"
    if unit in {"s", "J", "J/token"}:
        return str(unit)[0]
    return "share" if unit == "1" else "count" if field.annotation is int else ""


def value_at(summary: Section | None, path: str) -> Any:  # noqa: ANN401 numbers, or text where `unit_of` says "state"
    """The figure at a path below a section; None where it does not apply."""
    value: Any = summary
    keys = path.split(".")
    for depth, key in enumerate(keys):
        rest = ".".join(keys[depth:])
        if isinstance(value, Mapping) and rest in value:  # a name with a dot, such as p99.9
            return value[rest]
        value = value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
    return value
