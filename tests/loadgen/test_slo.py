"""Limits of service: the presets against MLPerf's rules, and what a scenario changes of them."""

from typing import get_args

import pytest

from pimserve.cluster.scenario.document import load_scenario
from pimserve.errors import InputError
from pimserve.loadgen.slo import SloPreset, SloSpec

# MLPerf Inference rules of 2026-07-23: p99 of TTFT and TPOT in ms, of the server and of the interactive scenario.
RULES = {
    "llama2-70b": ((2000, 200), (450, 40)),
    "mixtral-8x7b": ((2000, 200), None),
    "llama3.1-8b": ((2000, 100), (500, 30)),
    "llama3.1-405b": ((6000, 175), (4500, 80)),
    "deepseek-r1": ((2000, 80), (1500, 15)),
    "gpt-oss-120b": ((3000, 80), None),
}


def test_presets_are_the_limits_of_mlperf():
    limits = {
        f"mlperf/{model}/{scenario}": ms
        for model, both in RULES.items()
        for scenario, ms in zip(("server", "interactive"), both, strict=True)
        if ms is not None
    }
    multimodal = "mlperf/qwen3-vl-235b-a22b/server"
    assert set(get_args(SloPreset)) == {*limits, multimodal}
    assert limits_at_percentiles(SloSpec.model_validate({"preset": multimodal})) == {("e2e", 99): 12}
    for preset, (ttft_ms, tpot_ms) in limits.items():
        slo = SloSpec.model_validate({"preset": preset})
        assert slo.limits() == {}, preset  # a percentile says nothing of a single request
        assert limits_at_percentiles(slo) == pytest.approx(
            {("ttft", 99.0): ttft_ms / 1000, ("tpot", 99.0): tpot_ms / 1000}
        ), preset


def limits_at_percentiles(slo):
    return {(limit.latency, limit.percent): limit.limit_s for limit in slo.at_percentiles()}


def test_limits_of_a_preset_can_be_changed() -> None:
    preset = {"preset": "mlperf/mixtral-8x7b/server"}
    changed = SloSpec.model_validate(preset | {"ttft_p99_s": "500 ms", "e2e_p50_s": 9, "ttft_s": 1})
    assert changed.limits() == {"ttft_s": 1}
    assert limits_at_percentiles(changed) == {("ttft", 99): 0.5, ("tpot", 99): 0.2, ("e2e", 50): 9}
    same = SloSpec.model_validate(preset | {"ttft_p99_s": None})
    assert limits_at_percentiles(same) == {("ttft", 99): 2, ("tpot", 99): 0.2}
    assert SloSpec.model_validate(same.model_dump(exclude_none=True)) == same  # null is the same as not given


def test_any_percentile_can_have_a_limit() -> None:
    slo = SloSpec.model_validate({"ttft_p99_s": "2 s", "itl_p99.9_s": "50 ms", "queue_p100_s": 1, "e2e_p50_s": None})
    assert [(limit.latency, limit.percent, limit.limit_s) for limit in slo.at_percentiles()] == [
        ("ttft", 99, 2),
        ("itl", 99.9, 0.05),
        ("queue", 100, 1),
    ]
    assert slo.limits() == {}
    assert SloSpec.model_validate(slo.model_dump(exclude_none=True)) == slo


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("ttft_p101_s=1", "slo.ttft_p101_s: a limit at a percentile is ttft, tpot, itl, e2e or queue, then _p"),
        ("ttft_p0_s=1", "slo.ttft_p0_s: a limit at a percentile is"),
        ("tbt_p99_s=1", "slo.tbt_p99_s: a limit at a percentile is"),
        ("ttft_p99=1", "slo.ttft_p99: a limit at a percentile is"),
        ("ttf_s=1", "slo.ttf_s: unknown key; did you mean ttft_s?"),
        ("ttft_p99.9_s=soon", "slo.ttft_p99.9_s: 'soon' is not a number in s"),
        ("ttft_p99_s=0", "slo.ttft_p99_s: must be greater than 0"),
    ],
)
def test_mistakes_say_what_is_allowed(setting: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        load_scenario(None, [f"slo.{setting}"])
    assert message in str(raised.value)
