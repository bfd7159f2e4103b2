"""What prompts have in common: groups, prompts that come again, and the lengths that follow."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pimserve.loadgen.workload import Workload, WorkloadSpec, generate
from tests.examples import examples

POISSON = {"process": "poisson", "rate_per_s": 5.0}
FIXED = {"kind": "fixed", "tokens": 9}
UNIFORM = {"kind": "uniform", "low": 10, "high": 10_000}


def make(seed: int = 0, **keys: object) -> Workload:
    return generate(WorkloadSpec.model_validate({"arrival": POISSON, "num_requests": 20_000, **keys}), seed)


def test_groups_times_prompts_with_shared_and_own_tokens():
    prefix = {"groups": 4, "prompts_per_group": 5, "shared_tokens": 1000, "own_tokens": 64, "system_tokens": 32}
    w = make(prefix=prefix, lengths={"output": FIXED})
    assert set(w.input_tokens) == {32 + 1000 + 64}
    assert (w.prefixes.prompts.system_tokens, w.prefixes.prompts.shared_tokens) == (32, 1000)
    np.testing.assert_array_equal(w.prefixes.prompts.prompt // 5, w.prefixes.prompts.group)
    assert np.bincount(w.prefixes.prompts.prompt) / 20_000 == pytest.approx([1 / 20] * 20, abs=0.008)
    assert "32 + 1000 tokens shared by 4 groups x 5 prompts" in w.description


def test_a_prompt_that_comes_again_has_its_length_again():
    w = make(
        prefix={"groups": 3, "prompts_per_group": 10, "shared_tokens": 7}, lengths={"input": UNIFORM, "output": UNIFORM}
    )
    for prompt in range(30):
        assert len(set(w.input_tokens[w.prefixes.prompts.prompt == prompt])) == 1
    assert len(set(w.input_tokens)) == 30
    assert len(set(w.output_tokens)) > 5000


def test_prompts_of_their_own_have_lengths_of_their_own():
    lengths = {"input": UNIFORM, "output": FIXED}
    w = make(prefix={"system_tokens": 500, "shared_tokens": 0}, lengths=lengths)
    np.testing.assert_array_equal(w.input_tokens, make(lengths=lengths).input_tokens + 500)
    assert len(set(w.prefixes.prompts.prompt)) == 20_000
    assert set(w.prefixes.prompts.group) == {0}


def test_popular_groups_come_more_often():
    w = make(prefix={"groups": 10, "shared_tokens": 5, "zipf_theta": 1.0}, lengths={"input": FIXED, "output": FIXED})
    weights = 1 / np.arange(1, 11)
    assert np.bincount(w.prefixes.prompts.group) / 20_000 == pytest.approx(weights / weights.sum(), abs=0.015)


def test_in_one_order_over_and_over_from_its_beginning_in_each_stage():
    prefix = {"groups": 4, "prompts_per_group": 5, "shared_tokens": 100, "own_tokens": 64, "order": "shuffled"}
    stages = [
        {"rate_per_s": 10, "duration_s": 8},
        {"rate_per_s": 0, "duration_s": 5},
        {"rate_per_s": 30, "duration_s": 9},
    ]
    w = make(prefix=prefix, lengths={"output": FIXED}, arrival={"stages": stages}, num_requests=None)
    prompts, first = w.prefixes.prompts, int((w.arrival_ps < 8e12).sum())
    assert 20 < first < len(w.arrival_ps) - 200
    order = prompts.prompt[:20]
    assert sorted(order) == list(range(20)) != list(order)
    for part in (prompts.prompt[:first], prompts.prompt[first:]):
        np.testing.assert_array_equal(part, np.resize(order, len(part)))
    np.testing.assert_array_equal(prompts.group, prompts.prompt // 5)
    assert "in one order over and over" in w.description
    without = make(prefix=prefix, lengths={"output": FIXED}, num_requests=70)
    np.testing.assert_array_equal(without.prefixes.prompts.prompt, np.resize(order, 70))


def test_with_the_lengths_of_the_preset_and_in_a_closed_loop():
    w = make(prefix={"system_tokens": 11})
    np.testing.assert_array_equal(w.input_tokens, make().input_tokens + 11)
    loop = {"mode": "closed", "concurrency": 4, "num_requests": 8, "prefix": {"groups": 2, "shared_tokens": 3}}
    assert generate(WorkloadSpec.model_validate(loop), 0).prefixes.prompts.shared_tokens == 3
    assert make().prefixes is None


@examples(30)
@given(
    groups=st.integers(1, 50),
    each=st.one_of(st.none(), st.integers(1, 50)),
    shared=st.integers(1, 1000),
    n=st.integers(1, 200),
    seed=st.integers(0, 2**40),
)
def test_requests_with_one_prompt_are_of_one_group_and_length(groups, each, shared, n, seed):
    prefix = {"groups": groups, "prompts_per_group": each, "shared_tokens": shared}
    w = make(seed, prefix=prefix, lengths={"input": UNIFORM, "output": FIXED}, num_requests=n)
    seen = {}
    for prompt, group, tokens in zip(w.prefixes.prompts.prompt, w.prefixes.prompts.group, w.input_tokens, strict=True):
        assert seen.setdefault(prompt, (group, tokens)) == (group, tokens)
        assert tokens > shared
    assert w.prefixes.prompts.group.max() < groups
    longer = make(seed, prefix=prefix, lengths={"input": UNIFORM, "output": FIXED}, num_requests=n + 20)
    np.testing.assert_array_equal(longer.input_tokens[:n], w.input_tokens)
    np.testing.assert_array_equal(longer.prefixes.prompts.prompt[:n], w.prefixes.prompts.prompt)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prefix": {}}, "prompts share nothing"),
        ({"prefix": {"groups": 4, "own_tokens": 5}}, "prompts share nothing"),
        ({"prefix": {"shared_tokens": 4, "order": "shuffled"}}, "needs prompts_per_group"),
        ({"prefix": {"prompts_per_group": 4, "order": "shuffled", "zipf_theta": 1}}, "excludes zipf_theta"),
        ({"prefix": {"groups": 10**6, "prompts_per_group": 21}}, "must be at most 20000000"),
        (
            {"prefix": {"system_tokens": 5, "own_tokens": 5}, "lengths": {"input": FIXED, "output": FIXED}},
            "either input, or",
        ),
        ({"prefix": {"system_tokens": 5}, "lengths": {"output": FIXED}}, "either input, or prefix.own_tokens"),
        ({"prefix": {"system_tokens": 5}, "trace": {"path": "x"}}, "prompts of a trace are what they are"),
        (
            {"prefix": {"prompts_per_group": 5}, "lengths": {"joint": {"kind": "pairs", "pairs": [[1, 2]]}}},
            "joint excludes prefix.own_tokens and prefix.prompts_per_group",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        WorkloadSpec.model_validate({"arrival": POISSON, **keys})
