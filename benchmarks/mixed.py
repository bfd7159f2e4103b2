"""Replicas with experts on devices of their own beside a plain one: python mixed.py REQUESTS RUNS; prints JSON.

Mixtral-8x7B on 4 Duplex devices, and with attention on 2 of them and experts on others, in 2 and 3 micro-batches, under
lengths of Azure conversations and under long ones (1024 in, 1024 out): at a tenth and at nine tenths of what each
finishes when it is offered too much. All are simulated in one process, in turns, so that other work on the machine
meets all alike, and CPU time is measured beside that of the clock.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.prepared import Prepared, prepare
from pimserve.loadgen.workload import Workload, generate
from pimserve.scheduler.simulation import Served, simulate

_DUPLEX = {"device": "duplex", "experts": "tp"}
_EXPERTS: dict[str, dict[str, Any]] = {
    "8 AIMC chips": {"device": {"preset": "aimc-realistic", "spread": "experts"}, "devices_per_node": 8},
    "2 H100": {"device": "h100", "devices_per_node": 2, "experts": "ep"},
}
_LENGTHS: dict[str, dict[str, Any]] = {
    "Azure": {"preset": "azure-conv-2023"},
    "1024 in / 1024 out": {
        "lengths": {"input": {"kind": "fixed", "tokens": 1024}, "output": {"kind": "fixed", "tokens": 1024}}
    },
}
_LOADS = {"light": 0.1, "near saturation": 0.9}
_TOO_MUCH_PER_S = 200.0


def clusters() -> dict[str, dict[str, Any]]:
    """By name, the plain one first."""
    found: dict[str, dict[str, Any]] = {"plain, 4 Duplex": {**_DUPLEX, "devices_per_node": 4}}
    for name, experts in _EXPERTS.items():
        for parts in (2, 3):
            placement = {"experts": experts, "micro_batches": parts}
            cluster = {"device": "duplex", "devices_per_node": 2, "placement": placement}
            found[f"2 Duplex and {name}, {parts} micro-batches"] = cluster
    return found


class Case:
    """A cluster under a load."""

    def __init__(self, cluster: dict[str, Any], lengths: dict[str, Any], requests: int, rate_per_s: float) -> None:
        arrival = {"process": "poisson", "rate_per_s": rate_per_s}
        workload = {**lengths, "num_requests": requests, "arrival": arrival}
        document = {"model": "mixtral-8x7b", "cluster": cluster, "workload": workload}
        self.scenario = Scenario.model_validate(document)
        self.prepared: Prepared = prepare(self.scenario)
        self.workload: Workload = generate(self.scenario.workload, 0)
        self.cpu_s: list[float] = []
        self.loop_s: list[float] = []

    def serve(self) -> Served:
        """Serve all requests, and take the time."""
        began = time.process_time()
        served = simulate(
            self.prepared.pools,
            self.workload,
            self.scenario.scheduler,
            max_model_len=self.prepared.model.max_model_len_tokens,
            routing=self.prepared.routing,
        )
        self.cpu_s.append(time.process_time() - began)
        self.loop_s.append(served.loop_s)
        return served


def capacity_per_s(cluster: dict[str, Any], lengths: dict[str, Any], requests: int) -> float:
    """Requests that finish per second when too many arrive, from when a quarter has, until three quarters have."""
    finish_ps = Case(cluster, lengths, requests, _TOO_MUCH_PER_S).serve().table["finish_ps"]
    finish_ps.sort()
    first, last = requests // 4, 3 * requests // 4
    return float((last - first) * 1e12 / (finish_ps[last] - finish_ps[first]))


def measure(requests: int, runs: int) -> list[dict[str, Any]]:
    """Figures of all cases, each the best of the runs."""
    figures = []
    for length, lengths in _LENGTHS.items():
        capacities = {name: capacity_per_s(cluster, lengths, requests) for name, cluster in clusters().items()}
        for load, share in _LOADS.items():
            cases = {
                name: Case(cluster, lengths, requests, share * capacities[name]) for name, cluster in clusters().items()
            }
            for _ in range(runs):
                served = {name: case.serve() for name, case in cases.items()}
            for name, case in cases.items():
                log = served[name].logs[0]
                figures.append(
                    {
                        "what": f"{name}, {length}, {load}",
                        "plain": "placement" not in clusters()[name],
                        "load": load,
                        "requests": requests,
                        "rate_per_s": share * capacities[name],
                        "of_capacity": share,
                        "steps": log.steps,
                        "mean_batch": log.batch_steps / log.steps,
                        "steps_per_span": log.steps / log.spans,
                        "loop_s": case.loop_s,
                        "cpu_s": case.cpu_s,
                    }
                )
    return figures


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2])), indent=2))
