"""What the server passes on of a worker's news."""

import time

import pytest

from pimserve.cluster.service.folders import RunFolder
from pimserve.cluster.service.forwarding import _told
from pimserve.cluster.service.link import Link
from pimserve.v1 import scheduler_pb2 as sched
from pimserve.v1 import worker_pb2


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
    made = Link(RunFolder(tmp_path), None, None, heard.append)
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


def test_whoever_changed_a_run_does_not_hear_of_the_time_before(link):
    link._follow(lambda *_, **__: iter([news()]))
    link.changed()
    assert link.latest() is None
    link._follow(lambda *_, **__: iter([news()]))
    assert link.latest() is not None


def test_a_run_that_is_held_is_asked_itself(link):
    link._follow(lambda *_, **__: iter([news(held=True)]))
    assert link.latest() is None


def test_what_was_not_told_is_asked_for():
    said = news()
    assert _told(said, "GetReplicas", sched.GetReplicasRequest()) == said.replicas
    assert _told(said, "GetLatencies", sched.GetLatenciesRequest()) == said.latencies
    assert _told(said, "GetLatencies", sched.GetLatenciesRequest(percentiles=[75])) is None
    assert _told(said, "GetLedgers", sched.GetLedgersRequest()) is None
    assert _told(said, "DescribeRequest", sched.DescribeRequestRequest()) is None
    assert _told(None, "GetReplicas", sched.GetReplicasRequest()) is None
