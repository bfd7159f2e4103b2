"""What routed tokens take over a link between groups of devices: all sets of experts that may be picked, in turn."""

from itertools import combinations, product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.routed_link import DIRECTIONS, LinkEnd, RoutedLink

Rows = tuple[tuple[float, ...], ...]


def expected_hits(link: RoutedLink, weights: tuple[float, ...], slots: tuple[int, ...]) -> list[float]:
    """Of each holder: over all sets of experts, and all copies that their picks may lead to."""
    sizes = [size for end in link.ends for size in end.holders]
    holder_of = [number for number, size in enumerate(sizes) for _ in range(size)]
    places = {expert: [holder_of[s] for s, e in enumerate(slots) if e == expert] for expert in set(slots)}
    hits, total = [0.0] * len(sizes), 0.0
    for picked in combinations(range(len(weights)), link.top_k):
        chance = prod(weights[expert] for expert in picked)
        total += chance
        ways = list(product(*(places[expert] for expert in picked)))
        for way in ways:
            for holder in way if link.per_pick else set(way):
                hits[holder] += chance / len(ways)
    return [hit / total for hit in hits]


@st.composite
def links(draw: st.DrawFn) -> tuple[RoutedLink, Rows, tuple[tuple[int, ...], ...]]:
    """A link, popularities and slots."""
    sizes = [draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)) for _ in range(draw(st.integers(1, 2)))]
    slots = sum(map(sum, sizes))
    experts = draw(st.integers(1, slots))
    layers = draw(st.integers(1, 3))
    row = st.permutations([*range(experts), *(e % experts for e in range(slots - experts))]).map(tuple)
    weights = st.tuples(*[st.floats(0.1, 5) for _ in range(experts)])

    def rows(each):
        return draw(st.sampled_from([1, layers]).flatmap(lambda n: st.tuples(*[each] * n)))

    rate = st.sampled_from([1.0, 10.0, 50.0])
    ends = tuple(
        LinkEnd(
            tuple(holders), draw(st.integers(1, 2)), (draw(st.sampled_from([4096.0, 8192.0])), 8192.0), draw(rate),
            shared_by=draw(st.integers(0, 2)) if number == len(sizes) - 1 else 0, turns=draw(st.integers(1, 2)),
            back=draw(st.sampled_from([1.0, 0.5])),
        )
        for number, holders in enumerate(sizes)
    )  # fmt: skip
    top_k = draw(st.integers(1, min(3, experts)))
    link = RoutedLink(layers, top_k, draw(st.booleans()), draw(st.integers(1, 4)), draw(rate), 5.0, ends)
    return link, rows(weights), rows(row)


@given(links())
def test_every_set_of_picks_counts_by_its_chance(case) -> None:
    link, weights, slots = case
    here = link.at(weights, slots)
    laws = max(len(weights), len(slots))
    by_law = [expected_hits(link, weights[law % len(weights)], slots[law % len(slots)]) for law in range(laws)]
    first = 0
    for end, copies in zip(link.ends, here.copies, strict=True):
        hits = [law[first : first + len(end.holders)] for law in by_law]
        first += len(end.holders)
        mean = [sum(of_holder) / laws for of_holder in zip(*hits, strict=True)]
        assert copies.hits == pytest.approx(mean)
        assert copies.routed == pytest.approx(sum(mean) * end.slices)
        busiest = sum(map(max, hits)) / laws
        for way, part in enumerate((1.0, end.back)):
            # Devices with shared experts need all tokens of their turn: copies that they have not got already.
            shared = (1.0, 1.0) if link.per_pick else (1 - part * sum(mean) / len(mean), 1 - part * busiest)
            assert copies.to_all[way] == pytest.approx(part * copies.routed + end.shared_by * shared[0])
            assert copies.busiest[way] == pytest.approx(part * busiest + bool(end.shared_by) * shared[1] / end.turns)
    for number, direction in enumerate(DIRECTIONS):
        sizes = [end.vector_bytes[number] for end in link.ends]
        sent = sum(size * copies.to_all[number] for size, copies in zip(sizes, here.copies, strict=True))
        received = [s * c.busiest[number] / e.gb_per_s for s, c, e in zip(sizes, here.copies, link.ends, strict=True)]
        fixed, slope = here.time_fs(direction)
        assert fixed == link.layers * 5 * 10**9
        assert slope == pytest.approx(link.layers * max(sent / link.senders / link.gb_per_s, *received, 0) * 1e6)
        assert here.sent()[direction, "bytes"] == pytest.approx(link.layers * sent)
        assert here.sent()[direction, "tokens"] == pytest.approx(
            link.layers * sum(c.to_all[number] for c in here.copies)
        )


@given(links())
def test_a_link_forgets_where_experts_were(case) -> None:
    link, weights, slots = case
    elsewhere = tuple(tuple(reversed(row)) for row in slots)
    assert link.at(weights, elsewhere).at(weights, slots) == link.at(weights, slots)


def test_an_expert_that_becomes_popular_makes_its_device_busy() -> None:
    end = LinkEnd((2, 2), 1, (8000.0, 8000.0), 1.0)
    link = RoutedLink(1, 1, False, 100, 1.0, 0.0, (end,))
    even = ((1.0, 1.0, 1.0, 1.0),)
    hot = ((1.0, 1.0, 1.0, 5.0),)
    assert link.at(even, ()).time_fs("dispatch") == (0, 8000 * 10**6 // 2)
    assert link.at(hot, ()).time_fs("dispatch") == (0, 8000 * 10**6 * 6 // 8)
    # Where its device has only itself beside the least popular, and one copy of it is elsewhere, that is shared.
    wider = RoutedLink(1, 1, False, 100, 1.0, 0.0, (LinkEnd((3, 2), 1, (8000.0, 8000.0), 1.0),))
    assert wider.at(hot, ((0, 1, 3, 2, 3),)).time_fs("combine") == (0, round(8000 * 10**6 * 4.5 / 8))
