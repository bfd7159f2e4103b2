"""Latencies of requests against their definitions, one request at a time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.slo import SloSpec
from pimserve.scheduler.latencies import LATENCIES, Latencies
from pimserve.scheduler.outcomes import CENSORED, MET, MISSED, outcomes, overall
from pimserve.scheduler.requests import FINISHED, NEVER, REJECTED, WAITING, RequestTable

PS_PER_S = 10**12
GAPS = st.integers(0, 3 * PS_PER_S)
REQUESTS = st.lists(st.tuples(GAPS, GAPS, GAPS, GAPS, st.integers(1, 50), st.integers(-1, 3)), min_size=1, max_size=8)
END_PS, FRONTEND_PS = 20 * PS_PER_S, 70_000_000


def table_of(requests: list[tuple[int, ...]]) -> RequestTable:
    """Of requests that came so far: -1 is rejected, 3 finished."""
    arrival, *waits = np.array([request[:4] for request in requests], np.int64).T
    tokens, reached = np.array([request[4:] for request in requests], np.int64).T
    table = RequestTable(arrival, np.ones(len(tokens), np.int64), tokens, 100)
    time = arrival
    for moment, (name, wait) in enumerate(zip(("first_scheduled", "first_token", "finish"), waits, strict=True), 1):
        time = time + wait
        table[f"{name}_ps"][:] = np.where(reached >= moment, time, NEVER)
    table["status"][:] = np.select([reached == 3, reached == -1], [FINISHED, REJECTED], WAITING)
    return table


@given(REQUESTS)
def test_latencies_are_as_they_are_defined(requests: list[tuple[int, ...]]) -> None:
    table = table_of(requests)
    latencies = Latencies(table.columns, np.arange(len(table)), frontend_ps=FRONTEND_PS, end_ps=END_PS)
    for name in LATENCIES:
        latency, known = latencies[name], []
        for row, censored in zip(table.structured(), latency.censored, strict=True):
            end = row[{"ttft": "first_token_ps", "queue": "first_scheduled_ps"}.get(name, "finish_ps")]
            applies = name != "tpot" or row["output_tokens"] > 1
            assert censored == (row["status"] == WAITING and end == NEVER and applies)
            if end == NEVER or not applies:
                continue
            begin = row["first_token_ps" if name == "tpot" else "arrival_ps"]
            in_front = FRONTEND_PS if name in ("ttft", "e2e") else 0
            gaps = row["output_tokens"] - 1 if name == "tpot" else 1
            known.append((end - begin + in_front) / PS_PER_S / gaps)
        assert latency.known_s.tolist() == known


@given(REQUESTS, st.sampled_from([{}, {"ttft_s": 1}, {"tpot_s": 0.1}, {"e2e_s": 2, "ttft_s": 1}]))
def test_who_is_through_met_its_limits_or_not(requests: list[tuple[int, ...]], limits: dict[str, float]) -> None:
    table, slo = table_of(requests), SloSpec(**limits)
    latencies = Latencies(table.columns, np.ones(len(table), np.bool_), frontend_ps=0, end_ps=END_PS)
    judged, by_limit = overall(latencies, Objectives(slo)), outcomes(latencies, Objectives(slo))
    assert list(by_limit) == [name.removesuffix("_s") for name in slo.limits()] + (["all"] if limits else [])
    for number, status in enumerate(table["status"].tolist()):
        if status == REJECTED:
            assert judged[number] == MISSED
        elif status == FINISHED:
            met = all(latencies[key.removesuffix("_s")].seconds[number] <= limit for key, limit in slo.limits().items())
            assert judged[number] == (MET if met else MISSED)
        elif not limits:
            assert judged[number] == CENSORED
