"""Where windows end, how replicas are spread over shards, and where a run is interrupted does not change a bit."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.kv_groups import NO_WINDOWS, KvGroups
from pimserve.errors import InputError
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.control import (
    ChangeScheduler,
    Command,
    Inject,
    RunView,
    ScaleRate,
    command_document,
    command_of,
)
from pimserve.scheduler.fleet import Fleet, RowSink
from pimserve.scheduler.requests import FINISHED, FOREVER, REJECTED, RequestTable, preemptions_by_cause
from pimserve.scheduler.shard import Shard
from pimserve.scheduler.simulation import Deployment
from pimserve.scheduler.summary import digest
from tests.examples import examples

from .batching_strategies import batching_cases
from .law_runs import ROUTERS, Run, runs
from .strategies import Case, cases
from .test_simulation import serve

FS_PER_MS = 10**12
Result = TypeVar("Result")
LENGTHS = st.lists(st.integers(1, 400 * FS_PER_MS), min_size=1, max_size=6)


class Windows:
    """A control that ends windows after given times, again and again, and gives commands in some of them."""

    def __init__(self, lengths: Sequence[int], commands: dict[int, Command] | None = None) -> None:
        self.lengths = lengths
        self.commands = commands or {}
        self.views: list[RunView] = []
        self.refused: list[str] = []

    def next_barrier_fs(self, now_fs: int) -> int:
        if len(self.views) > 40:
            return FOREVER
        return now_fs + self.lengths[len(self.views) % len(self.lengths)]

    def ended(self, view: RunView) -> None:
        """Replicas have told of all preemptions of all requests, whatever became of either."""
        told = sum((Counter(state.preemptions_by_cause) for state in view.replicas), Counter[str]())
        by_cause = preemptions_by_cause(view.table.columns)
        assert told == Counter({cause: int(counted.sum()) for cause, counted in by_cause.items()})

    def barrier(self, view: RunView) -> None:
        self.views.append(view)
        command = self.commands.get(view.window)
        if command is not None:
            try:
                view.apply(command_of(command_document(command)))
            except InputError as error:
                self.refused.append(str(error))


class Kept:
    """Checkpoints of every window; hands out the one that it is told to."""

    def __init__(self) -> None:
        self.saved: list[tuple[str, np.ndarray]] = []
        self.first: int | None = None

    def load(self) -> tuple[dict[str, Any], np.ndarray] | None:
        if self.first is None or not self.saved:
            return None
        text, rows = self.saved[self.first % len(self.saved)]
        return json.loads(text), rows

    def due(self) -> bool:
        return True

    def save(self, state: dict[str, Any], rows: np.ndarray) -> None:
        if self.first is None:
            self.saved.append((json.dumps(state), rows))


def cut_and_continued(run: Callable[[Deployment], Result], lengths: Sequence[int], at: int) -> tuple[Result, Result]:
    """What a run comes to that is cut into such windows, and what comes of one that goes on from a checkpoint of it."""
    kept = Kept()
    cut = run(Deployment(control=Windows(lengths), checkpoints=kept))
    kept.first = at
    return cut, run(Deployment(control=Windows([10**15]), checkpoints=kept))


def spread(shards: int):
    """Replicas dealt out in turns to that many shards of this process, which share the table of the run's requests."""

    def make(fleet: Fleet, table: RequestTable, on_rows: RowSink | None) -> list[Shard]:
        return [Shard(fleet, range(i, fleet.replicas, shards), table, on_rows) for i in range(shards)]

    return make


def spans(run: Run) -> list[list[Any]]:
    return [run.rows(replica) for replica in range(len(run.blocks))]


@pytest.mark.medium
@examples(60)
@given(runs() | runs(batching_cases()), LENGTHS)
def test_windows_do_not_matter(run: Run, lengths: list[int]) -> None:
    control = Windows(lengths)
    windowed = Run(run.case, len(run.blocks), run.spec.router, deployment=Deployment(control=control))
    assert spans(windowed) == spans(run)
    assert digest(windowed.served) == digest(run.served)
    assert windowed.summary() == run.summary()
    ends = [view.now_fs for view in control.views]
    assert ends == sorted(set(ends))
    left = [request for view in control.views for request in view.left.tolist()]
    assert len(left) == len(set(left))


class Leavers(Windows):
    """Holds those who have left by the end of every window to what the table of requests says of them then."""

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__(lengths)
        self.left: list[int] = []

    def barrier(self, view: RunView) -> None:
        super().barrier(view)
        self.left += view.left.tolist()
        ended = np.flatnonzero(np.isin(view.table["status"], (FINISHED, REJECTED)))
        assert sorted(self.left) == ended.tolist()
        assert all(state.up for state in view.replicas)  # without faults


