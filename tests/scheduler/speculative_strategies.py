"""Random cases whose steps verify drafts."""

from dataclasses import replace
from functools import cache
from typing import Any

from hypothesis import strategies as st

from pimserve.device_models.operators import RowKind
from pimserve.device_models.plan import CostPlan
from pimserve.scheduler.speculative_spec import SpeculativeSpec

from .mixed_strategies import mixed
from .plan_strategies import expert_terms, row_terms, serial_plans
from .prefix_strategies import prefix_cases, tier_cases
from .strategies import Case, balances, cases

_RATE = st.sampled_from([0.0, 1.0]) | st.floats(0, 1)
_BALANCE = st.none() | balances()
_KINDS: list[RowKind] = ["all_tokens", "all_decodes"]
_SHARED = st.lists(st.tuples(row_terms("xpu"), st.sampled_from(_KINDS)), max_size=2)


@cache
def _acceptances(drafts: int) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        _RATE.map(lambda one: {"acceptance": one}),
        st.lists(_RATE, min_size=drafts, max_size=drafts).map(lambda some: {"acceptance": some}),
        st.floats(1, drafts + 1).map(lambda length: {"mean_acceptance_length": length}),
    )


@st.composite
def speculations(draw: st.DrawFn) -> SpeculativeSpec:
    """Up to five drafts, all, some or none of which are accepted."""
    drafts = draw(st.integers(1, 5))
    given = draw(_acceptances(drafts))
    method = draw(st.sampled_from(["mtp", "ngram"]))
    return SpeculativeSpec.model_validate({"method": method, "num_speculative_tokens": drafts, **given})


@st.composite
def _plans(draw: st.DrawFn, of: st.SearchStrategy[CostPlan]) -> CostPlan:
    """Such plans with up to two terms more, which count tokens or decoding requests of all data-parallel groups."""
    plan, shared = draw(of), draw(_SHARED)
    return replace(plan, rows=(*plan.rows, *(replace(term, rows=rows) for term, rows in shared)))


_SERIAL, _WITH_EXPERTS = _plans(serial_plans(st.none() | expert_terms())), _plans(serial_plans(expert_terms()))


@st.composite
def _mixed_plans(draw: st.DrawFn) -> CostPlan:
    """Those with experts on devices of their own."""
    return draw(mixed(draw(_WITH_EXPERTS)))


@cache
def _cases(*, elsewhere: bool) -> st.SearchStrategy[Case]:
    plans = _mixed_plans() if elsewhere else _SERIAL
    return st.one_of(cases(plans), prefix_cases(of=plans), tier_cases(of=plans))


@st.composite
def speculative_cases(draw: st.DrawFn, *, elsewhere: bool = False) -> Case:
    """Cases whose KV cache holds one request of the longest length and drafts; `elsewhere`: with experts on devices of
    their own.

    A third has a prefix cache, another one tiers below that; data-parallel groups of others may wait with prompts.
    """
    case = draw(_cases(elsewhere=elsewhere))
    if case.groups > 1 and case.prefixes is None:
        case = replace(case, balance=draw(_BALANCE))
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
