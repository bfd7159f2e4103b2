"""Runs on a device whose every step takes 10 ms, and their summaries."""

import json
from typing import Any

import numpy as np

from pimserve.device_models.plan import CostPlan, Energy, RowTerm
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.slo import SloSpec
from pimserve.loadgen.workload import Workload
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.simulation import Served
from pimserve.scheduler.summary import summarize
from pimserve.scheduler.usage import Hardware

from .pools import simulate_on

LAYERS = RowTerm("layers", "fc", "xpu", "tokens", ((10**13, 0),), Energy(5 * 10**12, 10**12, 2 * 10**12))
PLAN = CostPlan(2, 1, ("xpu",), (LAYERS,), (), (), None)
NO_LIMITS = SloSpec()


def serve(requests: list[tuple[float, int, int]], *, concurrency: int | None = None, **changes: Any) -> Served:
    """Serve (arrival s, input, output)."""
    arrival, inputs, outputs = (np.array(column) for column in zip(*requests, strict=True))
    rate = (len(arrival) - 1) / np.ptp(arrival) if np.ptp(arrival) else None
    return simulate_on(
        **{
            "plan": PLAN,
            "workload": Workload(
                np.rint(arrival * 1e12).astype(np.int64), inputs, outputs, concurrency, rate, "", 0, {}
            ),
            "spec": SchedulerSpec(),
            "kv_capacity_tokens": 16000,
            "max_model_len": 1600,
            **changes,
        }
    )


def summary(requests: list[tuple[float, int, int]], slo: SloSpec = NO_LIMITS, **changes: Any) -> dict[str, Any]:
    found = summarize(serve(requests, **changes), Objectives(slo), Hardware(2)).document()
    json.dumps(found, allow_nan=False)  # a summary is plain JSON
    return found
