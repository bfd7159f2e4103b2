"""Runs with their executed steps, and device hosts in threads of this process, for the tests of device hosts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.cluster.distributed.devices.device_host import DeviceHost
from pimserve.cluster.distributed.devices.driver import DeviceDriver, DriverSettings, HostPlace
from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.loadgen.workload import generate
from pimserve.scheduler.simulation import simulate
from pimserve.scheduler.steplog import StepLog

PEER_TIMEOUT_S = 5.0
OF_LAYERS = [[1.0 + (expert + layer) % 8 for expert in range(8)] for layer in range(32)]  # other ones are hot in each
SCENARIOS: Mapping[str, dict[str, Any]] = {
    "dense": {"model": "llama-3.1-8b", "cluster": {"device": "h100", "devices_per_node": 2}},
    "tp": {"model": "mixtral-8x7b", "cluster": {"device": "duplex", "devices_per_node": 4, "experts": "tp"}},
    "ep": {
        "model": "mixtral-8x7b",
        "cluster": {"device": "duplex", "nodes": 2, "devices_per_node": 4, "tensor_parallel": 4, "experts": "ep"},
    },
    "skewed": {
        "model": "mixtral-8x7b",
        "cluster": {"device": "duplex", "replicas": 2, "devices_per_node": 4, "tensor_parallel": 2},
        "routing": {"popularity": "zipf", "zipf_exponent": 1.0},
    },
    "exact": {
        "model": "mixtral-8x7b",
        "cluster": {"device": "duplex", "devices_per_node": 4, "tensor_parallel": 2},
        "routing": {"mode": "exact"},
    },
    "sliced": {
        "model": "mixtral-8x7b",
        "cluster": {"device": "duplex", "devices_per_node": 4, "experts": "tp"},
        "routing": {"mode": "exact"},
    },
    "placed": {
        "model": "mixtral-8x7b",
        "cluster": {
            "device": "duplex",
            "devices_per_node": 4,
            "tensor_parallel": 2,
            "expert_placement": {"order": "popularity", "redundant_experts": 4},
        },
        "routing": {"popularity": "zipf", "zipf_exponent": 1.0, "mode": "exact"},
    },
    "nodes": {
        "model": "mixtral-8x7b",
        "cluster": {"device": "duplex", "nodes": 2, "devices_per_node": 4, "tensor_parallel": 1},
    },
    "measured": {
        "model": "llama-3.1-8b",
        "cluster": {"device": "h100", "devices_per_node": 4},
        "costs": {"setting": "measured"},
    },
    "aimc": {"model": "mixtral-8x7b", "cluster": {"device": "aimc-realistic", "devices_per_node": 6}},
    "mixed": {
        "model": "mixtral-8x7b",
        "cluster": {
            "device": "duplex",
            "devices_per_node": 2,
            "placement": {"experts": {"device": "h100", "devices_per_node": 2}, "micro_batches": 2},
        },
    },
    "mixed-exact": {
        "model": "mixtral-8x7b",
        "cluster": {
            "device": "duplex",
            "devices_per_node": 2,
            "placement": {
                "experts": {"device": "h100", "nodes": 2, "devices_per_node": 2, "experts": "tp"},
                "micro_batches": 3,
            },
        },
        "routing": {"popularity": "zipf", "zipf_exponent": 1.0, "mode": "exact"},
    },
    "rebalanced": {
        "model": "mixtral-8x7b",
        "cluster": {
            "device": "duplex",
            "devices_per_node": 4,
            "expert_placement": {"order": "popularity", "rebalance": {"interval_s": 0.2}},
        },
        "routing": {"popularity": "zipf", "zipf_exponent": 1.0, "drift": {"interval_s": 0.1, "sigma": 0.5}},
    },
    "mixed-rebalanced": {
        "model": "mixtral-8x7b",
        "cluster": {
            "device": "duplex",
            "devices_per_node": 2,
            "placement": {"experts": {"device": "h100", "devices_per_node": 4}, "micro_batches": 2},
            "expert_placement": {"order": "popularity", "rebalance": {"interval_s": 0.2}},
        },
        "routing": {"popularity": "zipf", "zipf_exponent": 1.0, "drift": {"interval_s": 0.1, "sigma": 0.5}},
    },
    "mixed-aimc": {
        "model": "mixtral-8x7b",
        "cluster": {
            "device": "duplex",
            "devices_per_node": 2,
            "placement": {"experts": {"device": "aimc-realistic", "devices_per_node": 6}, "micro_batches": 1},
        },
    },
    "mixed-sliced": {
        "model": "mixtral-8x7b",
        "cluster": {
            "device": "duplex",
            "devices_per_node": 2,
            "placement": {
                "experts": {
                    "device": {"preset": "aimc-realistic", "spread": "experts", "tiers": 32},
                    "devices_per_node": 16,
                },
                "micro_batches": 2,
            },
        },
        "routing": {"popularity": "zipf", "zipf_exponent": 1.0, "mode": "exact"},
    },
    "hot": {
        "model": "mixtral-8x7b",
        "cluster": {
            "device": "duplex",
            "devices_per_node": 2,
            "placement": {
                "experts": {"device": "aimc-realistic", "devices_per_node": 6},
                "hot_experts": {"device": "h100", "devices_per_node": 2, "count": 2},
                "micro_batches": 2,
            },
        },
        "routing": {"popularity": "zipf", "zipf_exponent": 1.0},
    },
    "hot-exact": {
        "model": "mixtral-8x7b",
        "cluster": {
            "device": "duplex",
            "devices_per_node": 2,
            "placement": {
                "experts": {"device": "h100", "devices_per_node": 4, "experts": "tp"},
                "hot_experts": {"device": "duplex", "devices_per_node": 2, "experts": "ep", "count": 2},
                "micro_batches": 1,
            },
        },
        "routing": {"popularity": "given", "weights": OF_LAYERS, "mode": "exact"},
    },
    "aimc-dense": {"model": "llama-3.1-8b", "cluster": {"device": "aimc-realistic", "devices_per_node": 2}},
}


@dataclass(frozen=True)
class Run:
    """A scenario that was served: its logs, and blocks of (replica, rows, first steps)."""

    scenario: Scenario
    digest: str
    devices: int
    sizes: list[int]  # of the groups of its devices, attention's first
    logs: list[StepLog]
    blocks: list[tuple[int, IntArray, IntArray]]

    @property
    def document(self) -> str:
        return json.dumps(self.scenario.resolved())

    @property
    def keys(self) -> list[tuple[int, int]]:
        """All devices."""
        return [(log.costs.replica, device) for log in self.logs for device in range(self.devices)]

    def pieces(self, count: int) -> list[tuple[int, IntArray, IntArray]]:
        """The blocks, each in so many pieces of equal size, or a few less."""
        rows = -(-max(len(block) for _, block, _ in self.blocks) // count)
        return list(self.chunks(rows))

    def chunks(self, rows: int) -> Iterator[tuple[int, IntArray, IntArray]]:
        """The blocks, in pieces of so many rows."""
        for replica, block, first in self.blocks:
            for at in range(0, len(block), rows):
                yield replica, block[at : at + rows], first[at : at + rows]


@cache
def run(name: str, requests: int = 24) -> Run:
    """Serve one of SCENARIOS; where experts are drawn, each of its hundreds of steps costs."""
    lengths = {
        "input": {"kind": "lognormal", "median": 300, "sigma": 0.8, "max": 3000},
        "output": {"kind": "lognormal", "median": 40, "sigma": 0.7, "max": 300},
    }
    workload = {"num_requests": requests, "arrival": {"process": "poisson", "rate_per_s": 20}, "lengths": lengths}
    scenario = Scenario.model_validate({**SCENARIOS[name], "workload": workload})
    prepared = prepare(scenario)
    (pool,) = prepared.pools
    blocks: list[tuple[int, IntArray, IntArray]] = []
    served = simulate(
        prepared.pools,
        generate(scenario.workload, 0),
        scenario.scheduler,
        max_model_len=8192,
        routing=prepared.routing,
        write_rows=lambda number, rows, first: blocks.append((number, rows, first)),
    )
    sizes = [group.devices_per_replica for group in pool.members]
    return Run(scenario, pool.plan.digest(), pool.plan.devices, sizes, served.logs, blocks)


def placed(served: Run, names: list[str]) -> dict[str, list[tuple[int, int]]]:
    """The run's devices dealt to hosts in turns."""
    return {name: served.keys[place :: len(names)] for place, name in enumerate(names)}


