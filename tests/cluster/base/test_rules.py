"""The table of ranges: it speaks of fields that there are, and refuses what lies outside of it."""

import math
import re
from pathlib import Path

import pytest

from pimserve.cluster.base.rpc import rules
from pimserve.cluster.base.rpc.statuses import RequestError
from pimserve.errors import InputError
from pimserve.v1 import scheduler_pb2 as sched
from pimserve.v1 import simulation_pb2 as sim
from pimserve.v1 import worker_pb2

ID = "0a1b2c3d"
MODULES = (sim, sched, worker_pb2)
PROTOS = Path(__file__).parents[3] / "protos" / "pimserve" / "v1"


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
    assert len(requests) == 20
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
        (sim.ListRequest(page_size=1001), "page_size: must be 1 to 1,000, or 0 (got 1001)"),
        (sim.ListRequest(page_token="1; drop table runs"), "page_token: must be the next_page_token"),
        (sim.ListRequest(states=[9]), "states[0]: must be 1 to 7 (got 9)"),
        (sim.WatchRequest(run_id=ID, interval_s=0.01), "interval_s: must be 0.05 to 60, or 0 (got 0.01)"),
        (sched.ScaleRateRequest(run_id=ID), "factor: must be 0.01 to 100 (got 0)"),
        (sched.DescribeRequestRequest(run_id=ID, request=-1), "request: must be 0 or more (got -1)"),
        (sched.GetLatenciesRequest(run_id=ID, percentiles=[101]), "percentiles[0]: must be 1e-06 to 100 (got 101)"),
        (sched.ChangeSchedulerRequest(run_id=ID, max_num_seqs=0), "max_num_seqs: must be 1 to 2,147,483,647 (got 0)"),
        (sched.InjectRequestsRequest(run_id=ID), "input_tokens: must have 1 to 10,000 entries (got 0)"),
        (
            sched.InjectRequestsRequest(run_id=ID, input_tokens=[1, 0], output_tokens=[1, 1]),
            "input_tokens[1]: must be 1 to 1,000,000 (got 0)",
        ),
        (sim.ChangeSpeedRequest(run_id=ID, speed=1e7), "speed: must be 0.001 to 1,000,000, or 0 (got 1e+07)"),
        (sim.LaunchRequest(labels={"Team": "a"}), "labels[Team]: its key must be of a-z, 0-9, dot, dash, underscore"),
        (sim.LaunchRequest(labels={"a" * 64: ""}), "]: its key has 64 bytes; 63 are allowed"),
        (sim.LaunchRequest(labels={"team": "a" * 256}), "labels[team]: has 256 bytes; 255 are allowed"),
        (sim.ListRequest(labels={f"{n}": "" for n in range(33)}), "labels: must have 32 entries at most (got 33)"),
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
    several = sched.InjectRequestsRequest(run_id=ID, input_tokens=[0, 1, -1], output_tokens=[1, 0, 1], delay_s=-1)
    with pytest.raises(RequestError) as caught:
        rules.check(several)
    broken = [field for field, _ in caught.value.fields]
    assert broken == ["input_tokens[0]", "input_tokens[2]", "output_tokens[1]", "delay_s"]


def comments():
    """By message and field, what the contract says of it; of a message under an empty name."""
    said = {}
    for file in PROTOS.glob("*.proto"):
        within, text = "", ""
        for line in map(str.strip, file.read_text().splitlines()):
            if line.startswith("//"):
                text += f"{line.lstrip('/ ')} "
                continue
            if found := re.match(r"message (\w+) \{", line):
                within = found[1]
                said[within, ""] = text
            elif found := re.match(r".* (\w+) = \d+( \[.*\])?;", line):
                said[within, found[1]] = text
            text = ""
    return said


def test_the_contract_states_the_limits():
    """A caller who has the .proto files alone knows what is allowed."""
    said = comments()
    missing = [
        f"{message}.{field}: {limit}"
        for message, fields in rules.RULES.items()
        for field, rule in fields.items()
        for limit in rule.limits
        if limit not in said[message, field] + said[message, ""]
    ]
    assert missing == []
    for file in ("simulation.proto", "scheduler.proto"):
        assert "64 bytes" in " ".join((PROTOS / file).read_text().split("syntax = ")[0].replace("//", "").split())
