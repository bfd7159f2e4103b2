"""Random requests that come at once, one by one, or where steps end."""

from hypothesis import strategies as st

from .reference_engine import ReferenceRequest

FS_PER_MS = 10**12


@st.composite
def request_lists(
    draw: st.DrawFn, closed_loop: bool, crowded: bool, max_model_len: int, least: int = 0
) -> list[ReferenceRequest]:
    """`least` to 25 requests by ascending arrival: at once, inside few steps, or after pauses, or all of it mixed."""
    at_once = st.just(0)
    whole_steps = st.integers(0, 20).map(FS_PER_MS.__mul__)
    close = st.integers(0, 20 * FS_PER_MS)
    spread = st.integers(0, 1000 * FS_PER_MS)
    if crowded:
        count = draw(st.integers(max(6, least), 25))
        gaps = draw(st.sampled_from([at_once, whole_steps, close]))
        inputs, outputs = st.integers(1, 12), st.integers(10, 60)
    else:
        count = draw(st.integers(least, 25))  # a list left to itself is seldom longer than 8
        mixed = st.one_of(at_once, whole_steps, close, spread)
        gaps = draw(st.sampled_from([at_once, whole_steps, close, spread, mixed]))
        inputs = st.one_of(st.integers(1, 12), st.integers(1, min(200, max_model_len - 1)), st.integers(1, 200))
        outputs = st.integers(1, 8) | st.integers(1, 60)
    requests = []
    arrival = 0
    for gap, tokens, emits in draw(st.lists(st.tuples(gaps, inputs, outputs), min_size=count, max_size=count)):
        arrival += gap
        requests.append(ReferenceRequest(None if closed_loop else arrival, tokens, emits))
    return requests
