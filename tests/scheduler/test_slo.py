"""Limits of service: the presets against MLPerf's rules, and what a scenario changes of them."""

from typing import get_args

import pytest

from pimserve.scheduler.slo import SloPreset, SloSpec

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
    assert set(get_args(SloPreset)) == set(limits)
    for preset, (ttft_ms, tpot_ms) in limits.items():
        found = SloSpec.model_validate({"preset": preset}).limits()
        assert found == pytest.approx({"ttft_s": ttft_ms / 1000, "tpot_s": tpot_ms / 1000}), preset


def test_limits_of_a_preset_can_be_changed() -> None:
    assert SloSpec(preset="mlperf/mixtral-8x7b/server").limits() == {"ttft_s": 2, "tpot_s": 0.2}
    changed = SloSpec(preset="mlperf/mixtral-8x7b/server", ttft_s="500 ms", e2e_s=9)
    assert changed.limits() == {"ttft_s": 0.5, "tpot_s": 0.2, "e2e_s": 9}
    same = SloSpec.model_validate({"preset": "mlperf/mixtral-8x7b/server", "ttft_s": None})
    assert SloSpec.model_validate(same.model_dump(exclude_none=True)) == same  # null is the same as not given
