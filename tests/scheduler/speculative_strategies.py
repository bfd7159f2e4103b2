"""Random cases whose steps verify drafts."""

from dataclasses import replace

from hypothesis import strategies as st

from pimserve.device_models.experts import ExpertTerm
from pimserve.device_models.operators import RowKind
from pimserve.device_models.plan import CostPlan
from pimserve.scheduler.speculative_spec import SpeculativeSpec

from .mixed_strategies import mixed
from .plan_strategies import expert_terms, row_terms, serial_plans
from .prefix_strategies import prefix_cases, tier_cases
from .strategies import Case, balances, cases


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
def _plans(draw: st.DrawFn, experts: st.SearchStrategy[ExpertTerm | None] | None = None) -> CostPlan:
    """Of one to three data-parallel groups, with up to two terms that count tokens or decoding requests of all; with
    such experts, or without."""
    plan = draw(serial_plans(st.none() | expert_terms() if experts is None else experts))
    kinds: list[RowKind] = ["all_tokens", "all_decodes"]
    shared = draw(st.lists(st.tuples(row_terms("xpu"), st.sampled_from(kinds)), max_size=2))
    return replace(plan, rows=(*plan.rows, *(replace(term, rows=rows) for term, rows in shared)))


@st.composite
def _mixed_plans(draw: st.DrawFn) -> CostPlan:
    """Those with experts on devices of their own."""
    return draw(mixed(draw(_plans(expert_terms()))))


@st.composite
def speculative_cases(draw: st.DrawFn, *, elsewhere: bool = False) -> Case:
    """Cases whose KV cache holds one request of the longest length and drafts; `elsewhere`: with experts on devices of
    their own.

    A third has a prefix cache, another one tiers below that; data-parallel groups of others may wait with prompts.
    """
    plans = _mixed_plans() if elsewhere else _plans()
    case = draw(st.one_of(cases(plans), prefix_cases(of=plans), tier_cases(of=plans)))
    if case.groups > 1 and case.prefixes is None:
        case = replace(case, balance=draw(st.none() | balances()))
    spec = draw(speculations())
    groups, size, slots = case.kv_groups, case.block_size, spec.lookahead_tokens
    chunk = case.max_num_batched_tokens or case.max_model_len
    plain = groups.blocks(case.max_model_len, size, chunk)
    blocks = case.kv_capacity_blocks + groups.blocks(case.max_model_len + slots, size, chunk + slots) - plain
    return replace(
        case,
        plan=replace(case.plan, verify_tokens=spec.verify_tokens),
        speculative=spec,
        kv_capacity_blocks=-(-blocks // groups.full) * groups.full,
    )
