"""Where launched runs compute: what a server allows, by the names of its contract, and what it says of a run later."""

import json

import pytest

from pimserve.cluster.base.rpc import rules
from pimserve.cluster.base.rpc.statuses import violations
from pimserve.cluster.client import calls
from pimserve.cluster.distributed.place import Place
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.cluster.service.launch_options import USUAL_PLACES, AllowedPlaces, options_of
from pimserve.cluster.service.run_registry import Registry, RunRequest
from pimserve.errors import InputError
from pimserve.v1 import simulation_pb2 as sim

RAY = AllowedPlaces(("ray", "ray://head:10001"))


@pytest.fixture(scope="module")
def two():
    """A run of 2 replicas of 4 devices."""
    return prepare(load_scenario(None, ["cluster.replicas=2"]))


def accepted(allowed, options, run):
    place = allowed.place_of(options)
    allowed.check_spread(place, run)
    return place


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({}, Place()),
        ({"on": "local", "speed": 3}, Place()),
        ({"on": "processes"}, Place("processes")),
        (
            {"on": "processes", "shards": 2, "devices": sim.DEVICE_ACTORS_PLANNED, "devices_per_actor": 3},
            Place("processes", 2, "planned", 3),
        ),
        ({"on": "processes", "devices": sim.DEVICE_ACTORS_NONE}, Place("processes", devices="none")),
    ],
    ids=str,
)
def test_what_is_allowed_without_more(options, place, two):
    assert accepted(USUAL_PLACES, sim.LaunchOptions(**options), two) == place


@pytest.mark.parametrize(
    ("allowed", "options", "fields"),
    [
        (USUAL_PLACES, {"on": "ray"}, ["options.on"]),
        (USUAL_PLACES, {"on": "10.0.0.1:6379"}, ["options.on"]),
        (RAY, {}, ["options.on"]),  # whoever says which places are allowed says all of them
        (RAY, {"on": "ray://head:10002"}, ["options.on"]),
        (RAY, {"shards": 2}, ["options.on", "options.shards"]),
        (USUAL_PLACES, {"shards": 1, "devices": sim.DEVICE_ACTORS_NONE}, ["options.shards", "options.devices"]),
        (USUAL_PLACES, {"devices_per_actor": 1}, ["options.devices_per_actor"]),
        (USUAL_PLACES, {"on": "processes", "shards": 3}, ["options.shards"]),
        (USUAL_PLACES, {"on": "processes", "shards": 2, "devices": sim.DEVICE_ACTORS_LOCKSTEP}, ["options.shards"]),
        (USUAL_PLACES, {"on": "processes", "resource": ["duplex=1"]}, ["options.resource"]),
        (RAY, {"on": "ray://head:10001", "resource": ["duplex", "x=-1"]}, ["options.resource", "options.resource"]),
    ],
    ids=str,
)
def test_what_is_refused_names_the_fields(allowed, options, fields, two):
    with pytest.raises(InputError) as caught:
        accepted(allowed, sim.LaunchOptions(**options), two)
    assert [field for field, _ in violations(caught.value)] == fields


def test_a_run_is_not_spread_over_more_hosts_than_the_server_allows(two):
    options = sim.LaunchOptions(on="processes", shards=2, devices_per_actor=1)
    assert accepted(AllowedPlaces(("processes",), 10), options, two).shards == 2
    with pytest.raises(InputError, match=r"options.devices_per_actor: the run would have 10 processes or actors; this"):
        accepted(AllowedPlaces(("processes",), 9), options, two)


def test_what_can_be_no_place_is_refused_as_the_server_starts():
    AllowedPlaces(("local", "processes", "ray", "auto", "head:6379", "ray://[::1]:10001")).check()
    for wrong in ("here", "head", "ray://head", "head:99999"):
        with pytest.raises(InputError, match=f"^--allow-on: must be local, processes, ray, .*got '{wrong}'"):
            AllowedPlaces((wrong,)).check()


@pytest.mark.parametrize(
    ("options", "broken"),
    [
        ({"shards": 0, "devices_per_actor": 0}, ["options.shards", "options.devices_per_actor"]),
        ({"shards": 4097, "devices": 4}, ["options.shards", "options.devices"]),
        ({"on": "x" * 301, "resource": ["a=1"] * 17}, ["options.on", "options.resource"]),
    ],
    ids=str,
)
def test_fields_have_ranges(options, broken):
    with pytest.raises(InputError) as caught:
        rules.check(sim.LaunchRequest(options=sim.LaunchOptions(**options)))
    assert [field for field, _ in violations(caught.value)] == broken


def test_it_is_kept_and_told_as_it_was_said(tmp_path, two):
    asked = {"on": "processes", "shards": 2, "devices": "planned", "devices_per_actor": 3, "host_timeout_s": 2.5}
    place = accepted(USUAL_PLACES, calls.launch("", speed=2, paused=True, **asked).request.options, two)
    registry = Registry(tmp_path / "registry")
    there = registry.add("a", RunRequest("n", 2, True, "", "", place=json.dumps(place.document())))
    here = registry.add("b", RunRequest("n", 0, True, "", ""))
    registry.close()
    told = calls.get("a").read(sim.GetResponse(run=sim.Run(options=options_of(there))))
    assert {name: getattr(told, name) for name in asked} == asked
    assert (told.speed, told.resource) == (2, ())
    told = calls.get("b").read(sim.GetResponse(run=sim.Run(options=options_of(here))))
    assert (told.on, told.shards, told.devices, told.devices_per_actor) == ("local", None, None, None)
    with pytest.raises(calls.ServiceError, match=r"options.devices: must be one of planned, lockstep, none"):
        calls.launch("", devices="some")
