"""Figures of classes: they add up to those of the run, and are those that their requests alone show."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.request_classes import ClassSpec
from pimserve.loadgen.slo import SloSpec
from pimserve.loadgen.workload import Workload
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.measured import Measured
from pimserve.scheduler.outcomes import CENSORED, MET, MISSED, outcomes
from pimserve.scheduler.simulation import Served
from pimserve.scheduler.summary import summarize
from pimserve.scheduler.summary_sections import Figures
from pimserve.scheduler.usage import Hardware
from tests.examples import examples

from .pools import simulate_on
from .summaries import PLAN

LIMITS = st.builds(
    SloSpec,
    ttft_s=st.none() | st.sampled_from((0.01, 0.03, 0.5)),
    tpot_s=st.none() | st.sampled_from((0.009, 0.01, 0.02)),
    e2e_s=st.none() | st.sampled_from((0.05, 0.2)),
)
REQUEST = st.tuples(st.integers(0, 300), st.integers(1, 70), st.integers(1, 12), st.integers(0, 2))
COUNTS = ("total", "finished", "rejected", "unfinished", "preempted", "measured")


def serve(requests: list[tuple[int, int, int, int]], classes: list[ClassSpec], **changes: object) -> Served:
    """Serve (arrival ms, input, output, class)."""
    arrival, inputs, outputs, ids = (np.array(column) for column in zip(*sorted(requests), strict=True))
    workload = Workload(
        (arrival - arrival[0]) * 10**9, inputs, outputs, None, None, "", 0, {}, classes=tuple(classes),
        class_ids=ids.astype(np.int8),
    )  # fmt: skip
    spec = SchedulerSpec(max_num_seqs=3)
    how = {"plan": PLAN, "workload": workload, "spec": spec, "kv_capacity_tokens": 1600, "max_model_len": 64}
    return simulate_on(**how | changes)


def named(*slos: SloSpec | None) -> list[ClassSpec]:
    return [ClassSpec(name=f"c{number}", slo=slo) for number, slo in enumerate(slos)]


def figures(served: Served, slo: SloSpec) -> Figures:
    return summarize(served, Objectives.of(slo, served.workload.classes), Hardware(1))


@pytest.mark.medium
@examples(150)
@given(
    st.lists(REQUEST, min_size=1, max_size=25),
    LIMITS,
    st.lists(st.none() | LIMITS, min_size=2, max_size=2),
    st.none() | st.sampled_from((0.02, 0.15)),
    st.integers(1, 2),
)
def test_classes_add_up_to_the_run(requests, slo, slos, max_time_s, replicas):
    # Class 0 is what is injected: it is in the run and in no class.
    classes = named(*slos)
    served = serve(requests, classes, max_time_s=max_time_s, replicas=replicas)
    found, alone = figures(served, slo), served.table["class_id"] == 0
    for name in COUNTS:
        of_none = {
            "total": alone,
            "measured": alone,
            "finished": alone & (served.table["status"] == 1),
            "rejected": alone & (served.table["status"] == 2),
            "unfinished": alone & (served.table["status"] == 0),
            "preempted": alone & (served.table["preemptions"] > 0),
        }[name]
        of_classes = sum(getattr(each.requests, name) for each in found.classes)
        assert of_classes + of_none.sum() == getattr(found.requests, name), name
    output = sum(each.tokens.output for each in found.classes)
    assert output + served.table["emitted_tokens"][alone].sum() == found.tokens.output
    for name in ("ttft", "tpot", "e2e", "queue"):
        of_none = int(served.latencies(alone)[name].known.sum())
        n = sum(getattr(each.latency_s, name).n for each in found.classes)
        assert n + of_none == getattr(found.latency_s, name).n
    check_slo(served, found, slo, slos)


def check_slo(served, found, slo, slos):
    """Each class as if its requests and limits were all there are; the run as all of these together."""
    met = known = 0
    limits = [slo, *(slo if own is None else own for own in slos)]
    some = any(each.limits() for each in limits)
    for number, own in enumerate(limits):
        mine = served.table["class_id"] == number
        by_limit = outcomes(served.latencies(mine), Objectives(own))
        all_limits = by_limit.get("all", np.where(served.table["status"][mine] == 2, MISSED, MET))
        met += int((all_limits == MET).sum())
        known += int((all_limits != CENSORED).sum())
        if number:
            of_class = found.classes[number - 1].slo
            assert of_class.limits == own.limits()
            judged = (all_limits != CENSORED).sum() if by_limit else 0
            assert of_class.attainment == ((all_limits == MET).sum() / judged if judged else None)
            assert of_class.censored == ((all_limits == CENSORED).sum() if by_limit else 0)
    assert found.slo.attainment == (met / known if some and known else None)


def test_goodput_of_classes_is_that_of_the_run():
    requests = [(10 * number, 5, 1 + number % 9, 1 + number % 2) for number in range(60)]
    served = serve(requests, named(SloSpec(ttft_s=0.02), SloSpec(e2e_s=0.08)))
    found = figures(served, SloSpec())
    first, second = found.classes
    assert 0 < first.slo.goodput_requests_per_s < first.throughput.requests_per_s
    goodput = first.slo.goodput_requests_per_s + second.slo.goodput_requests_per_s
    assert goodput == pytest.approx(found.slo.goodput_requests_per_s)
    throughput = first.throughput.requests_per_s + second.throughput.requests_per_s
    assert throughput == pytest.approx(found.throughput.requests_per_s)
    emitted = served.table["emitted_tokens"][served.table["class_id"] == 1].sum()
    assert first.throughput.output_tokens_per_s == pytest.approx(emitted / found.end_s)
    assert set(found.slo.met) == {"ttft", "e2e"}
    assert found.slo.limits == {}


def test_a_class_has_the_limits_of_the_run_or_its_own_and_never_both():
    requests = [(0, 5, 5, 1), (0, 5, 5, 2)]
    served = serve(requests, named(None, SloSpec(ttft_s=9)))
    mine, others = figures(served, SloSpec(e2e_s=1e-3, ttft_p50_s=3)).classes
    assert (mine.slo.limits, mine.slo.attainment) == ({"e2e_s": 1e-3}, 0)
    assert (others.slo.limits, others.slo.attainment) == ({"ttft_s": 9}, 1)
    assert mine.slo.at_percentiles["ttft_p50_s"].passed
    assert others.slo.at_percentiles is None


def test_limits_at_percentiles_are_of_the_requests_of_the_class():
    requests = [(number, 5, 1 if number % 2 else 10, 1 + number % 2) for number in range(40)]
    served = serve(requests, named(SloSpec(e2e_p90_s=0.5), SloSpec(e2e_p90_s=0.5)))
    for number, each in enumerate(figures(served, SloSpec(itl_p50_s=1)).classes, start=1):
        (limit,) = each.slo.at_percentiles.values()
        assert limit.n == 20
        assert limit.measured == np.sort(served.latencies(served.table["class_id"] == number)["e2e"].seconds)[17]
        assert each.slo.attainment is None


def test_limits_of_gaps_at_percentiles_are_of_all_requests():
    served = serve([(0, 5, 5, 1)], named(None))
    found = figures(served, SloSpec(itl_p50_s=1))
    assert found.classes[0].slo.at_percentiles is None
    assert found.slo.at_percentiles["itl_p50_s"].n == 4


def test_only_the_measured_window_counts():
    requests = [(10 * number, 5, 3, 1) for number in range(50)]
    found = figures(serve(requests, named(SloSpec(ttft_s=1)), warmup_s=0.1, cooldown_s=0.1), SloSpec())
    (only,) = found.classes
    assert only.requests.total == 50
    assert only.requests.measured == found.requests.measured < 50
    assert only.latency_s.ttft.n == found.requests.measured


def test_a_run_without_classes_has_no_figures_of_them():
    served = serve([(0, 5, 5, 0)], [])
    assert "classes" not in figures(served, SloSpec()).set_parts()


def test_a_class_without_requests_has_nothing_to_show():
    served = serve([(0, 5, 5, 1)], named(None, SloSpec(ttft_s=1)))
    _, nothing = figures(served, SloSpec()).classes
    assert nothing.requests.total == 0
    assert nothing.latency_s.ttft.mean is None
    assert (nothing.slo.attainment, nothing.slo.goodput_requests_per_s) == (None, None)


def test_longest_gaps_are_judged_by_class():
    requests = [(0, 5, 5, 1), (0, 5, 5, 2)]
    slos = (SloSpec(itl_max_s=1e-3), SloSpec(itl_max_s=1))
    served = serve(requests, named(*slos), longest_gaps=True)
    assert [each.slo.attainment for each in figures(served, SloSpec()).classes] == [0, 1]
    measured = Measured(served, Objectives.of(SloSpec(), served.workload.classes))
    assert measured.good.tolist() == [False, True]
