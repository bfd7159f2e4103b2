"""Where a run computes: what was said is kept, and what means nothing is refused, in the caller's words."""

import pytest

from pimserve.cluster.distributed.place import Place
from pimserve.cluster.distributed.run_spread import Spread
from pimserve.errors import InputError
from pimserve.scheduler.config import SchedulerSpec

RAY = "ray://head:10001"


def field(name):
    return f"options.{name}"


@pytest.mark.parametrize(
    ("place", "spread"),
    [
        (Place(), Spread(1, "planned")),  # of a local run nobody asks
        (Place("processes"), Spread(1, "planned")),
        (Place("processes", 4, "lockstep", 2), Spread(4, "lockstep", 2)),
        (Place("processes", host_timeout_s=3), Spread(1, "planned", host_timeout_s=3)),
        (Place("ray", devices="none", shards=3), Spread(3)),
        (Place(RAY, resource=("duplex=1", "CPU=0.5")), Spread(1, "planned", resources=(("duplex", 1), ("CPU", 0.5)))),
    ],
    ids=str,
)
def test_what_was_said_means_this_and_can_be_kept(place, spread):
    assert place.spread() == spread
    assert Place(**place.document()) == place


@pytest.mark.parametrize(
    ("place", "lines"),
    [
        (
            Place(shards=2, host_timeout_s=3),
            [f"{option}: goes with --on: a local run is one process" for option in ("--shards", "--host-timeout")],
        ),
        (
            Place("processes", devices="none", devices_per_actor=2),
            ["--devices-per-actor: has no effect with --devices none"],
        ),
        (
            Place("ray", resource=("duplex=1",)),
            ["--resource: goes with --on auto, HOST:PORT or ray://HOST:PORT, whose nodes have resources"],
        ),
        (
            Place(RAY, devices="none", devices_per_actor=2, resource=("duplex", "a=1", "=1", "b=0", "c=nan")),
            [
                "--devices-per-actor: has no effect with --devices none",
                *(
                    f"--resource: must be NAME=N with N above 0, such as duplex=1 (got '{wrong}')"
                    for wrong in ("duplex", "=1", "b=0", "c=nan")
                ),
            ],
        ),
    ],
    ids=str,
)
def test_all_that_means_nothing_is_named(place, lines):
    with pytest.raises(InputError) as caught:
        place.spread()
    assert str(caught.value).splitlines() == lines


def test_options_are_named_as_whoever_gave_them_writes_them():
    with pytest.raises(InputError, match=r"^options.devices: goes with options.on: a local run is one process$"):
        Place(devices="lockstep").spread(field)
    with pytest.raises(InputError, match=r"^options.shards: 3 shards for 2 replicas; a shard needs one at least$"):
        Spread(3).checked(2, SchedulerSpec(), field)
    with pytest.raises(InputError, match=r"^options.shards: in lockstep each step waits"):
        Spread(2, "lockstep").checked(2, SchedulerSpec(), field)


def test_a_router_that_looks_at_each_arrival_is_refused_before_processes_start():
    looks = SchedulerSpec(router="least_kv")
    with pytest.raises(InputError, match=r"^scheduler.report_interval_s: is 0, so router 'least_kv' looks at all"):
        Spread(2).checked(2, looks, field)
    for spread, spec in ((Spread(1), looks), (Spread(2), SchedulerSpec(router="least_kv", report_interval_s=0.1))):
        assert spread.checked(2, spec, field) is spread
