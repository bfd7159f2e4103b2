"""A command finds the same run whether or not windows ended while nothing happened: no report comes before its time."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.control import Inject, RunView
from pimserve.scheduler.handover import Link
from pimserve.scheduler.simulation import Deployment, Served
from pimserve.scheduler.summary import digest
from tests.examples import examples

from .pools import Decode
from .strategies import FS_PER_MS
from .test_simulation import PLAN, seconds, serve

LINK = Link(bytes_per_s=10**9, latency_fs=5 * FS_PER_MS, bytes_per_token=10**6)
REQUESTS = [(0.0, 10, 3), (0.01, 10, 3), (1.15, 10, 2)]  # nothing happens from about 0.1 to 1.15 s


class At:
    """Ends windows after given times, and injects requests at one."""

    def __init__(self, at_fs: int, lengths_fs: Sequence[int]) -> None:
        self.at_fs = at_fs
        self.lengths_fs = lengths_fs
        self.windows = 0

    def next_barrier_fs(self, now_fs: int) -> int:
        end_fs = now_fs + self.lengths_fs[self.windows % len(self.lengths_fs)]
        return end_fs if now_fs >= self.at_fs else min(end_fs, self.at_fs)

    def barrier(self, view: RunView) -> None:
        self.windows += 1
        if view.now_fs == self.at_fs:
            view.apply(Inject((20, 30), (3, 3)))

    def ended(self, view: RunView) -> None:
        pass


def injected(at_ms: int, lengths_ms: Sequence[int], *, pools: bool) -> Served:
    control = At(at_ms * FS_PER_MS, [length * FS_PER_MS for length in lengths_ms])
    spec = SchedulerSpec(router="least_outstanding", report_interval_s=0.7)
    decode = Decode(PLAN, 1600, 1, LINK) if pools else None
    deployment = Deployment(control=control)
    return serve(REQUESTS, spec=spec, replicas=2, decode=decode, deployment=deployment)


def test_a_prefill_replica_is_not_kept_until_a_report_to_come() -> None:
    """The report of 0.7 s was told before its time when a window ended at 0.37 s, and who came at 0.6 s waited."""
    served = injected(600, [370], pools=True)
    assert seconds(served, "first_scheduled_ps")[2:4] == [0.6, 0.6]


@pytest.mark.parametrize("pools", [False, True])
@examples(30)
@given(st.integers(100, 1100), st.lists(st.integers(20, 800), min_size=1, max_size=3))
def test_where_windows_end_while_nothing_happens_does_not_matter(
    pools: bool, at_ms: int, lengths_ms: list[int]
) -> None:
    whole = injected(at_ms, [10**6], pools=pools)
    assert digest(injected(at_ms, lengths_ms, pools=pools)) == digest(whole)
