"""Random cases whose steps verify drafts."""

from dataclasses import replace

from hypothesis import assume
from hypothesis import strategies as st

from pimserve.device_models.kv_groups import NO_WINDOWS
from pimserve.device_models.plan import CostPlan
from pimserve.scheduler.speculative_spec import SpeculativeSpec

from .prefix_strategies import prefix_cases, tier_cases
from .strategies import Case, cases, expert_terms, serial_plans


@st.composite
def speculations(draw: st.DrawFn) -> SpeculativeSpec:
    """Up to five drafts, all, some or none of which are accepted."""
    drafts = draw(st.integers(1, 5))
    rate = st.sampled_from([0.0, 1.0]) | st.floats(0, 1)
    given = draw(
        st.one_of(
            rate.map(lambda one: {"acceptance": one}),
            st.lists(rate, min_size=drafts, max_size=drafts).map(lambda some: {"acceptance": some}),
            st.floats(1, drafts + 1).map(lambda length: {"mean_acceptance_length": length}),
        )
    )
    method = draw(st.sampled_from(["mtp", "ngram"]))
    return SpeculativeSpec.model_validate({"method": method, "num_speculative_tokens": drafts, **given})


@st.composite
def _one_group(draw: st.DrawFn) -> CostPlan:
    plan = draw(serial_plans(st.none() | expert_terms()))
    return replace(plan, devices=1, data_parallel=1)


@st.composite
def speculative_cases(draw: st.DrawFn) -> Case:
    """Cases without attention windows in their KV cache, which holds one request of the longest length and drafts.

    A third has a prefix cache, another one tiers below that.
    """
    case = draw(st.one_of(cases(_one_group()), prefix_cases(of=_one_group()), tier_cases(of=_one_group())))
    spec = draw(speculations())
    assume(case.policy != "vtc")
    tokens = case.kv_capacity_blocks // case.full_groups * case.block_size
    return replace(
        case,
        plan=replace(case.plan, verify_tokens=spec.verify_tokens),
        speculative=spec,
        full_groups=NO_WINDOWS.full,
        windowed_groups=NO_WINDOWS.windowed,
        window_tokens=NO_WINDOWS.window_tokens,
        kv_capacity_blocks=-(-(max(tokens, case.max_model_len) + spec.lookahead_tokens) // case.block_size),
    )
