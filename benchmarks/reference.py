"""The engine against the naive reference engine of the tests: python reference.py REQUESTS; prints JSON.

Llama-3.1-8B on one H100-class GPU, Azure-like traffic: a dense model, so that neither spends its time on drawing the
outcomes of experts, which both share. The reference takes every step by itself and sums over every request in it, as
simulators without aggregated state do. It gives the same times, which is checked.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from types import ModuleType

from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.plan import FS_PER_PS
from pimserve.loadgen.workload import generate
from pimserve.scheduler.costs import replica_offset
from pimserve.scheduler.simulation import simulate

_ROOT = Path(__file__).resolve().parents[1]
_RATE_PER_S = 4


def _of_tests(name: str) -> ModuleType:
    sys.path.append(str(_ROOT))  # whose bare names come after those that are installed
    return importlib.import_module(f"tests.scheduler.{name}")


def compare(requests: int) -> dict[str, float]:
    """Seconds of both engines on the same requests, and the steps that they took."""
    scenario = Scenario.model_validate(
        {
            "model": "llama-3.1-8b",
            "cluster": {"device": "h100", "devices_per_node": 1},
            "workload": {
                "preset": "azure-conv-2023",
                "num_requests": requests,
                "arrival": {"process": "poisson", "rate_per_s": _RATE_PER_S},
            },
        }
    )
    prepared = prepare(scenario)
    (pool,), model, routing = prepared.pools, prepared.model, prepared.routing
    workload = generate(scenario.workload, scenario.run.seed)
    scheduler = scenario.scheduler
    served = simulate(
        prepared.pools,
        workload,
        scheduler,
        max_model_len=model.max_model_len_tokens,
        routing=routing,
        seed=scenario.run.seed,
    )
    naive, coming = _of_tests("reference_runs"), _of_tests("reference_request")
    asked = [
        coming.ReferenceRequest(arrival * FS_PER_PS, prompt, output)
        for arrival, prompt, output in zip(
            workload.arrival_ps.tolist(), workload.input_tokens.tolist(), workload.output_tokens.tolist(), strict=True
        )
    ]
    began = time.perf_counter()
    result = naive.run_reference(
        pool.plan,
        None,
        mode=routing.mode,
        seed=scenario.run.seed,
        replica=0,
        offset=replica_offset(scenario.run.seed, 0),
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        block_size=scheduler.block_size,
        kv_capacity_blocks=pool.kv_blocks(scheduler.block_size),
        max_model_len=model.max_model_len_tokens,
        kv_admission=scheduler.kv_admission,
        requests=asked,
        concurrency=None,
        max_time_fs=None,
    )
    reference_s = time.perf_counter() - began
    if [row.finish_ps for row in result.requests] != served.table["finish_ps"].tolist():
        raise RuntimeError("the engine and the reference engine differ")
    return {"engine_s": served.loop_s, "reference_s": reference_s, "steps": len(result.steps)}


if __name__ == "__main__":
    print(json.dumps(compare(int(sys.argv[1]))))
