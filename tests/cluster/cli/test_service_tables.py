"""What `pimserve query` and `pimserve list` draw: nothing is cut at 80 columns."""

import io
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.console import Console, RenderableType

from pimserve.cluster.cli.replica_tables import replica_table
from pimserve.cluster.cli.service_tables import (
    device_table,
    latency_table,
    ledger_table,
    placement_table,
    run_list,
)
from pimserve.cluster.client.answers import (
    Device,
    DeviceGroup,
    Devices,
    DeviceTraffic,
    GroupTime,
    Latencies,
    Latency,
    Ledger,
    Ledgers,
    Placement,
    Progress,
    Replica,
    ReplicaPlacement,
    Replicas,
    Run,
)
from pimserve.cluster.client.cache_answers import PrefixCacheState
from pimserve.cluster.client.replica_answers import PreemptionsByCause, RoutedTo, RouterState, SpecDecodeState

GROUPS = ("attention", "hot_experts", "experts")
PASSED = DeviceTraffic("tokens", 1, 123_456_789_012, 1, 23_456_789_012)
REPLICA = Replica(127, "", True, 9.0, 12_345_678, 256, 10_234, 255, 1_234_567, 45_678, 50_000, 7_654_321)
PLACED = ReplicaPlacement(127, "", 1024, 128, {"experts": "ep"}, 12_345_678, 123.0, "b200", ())


def drawn(table: RenderableType, width: int = 80) -> list[str]:
    screen = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    with screen.capture() as captured:
        screen.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def replicas() -> RenderableType:
    cached = PrefixCacheState(1000, 812, 0, 1, 0, 0)
    return replica_table(Replicas(9.0, (replace(REPLICA, pool="decode", up=False, prefix_cache=cached),)))


def ledgers() -> RenderableType:
    times = tuple(GroupTime(group, 12.34, 123.4, 1.2, 1.0) for group in GROUPS)
    busy = dict.fromkeys(("digital_units", "attention_units", "links_between_chips", "xpu"), 123.4)
    return ledger_table(Ledgers(9.0, (Ledger(127, busy, 1_234_567.0, 123_456_789.0, 1, 12_345_678, times),)))


def devices() -> RenderableType:
    busy = (12_345, 123.4, {}, 1_234_567.0, 1, 12_345_678, 45_678, 50_000, 1, 1, 1.0, 0, 0, (PASSED,))
    return device_table(
        Devices(9.0, tuple(Device(127, 13, "device-host-12", 0, *busy, each, "", ()) for each in GROUPS))
    )


def placement() -> RenderableType:
    groups = tuple(DeviceGroup(group, 1024, 128, "aimc-paper-table", (), {}, 123.0) for group in GROUPS)
    return placement_table(Placement("mixtral", "b200", (replace(PLACED, pool="decode", groups=groups),)))


def latencies() -> RenderableType:
    of_ttft = Latency(1_234_567, 1.23, dict.fromkeys((50, 75, 90, 95, 99, 99.9, 99.99, 99.999), 123.4))
    return latency_table(Latencies(9.0, 0.0, None, {"ttft": of_ttft}, 1, 1, 1.0, {}))


def runs() -> RenderableType:
    progress = Progress(123_456.0, 7_654_321, 1, 1_234_567, 0, 1, 1, 1, 1)
    began = (datetime.now(UTC), None, None)
    return run_list([Run("0123456789ab", "mixtral_duplex_of_mine", "cancelled", 0, *began, progress, "", 0, None)])


@pytest.mark.parametrize(
    ("table", "cells"),
    [
        (replicas, ["running", "decoding", "81.2 %", "12,345,678", "7,654,321"]),
        (ledgers, ["attention", "between", "1,234,567 J", "123,456,789 J", "12,345,678", "hot experts"]),
        (devices, ["13 hot experts", "device-host-12", "1,234,567 J", "12,345,678", "45,678", "23.5"]),
        (placement, ["decode hot experts", "aimc-paper-table", "1024..1151", "12,345,678", "weights", "123 GB"]),
        (latencies, ["p50", "p99.999", "123 s", "1,234,567"]),
        (runs, ["mixtral_duplex_of_mine", "cancelled", "1,234,567/7,654,321", "simulated", "launched"]),
    ],
)
def test_nothing_is_cut(table: Callable[[], RenderableType], cells: list[str]) -> None:
    lines = drawn(table())
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    assert not [cell for cell in cells if not any(cell in line for line in lines)]


def test_what_does_not_fit_is_below_with_the_same_keys() -> None:
    assert drawn(replicas()) == [
        f"{'prefix':>75}",
        "replica               running  waiting  decoding    context      KV    hits",
        "127      decode down      256   10,234       255  1,234,567  91.4 %  81.2 %",
        "",
        "replica                    steps       left",
        "127      decode down  12,345,678  7,654,321",
    ]


def test_preemptions_drafts_and_the_routers_decisions_are_below_the_replicas() -> None:
    """Of the causes and reasons that there were, and of the replicas that have any."""
    told = replace(
        REPLICA,
        preemptions_by_cause=PreemptionsByCause(recompute=12, swap=0, swap_space_full=1),
        spec_decode=SpecDecodeState(drafts_requests=1000, draft_tokens=3000, accepted_tokens=1200),
    )
    sent = RouterState(5, {"turn": 1, "load": 4}, (RoutedTo(127, 4, {"load": 4}), RoutedTo(128, 1, {"turn": 1})))
    lines = drawn(replica_table(Replicas(9.0, (told, replace(REPLICA, replica=128)), sent)))
    assert lines[lines.index("") :] == [
        "",
        "replica  preemptions  recompute  swap space full",
        "127               13         12                1",
        "",
        "replica  draft tokens  accepted  acceptance rate  acceptance length",
        "127             3,000     1,200           40.0 %               2.20",
        "",
        "routed to    requests  load  turn",
        "all                 5     4     1",
        "replica 127         4     4     0",
        "replica 128         1     0     1",
    ]


@pytest.mark.parametrize("table", [replicas, ledgers, devices, placement, latencies, runs])
@pytest.mark.parametrize("width", [30, 40])
def test_on_a_narrow_screen_text_breaks_and_figures_stay_whole(table: Callable[[], RenderableType], width: int) -> None:
    lines = drawn(table(), width)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)


def test_where_there_is_room_headings_are_whole() -> None:
    wide = drawn(replicas(), 120)
    assert len(wide) == 2
    assert "prefix hits" in wide[0]


def test_a_column_without_any_cell_is_left_out() -> None:
    """Of pools, or replicas that are down."""
    plain = drawn(replica_table(Replicas(9.0, (REPLICA,))))
    assert plain[0] == "replica  running  waiting  decoding    context      KV       steps       left"
    assert drawn(placement_table(Placement("mixtral", "b200", (PLACED,))))[2:] == [
        "replica  device     devices   KV tokens  weights per device",
        "127      b200    1024..1151  12,345,678              123 GB",
    ]
