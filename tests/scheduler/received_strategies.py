"""Random cases of a replica that decodes: most requests had their first token elsewhere, and bring their KV cache."""

from dataclasses import replace

from hypothesis import assume
from hypothesis import strategies as st

from pimserve.device_models.plan import FS_PER_PS

from .strategies import FS_PER_MS, Case

_LATE = st.none() | st.just(0) | st.integers(0, 50 * FS_PER_MS)


@st.composite
def received_cases(draw: st.DrawFn, of: st.SearchStrategy[Case]) -> Case:
    """Cases of an open loop, in whose steps somebody can always join who verifies drafts."""
    case = draw(of)
    assume(not case.tiers)
    requests = [replace(request, arrival_fs=request.arrival_fs or 0) for request in case.requests]
    received: list[int | None] = []
    for request in requests:
        ago = draw(_LATE)
        since = (request.arrival_fs or 0) // FS_PER_PS * FS_PER_PS
        received.append(None if ago is None else max(0, since - ago // FS_PER_PS * FS_PER_PS))
    budget, drafts, blocks = case.max_num_batched_tokens, case.speculative, case.kv_capacity_blocks
    if budget is not None and drafts is not None and budget < drafts.verify_tokens:  # windows hold longer chunks
        blocks += case.full_groups * case.windowed_groups * (drafts.verify_tokens - budget)
        budget = drafts.verify_tokens
    return replace(
        case,
        requests=requests,
        received=tuple(received),
        concurrency=None,
        balance=None,
        max_num_batched_tokens=budget,
        kv_capacity_blocks=blocks,
    )
