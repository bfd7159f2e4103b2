"""Tables of device actors say which group of devices each belongs to."""

import io
from types import SimpleNamespace

from numpy.lib.recfunctions import repack_fields

from pimserve.cluster.cli.service_tables import device_table
from pimserve.cluster.cli.terminal import write
from pimserve.cluster.client.answers import Devices, read
from pimserve.cluster.distributed.actor_ledgers import DeviceActorState, Passed
from pimserve.cluster.distributed.device_results import device_table as results_table
from pimserve.cluster.distributed.devices.ledgers import DeviceLedger
from pimserve.cluster.run.actor_tables import device_actor_table
from pimserve.cluster.scenario.device_groups import DeviceGroup
from pimserve.cluster.service.device_queries import DeviceQueries

LEDGER = DeviceLedger(
    replica=0,
    device=0,
    steps=3,
    busy_fs=10**15,
    experts_fs=0,
    unit_fs={"xpu": 10**15},
    category_fs={},
    energy_pj={("fc", "dram"): 10**12},
    tokens=7,
    outputs=2,
    kv_blocks=4,
    peak_kv_blocks=6,
    kv_blocks_sent=0,
    kv_blocks_received=0,
    weight_bytes=10**9,
    audited_rows=0,
)


def states(*names: str) -> list[DeviceActorState]:
    """Devices of groups of these names, in actors of their own."""
    return [
        DeviceActorState(
            LEDGER,
            f"devices-{number}",
            0,
            {"dispatch": Passed(5, 50, 4, 40)},
            DeviceGroup(name, range(number, number + 1), SimpleNamespace(label=f"kind-{number}"), ("attention",)),
        )
        for number, name in enumerate(names)
    ]


def test_results_and_their_table_name_groups_where_there_are_some() -> None:
    table = results_table(states("attention", "hot_experts"))
    assert table["group"].tolist() == ["attention", "hot_experts"]
    assert table["kind"].tolist() == ["kind-0", "kind-1"]
    rows = [row.label for row in device_actor_table(table).rows]
    assert rows == ["replica 0, device 0, attention", "replica 0, device 0, hot experts"]
    assert [row.label for row in device_actor_table(results_table(states(""))).rows] == ["replica 0, device 0"]
    older = [name for name in table.dtype.names if name not in {"group", "kind"}]
    assert device_actor_table(repack_fields(table[older])).rows[0].label == "replica 0, device 0"


def test_what_a_client_asks_for_names_groups_and_kinds() -> None:
    queries = DeviceQueries()
    queries.attach(SimpleNamespace(device_states=lambda: states("attention", "experts", "")))
    devices = read(Devices, queries.devices(0))
    assert [(device.group, device.kind, device.parts) for device in devices.devices] == [
        ("attention", "kind-0", ("attention",)),
        ("experts", "kind-1", ("attention",)),
        ("", "kind-2", ("attention",)),
    ]
    file = io.StringIO()
    write(device_table(devices), file)
    lines = file.getvalue().splitlines()[-3:]
    for line, what in zip(lines, ("0 attention", "0 experts", "0 "), strict=True):
        assert what in line
