"""In which order requests are admitted by policy, and what policies are told of outputs."""

from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pimserve.errors import InputError
from pimserve.loadgen.request_classes import ClassSpec
from pimserve.loadgen.slo import SloSpec
from pimserve.loadgen.turns import Turns
from pimserve.loadgen.workload import Workload
from pimserve.scheduler import policy as policy_module
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.length_predictor import LengthPredictor
from pimserve.scheduler.policy import QueuedRequest
from pimserve.scheduler.queue_classes import QueueClass, queue_classes
from tests.examples import examples

from .pools import simulate_on
from .test_simulation import PLAN, serve

ONE_AT_A_TIME = {"max_num_seqs": 1, "policy": "sjf", "prediction_error": 0.0}


def order(requests: list[tuple[float, int, int]], **spec: Any) -> list[int]:
    """Requests by the time at which they were admitted."""
    served = serve(requests, spec=SchedulerSpec(**spec))
    return np.argsort(served.table["first_scheduled_ps"], kind="stable").tolist()


def test_the_shortest_of_those_that_have_arrived_is_next() -> None:
    requests = [(0.0, 5, 30), (0.001, 5, 9), (0.002, 5, 4), (0.003, 5, 9), (0.5, 5, 1)]
    assert order(requests, **ONE_AT_A_TIME) == [0, 2, 1, 3, 4]
    assert order(requests, max_num_seqs=1) == [0, 1, 2, 3, 4]


def test_one_that_comes_while_another_does_not_fit_is_admitted_first() -> None:
    """In 100 blocks: 80 are taken, the second needs 40, and the third, shorter in both, 10."""
    requests = [(0.0, 1270, 60), (0.015, 630, 50), (0.1, 150, 5)]
    served = serve(requests, spec=SchedulerSpec(policy="sjf", prediction_error=0.0))
    scheduled = served.table["first_scheduled_ps"].tolist()
    assert scheduled[2] == 10**11 < served.table["finish_ps"][0] <= scheduled[1]


class Constant:
    """All are alike."""

    def key(self, request: QueuedRequest) -> int:
        return 0


