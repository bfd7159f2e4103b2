"""Random small cases in which prompts have steps apart from decodes, those first or these."""

from dataclasses import replace

from hypothesis import strategies as st

from .strategies import Case, cases

BUDGETS = st.integers(1, 24) | st.integers(8, 256)
_CASES = cases()


@st.composite
def batching_cases(draw: st.DrawFn, of: st.SearchStrategy[Case] | None = None) -> Case:
    """Such a case by prefill_first, with any token budget, or by decode_first, which has none."""
    case = draw(_CASES if of is None else of)
    if case.groups > 1:  # refused together
        case = replace(case, plan=replace(case.plan, data_parallel=1))
    if draw(st.booleans()):
        budget = case.max_num_batched_tokens or draw(BUDGETS)
        return replace(case, batching="prefill_first", max_num_batched_tokens=budget)
    # Whole prompts may touch more blocks of windows.
    groups = case.kv_groups
    blocks = groups.blocks(case.max_model_len, case.block_size, case.max_model_len)
    return replace(
        case,
        batching="decode_first",
        max_num_batched_tokens=None,
        long_prefill_token_threshold=0,
        kv_capacity_blocks=max(case.kv_capacity_blocks, -(-blocks // groups.full) * groups.full),
    )
