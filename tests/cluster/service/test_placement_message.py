"""Which devices each replica has, as the message tells it and a client reads it."""

import io
from types import SimpleNamespace

from pimserve.cluster.cli.service_tables import placement_table
from pimserve.cluster.cli.terminal import write
from pimserve.cluster.client.answers import Placement, read
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.cluster.service.messages import placement_of

DECODE = "{devices_per_node: 2, replicas: 2, placement: {experts: {device: h100, devices_per_node: 4}}}"


def test_groups_of_devices_are_told_where_there_are_some() -> None:
    pools = f"{{prefill: {{device: h100, devices_per_node: 2}}, decode: {DECODE}}}"
    prepared = prepare(load_scenario(None, [f"cluster.pools={pools}"]))
    found = read(Placement, placement_of(SimpleNamespace(prepared=prepared)))
    prefill, *decode = found.replicas
    assert (prefill.first_device, prefill.devices, prefill.groups) == (0, 2, ())
    assert [(replica.first_device, replica.devices) for replica in decode] == [(2, 6), (8, 6)]
    attention, experts = decode[1].groups
    assert (attention.group, attention.first_device, attention.devices) == ("attention", 8, 2)
    assert (experts.group, experts.first_device, experts.devices) == ("experts", 10, 4)
    assert (attention.device, experts.device, decode[1].device) == ("duplex", "h100", "duplex + h100")
    assert (attention.parts, experts.parts) == (("attention", "lm_head"), ("routed_experts",))
    assert (attention.parallelism["tensor"], experts.parallelism["tensor"]) == ("2", "4")
    assert experts.weights_gb_per_device > 20 > attention.weights_gb_per_device


def test_the_table_has_a_row_for_each_group() -> None:
    prepared = prepare(
        load_scenario(None, ["cluster.devices_per_node=2", "cluster.placement={experts: {device: h100}}"])
    )
    file = io.StringIO()
    write(placement_table(read(Placement, placement_of(SimpleNamespace(prepared=prepared)))), file)
    rows = [line.split() for line in file.getvalue().splitlines()[-2:]]
    tokens = f"{prepared.pools[0].kv_capacity_tokens:,}"
    assert [row[:5] for row in rows] == [
        ["0", "attention", "duplex", "0..1", tokens],
        ["0", "experts", "h100", "2..3", "-"],
    ]