def test_who_is_rejected_leaves() -> None:
    control = Leavers([FS_PER_MS * 100])
    served = serve([(0.0, 5, 5), (0.1, 1600, 5), (0.2, 5, 5), (0.9, 5, 5)], deployment=Deployment(control=control))
    assert served.table["status"].tolist() == [FINISHED, REJECTED, FINISHED, FINISHED]
    assert sorted(control.left) == [0, 1, 2, 3]


@pytest.mark.medium
@examples(60)
@given(runs() | runs(batching_cases()), LENGTHS)
def test_who_has_finished_or_was_rejected_leaves_once(run: Run, lengths: list[int]) -> None:
    Run(run.case, len(run.blocks), run.spec.router, deployment=Deployment(control=Leavers(lengths)))


@pytest.mark.medium
@examples(80)
@given(runs() | runs(batching_cases()), LENGTHS, st.integers(0, 1000))
def test_an_interrupted_run_goes_on_to_the_same_bits(run: Run, lengths: list[int], at: int) -> None:

    def again(deployment: Deployment) -> Run:
        return Run(run.case, len(run.blocks), run.spec.router, deployment=deployment)

    _, continued = cut_and_continued(again, lengths, at)
    assert digest(continued.served) == digest(run.served)
    assert continued.summary() == run.summary()


@pytest.mark.medium
@examples(50)
@given(cases() | batching_cases(), ROUTERS, st.integers(2, 4), st.integers(1, 300), LENGTHS)
def test_shards_do_not_matter(case: Case, router: str, replicas: int, interval_ms: int, lengths: list[int]) -> None:
    case = replace(case, max_time_fs=None)
    router = "round_robin" if case.concurrency is not None else router
    results = []
    for shards in (1, 2, 4):
        control = Windows(lengths) if shards == 2 else None
        deployment = Deployment(shards=spread(min(shards, replicas)), control=control)
        run = Run(case, replicas, router, report_interval_s=interval_ms / 1000, deployment=deployment)
        results.append((spans(run), digest(run.served), run.summary()))
    assert results[0] == results[1] == results[2]


def test_exact_state_needs_one_shard() -> None:
    deployment = Deployment(shards=spread(2))
    with pytest.raises(InputError, match=r"^scheduler.report_interval_s: is 0, so router 'least_outstanding' looks at"):
        serve([(0.0, 5, 5)], spec=SchedulerSpec(router="least_outstanding"), replicas=2, deployment=deployment)


@pytest.mark.medium
@examples(30)
@given(runs(max_time_fs=None, concurrency=None), LENGTHS, st.integers(1, 5))
def test_commands_are_part_of_what_is_simulated(run: Run, lengths: list[int], window: int) -> None:
    for command in (
        ScaleRate(3.0),
        Inject((5, 7), (2, 1), delay_s=0.01),
        ChangeScheduler(max_num_seqs=1),
        ChangeScheduler(router="least_outstanding"),
    ):
        control = Windows(lengths, {window: command})
        changed = Run(run.case, len(run.blocks), run.spec.router, deployment=Deployment(control=control))
        again = Run(
            run.case,
            len(run.blocks),
            run.spec.router,
            deployment=Deployment(control=Windows(lengths, {window: command})),
        )
        assert digest(again.served) == digest(changed.served)
        counts = changed.summary()["requests"]
        added = 2 if isinstance(command, Inject) and len(control.views) >= window else 0
        assert counts["total"] == len(run.case.requests) + added
        assert counts["finished"] + counts["rejected"] == counts["total"]
        arrivals = changed.table["arrival_ps"]
        assert (np.diff(arrivals) >= 0).all()
        # A token budget below `max_num_seqs`, as some cases have, is no setting that a command may confirm.
        assert not control.refused or isinstance(command, ChangeScheduler)


def test_a_router_sees_what_a_command_has_changed() -> None:
    """Who waited for a place finishes early once there are more places: the next request goes where they were."""
    requests = [(0.001 * i, 5, 1 if i in {2, 4} else 90) for i in range(5)] + [(0.3, 5, 1)]
    spec = SchedulerSpec(router="least_outstanding", max_num_seqs=1, max_num_batched_tokens=64)
    chosen = [
        serve(requests, spec=spec, replicas=2, deployment=Deployment(control=control)).table["replica"].tolist()
        for lengths in ([100 * FS_PER_MS, 10**6 * FS_PER_MS], [100 * FS_PER_MS])
        for control in [Windows(lengths, {1: ChangeScheduler(max_num_seqs=8)})]
    ]
    assert chosen[0] == chosen[1]
    first = chosen[0][0]
    assert chosen[0] == [first, 1 - first, first, 1 - first, first, first]


