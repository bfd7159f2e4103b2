"""Which devices each replica has, and what groups of them did, as messages tell it and a client reads it."""

import io
from types import SimpleNamespace

import pytest

from pimserve.cluster.cli.service_tables import ledger_table, placement_table
from pimserve.cluster.cli.terminal import write
from pimserve.cluster.client.answers import Ledgers, Placement, read
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.cluster.service.messages import ledgers_of, placement_of
from tests.cluster.documents import serve

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


def test_hot_experts_devices_are_a_group_between_the_others() -> None:
    placement = "{hot_experts: {device: b200, devices_per_node: 1, count: 2}, experts: {device: aimc-realistic}}"
    changes = [f"cluster.placement={placement}", "cluster.devices_per_node=2", "cluster.replicas=2"]
    prepared = prepare(load_scenario(None, [*changes, "routing={popularity: zipf, zipf_exponent: 1.0}"]))
    _, second = read(Placement, placement_of(SimpleNamespace(prepared=prepared))).replicas
    assert [group.group for group in second.groups] == ["attention", "hot_experts", "experts"]
    assert [group.device for group in second.groups] == ["duplex", "b200", "aimc-realistic"]
    first, last = second.first_device, second.first_device + second.devices
    assert [group.first_device for group in second.groups] == [first, first + 2, first + 3]
    assert [group.devices for group in second.groups] == [2, 1, last - first - 3]
    assert [group.parts[-1] for group in second.groups] == ["lm_head", "routed_experts", "routed_experts"]


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


def test_ledgers_tell_what_groups_did_with_their_time() -> None:
    prepared = prepare(
        load_scenario(
            None,
            ["cluster.devices_per_node=2", "cluster.placement={experts: {device: h100}}", "workload.num_requests=20"],
        )
    )
    summary, served = serve(prepared)
    found = read(Ledgers, ledgers_of(served.end_fs, [served.logs[0].ledger(0)]))
    for time, name in zip(found.ledgers[0].groups, ("attention", "experts"), strict=True):
        shares = summary["groups"][name]["shares_of_time"]
        assert time.group == name
        for part, share in shares.items():
            assert getattr(time, f"{part}_s") == pytest.approx(share * summary["end_s"])
    file = io.StringIO()
    write(ledger_table(found), file)
    assert [line.split()[:2] for line in file.getvalue().splitlines()[-2:]] == [["0", "attention"], ["0", "experts"]]
