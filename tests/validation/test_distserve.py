"""DistServe's queueing formulas, exactly and in the mean; times of steps; and the rates, of which all are missed."""

from pathlib import Path

import numpy as np
import pytest

from pimserve.cluster.validation.distserve_formula import MeanTtft, Split
from pimserve.cluster.validation.distserve_rate import HighestRate
from pimserve.cluster.validation.validate_pools import QUANTITIES, judge_pools, published_pools
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.loadgen.spec import PS_PER_S
from tests.command import pimserve

TARGETS = {target.id: target for target in published_pools()}
RATES = [name for name, target in TARGETS.items() if target.quantity == "highest_rate_per_s"]
MEANS = [name for name, target in TARGETS.items() if target.quantity == "mean_ttft_s"]


@pytest.mark.medium
@pytest.mark.parametrize("name", [name for name in TARGETS if name not in RATES])
def test_published_figure(name: str) -> None:
    found = judge_pools(TARGETS[name])
    assert found.passed, f"{found.case}: published {found.published}, ours {found.ours}"
    assert found.note


@pytest.mark.parametrize("name", MEANS)
def test_formulas_at_the_inputs_that_were_chosen(name: str) -> None:
    target = TARGETS[name]
    assert MeanTtft.model_validate(target.case).closed_form_s() == pytest.approx(target.published, rel=1e-12)


@pytest.mark.parametrize(("split", "speedup"), [("none", 1.0), ("inter_op", 1.0), ("intra_op", 1.6)])
@pytest.mark.parametrize("load", [0.3, 0.9])
def test_each_prompt_waits_as_in_the_queue_that_the_formula_is_of(split: Split, speedup: float, load: float) -> None:
    """M/D/1 by Lindley's recursion, to the picosecond; with two stages, both of them."""
    prompt_s = 0.1
    formula = MeanTtft(prompt_s=prompt_s, rate_per_s=load / prompt_s, split=split, speedup=speedup)
    served = formula.served(requests=3000, seed=5)
    arrival_fs = served.table["arrival_ps"] * FS_PER_PS
    stages = {"none": [prompt_s], "inter_op": [prompt_s / 2] * 2, "intra_op": [prompt_s / speedup]}[split]
    leaves_fs = arrival_fs
    for stage_s in stages:
        stage_fs, free_fs, left = round(stage_s * FS_PER_S), 0, []
        for comes_fs in leaves_fs.tolist():
            free_fs = max(comes_fs, free_fs) + stage_fs
            left.append(free_fs)
        leaves_fs = np.array(left)
    ttft_s = served.latencies(np.arange(3000))["ttft"].known_s
    assert np.rint(ttft_s * PS_PER_S).tolist() == ((leaves_fs - arrival_fs) // FS_PER_PS).tolist()


def test_two_stages_and_a_speed_up_of_two_differ_by_what_waits() -> None:
    """At low rates a speed-up halves the time to first token, two stages do not; near saturation stages nearly do."""
    low, high = 0.01, 19.9
    one, stages, together = (
        [MeanTtft(prompt_s=0.1, rate_per_s=rate, split=split, speedup=2.0).closed_form_s() for rate in (low, high)]
        for split in ("none", "inter_op", "intra_op")
    )
    assert stages[0] == pytest.approx(one[0], rel=1e-3)
    assert together[0] == pytest.approx(one[0] / 2, rel=1e-3)
    assert stages[1] - together[1] == pytest.approx(0.05, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", RATES)
def test_rates_are_missed_and_the_note_says_why(name: str) -> None:
    found = judge_pools(TARGETS[name])
    assert not found.passed
    assert found.ratio is not None
    assert found.ratio > 1.5
    assert "missed" in found.note


@pytest.mark.slow
def test_the_highest_rate_is_the_last_that_keeps_its_limits() -> None:
    formula = HighestRate(phase="prefill", ttft_s=0.4, tpot_s=0.04)
    highest = formula.value()
    assert formula.kept_at(highest) >= formula.attainment > formula.kept_at(1.02 * highest)


@pytest.mark.medium
def test_a_phase_by_itself_keeps_limits_longer() -> None:
    """Of the same device, at a rate at which both phases together do not."""
    both, prefill, decode = (
        HighestRate(phase=phase, ttft_s=0.4, tpot_s=0.04).kept_at(8) for phase in ("both", "prefill", "decode")
    )
    assert both < 0.5
    assert min(prefill, decode) > 0.99


def test_every_quantity_says_what_it_is() -> None:
    assert {target.quantity for target in TARGETS.values()} == set(QUANTITIES)
    for form in QUANTITIES.values():
        assert form.__doc__
        assert form.value.__doc__


@pytest.mark.deep
def test_the_command_counts_what_is_missed(tmp_path: Path) -> None:
    result = pimserve(tmp_path, "validate", "pools")
    assert result.returncode == 1
    assert f"{len(TARGETS) - len(RATES)} of {len(TARGETS)} figures met" in result.stdout