def test_commands_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="must be one of change_scheduler, scale_rate, inject"):
        command_of({"command": "explode"})
    with pytest.raises(InputError, match="with its own keys"):
        command_of({"command": "scale_rate", "speed": 3})


def test_commands_beyond_the_end_of_the_clock_are_refused() -> None:
    requests = [(i * 1.0, 5, 5) for i in range(5)]
    for command, message in (
        (ScaleRate(1e-9), "factor: 1e-09 puts arrivals beyond"),
        (Inject((5,), (5,), delay_s=1e12), "delay_s: 1e+12 s puts arrivals beyond"),
        (ChangeScheduler(max_num_seqs=0), "scheduler.max_num_seqs: must be greater than 0"),
        (ChangeScheduler(router="dice"), "scheduler.router: unknown router 'dice'"),
    ):
        control = Windows([FS_PER_MS * 100], {2: command})
        served = serve(requests, deployment=Deployment(control=control))
        assert [refused.startswith(message) for refused in control.refused] == [True], control.refused
        assert served.table["finish_ps"].tolist() == serve(requests).table["finish_ps"].tolist()


def test_shards_refuse_a_change_to_a_router_that_they_could_not_have_begun_with() -> None:
    requests = [(i * 0.01, 5, 5) for i in range(20)]
    looking, prefixes = ChangeScheduler(router="least_outstanding"), ChangeScheduler(router="llm_d")
    for command, interval_s, shards, refused in (
        (looking, 0.0, 2, ["scheduler.router: 'least_outstanding' looks at all replicas at each arrival"]),
        (looking, 0.0, 1, []),
        (looking, 0.02, 2, []),
        (ChangeScheduler(router="random"), 0.0, 2, []),
        (prefixes, 0.0, 2, ["scheduler.router: 'llm_d' looks at all replicas at each arrival"]),
        (prefixes, 0.02, 2, []),
    ):
        spec = SchedulerSpec(report_interval_s=interval_s, enable_prefix_caching=True)
        control = Windows([50 * FS_PER_MS], {1: command})
        deployment = Deployment(shards=spread(shards), control=control)
        served = serve(requests, spec=spec, replicas=2, deployment=deployment)
        assert [message.split(",")[0] for message in control.refused] == refused
        assert (served.table["finish_ps"] > 0).all()


def test_a_budget_beyond_what_attention_windows_have_blocks_for_is_refused() -> None:
    requests = [(i * 1.0, 300, 5) for i in range(5)]
    spec = SchedulerSpec(max_num_batched_tokens=64, max_num_seqs=8)
    for groups, refused in ((KvGroups(1, 1, 128), 1), (NO_WINDOWS, 0)):
        control = Windows([FS_PER_MS * 100], {2: ChangeScheduler(max_num_batched_tokens=65)})
        serve(requests, spec=spec, kv_groups=groups, deployment=Deployment(control=control))
        assert len(control.refused) == refused
        assert all("must be at most 64, with which the run began" in message for message in control.refused)


@pytest.mark.medium
def test_more_than_a_thousand_windows() -> None:
    """Windows of a report interval are shorter than those that the wall clock asks for."""
    requests = [(i * 0.01, 5, 5) for i in range(250)]
    spec = SchedulerSpec(router="least_outstanding", report_interval_s=0.002)
    here = serve(requests, spec=spec)
    kept = Kept()
    there = serve(requests, spec=spec, deployment=Deployment(checkpoints=kept))
    assert digest(here) == digest(there)
    assert len(kept.saved) > 1000


def test_a_closed_loop_in_windows_ends() -> None:
    requests = [(0.0, 5, 5)] * 8
    served = serve(requests, concurrency=3, replicas=2, deployment=Deployment(window_wall_s=1e-9))
    assert (served.table["finish_ps"] > 0).all()
    assert digest(served) == digest(serve(requests, concurrency=3, replicas=2))


def test_who_left_before_an_interruption_does_not_leave_again() -> None:
    """Replicas of a closed loop, made anew, issue their first requests again, and reject those that are too long."""
    requests, kept, left = [(0.0, 1600, 5), (0.0, 5, 5), (0.0, 5, 5)], Kept(), []
    for kept.first in (None, 1):
        control = Windows([FS_PER_MS * 10])
        serve(requests, concurrency=1, deployment=Deployment(control=control, checkpoints=kept))
        left.append([request for view in control.views for request in view.left.tolist()])
    assert left == [[0, 1, 2], [1, 2]]
