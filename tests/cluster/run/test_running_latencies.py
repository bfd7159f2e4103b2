"""Running latencies are those of the summary, whatever the portions in which requests leave."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.cli.service_tables import limit_table, request_page, slo_line
from pimserve.cluster.client.answers import Request, read
from pimserve.cluster.client.answers import latencies as answered
from pimserve.cluster.run.live_control import LiveControl
from pimserve.cluster.run.running_latencies import NAMES, Quantiles, RunningLatencies
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.cluster.service.messages import latencies_of, life_of
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.slo import SloSpec
from pimserve.scheduler.requests import FINISHED, WAITING, RequestTable
from pimserve.scheduler.simulation import Deployment
from tests.cluster.documents import serve
from tests.examples import examples

NOTHING = np.zeros(0, np.int64)


def test_they_are_those_of_the_summary():
    settings_ = ["workload.num_requests=400", "slo.ttft_s=0.02", "slo.tpot_s=0.0043", "slo.e2e_s=2"]
    scenario = load_scenario(None, [*settings_, "costs.setting=ideal"])
    summary, served = serve(prepare(scenario))
    running = RunningLatencies(Objectives(scenario.slo))
    for portion in np.array_split(np.argsort(served.table["finish_ps"]), 17):
        running.add(served.table.columns, portion)
        running.judge(served.table.columns, portion)
    running.set_gaps((log.itl for log in served.logs), 0)
    found = running.so_far((50, 90, 99))
    for name in NAMES:
        exact = summary["latency_s"][name]
        assert found.latencies[name].count == exact["n"]
        assert found.latencies[name].mean_s == pytest.approx(exact["mean"], rel=1e-9)
        for percent in (50, 90, 99):
            assert found.latencies[name].percentiles_s[percent] == pytest.approx(exact[f"p{percent}"], rel=2**-11)
    assert 0 < found.good < found.left
    assert found.good / found.left == summary["slo"]["attainment"]
    assert found.limits == summary["slo"]["limits"]


def watched(*overrides):
    """The summary of a run, and its control at the end."""
    scenario = load_scenario(None, ["workload.num_requests=400", *overrides])
    control = LiveControl(RunningLatencies(Objectives(scenario.slo)))
    return serve(prepare(scenario), deployment=Deployment(control=control))[0], control


@pytest.mark.parametrize("limits", ["slo={ttft_s: 0.02, tpot_s: 0.0043, e2e_s: 2}", "slo={ttft_s: 0.02}", "slo={}"])
@pytest.mark.parametrize("stop", ["20", "60"])
def test_of_a_run_that_is_cut_off_they_are_those_of_the_summary(limits, stop):
    summary, control = watched(limits, f"run.max_time_s={stop}", "workload.arrival={process: poisson, rate_per_s: 20}")
    found = answered(latencies_of(control.snapshot, control.latencies, (50, 99)))
    assert (summary["requests"]["unfinished"] > 0) == (stop == "20")
    for name in NAMES:
        assert found.latencies[name].count == summary["latency_s"][name]["n"], name
    assert found.attainment == summary["slo"]["attainment"]
    if found.limits_s:
        told = summary["slo"]
        assert (found.left, found.censored) == (told["known"]["all"], told["censored"]["all"])
        assert (f", {found.censored} censored" in slo_line(found)) == (found.censored > 0)


def test_longest_gaps_and_limits_at_percentiles_are_those_of_the_summary():
    slo = "slo={itl_max_s: 0.012, ttft_p99_s: 0.02, itl_p50_s: 1, tpot_p90_s: 0.004}"
    summary, control = watched(slo, "run.max_time_s=20", "workload.arrival={process: poisson, rate_per_s: 20}")
    found, told = answered(latencies_of(control.snapshot, control.latencies)), summary["slo"]
    assert found.limits_s == told["limits"] == {"itl_max_s": 0.012}
    assert 0 < found.attainment == told["attainment"] < 1
    assert (found.left, found.censored) == (told["known"]["all"], told["censored"]["all"])
    assert {limit.name: limit.passed for limit in found.at_percentiles} == {
        name: limit["passed"] for name, limit in told["at_percentiles"].items()
    }
    assert {limit.passed for limit in found.at_percentiles} == {True, False}
    for limit in found.at_percentiles:
        exact = told["at_percentiles"][limit.name]
        assert limit.measured_s == pytest.approx(exact["measured"], rel=2**-11)
        assert (limit.limit_s, limit.count, limit.enough_samples) == (
            exact["limit"],
            exact["n"],
            exact["enough_samples"],
        )
    rows = limit_table(found.at_percentiles).rows
    assert [row[0] for row in rows] == ["TTFT p99", "ITL p50", "TPOT p90"]
    assert [row[-1] for row in rows] == [{True: "pass", False: "fail"}[limit.passed] for limit in found.at_percentiles]


def test_while_a_run_is_held_all_that_have_left_are_judged():
    scenario = load_scenario(None, ["workload.num_requests=200", "slo.itl_max_s=0.012"])

    class Holding(LiveControl):
        seen = ()

        def barrier(self, view):
            if view.now_fs > 5 * 10**15 and not self.seen:
                held = self.hold()
                held.add_done_callback(lambda _: threading.Timer(0.2, self.look).start())
            super().barrier(view)

        def look(self):
            self.seen = (self.latencies.so_far().left, self.snapshot.finished)
            self.go_on()

    control = Holding(RunningLatencies(Objectives(scenario.slo)))
    serve(prepare(scenario), deployment=Deployment(control=control))
    assert 0 < control.seen[0] == control.seen[1] < 200


def test_the_life_of_a_rejected_request_says_why():
    _, control = watched("scheduler.max_model_len=1000", "workload.num_requests=40")
    prompts = control.snapshot.columns["input_tokens"]
    for number, tokens in enumerate(prompts.tolist()):
        found = read(Request, life_of(control.snapshot, number))
        assert found.state == ("rejected" if tokens >= 1000 else "finished")
        assert found.reject_reason == ("max_model_len" if tokens >= 1000 else None)
    page = request_page(read(Request, life_of(control.snapshot, int(np.argmax(prompts)))))
    assert "longer than max_model_len" in [str(cell) for column in page.columns for cell in column.cells]


def test_nothing_yet():
    running = RunningLatencies(Objectives(SloSpec()))
    columns = RequestTable(np.zeros(1, np.int64), np.ones(1), np.ones(1), 10).columns
    running.add(columns, NOTHING)
    running.judge(columns, NOTHING)
    found = running.so_far((50,))
    assert found.latencies["ttft"] == Quantiles(0, None, {50: None})
    assert (found.left, found.good) == (0, 0)


@examples(30)
@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=20), st.integers(0, 10**12))
def test_latencies_of_any_length_fit(spans_ps, frontend_ps):
    n = len(spans_ps)
    table = RequestTable(np.zeros(n, np.int64), np.ones(n), np.full(n, 2), 10)
    table["status"][:] = FINISHED
    for name in ("first_scheduled_ps", "first_token_ps"):
        table[name][:] = 0
    table["finish_ps"][:] = spans_ps
    running = RunningLatencies(Objectives(SloSpec(e2e_s=1)), frontend_ps=frontend_ps)
    running.add(table.columns, np.arange(n))
    running.judge(table.columns, np.arange(n))
    found = running.so_far((100,))
    longest = min((max(spans_ps) + frontend_ps) / 1e12, 2**63 / 1e15)
    assert found.latencies["e2e"].percentiles_s[100] == pytest.approx(max(longest, 1e-12), rel=2**-10)
    assert found.good == sum((span + frontend_ps) / 1e12 <= 1 for span in spans_ps)


def test_requests_that_have_not_left_do_not_count():
    table = RequestTable(np.zeros(3, np.int64), np.ones(3), np.ones(3), 10)
    assert (table["status"] == WAITING).all()
    running = RunningLatencies(Objectives(SloSpec(ttft_s=1)))
    running.judge(table.columns, np.flatnonzero(table["status"] != WAITING))
    assert running.so_far(()).left == 0
