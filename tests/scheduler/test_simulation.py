"""Serving on a device whose every step takes 10 ms: windows, limits, closed loops and the end of the clock, by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pimserve.device_models.plan import CostPlan, RowTerm
from pimserve.errors import InputError
from pimserve.loadgen.turns import NOT_YET_PS, Turns
from pimserve.loadgen.workload import Workload
from pimserve.scheduler import steplog
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.requests import NEVER
from pimserve.scheduler.simulation import Served

from .pools import simulate_on

STEP_S = 0.01
LAYERS = RowTerm("layers", "fc", "xpu", "tokens", ((10**13, 0),))
PLAN = CostPlan(1, 1, ("xpu",), (LAYERS,), (), (), None)


def serve(
    requests: list[tuple[float, int, int]],
    *,
    concurrency: int | None = None,
    turns: Turns | None = None,
    max_concurrency: int | None = None,
    **changes: Any,
) -> Served:
    """Serve (arrival s, input, output); of those that follow on others, the arrival is what they make of it."""
    arrival = np.array([round(at * 1e12) for at, _, _ in requests], np.int64)
    if turns is not None:
        arrival[turns.followers] = NOT_YET_PS
    return simulate_on(
        **{
            "plan": PLAN,
            "workload": Workload(
                arrival,
                np.array([tokens for _, tokens, _ in requests], np.int64),
                np.array([tokens for _, _, tokens in requests], np.int64),
                concurrency, None, "", 0, {}, turns=turns, max_concurrency=max_concurrency,
            ),
            "spec": SchedulerSpec(),
            "kv_capacity_tokens": 1600,
            "max_model_len": 1600,
            **changes,
        }
    )  # fmt: skip


def seconds(served: Served, name: str) -> list[float]:
    return [time if time == NEVER else time / 1e12 for time in served.table[name].tolist()]


def test_times_of_requests() -> None:
    served = serve([(0.0, 5, 3), (0.005, 5, 1), (1.0, 5, 2)])
    assert seconds(served, "first_scheduled_ps") == [0.0, 0.01, 1.0]
    assert seconds(served, "first_token_ps") == [0.01, 0.02, 1.01]
    assert seconds(served, "finish_ps") == [0.03, 0.02, 1.02]
    assert served.end_s == 1.02
    assert served.window_s == (0.0, 1.02)
    assert not served.trimmed


def test_a_stop_leaves_requests_unfinished_and_later_ones_out() -> None:
    served = serve([(0.0, 5, 3), (0.015, 5, 9), (0.02, 5, 9)], max_time_s=0.02)
    assert served.table["arrival_ps"].tolist() == [0, 15 * 10**9]
    assert seconds(served, "finish_ps") == [NEVER, NEVER]
    assert served.table["emitted_tokens"].tolist() == [2, 0]
    assert served.end_s == 0.02


def test_the_window_is_cut_by_arrivals() -> None:
    served = serve([(i * 1.0, 5, 50) for i in range(11)], warmup_s=2.0, cooldown_s=3.0)
    assert served.trimmed
    assert served.window_s == (2.0, 7.0)
    assert served.end_s == 10.5
    # A request emits at 0.01, 0.02, ... 0.5 s after it came: 5 requests emit 50 tokens inside, all of the 5 s.
    assert [log.window_tokens for log in served.logs] == [250]
    assert [log.itl.count for log in served.logs] == [5 * 49]


@pytest.mark.parametrize(("cut", "window_s"), [({"warmup_s": 2.0}, (2.0, 10.0)), ({"cooldown_s": 3.0}, (0.0, 7.0))])
def test_the_window_is_cut_at_either_end(cut: dict[str, float], window_s: tuple[float, float]) -> None:
    """Cut at all, it ends with the last arrival at the latest."""
    served = serve([(i * 1.0, 5, 50) for i in range(11)], **cut)
    assert served.trimmed
    assert served.window_s == window_s


def test_a_step_counts_where_it_ends() -> None:
    one = [(0.0, 5, 20), (1.0, 5, 1)]
    for warmup, tokens in ((0.0, 20 + 1), (0.045, 16), (0.05, 16), (0.0501, 15)):
        served = serve(one, warmup_s=warmup)
        assert served.logs[0].window_tokens == tokens


def test_windows_that_leave_nothing() -> None:
    requests = [(i * 1.0, 5, 5) for i in range(11)]
    for window in ({"warmup_s": 10.0}, {"cooldown_s": 10.0}, {"warmup_s": 5.0, "cooldown_s": 5.0}):
        with pytest.raises(InputError, match=r"^run.warmup_s: warm-up .* leave nothing of the 10.000 s"):
            serve(requests, **window)
    with pytest.raises(InputError, match=r"^run.warmup_s: 5.0 s leaves nothing to measure"):
        serve(requests, warmup_s=5.0, max_time_s=4.0)
    with pytest.raises(InputError, match=r"ends its window at .* s, as all requests were rejected; a run without"):
        serve(requests, warmup_s=5.0, max_model_len=4)


@pytest.mark.parametrize("pause_s", [1000.0, 5000.0])
def test_the_window_of_a_long_run(pause_s: float) -> None:
    served = serve([(i * pause_s, 5, 50) for i in range(11)], warmup_s=2 * pause_s, cooldown_s=3 * pause_s)
    assert served.logs[0].window_tokens == 250
    assert served.logs[0].itl.count == 5 * 49


def test_a_pause_of_hours() -> None:
    served = serve([(0.0, 5, 5), (20_000.0, 5, 5)])
    assert served.end_s == 20_000.05


def test_a_closed_loop_sends_the_next_when_one_leaves() -> None:
    served = serve([(0.0, 5, 2)] * 6, concurrency=2)
    assert seconds(served, "arrival_ps") == [0.0, 0.0, 0.02, 0.02, 0.04, 0.04]
    assert seconds(served, "finish_ps") == [0.02, 0.02, 0.04, 0.04, 0.06, 0.06]


def test_a_closed_loop_measures_until_its_last_request_is_sent() -> None:
    served = serve([(0.0, 5, 2)] * 6, concurrency=2, warmup_s=0.015)
    assert served.window_s == (0.015, 0.04)
    assert served.logs[0].window_tokens == 2 + 2  # steps that end at 0.02 and 0.03; that at 0.04 is outside
    whole = serve([(0.0, 5, 2)] * 6, concurrency=2)
    assert whole.window_s == (0.0, 0.06)
    with pytest.raises(InputError, match=r"run\.cooldown_s: a closed loop"):
        serve([(0.0, 5, 2)] * 6, concurrency=2, cooldown_s=0.01)


def test_a_closed_loop_ends_its_window_replica_by_replica() -> None:
    # Two clients on three replicas; the second one's requests take twice as long.
    requests = [(0.0, 5, 10 * (1 + i % 2)) for i in range(20)]
    served = serve(requests, concurrency=2, replicas=3, warmup_s=0.05)
    assert served.ends_fs == (9 * 10**14, 18 * 10**14)
    assert served.window_s == (0.05, 0.9)
    assert [log.window_tokens for log in served.logs] == [85, 175, 0]  # from 0.05 s on one in 10 ms, but the last
    stopped = serve(requests, concurrency=2, replicas=3, warmup_s=0.05, max_time_s=1.2)
    assert stopped.ends_fs == (9 * 10**14, 12 * 10**14)
    whole = serve(requests, concurrency=2, replicas=3)
    assert whole.ends_fs == (2 * 10**15, 2 * 10**15)
    with pytest.raises(InputError, match=r"run\.warmup_s: 0\.95 s leaves nothing .* its window at 0\.900 s"):
        serve(requests, concurrency=2, replicas=3, warmup_s=0.95)


def test_a_stop_before_the_first_request() -> None:
    for stop in (0.5, 2.5):
        with pytest.raises(InputError, match=rf"^run\.max_time_s: {stop} s leaves .* the first arrival is at 2\.5 s"):
            serve([(2.5, 5, 5), (3.0, 5, 5)], max_time_s=stop)
    assert len(serve([(2.5, 5, 5), (3.0, 5, 5)], max_time_s=2.6).table) == 1


@pytest.mark.parametrize(("replicas", "clients"), [(1, 3), (2, 3), (3, 3), (3, 2), (8, 1)])
def test_clients_of_a_closed_loop_share_the_replicas(replicas: int, clients: int) -> None:
    served = serve([(0.0, 5, 2)] * 12, concurrency=clients, replicas=replicas)
    assert (served.table["status"] == 1).all()
    assert sorted(set(served.table["replica"].tolist())) == list(range(min(replicas, clients)))
    assert seconds(served, "arrival_ps").count(0.0) == clients


def test_a_closed_loop_of_which_each_request_is_routed() -> None:
    least = SchedulerSpec(router="least_outstanding")
    served = serve([(0.0, 5, 2), (0.0, 5, 8), (0.0, 5, 2), (0.0, 5, 2)], concurrency=2, replicas=2, spec=least)
    first, second = served.table["replica"][:2].tolist()
    assert {first, second} == {0, 1}
    assert served.table["replica"].tolist() == [first, second, first, first]  # where nothing is left
    assert served.end_s == pytest.approx(0.08)
    assert serve([(0.0, 5, 2)] * 4, concurrency=2, spec=least).end_s == pytest.approx(0.04)


def test_the_longest_request_fits_the_kv_cache_of_its_group() -> None:
    served = serve([(0.0, 90, 90), (0.0, 100, 9)], kv_capacity_tokens=100, spec=SchedulerSpec(block_size=16))
    assert served.pools[0].kv_blocks(served.block_size) == 6
    assert served.max_model_len == 96
    assert served.table["truncated"].tolist() == [1, 0]
    assert served.table["output_tokens"].tolist() == [6, 9]
    assert served.table["status"].tolist() == [1, 2]
    with pytest.raises(InputError, match=r"scheduler\.block_size: one block of 16 tokens exceeds the KV cache of 15"):
        serve([(0.0, 1, 1)], kv_capacity_tokens=15)


def test_progress_counts_requests_that_left_and_never_falls() -> None:
    seen: list[int] = []
    serve([(i * 0.001, 5, 1 + i % 7) for i in range(9000)], progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 9000


def test_clock_ends() -> None:
    slow = CostPlan(1, 1, ("xpu",), (RowTerm("layers", "fc", "xpu", "tokens", ((10**19, 0),)),), (), (), None)
    with pytest.raises(InputError, match="run: the simulated clock ends: a step of more than 9,223 s"):
        serve([(0.0, 5, 5)], plan=slow)
    late = CostPlan(1, 1, ("xpu",), (RowTerm("layers", "fc", "xpu", "tokens", ((5 * 10**18, 0),)),), (), (), None)
    with pytest.raises(InputError, match="or a run of more than 9,223,372 s"):
        serve([(9_000_000.0, 5, 50)], plan=late)
    assert serve([(0.0, 5, 2)], plan=late).end_s == 10_000


def test_other_errors_stay_what_they_are() -> None:
    def broken(_: int, __: object, ___: object) -> None:
        raise ValueError("disk full")

    with pytest.raises(ValueError, match=r"^disk full$"):
        serve([(0.0, 5, 5)], write_rows=broken)


def test_a_request_whose_last_step_is_under_way_counts_at_the_next_reports() -> None:
    slow = replace(PLAN, rows=(replace(LAYERS, pieces=((25 * 10**13, 0),)),))  # a step takes 250 ms
    served = serve(
        # The second one is too long, and only moves the turn on; the third must not follow the first, which is there.
        [(0.0, 5, 1), (0.01, 2000, 1), (0.22, 5, 1)],
        plan=slow,
        spec=SchedulerSpec(router="least_outstanding", report_interval_s=0.1),
        replicas=2,
    )
    assert served.table["replica"].tolist() == [1, 0, 0]


def test_a_step_that_ends_as_the_window_begins_is_in_it_however_the_log_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [(0.0, 5, 3), (0.08, 5, 3)]
    whole = serve(requests, warmup_s=STEP_S, cooldown_s=0.02)
    monkeypatch.setattr(steplog, "_ROWS_PER_FLUSH", 1)
    cut = serve(requests, warmup_s=STEP_S, cooldown_s=0.02)
    assert [log.window_tokens for log in (*whole.logs, *cut.logs)] == [3, 3]


def test_short_prompts_pass_a_long_one_that_is_cut_to_a_threshold() -> None:
    """Of 100 tokens a step, the long prompt takes 40, so that those behind it begin at once; all three end it."""
    requests = [(0.0, 250, 1), (0.0, 50, 1), (0.0, 30, 1)]
    budget = {"max_num_seqs": 8, "max_num_batched_tokens": 100}
    cut = serve(requests, spec=SchedulerSpec(**budget, long_prefill_token_threshold=40))
    # Steps of (40, 40, 20), (40, 10, 10), and 40 of the first alone until 250 are there.
    assert seconds(cut, "first_token_ps") == [0.07, 0.02, 0.02]
    assert seconds(serve(requests, spec=SchedulerSpec(**budget)), "first_token_ps") == [0.03, 0.03, 0.04]


def test_whole_prompts_are_not_cut_to_a_threshold() -> None:
    with pytest.raises(ValueError, match="long_prefill_token_threshold needs batching: chunked or prefill_first"):
        SchedulerSpec(batching="stage", long_prefill_token_threshold=40)