def install(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    class Registered(EntryPoint):
        def load(self) -> type:
            return kind

    points = EntryPoints([Registered("mine", "somewhere:Mine", "pimserve.policies")])
    monkeypatch.setattr(policy_module, "entry_points", lambda group: points.select(group=group))


NAMES = ("mine", "fcfs")
LISTS = st.lists(st.tuples(st.integers(0, 40).map(lambda ms: ms / 1000), st.integers(1, 40), st.integers(1, 9)),
                 min_size=1, max_size=12).map(sorted)  # fmt: skip


@examples(40)
@given(LISTS, st.integers(1, 3))
def test_without_preference_they_come_first_come_first_served(
    requests: list[tuple[float, int, int]], max_num_seqs: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        install(patch, Constant)
        mine = serve(requests, spec=SchedulerSpec(policy="mine", max_num_seqs=max_num_seqs))
    plain = serve(requests, spec=SchedulerSpec(max_num_seqs=max_num_seqs))
    assert mine.table.structured().tobytes() == plain.table.structured().tobytes()


def test_turns_of_sessions_wait_by_policy_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as where the one replica itself is told of ends, which knows but one order."""
    install(monkeypatch, Constant)
    previous, think_ps = np.array([-1, -1, 0, 1, 2]), np.array([0, 0, 10**9, 0, 5 * 10**9])
    turns = Turns.chains(previous, think_ps, np.array([0, 1, 0, 1, 0]))
    requests = [(0.0, 5, 3), (0.001, 5, 4), (0.0, 6, 2), (0.0, 7, 2), (0.0, 5, 2)]
    mine, plain = (serve(requests, turns=turns, spec=SchedulerSpec(policy=name, max_num_seqs=1)) for name in NAMES)
    assert (mine.table["finish_ps"] == plain.table["finish_ps"]).all()
    assert (mine.table["finish_ps"] > 0).all()


def test_there_is_no_such_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Constant)
    known = "fcfs, priority, sjf, edf, vtc, mine"
    with pytest.raises(InputError, match=rf"^scheduler.policy: unknown policy 'lifo' \(known: {known}\)$"):
        serve([(0.0, 5, 5)], spec=SchedulerSpec(policy="lifo"))


def test_the_error_of_the_predictor_must_be_given() -> None:
    with pytest.raises(InputError, match=r"^scheduler.prediction_error: is not given: policy 'sjf' needs the error"):
        serve([(0.0, 5, 5)], spec=SchedulerSpec(policy="sjf"))


def test_predictions_are_off_by_a_lognormal_factor() -> None:
    outputs = np.full(20_000, 10_000)
    logs = np.log(LengthPredictor(0.4, 7).predict(outputs) / outputs)
    assert abs(np.median(logs)) < 4 * 0.4 * np.sqrt(np.pi / 2 / len(outputs))
    assert abs(logs.std() / 0.4 - 1) < 4 / np.sqrt(2 * len(outputs))
    assert (LengthPredictor(0.0, 7).predict(outputs) == outputs).all()
    assert not LengthPredictor(None, 7).predict(outputs).any()
    assert LengthPredictor(5.0, 7).predict(np.ones(1000, np.int64)).min() == 1


def test_predictions_have_random_numbers_of_their_own() -> None:
    outputs = np.full(100, 1000)
    first = LengthPredictor(0.4, 7)
    assert (first.predict(outputs) == LengthPredictor(0.4, 7).predict(outputs)).all()
    assert (first.predict(outputs)[:50] == first.predict(outputs[:50])).all()
    others = [LengthPredictor(0.4, 8).predict(outputs), *(first.predict_injected(outputs, n) for n in (100, 200))]
    for other in others:
        assert (first.predict(outputs) != other).mean() > 0.9
    assert (others[1] != others[2]).mean() > 0.9


TWO = (ClassSpec(name="now", slo=SloSpec(ttft_s=0.02)), ClassSpec(name="later", priority=3, slo=SloSpec(ttft_s=0.5)))


def served_by_class(requests: list[tuple[float, int, int, int]], **spec: Any) -> NDArray[Any]:
    """The table of (arrival s, input, output, class) after one has been served at a time."""
    arrival, inputs, outputs, class_ids = (np.array(column) for column in zip(*requests, strict=True))
    made = Workload(
        np.rint(arrival * 1e12).astype(np.int64), inputs, outputs, None, None, "", 0, {},
        classes=TWO, class_ids=class_ids.astype(np.int8),
    )  # fmt: skip
    settings = SchedulerSpec(**{"max_num_seqs": 1, **spec})
    return simulate_on(
        PLAN, workload=made, spec=settings, kv_capacity_tokens=1600, max_model_len=1600
    ).table.structured()


def test_the_lowest_priority_is_next() -> None:
    table = served_by_class([(0.0, 5, 5, 2), (0.001, 5, 5, 2), (0.002, 5, 5, 1), (0.06, 5, 5, 1)], policy="priority")
    assert np.argsort(table["first_scheduled_ps"]).tolist() == [0, 2, 3, 1]


def test_the_first_token_that_is_due_first_is_next() -> None:
    """Due at 0.5, 0.501, 0.502 and 0.42 s; without a class, never."""
    requests = [(0.0, 5, 50, 2), (0.001, 5, 5, 2), (0.0015, 5, 5, 0), (0.002, 5, 5, 2), (0.4, 5, 5, 1)]
    table = served_by_class(requests, policy="edf")
    assert np.argsort(table["first_scheduled_ps"]).tolist() == [0, 4, 1, 3, 2]


STREAM = [(0.0, 5, 9, 1), (0.001, 5, 9, 2), *((0.05 * number, 5, 9, 1) for number in range(1, 30))]


def test_without_ageing_a_late_class_starves() -> None:
    """One of the early class comes every 50 ms, and takes 90 ms."""
    first = served_by_class(STREAM, policy="priority")["first_scheduled_ps"]
    assert first.argmax() == 1
    aged = served_by_class(STREAM, policy="priority", ageing_s=0.1)["first_scheduled_ps"]
    assert (aged < aged[1]).sum() == 1 + 6  # the one before it, and those that came until 0.301 s


@examples(60)
@given(
    st.lists(st.tuples(LISTS.map(lambda some: some[0]), st.integers(1, 2)), min_size=2, max_size=15),
    st.integers(1, 30),
    st.integers(1, 3),
)
def test_with_ageing_nobody_starves(
    drawn: list[tuple[tuple[float, int, int], int]], ageing_ms: int, max_num_seqs: int
) -> None:
    """Who comes after a request is not admitted before it, once the gap between them is worth the gap of priority."""
    requests = sorted((*request, class_id) for request, class_id in drawn)
    ageing = {"policy": "priority", "ageing_s": ageing_ms / 1000, "max_num_seqs": max_num_seqs}
    table = served_by_class(requests, **ageing)
    priority = np.array([0, 0, 3])[table["class_id"]]
    for request, level in zip(table, priority, strict=True):
        gap_ps = np.maximum(level - priority, 0) * ageing_ms * 10**9
        later = table["arrival_ps"] > request["arrival_ps"] + gap_ps
        assert (table["first_scheduled_ps"][later] >= request["first_scheduled_ps"]).all()


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("priority", "scheduler.policy: 'priority' needs classes of different priorities: workload.classes"),
        ("edf", "scheduler.policy: 'edf' needs a limit of TTFT: slo.ttft_s, or in slo of a class"),
    ],
)
def test_there_must_be_what_tells_requests_apart(policy: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        serve([(0.0, 5, 5)], spec=SchedulerSpec(policy=policy))
    assert str(refused.value) == message


def test_the_tightest_limit_of_the_time_to_first_token_counts() -> None:
    own = SloSpec.model_validate({"ttft_s": 2, "ttft_p99_s": 0.5, "e2e_p50_s": 0.1})
    classes = [ClassSpec(name="a", tenant="us", priority=4, slo=own), ClassSpec(name="b")]
    assert queue_classes(classes, SloSpec(ttft_s=3)) == (
        QueueClass(0, "", 3 * 10**12), QueueClass(4, "us", 5 * 10**11), QueueClass(0, "b", 3 * 10**12),
    )  # fmt: skip
    assert queue_classes((), SloSpec()) == (QueueClass(),)
