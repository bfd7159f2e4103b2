"""Random small cases in which the KV blocks of preempted requests go to host memory."""

from dataclasses import replace

from hypothesis import strategies as st

from .strategies import FS_PER_MS, Case, cases

_FS_PER_BLOCK = st.integers(1, 10**6) | st.integers(1, 5 * FS_PER_MS)


@st.composite
def swapping_cases(draw: st.DrawFn, of: st.SearchStrategy[Case] | None = None) -> Case:
    """With room for many blocks, or few, on a fast or slow link; caches are as small as they can be."""
    case = draw((cases() if of is None else of).filter(lambda one: one.groups == 1))
    groups = case.kv_groups
    blocks = groups.blocks(case.max_model_len, case.block_size, case.max_num_batched_tokens or case.max_model_len)
    return replace(
        case,
        kv_admission="prompt",
        kv_capacity_blocks=-(-blocks // groups.full) * groups.full,
        swap=(draw(st.integers(0, 3 * blocks)), draw(_FS_PER_BLOCK)),
    )
