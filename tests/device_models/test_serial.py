"""Steps of devices that run one operator after the other: how long one way of decode attention stays the fastest."""

from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.evaluate import shape_of
from pimserve.device_models.plan import CostPlan, DecodeAttentionTerm, DecodeWay
from pimserve.device_models.serial import SerialTiming

COSTS = st.tuples(st.integers(0, 20), st.integers(0, 500))  # fs per token of context, and per request


def term(unit: str, slope: int, per_request: int) -> DecodeAttentionTerm:
    return DecodeAttentionTerm(unit, None, slope, 0, 0, per_request)


@given(one=COSTS, other=COSTS, requests=st.integers(1, 9), mean=st.integers(1, 60), most=st.integers(1, 60))
def test_a_span_ends_where_another_way_becomes_faster_and_no_earlier(
    one: tuple[int, int], other: tuple[int, int], requests: int, mean: int, most: int
) -> None:
    second = DecodeWay((term("pim", *other),), beside_prefill=False)
    plan = CostPlan(1, 1, ("xpu", "pim"), (), (term("xpu", *one),), (), None, other_decode=second)
    timing = plan.timing
    assert isinstance(timing, SerialTiming)
    first, growth, steps = timing.decode_span(requests, requests * mean, most)
    assert 1 <= steps <= most
    ways = [timing.ways_fs(shape_of(plan, requests, requests * (mean + k))) for k in range(most)]
    assert [min(times) for times in ways[:steps]] == [first + growth * k for k in range(steps)]
    if steps < most:
        assert min(ways[steps]) < first + growth * steps or len(set(ways[steps])) == 1