@contextmanager
def hosts(count: int, token: str = "") -> Iterator[dict[str, tuple[DeviceHost, str]]]:
    """Hosts in this process, with their addresses."""
    with ExitStack() as stack:
        found = {}
        for number in range(count):
            host = DeviceHost(f"host-{number}", token, peer_timeout_s=PEER_TIMEOUT_S)
            found[f"host-{number}"] = (host, f"127.0.0.1:{host.start()}")
            stack.callback(host.stop, 0)  # calls between hosts stay open
        yield found


@contextmanager
def linked(served: Run, count: int, **settings: Any) -> Iterator[DeviceDriver]:
    """A link to hosts in this process that hold all devices of a run."""
    with hosts(count, settings.get("token", "")) as there:
        link = link_to(served, {name: address for name, (_, address) in there.items()}, **settings)
        try:
            yield link
        finally:
            link.close()


def link_to(served: Run, addresses: Mapping[str, str], **settings: Any) -> DeviceDriver:
    """A link to hosts at these addresses."""
    keys = placed(served, list(addresses))
    places = {name: HostPlace(address, {"": keys[name]}) for name, address in addresses.items()}
    link = DeviceDriver(served.document, {"": served.digest}, places, DriverSettings(**settings))
    link.connect()
    return link


def steps_of(block: IntArray, first: IntArray, most: int) -> tuple[IntArray, IntArray]:
    """The first rows of a block that have at most so many steps together."""
    upto = int(np.searchsorted(np.cumsum(block[:, 2]), most, side="right"))
    return block[:upto], first[:upto]
