"""Changing one knob of a workload leaves the draws of all others: each against each."""

import numpy as np
import pytest

from pimserve.loadgen.workload import WorkloadSpec, generate

BASE = {
    "num_requests": 3000,
    "arrival": {"process": "mmpp", "mmpp": {"rates_per_s": [40, 2], "mean_dwell_s": [1, 3]}},
    "lengths": {"input": {"kind": "uniform", "low": 5, "high": 5000}, "output": {"kind": "geometric", "mean": 300}},
    "prefix": {"groups": 9, "shared_tokens": 100, "prompts_per_group": 50},
}
GEOMETRIC = {"kind": "geometric", "mean": 77}
# Of each knob: its change, and which draws it may change.
KNOBS = {
    "law of gaps": ({"arrival": {"process": "gamma", "rate_per_s": 9, "cv": 3}}, {"arrivals"}),
    "stages": ({"arrival": {"stages": [{"rate_per_s": 9, "duration_s": 9e5}]}}, {"arrivals"}),
    "states": (
        {"arrival": {"process": "mmpp", "mmpp": {"rates_per_s": [40, 3], "mean_dwell_s": [1, 3]}}},
        {"arrivals"},
    ),
    "input": ({"lengths": {**BASE["lengths"], "input": GEOMETRIC}}, {"inputs"}),
    "output": ({"lengths": {**BASE["lengths"], "output": GEOMETRIC}}, {"outputs"}),
    "groups": ({"prefix": {**BASE["prefix"], "zipf_theta": 1}}, {"groups", "inputs"}),
    "prompts": ({"prefix": {**BASE["prefix"], "prompts_per_group": 51}}, {"prompts", "inputs"}),
    "shared tokens": ({"prefix": {**BASE["prefix"], "shared_tokens": 7}}, {"inputs"}),
    "no prompts": ({"prefix": {**BASE["prefix"], "prompts_per_group": None}}, {"prompts", "inputs"}),
    "own tokens": (
        {"prefix": {**BASE["prefix"], "own_tokens": 7}, "lengths": {"output": BASE["lengths"]["output"]}},
        {"inputs"},
    ),
}


def draws(changes, seed=5):
    spec = WorkloadSpec.model_validate(BASE | changes)
    w = generate(spec, seed)
    return {
        "arrivals": w.arrival_ps,
        "inputs": w.input_tokens,
        "outputs": w.output_tokens,
        "groups": w.prefixes.prompts.group,
        "prompts": w.prefixes.prompts.prompt - w.prefixes.prompts.group * (spec.prefix.prompts_per_group or 0),
    }


@pytest.mark.parametrize("knob", KNOBS)
def test_a_knob_changes_its_own_draws_alone(knob):
    changes, its = KNOBS[knob]
    before, after = draws({}), draws(changes)
    assert {name for name in before if not np.array_equal(before[name], after[name])} == its


def test_the_seed_changes_all_of_them():
    before, after = draws({}), draws({}, seed=6)
    assert not any(np.array_equal(before[name], after[name]) for name in before)


def test_gaps_of_states_are_those_without_states():
    """The states of a rate have a stream of their own: the gaps between arrivals, in operational time, stay."""
    one_state = {"arrival": {"process": "mmpp", "mmpp": {"rates_per_s": [8, 8], "mean_dwell_s": [1, 3]}}}
    plain = {"arrival": {"process": "poisson", "rate_per_s": 8}}
    np.testing.assert_allclose(draws(one_state)["arrivals"], draws(plain)["arrivals"], rtol=1e-9, atol=100)


def test_a_stagger_and_joint_lengths_leave_the_others():
    loop = {"mode": "closed", "concurrency": 50, "num_requests": 200, "lengths": BASE["lengths"]}
    plain, staggered = (
        generate(WorkloadSpec.model_validate({**loop, "stagger": stagger}), 5) for stagger in (False, True)
    )
    np.testing.assert_array_equal(
        plain.input_tokens + plain.output_tokens, staggered.input_tokens + staggered.output_tokens
    )
    np.testing.assert_array_equal(plain.input_tokens[50:], staggered.input_tokens[50:])
    joint = {
        "lengths": {"joint": {"kind": "pairs", "pairs": [[1, 2], [3, 4]]}},
        "prefix": {"groups": 9, "shared_tokens": 1},
    }
    w = generate(WorkloadSpec.model_validate(BASE | joint), 5)
    np.testing.assert_array_equal(w.arrival_ps, draws({})["arrivals"])
    np.testing.assert_array_equal(w.prefixes.prompts.group, draws({})["groups"])
