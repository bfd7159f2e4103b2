"""Random small cases in which requests are rejected as they arrive."""

from dataclasses import replace

from hypothesis import strategies as st

from .strategies import FS_PER_MS, Case, cases, two_classes

_CASES, _CLASSES = cases(), two_classes()
_QUEUED = st.none() | st.integers(1, 6)
_TTFT_S = st.none() | st.integers(1, 300).map(lambda ms: ms / 1000)
_TOKENS_PER_S = st.none() | st.floats(10, 1e5)


@st.composite
def shedding_cases(draw: st.DrawFn, of: st.SearchStrategy[Case] | None = None) -> Case:
    """Open loops in which requests are rejected as they arrive: too many wait, or their first token would be late."""
    case = draw(_CASES if of is None else of)
    if case.groups > 1:  # refused together
        case = replace(case, plan=replace(case.plan, data_parallel=1))
    requests, at = [], 0
    for request in case.requests:
        at += 0 if request.arrival_fs is not None else draw(st.integers(0, 30)) * FS_PER_MS
        requests.append(replace(request, arrival_fs=at if request.arrival_fs is None else request.arrival_fs))
    early = draw(st.booleans())
    return replace(
        case,
        requests=requests,
        concurrency=None,
        classes=case.classes or draw(_CLASSES),
        max_queued_requests=draw(_QUEUED) if early else draw(st.integers(1, 6)),
        early_rejection=early,
        early_rejection_ttft_s=draw(_TTFT_S) if early else None,
        prefill_tokens_per_s=draw(_TOKENS_PER_S) if early else None,
    )
