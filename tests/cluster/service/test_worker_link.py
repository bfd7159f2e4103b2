"""What the server passes on of a worker's news."""

import os
import time

import grpc
import pytest

from pimserve.cluster.base.processes import Process
from pimserve.cluster.service.data_folder import DataFolder, RunFolder
from pimserve.cluster.service.forwarding import _from_news
from pimserve.cluster.service.worker import work
from pimserve.cluster.service.worker_link import WorkerLink
from pimserve.cluster.service.worker_supervisor import WorkerSupervisor
from pimserve.v1 import scheduler_pb2 as sched
from pimserve.v1 import worker_pb2

from .harness import prepared


def news(*, age_s=0.0, held=False):
    return worker_pb2.FollowResponse(
        taken_s=time.monotonic() - age_s,
        held=held,
        replicas=sched.GetReplicasResponse(simulated_s=3),
        latencies=sched.GetLatenciesResponse(simulated_s=3),
    )


@pytest.fixture
def link(tmp_path):
    heard = []
    made = WorkerLink(RunFolder(tmp_path), None, None, heard.append)
    made.heard = heard
    return made


def test_news_is_passed_on_while_it_is_new(link):
    assert link.latest() is None
    fresh = news()
    link._follow(lambda *_, **__: iter([news(), fresh]))
    assert link.latest() is fresh
    assert len(link.heard) == 2
    link._follow(lambda *_, **__: iter([news(age_s=1.5)]))
    assert link.latest() is None


def test_a_worker_is_followed_again_when_the_connection_was_broken(tmp_path):
    """It was stopped for longer than keepalive bears: the run seemed to be starting, or at a standstill, to its end."""
    link = WorkerLink(RunFolder(tmp_path), Process.of(os.getpid()), None, lambda _: None)
    first, last = news(), news()

    def broken():
        yield first
        raise grpc.RpcError

    calls = iter([broken(), iter([last])])
    link._follow(lambda *_, **__: next(calls))
    assert link.latest() is last


def test_whoever_changed_a_run_does_not_hear_of_the_time_before(link):
    link._follow(lambda *_, **__: iter([news()]))
    link.changed()
    assert link.latest() is None
    link._follow(lambda *_, **__: iter([news()]))
    assert link.latest() is not None


def test_a_run_that_is_held_is_asked_itself(link):
    link._follow(lambda *_, **__: iter([news(held=True)]))
    assert link.latest() is None


def test_the_metrics_of_a_run_that_was_too_quick_to_be_heard_of_are_there(tmp_path):
    """The worker ends before anyone has connected to it."""
    data = DataFolder(tmp_path)
    folder = prepared(data, "workload.num_requests=20")
    assert work(folder) == 0
    link = WorkerLink(folder, None, None, lambda _: None)
    link.take_last_news()
    assert link.metrics.values["pimserve_requests_total"].tolist() == [20, 0]
    assert link.metrics.layout.run_id == folder.id


def test_last_metrics_that_cannot_be_read_are_left_out(link, caplog):
    link.take_last_news()  # there are none
    assert not caplog.text
    for content in (b"", b"\xff\n", b"{}\n1234"):
        link.folder.metrics.write_bytes(content)
        link.take_last_news()
        assert link.metrics is None
        assert "its last metrics cannot be read" in caplog.text
        caplog.clear()


def test_what_was_not_from_news_is_asked_for():
    said = news()
    assert _from_news(said, "GetReplicas", sched.GetReplicasRequest()) == said.replicas
    assert _from_news(said, "GetLatencies", sched.GetLatenciesRequest()) == said.latencies
    assert _from_news(said, "GetLatencies", sched.GetLatenciesRequest(percentiles=[75])) is None
    assert _from_news(said, "GetLedgers", sched.GetLedgersRequest()) is None
    assert _from_news(said, "DescribeRequest", sched.DescribeRequestRequest()) is None
    assert _from_news(None, "GetReplicas", sched.GetReplicasRequest()) is None


class Ending:
    """The link of a worker that has ended, whose last metrics come late; looks at what is shown meanwhile."""

    metrics = None

    def __init__(self, workers, last):
        self.workers, self.last = workers, last
        self.shown = []

    def poll(self):
        return 0

    def take_last_news(self):
        self.metrics = self.last
        self.shown.append(self.workers.metrics())

    def close(self):
        self.shown.append(self.workers.metrics())


def test_metrics_of_a_run_that_ends_are_shown_without_a_gap(tmp_path):
    workers = WorkerSupervisor(DataFolder(tmp_path), (), lambda _: False, lambda *_: None)
    last = object()
    link = workers.children["a"] = Ending(workers, last)
    assert workers.take_ended() == {"a": 0}
    assert [*link.shown, workers.metrics()] == [[last]] * 3
    assert "a" not in workers.children
