"""summary.json and its reference: runs of all kinds hold what the schema says, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from pimserve.cluster.run.read_summary import summary_of_document
from pimserve.cluster.run.run_figures import FIGURES, unit_of, value_at
from pimserve.cluster.run.summary_message import message_of, summary_of_message
from pimserve.cluster.run.summary_schema import Summary, summary_schema
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.v1 import summary_pb2
from tests.cluster.documents import run

EXAMPLES = Path(__file__).parents[3] / "examples"
FEW = ["workload.num_requests=60", "run.warmup_s=0", "output.steps=false"]
_PLACED = "cluster.placement={experts: {device: aimc-realistic}}"
_HOT = "cluster.placement.hot_experts={device: h100, devices_per_node: 2, count: 2}"
_ZIPF = "routing={popularity: zipf, zipf_exponent: 1}"
_PLACED_IN_POOL = "cluster.pools.decode.placement={experts: {device: h100}}"
KINDS: dict[str, tuple[str, list[str]]] = {
    "duplex": ("mixtral_duplex", ["run.warmup_s=1"]),
    "closed": ("closed_loop", []),
    "aimc": ("mixtral_aimc", []),
    "mixed": ("mixtral_duplex", [_PLACED]),
    "hot experts": ("mixtral_duplex", [_PLACED, _HOT, _ZIPF]),
    "mixed, nothing": ("mixtral_duplex", [_PLACED, "scheduler.max_model_len=1"]),
    "measured": ("llama_h100_measured", []),
    "pools": ("prefill_decode_pools", []),
    "conditional pools": ("prefill_decode_pools", ["cluster.pools.conditional_disagg={}"]),
    "mixed pools": ("prefill_decode_pools", [_PLACED_IN_POOL, "cluster.pools.handover.overlap=layers"]),
    "faults": (
        "faults",
        ["faults.events=[{at_s: 1, replica: 0, kind: slow, factor: 2}, {at_s: 2, replica: 1, kind: fail, for_s: 3}]"],
    ),
    "autoscaling": (
        "autoscaling",
        ["autoscaling.replicas={metric: requests, target: 1, interval_s: 1, start_up_s: 1, stabilization_s: 0}"],
    ),
    "cut": ("mixtral_duplex", ["run.max_time_s=1", "slo={ttft_s: 1}"]),
    "rejected": ("mixtral_duplex", ["scheduler.max_model_len=100"]),
    "nothing": ("mixtral_duplex", ["scheduler.max_model_len=1"]),
    "percentiles": (
        "mixtral_duplex",
        ["output.percentiles=[5, 99.9]", "slo={itl_p99.9_s: 1, ttft_p5_s: 1e-9, itl_max_s: 1}"],
    ),
    "sessions": ("mixtral_duplex", ["workload={sessions: {turns: 2, num_sessions: 6, think_time_s: 1}}"]),
    "drafts": (
        "mixtral_duplex",
        ["scheduler.speculative={method: ngram, num_speculative_tokens: 2, acceptance: 0.5}"],
    ),
    "swap": (
        "mixtral_duplex",
        ["scheduler={preemption: swap, swap_gb_per_s: 50, swap_space_gb: 10}"],
    ),
    "prefixes": (
        "mixtral_duplex",
        [
            "workload.prefix={shared_tokens: 64}",
            "scheduler={enable_prefix_caching: true, kv_tiers: [{name: host, gb_per_s: 1, write: back}]}",
        ],
    ),
    "router": ("mixtral_duplex", ["cluster.replicas=2"]),
    "data-parallel groups": ("mixtral_duplex", ["cluster.nodes=2"]),
    "cap": ("mixtral_duplex", ["workload.max_concurrency=1"]),
    "classes": (
        "mixtral_duplex",
        ["workload.classes=[{name: a, slo: {ttft_s: 1, itl_max_s: 2, e2e_p90_s: 1}}, {name: b, priority: -3}]"],
    ),
    "stages": ("mixtral_duplex", ["workload.arrival={process: nhpp, rate_series: [[0, 2], [9, 2], [9, 4], [20, 4]]}"]),
}


@pytest.fixture(scope="module")
def summaries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        kind: run(prepare(load_scenario(EXAMPLES / f"{example}.yaml", [*FEW, *sets])), folder / kind)
        for kind, (example, sets) in KINDS.items()
    }


@cache
def reference() -> jsonschema.Draft202012Validator:
    """The schema, held against its own first, which takes longer than all summaries."""
    jsonschema.Draft202012Validator.check_schema(summary_schema())
    return jsonschema.Draft202012Validator(summary_schema())


@pytest.mark.medium
@pytest.mark.parametrize("kind", KINDS)
def test_a_summary_is_as_its_reference_says(kind: str, summaries: dict[str, dict[str, Any]]) -> None:
    Summary.model_validate(summaries[kind])
    reference().validate(summaries[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_summary_is_read_whole(kind: str, summaries: dict[str, dict[str, Any]]) -> None:
    read = summary_of_document(summaries[kind])
    assert read == Summary.model_validate(summaries[kind])
    assert read.document() == summaries[kind]


def without_nulls_in_maps(document: Any, path: str = "") -> Any:
    """The document without names that hang on the run and whose figure is null; the last may be absent as well."""
    if isinstance(document, Mapping):
        shares = {"met", "time_share", "unit_busy_share", "unit_busy_share_of_busiest_device", "link_busy_share"}
        maps = shares | {"precision"}
        return {
            key: without_nulls_in_maps(value, key)
            for key, value in document.items()
            if value is not None or path not in maps
        }
    return [without_nulls_in_maps(each) for each in document] if isinstance(document, list) else document


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_says_what_the_summary_says(kind: str, summaries: dict[str, dict[str, Any]]) -> None:
    sent = message_of(Summary.model_validate(summaries[kind])).SerializeToString()
    read = summary_of_message(summary_pb2.Summary.FromString(sent))
    assert read.document() == without_nulls_in_maps(summaries[kind])


def test_what_a_summary_lacks_or_has_of_another_kind_is_none() -> None:
    odd = {"requests": {"total": "x", "finished": True, "rejected": 10**400}, "kv": 3, "pools": [], "end_s": 2}
    read = summary_of_document({**odd, "warnings": "w", "unit_busy_share": {"xpu": "x", "link": 0.5}, "newer": 1})
    assert (read.requests.total, read.requests.finished, read.requests.rejected) == (None, None, None)
    assert (read.kv.peak_use, read.pools, read.faults, read.warnings, read.end_s) == (None, None, None, [], 2)
    assert read.unit_busy_share == {"xpu": None, "link": 0.5}


def test_figures_that_are_shown_are_in_the_summary(summaries: dict[str, dict[str, Any]]) -> None:
    read = [summary_of_document(summary) for summary in summaries.values()]
    for figure in FIGURES:
        assert figure.unit in {"s", "J", "share", "count", ""}
        assert any(value_at(summary, figure.path) is not None for summary in read), figure.path
    assert (unit_of("energy.joules"), unit_of("busy_share"), unit_of("pools.decode.steps")) == ("J", "share", "count")
    assert unit_of("stability") == "state"


def fields_of(value: object) -> Iterator[tuple[str, str]]:
    """(class, field) of all that is set in a model and below it."""
    if isinstance(value, BaseModel):
        for name in value.model_fields_set:
            yield type(value).__name__, name
            yield from fields_of(getattr(value, name))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from fields_of(each)
    elif isinstance(value, list):
        for each in value:
            yield from fields_of(each)


def test_every_field_of_the_reference_is_in_a_run(summaries: dict[str, dict[str, Any]]) -> None:
    seen = {field for summary in summaries.values() for field in fields_of(Summary.model_validate(summary))}
    schema = summary_schema()
    kinds = {**schema["$defs"], "Summary": schema}
    known = {(kind, name) for kind, part in kinds.items() for name in part["properties"]}
    assert known - seen == {
        ("Simulator", "spread"),  # of distributed runs
        ("Simulator", "continued"),
        ("Simulator", "trace_sha256"),  # of runs that replay a trace
    }


def test_every_figure_has_a_unit_and_a_meaning() -> None:
    schema = summary_schema()
    for kind, part in [*schema["$defs"].items(), ("Summary", schema)]:
        for name, field in part["properties"].items():
            assert field.get("description"), f"{kind}.{name} has no meaning"
            types = {option.get("type") for option in field.get("anyOf", [field])}
            if "number" in types:
                assert field.get("unit"), f"{kind}.{name} has no unit"


def test_units_in_names_are_the_stated_ones() -> None:
    schema = summary_schema()
    for part in (*schema["$defs"].values(), schema):
        for name, field in part["properties"].items():
            for ending, unit in (("_requests_per_s", "requests/s"), ("_gb_per_device", "GB"), ("_mm2", "mm2")):
                if name.endswith(ending) and "per_mm2" not in name:
                    assert field["unit"] == unit
            if name.endswith("_s") and "_per_s" not in name and "unit" in field:
                assert field["unit"] == "s"
