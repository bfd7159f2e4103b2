"""The table of ranges: it speaks of fields that there are, and refuses what lies outside of it."""

import math

import pytest

from pimserve.cluster.base.rpc import rules
from pimserve.errors import InputError
from pimserve.v1 import scheduler_pb2 as sched
from pimserve.v1 import simulation_pb2 as sim
from pimserve.v1 import worker_pb2

ID = "0a1b2c3d"
MODULES = (sim, sched, worker_pb2)


def refused(request):
    with pytest.raises(InputError) as caught:
        rules.check(request)
    return str(caught.value)


def test_every_rule_is_about_a_field():
    for message, fields in rules.RULES.items():
        found = next(filter(None, (module.DESCRIPTOR.message_types_by_name.get(message) for module in MODULES)))
        assert set(fields) <= set(found.fields_by_name)


def test_every_request_of_a_run_is_checked_for_its_id():
    requests = [
        getattr(module, f"{name}")
        for module in MODULES
        for name, message in module.DESCRIPTOR.message_types_by_name.items()
        if "run_id" in message.fields_by_name
    ]
    assert len(requests) == 18
    for request in requests:
        assert "run_id: is missing" in refused(request())
        assert "run_id: has 65 bytes; 64 are allowed" in refused(request(run_id="a" * 65))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (sim.LaunchRequest(options={"speed": -1}), "options.speed: must be 0.001 to 1,000,000, or 0 (got -1)"),
        (sim.LaunchRequest(options={"speed": math.nan}), "options.speed: must be 0.001 to 1,000,000, or 0 (got nan)"),
        (sim.LaunchRequest(idempotency_key="a b"), "idempotency_key: must be up to 128 visible ASCII characters"),
        (sim.LaunchRequest(idempotency_key="a" * 129), "idempotency_key: has 129 bytes; 128 are allowed"),
        (sim.LaunchRequest(scenario={"yaml": "x" * (1 << 20) + "y"}), "scenario.yaml: has 1,048,577 bytes"),
        (sim.ListRequest(page_size=1001), "page_size: must be 0 to 1,000 (got 1001)"),
        (sim.ListRequest(page_token="1; drop table runs"), "page_token: must be the next_page_token"),
        (sim.ListRequest(states=[9]), "states: must be 1 to 7 (got 9)"),
        (sim.WatchRequest(run_id=ID, interval_s=0.01), "interval_s: must be 0.05 to 60, or 0 (got 0.01)"),
        (sched.ScaleRateRequest(run_id=ID), "factor: must be 0.01 to 100 (got 0)"),
        (sched.DescribeRequestRequest(run_id=ID, request=-1), "request: must be 0 to"),
        (sched.GetLatenciesRequest(run_id=ID, percentiles=[101]), "percentiles: must be 1e-06 to 100 (got 101)"),
        (sched.ChangeSchedulerRequest(run_id=ID, max_num_seqs=0), "max_num_seqs: must be 1 to 2,147,483,647 (got 0)"),
        (sched.InjectRequestsRequest(run_id=ID), "input_tokens: must have 1 to 10,000 entries (got 0)"),
        (
            sched.InjectRequestsRequest(run_id=ID, input_tokens=[1, 0], output_tokens=[1, 1]),
            "input_tokens: must be 1 to 1,000,000 (got 0)",
        ),
    ],
)
def test_what_is_out_of_range(request_, message):
    assert message in refused(request_)


def test_what_is_not_there_is_not_checked():
    rules.check(sched.ChangeSchedulerRequest(run_id=ID))
    rules.check(sim.LaunchRequest())


def test_all_broken_rules_are_named():
    lines = refused(sim.LaunchRequest(options={"speed": math.inf}, idempotency_key="ü")).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["options.speed", "idempotency_key"]
