"""Random requests that come at once, one by one, or where steps end."""

from functools import cache

from hypothesis import strategies as st

from .reference_engine import ReferenceRequest

FS_PER_MS = 10**12

_AT_ONCE = st.just(0)
_WHOLE_STEPS = st.integers(0, 20).map(FS_PER_MS.__mul__)
_CLOSE = st.integers(0, 20 * FS_PER_MS)
_SPREAD = st.integers(0, 1000 * FS_PER_MS)
_CROWDED_GAPS = st.sampled_from([_AT_ONCE, _WHOLE_STEPS, _CLOSE])
_GAPS = st.sampled_from([_AT_ONCE, _WHOLE_STEPS, _CLOSE, _SPREAD, st.one_of(_AT_ONCE, _WHOLE_STEPS, _CLOSE, _SPREAD)])
_OUTPUTS = st.integers(1, 8) | st.integers(1, 60)


@cache
def _inputs(longest: int) -> st.SearchStrategy[int]:
    return st.one_of(st.integers(1, 12), st.integers(1, longest), st.integers(1, 200))


@st.composite
def request_lists(
    draw: st.DrawFn, closed_loop: bool, crowded: bool, max_model_len: int, least: int = 0
) -> list[ReferenceRequest]:
    """`least` to 25 requests by ascending arrival: at once, inside few steps, or after pauses, or all of it mixed."""
    if crowded:
        count = draw(st.integers(max(6, least), 25))
        gaps = draw(_CROWDED_GAPS)
        inputs, outputs = st.integers(1, 12), st.integers(10, 60)
    else:
        count = draw(st.integers(least, 25))  # a list left to itself is seldom longer than 8
        gaps = draw(_GAPS)
        inputs, outputs = _inputs(min(200, max_model_len - 1)), _OUTPUTS
    requests = []
    arrival = 0
    for gap, tokens, emits in draw(st.lists(st.tuples(gaps, inputs, outputs), min_size=count, max_size=count)):
        arrival += gap
        requests.append(ReferenceRequest(None if closed_loop else arrival, tokens, emits))
    return requests
