"""What routers count of requests in flight: their blocks, and prompts until first tokens."""

import json
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.scheduler.active_blocks import ActiveBlocks
from pimserve.scheduler.prefill_in_flight import PrefillInFlight
from pimserve.scheduler.requests import FINISHED, NEVER, REJECTED, WAITING, RequestTable
from pimserve.scheduler.router import router_setting

from .prefix_routing import CHAIN, REPLICAS, ids, leading
from .test_prefix_cache import load, run


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), CHAIN, st.booleans()), max_size=30))
def test_active_blocks_are_those_of_who_has_not_left(events: list[tuple[int, int, list[int], bool]]) -> None:
    table = RequestTable(np.zeros(6, np.int64), np.ones(6), np.ones(6), 10)
    books = ActiveBlocks(table)
    plain: dict[int, tuple[int, list[int]]] = {}
    for now, (request, replica, chain, leaves) in enumerate(events):
        if leaves:
            table["status"][request], table["finish_ps"][request] = FINISHED, now + 1
            books.update(now)  # it has not left yet
            assert sorted(one for one, *_ in books.state()) == sorted(plain)
            books.update(now + 1)
            plain.pop(request, None)
        else:
            table["status"][request], table["finish_ps"][request] = WAITING, NEVER
            books.sent(request, replica, ids(chain), len(chain) + 2)
            plain[request] = (replica, ids(chain))
        other = ActiveBlocks(table)
        other.restore(json.loads(json.dumps(books.state())))
        for each in (books, other):
            for place in range(REPLICAS):
                there = [blocks for one, blocks in plain.values() if one == place]
                known = {block for blocks in there for block in blocks}
                more = len(chain) + 1 - leading(ids(chain), known)
                assert each.with_prompt(place, ids(chain), len(chain) + 1) == len(known) + 2 * len(there) + more


def test_prefill_in_flight_is_seen_until_first_tokens() -> None:
    table = RequestTable(np.array([0, 10, 20]), np.ones(3), np.ones(3), 10)
    books = PrefillInFlight(table)
    books.sent(0, 1, 100, 0)
    books.sent(1, 1, 60, 35)  # 25 after it arrived
    books.sent(2, 0, 7, 20)
    books.restore(json.loads(json.dumps(books.state())))
    assert (books.on(1), books.on(0), books.tokens_per_s(1)) == (160, 7, 0.0)
    table["first_token_ps"][:2] = 50, 90
    table["status"][2] = REJECTED
    books.update(89)
    assert (books.on(1), books.on(0)) == (60, 0)
    books.update(90)
    assert books.on(1) == 0
    assert books.tokens_per_s(1) == (100 + 160) / (50 + 55) * 10**12
    assert books.tokens_per_s(0) == 0.0
    books.sent(1, 2, 60, 95)  # as its cache was lost
    assert books.on(2) == 0


@pytest.mark.parametrize("interval_s", [0.0, 0.03])
def test_a_wait_for_a_place_is_no_time_of_prefill(interval_s: float) -> None:
    """One at a time: each is sent when the one before has ended, though all arrive at once."""
    load_of_one = replace(load([(0, 0, 20)] * 4), max_concurrency=1)
    at: list[int] = []
    with patch.object(PrefillInFlight, "sent", lambda _, __, ___, ____, now_ps: at.append(now_ps)):
        more = {"router": router_setting("slo_aware"), "report_interval_s": interval_s}
        found = run(load_of_one, 400, run_settings={"replicas": REPLICAS}, **more)
    ends = sorted(found.table["finish_ps"].tolist())
    assert at[0] == 0
    assert all(0 <= sent - end <= 1 for sent, end in zip(at[1:], ends, strict=False))
