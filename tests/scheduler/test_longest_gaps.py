"""The longest gap between tokens of each request, against all its steps, wherever the log is cut."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.slo import SloSpec
from pimserve.scheduler.longest_gaps import LongestGaps
from pimserve.scheduler.requests import FINISHED
from pimserve.scheduler.summary import digest, summarize
from pimserve.scheduler.usage import Hardware
from tests.examples import examples

from .law_runs import REPLICAS, ROUTERS, Run
from .pool_runs import hand_over
from .strategies import Case, cases
from .test_simulation import serve


@given(st.data(), st.lists(st.tuples(st.integers(1, 4), st.integers(1, 50)), min_size=1, max_size=40))
def test_ranges_of_spans_wherever_they_are_cut(data: st.DataObject, spans: list[tuple[int, int]]) -> None:
    steps, longest = np.array(spans, np.int64).T
    first = np.cumsum(steps) - steps
    gaps, expected, taken = LongestGaps(), np.zeros(len(spans), np.int64), 0
    for index in range(len(spans)):
        begin = data.draw(st.integers(0, index))
        end = int(first[index] + steps[index])
        if data.draw(st.booleans()):
            gaps.take(first[taken : index + 1], longest[taken : index + 1], np.arange(index + 1 - taken))
            taken = index + 1
        gaps.decoded(index, end, end - int(first[begin]))
        expected[index] = longest[begin : index + 1].max()
        if taken == index + 1 and data.draw(st.booleans()):
            again = LongestGaps()
            again.restore(json.loads(json.dumps(gaps.state())))
            gaps = again
    gaps.take(first[taken:], longest[taken:], np.arange(len(spans) - taken))
    assert LongestGaps.of_all([gaps], len(spans)).tolist() == expected.tolist()


@pytest.mark.medium
@examples(30)
@given(cases(), REPLICAS, ROUTERS)
def test_every_gap_is_at_most_the_longest(case: Case, replicas: int, router: str) -> None:
    case = replace(case, max_time_fs=None)
    router = router if case.concurrency is None else "round_robin"
    run = Run(case, replicas, router, longest_gaps=True)
    longest_fs = run.served.longest_gaps_fs
    assert longest_fs is not None
    assert digest(run.served) == digest(Run(case, replicas, router).served)
    table = run.table
    done = (table["status"] == FINISHED) & (table["output_tokens"] > 1)
    assert not longest_fs[~done].any()
    decoded_fs = (table["finish_ps"] - table["first_token_ps"])[done] * FS_PER_PS
    gaps = table["output_tokens"][done] - 1
    assert (longest_fs[done] * gaps >= decoded_fs - FS_PER_PS).all()
    assert (longest_fs[done] <= decoded_fs + FS_PER_PS).all()
    if done.any():
        most_s = max(log.itl.percentile_s(100) or 0.0 for log in run.served.logs)
        assert longest_fs.max() / FS_PER_S == pytest.approx(most_s, rel=2**-11)


def test_gaps_on_the_way_to_another_replica_count() -> None:
    served = hand_over([(0.0, 10, 3), (0.0, 20, 2), (0.3, 5, 1)], longest_gaps=True)
    assert served.longest_gaps_fs is not None
    assert (served.longest_gaps_fs / FS_PER_S).tolist() == [0.025, 0.045, 0.0]


def test_who_has_a_longer_gap_misses_the_limit() -> None:
    # Steps take 10 ms, and so does every gap.
    served = serve([(0.0, 5, 30), (0.1, 5, 3), (0.5, 5, 1)], longest_gaps=True)
    assert served.longest_gaps_fs is not None
    slo = SloSpec(itl_max_s=0.02, tpot_s=0.02)
    found = summarize(served, Objectives(slo), Hardware(1)).document()
    assert found["slo"]["limits"] == {"tpot_s": 0.02, "itl_max_s": 0.02}
    assert found["slo"]["met"]["itl_max"] == 1
    assert found["latency_s"]["itl_max"]["n"] == 2  # who has one token has no gap
    tight = summarize(served, Objectives(SloSpec(itl_max_s=0.0099)), Hardware(1))
    assert tight.slo.attainment == pytest.approx(1 / 3)


def test_nobody_asks_for_them() -> None:
    served = serve([(0.0, 5, 30)])
    assert served.longest_gaps_fs is None
    assert "itl_max" not in summarize(served, Objectives(SloSpec()), Hardware(1)).document()["latency_s"]
